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
