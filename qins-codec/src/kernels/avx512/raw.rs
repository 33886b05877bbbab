//! Formats that keep the bits of a 16-bit float.

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
