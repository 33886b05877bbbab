//! Codes that are numbers without a table: 16-bit floats and 8-bit integers.

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

/// Widens 8-bit integers.
pub(super) struct Bytes {
    /// They put four bytes of either half into the upper bytes of 32 bits, over zeros. Known to the compiler, they would
    /// become slower instructions.
    upper: [__m256i; VECTORS],
}

impl Bytes {
    /// Needs AVX2.
    pub(super) fn new() -> Self {
        let upper = std::array::from_fn(|vector| {
            let bytes: [u8; 32] =
                std::array::from_fn(|i| if i % 4 == 3 { (4 * vector + i % 16 / 4) as u8 } else { 0x80 });
            // SAFETY: kernels are prepared only where there is AVX2; the array has as many bytes.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        });
        Self { upper: std::hint::black_box(upper) }
    }

    /// The column in a lane of widened bytes.
    pub(super) fn column(lane: usize) -> usize {
        let (vector, half, lane) = (lane / 8, lane / 4 % 2, lane % 4);
        16 * half + 4 * vector + lane
    }

    /// 32 bytes as numbers, times [`WIDENED`].
    ///
    /// # Safety
    /// Needs AVX2.
    #[inline(always)]
    pub(super) unsafe fn widen(&self, bytes: __m256i) -> [__m256; VECTORS] {
        // SAFETY: as the caller promises.
        self.upper.map(|upper| unsafe { _mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, upper)) })
    }
}

/// 8-bit integers, in groups of 32 with a scale.
pub(super) struct Integers {
    bytes: Bytes,
    /// For them as [`Bytes`] widens them.
    scales: Box<[f32; 256]>,
}

impl Integers {
    /// `None` if a scale is too small. Needs AVX2.
    pub(super) fn new(scales: &[f32; 256]) -> Option<Self> {
        Some(Self { bytes: Bytes::new(), scales: scales_of_integers(scales, WIDENED)? })
    }
}

impl Block for Integers {
    type V = __m256;
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 1;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        Bytes::column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises.
        unsafe { (self.bytes.widen(_mm256_loadu_si256(codes.cast())), one_scale(&self.scales, scales)) }
    }
}
