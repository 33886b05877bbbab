//! Formats with a sign bit and a magnitude of 7 bits.

use super::*;

/// Both planes of the magnitudes, of which a permutation of two registers holds one each. A block has `SCALES` groups.
pub(super) struct SignMagnitude<'a, const SCALES: usize> {
    lower: [__m512i; 2],
    upper: [__m512i; 2],
    scales: &'a [f32; 256],
}

impl<'a, const SCALES: usize> SignMagnitude<'a, SCALES> {
    /// Needs AVX-512 F; the values are those of bf16 and the first 128 not negative.
    pub(super) fn new(values: &[f32], scales: &'a [f32; 256]) -> Self {
        let values = &values[..128];
        debug_assert!(values.iter().all(|value| value.is_sign_positive() && value.to_bits() & 0xFFFF == 0));
        // SAFETY: kernels are prepared only where there are the instructions of the level.
        let plane = |byte| plane::<2>(values, byte).map(|bytes| unsafe { load(&bytes) });
        Self { lower: plane(2), upper: plane(3), scales }
    }
}

impl<const SCALES: usize> Block for SignMagnitude<'_, SCALES> {
    type V = __m512;
    const CODE_BYTES: usize = 64;
    const SCALES: usize = SCALES;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        bf16_column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m512> {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            // The sign bit of a code is not looked at.
            let [lower, upper] = [self.lower, self.upper].map(|[a, b]| _mm512_permutex2var_epi8(a, codes, b));
            // upper | codes & 0x80
            let upper = _mm512_ternarylogic_epi32::<0b1111_1000>(upper, codes, _mm512_set1_epi8(i8::MIN));
            (join_planes(upper, lower), super::scales::<SCALES>(self.scales, scales))
        }
    }
}

/// The same magnitudes with a sign as integers, of which 1 is [`ONE`](panel::ONE).
pub(super) struct Magnitudes {
    lower: [__m512i; 2],
    upper: [__m512i; 2],
    units: Box<[f32; 256]>,
}

impl Magnitudes {
    /// `None` if a scale is too small, or [`magnitudes`] are none. Needs AVX-512 F.
    pub(super) fn new(header: &Header, values: &[f32], scales: &[f32; 256]) -> Option<Self> {
        let integers = magnitudes(header, values)?.map(|magnitude| magnitude.round_ties_even() as u16);
        let plane = |i: usize| {
            let plane = |first: usize| std::array::from_fn(|code| integers[first + code].to_le_bytes()[i]);
            // SAFETY: kernels are prepared only where there are the instructions of the level.
            [0, 64].map(|first| unsafe { load(&plane(first)) })
        };
        let units = scales_of_integers(scales, panel::ONE / 128.0)?;
        Some(Self { lower: plane(0), upper: plane(1), units })
    }
}

impl panel::Whole for Magnitudes {
    type I = __m512i;

    fn column(place: usize) -> usize {
        panel::unpacked(place)
    }

    fn units(&self) -> &[f32; 256] {
        &self.units
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: &[u8; panel::TWO]) -> [panel::Pairs; 2] {
        // SAFETY: as the caller promises; the array has 64 bytes.
        unsafe {
            let codes = _mm512_loadu_si512(codes.as_ptr().cast());
            let [lower, upper] = [self.lower, self.upper].map(|[a, b]| _mm512_permutex2var_epi8(a, codes, b));
            // upper | codes & 0x80
            let upper = _mm512_ternarylogic_epi32::<0b1111_1000>(upper, codes, _mm512_set1_epi8(i8::MIN));
            let wide = [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)];
            // A sign and a magnitude, taken from the sign alone, is the negative magnitude.
            let sign = _mm512_set1_epi16(i16::MIN);
            let [first, second] = wide.map(|x| _mm512_mask_sub_epi16(x, _mm512_movepi16_mask(x), sign, x));
            // Halves are groups.
            let group = _mm512_inserti64x4::<1>(first, _mm512_castsi512_si256(second));
            let next = _mm512_shuffle_i64x2::<0b11_10_11_10>(first, second);
            std::mem::transmute([group, next])
        }
    }
}
