//! Formats that keep the bits of a 16-bit float.

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
