//! Codes that are numbers without a table: 16-bit floats and bytes.

use super::*;

/// IEEE half precision.
pub(super) struct Half;

impl Block for Half {
    type V = __m512;
    const CODE_BYTES: usize = 128;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<__m512> {
        // SAFETY: as the caller promises.
        unsafe {
            let half = |j: usize| _mm512_cvtph_ps(_mm256_loadu_si256(codes.add(32 * j).cast()));
            ([half(0), half(1), half(2), half(3)], _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn decode_part(&self, codes: &[u8], _: &[u8]) -> Decoded<__m512> {
        // SAFETY: as the caller promises.
        let mut weights = [unsafe { _mm512_setzero_ps() }; VECTORS];
        for (weights, codes) in weights.iter_mut().zip(codes.chunks(32)) {
            let mask = u16::MAX >> (16 - codes.len() / 2);
            // SAFETY: as the caller promises; the mask leaves out what is not of the chunk.
            unsafe {
                *weights = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, codes.as_ptr().cast()));
            }
        }
        // SAFETY: as the caller promises.
        (weights, unsafe { _mm512_setzero_ps() })
    }
}

/// The upper halves of f32.
pub(super) struct Brain;

impl Block for Brain {
    type V = __m512;
    const CODE_BYTES: usize = 128;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        let (vector, lane) = (lane / 16, lane % 16);
        32 * (vector / 2) + 2 * lane + vector % 2
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<__m512> {
        // SAFETY: as the caller promises.
        unsafe {
            let [first, second] = [0, 64].map(|at| _mm512_loadu_si512(codes.add(at).cast()));
            (widen(first, second), _mm512_setzero_ps())
        }
    }
}

/// Upper bytes of integers that end in 128 and zeros.
pub(super) struct Linear {
    /// 128 in all bytes. Known to the compiler, it would be put there by shuffles.
    lower: __m512i,
}

impl Linear {
    /// Needs AVX-512 F.
    pub(super) fn new() -> Self {
        // SAFETY: kernels are prepared only where there are the instructions of the level.
        Self { lower: std::hint::black_box(unsafe { _mm512_set1_epi8(i8::MIN) }) }
    }

    /// The integers of 64 upper bytes.
    ///
    /// # Safety
    /// Needs AVX-512 BW.
    #[inline(always)]
    unsafe fn widen(&self, bytes: __m512i) -> [__m512; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe {
            let wide = widen(_mm512_unpacklo_epi8(self.lower, bytes), _mm512_unpackhi_epi8(self.lower, bytes));
            wide.map(|wide| _mm512_cvtepi32_ps(_mm512_castps_si512(wide)))
        }
    }
}

impl Block for Linear {
    type V = __m512;
    const CODE_BYTES: usize = 64;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        bf16_column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<__m512> {
        // SAFETY: as the caller promises.
        unsafe { (self.widen(_mm512_loadu_si512(codes.cast())), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn decode_part(&self, codes: &[u8], _: &[u8]) -> Decoded<__m512> {
        // SAFETY: as the caller promises; the mask leaves out what is not of the slice.
        unsafe {
            let mask = u64::MAX.checked_shr(64 - codes.len() as u32).unwrap_or(0);
            (self.widen(_mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast())), _mm512_setzero_ps())
        }
    }
}
