//! Formats of 2 to 6 bits: groups of 16 that choose among four tables.

use super::*;

/// 64 bytes by their index.
macro_rules! bytes {
    ($i:ident => $byte:expr) => {{
        let mut bytes = [0u8; 64];
        let mut $i = 0;
        while $i < 64 {
            bytes[$i] = ($byte) as u8;
            $i += 1;
        }
        bytes
    }};
}

/// Tables of at most 16 entries: a register of scaled f32 for each scale code.
pub(super) struct Scaled<const BITS: usize>(Box<[Table; 256]>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Table([f32; 16]);

impl<const BITS: usize> Scaled<BITS> {
    pub(super) fn new(values: &[f32], scales: &[f32; 256]) -> Self {
        let entries = 1 << BITS;
        // Fewer than 16 are repeated: a lookup heeds four bits.
        let table =
            |code: usize| Table(std::array::from_fn(|i| values[code % 4 * entries + i % entries] * scales[code]));
        Self(Box::new(std::array::from_fn(table)))
    }
}

impl<const BITS: usize> Block for Scaled<BITS> {
    type V = __m512;
    const CODE_BYTES: usize = 8 * BITS;
    const SCALES: usize = VECTORS;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m512> {
        const { assert!(BITS <= 4) };
        // SAFETY: as the caller promises; a load of 8 bytes ends where those of the block do, or before.
        unsafe {
            let mut weights = [_mm512_setzero_ps(); VECTORS];
            for (group, weights) in weights.iter_mut().enumerate() {
                let first = (group * 2 * BITS).min(Self::CODE_BYTES - 8);
                let skipped = 8 * (group * 2 * BITS - first);
                let bytes = _mm512_set1_epi64(codes.add(first).cast::<i64>().read_unaligned());
                let shifts = code_shifts::<BITS>(skipped);
                let codes = _mm512_multishift_epi64_epi8(load(&shifts), bytes);
                let table = &self.0[usize::from(*scales.add(group))].0;
                *weights = _mm512_permutexvar_ps(codes, _mm512_load_ps(table.as_ptr()));
            }
            (weights, _mm512_setzero_ps())
        }
    }
}

/// Where code `i` starts among 64 bits, in the first of each four bytes; bits before them are `skipped`.
#[inline(always)]
fn code_shifts<const BITS: usize>(skipped: usize) -> [u8; 64] {
    std::array::from_fn(|i| (skipped + i / 4 * BITS) as u8)
}

/// Tables of 64 entries, all four one after the other in two planes of bytes.
pub(super) struct Shaped64 {
    lower: [__m512i; 4],
    upper: [__m512i; 4],
    /// Of the scale codes without sign and shape.
    scales: [__m512; 2],
}

impl Shaped64 {
    /// The values are those of bf16. Needs AVX-512 F.
    pub(super) fn new(values: &[f32], scales: &[f32; 256]) -> Self {
        let values: &[f32; 256] = values.try_into().expect("four tables of 64 entries");
        debug_assert!(values.iter().all(|value| value.to_bits() & 0xFFFF == 0));
        let sign = |code: usize| if code < 128 { 1.0 } else { -1.0 };
        debug_assert!((0..256).all(|code| scales[code] == scales[code & 0x7C] * sign(code)));
        let magnitudes: [f32; 32] = std::array::from_fn(|code| scales[code << 2]);
        // SAFETY: kernels are prepared only where there are the instructions of the level; there are 32 scales.
        unsafe {
            let plane = |byte| plane::<4>(values, byte).map(|bytes| load(&bytes));
            let scales = [0, 16].map(|first| _mm512_loadu_ps(magnitudes[first..].as_ptr()));
            Self { lower: plane(2), upper: plane(3), scales }
        }
    }
}

impl Block for Shaped64 {
    type V = __m512;
    const CODE_BYTES: usize = 48;
    const SCALES: usize = 4;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        bf16_column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m512> {
        /// Eight codes are six bytes: those to each 64 bits, and out of them a byte from each code on.
        const SPREAD: [u8; 64] = bytes!(i => i / 8 * 6 + i % 8);
        const CODES: [u8; 64] = bytes!(i => i % 8 * 6);
        /// Of the four scale codes, that of the quarter: its shape after six bits, and for each lane its magnitude in the
        /// lowest bits and its sign in the highest.
        const SHAPES: [u8; 64] = bytes!(i => (i / 16 * 8 + 58) % 64);
        const SCALES: [u8; 64] = bytes!(i => i / 16 * 8 + if i % 4 == 0 { 2 } else { 0 });
        // SAFETY: as the caller promises; bytes that the mask leaves out are not read.
        unsafe {
            let codes = _mm512_maskz_loadu_epi8(u64::MAX >> 16, codes.cast());
            let codes = _mm512_permutexvar_epi8(load(&SPREAD), codes);
            let codes = _mm512_multishift_epi64_epi8(load(&CODES), codes);
            // Twice in 64 bits, which shifts go round.
            let scales = _mm512_set1_epi32(scales.cast::<i32>().read_unaligned());
            let shapes = _mm512_multishift_epi64_epi8(load(&SHAPES), scales);
            // Six bits of the code, two of the shape.
            let codes = _mm512_ternarylogic_epi32::<CHOOSE>(_mm512_set1_epi8(0x3F), codes, shapes);

            let last = _mm512_movepi8_mask(codes);
            let [lower, upper] = [self.lower, self.upper].map(|[a, b, c, d]| {
                let (first, second) = (_mm512_permutex2var_epi8(a, codes, b), _mm512_permutex2var_epi8(c, codes, d));
                _mm512_mask_blend_epi8(last, first, second)
            });

            let scales = _mm512_multishift_epi64_epi8(load(&SCALES), scales);
            let magnitudes = _mm512_permutex2var_ps(self.scales[0], scales, self.scales[1]);
            let sign = _mm512_set1_epi32(i32::MIN);
            let scales = _mm512_ternarylogic_epi32::<CHOOSE>(sign, scales, _mm512_castps_si512(magnitudes));
            (join_planes(upper, lower), _mm512_castsi512_ps(scales))
        }
    }
}

/// Of three numbers, bits of the second where the first has ones, else of the third.
const CHOOSE: i32 = 0b1100_1010;
