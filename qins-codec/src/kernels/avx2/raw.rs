//! Codes that are numbers without a table: 16-bit floats and bytes.

use super::*;

/// IEEE half precision.
pub(super) struct Half;

impl Block for Half {
    type V = __m256;
    const CODE_BYTES: usize = 64;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises; the level has F16C.
        unsafe {
            let mut weights = [_mm256_setzero_ps(); VECTORS];
            for (j, weights) in weights.iter_mut().enumerate() {
                *weights = _mm256_cvtph_ps(_mm_loadu_si128(codes.add(16 * j).cast()));
            }
            (weights, _mm256_setzero_ps())
        }
    }
}

/// The upper halves of f32.
pub(super) struct Brain;

impl Block for Brain {
    type V = __m256;
    const CODE_BYTES: usize = 64;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        let (vector, lane) = (lane / 8, lane % 8);
        16 * (vector / 2) + 2 * lane + vector % 2
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises.
        unsafe {
            let [first, second] = [0, 32].map(|at| _mm256_loadu_si256(codes.add(at).cast()));
            (widen(first, second), _mm256_setzero_ps())
        }
    }
}

/// Upper bytes of integers that end in 128 and zeros.
pub(super) struct Linear {
    /// 128 in all bytes. Known to the compiler, it would be put there by shuffles.
    lower: __m256i,
}

impl Linear {
    /// Needs AVX2.
    pub(super) fn new() -> Self {
        // SAFETY: kernels are prepared only where there is AVX2.
        Self { lower: std::hint::black_box(unsafe { _mm256_set1_epi8(i8::MIN) }) }
    }

    /// The integers of 32 upper bytes.
    ///
    /// # Safety
    /// Needs AVX2.
    #[inline(always)]
    pub(super) unsafe fn widen(&self, bytes: __m256i) -> [__m256; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe {
            let wide = widen(_mm256_unpacklo_epi8(self.lower, bytes), _mm256_unpackhi_epi8(self.lower, bytes));
            wide.map(|wide| _mm256_cvtepi32_ps(_mm256_castps_si256(wide)))
        }
    }
}

impl Block for Linear {
    type V = __m256;
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        bf16_column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises.
        unsafe { (self.widen(_mm256_loadu_si256(codes.cast())), _mm256_setzero_ps()) }
    }
}
