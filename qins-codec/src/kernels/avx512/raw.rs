//! Codes that are numbers without a table: 16-bit floats and 8-bit integers.

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
            // Of whole codes: half a code at the end, which alone would be none, is not read.
            let mask = u16::MAX.checked_shr(16 - codes.len() as u32 / 2).unwrap_or(0);
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

/// 8-bit integers, in groups of 32 with a scale.
pub(super) struct Integers {
    /// They put four bytes of each quarter into the upper bytes of 32 bits, over zeros. Known to the compiler, they would
    /// become slower instructions.
    upper: [__m512i; VECTORS],
    /// For them so widened.
    scales: Box<[f32; 256]>,
}

impl Integers {
    /// `None` if a scale is too small. Needs AVX-512 F.
    pub(super) fn new(scales: &[f32; 256]) -> Option<Self> {
        let upper = std::array::from_fn(|vector| {
            let byte = |i: usize| if i % 4 == 3 { (4 * vector + i % 16 / 4) as u8 } else { 0x80 };
            // SAFETY: kernels are prepared only where there are the instructions of the level.
            unsafe { load(&std::array::from_fn(byte)) }
        });
        Some(Self { upper: std::hint::black_box(upper), scales: scales_of_integers(scales, WIDENED)? })
    }
}

impl Block for Integers {
    type V = __m512;
    const CODE_BYTES: usize = 64;
    const SCALES: usize = 2;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        let (vector, quarter, lane) = (lane / 16, lane / 4 % 4, lane % 4);
        16 * quarter + 4 * vector + lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m512> {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            let weights = self.upper.map(|upper| _mm512_cvtepi32_ps(_mm512_shuffle_epi8(codes, upper)));
            (weights, super::scales::<2>(&self.scales, scales))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Kernel;

    struct Part<'a>(&'a [u8]);

    impl Kernel for Part<'_> {
        type Output = [f32; 64];

        #[inline(always)]
        fn run(self) -> [f32; 64] {
            let mut out = [0.0; 64];
            // SAFETY: this runs at the level; four vectors of sixteen are stored to 64 values.
            unsafe {
                for (j, weights) in Half.decode_part(self.0, &[]).0.into_iter().enumerate() {
                    weights.store(out[16 * j..].as_mut_ptr());
                }
            }
            out
        }
    }

    /// As many codes as there are, however many bytes; zeros after them.
    #[test]
    fn any_number_of_halves_is_decoded() {
        if !Level::Avx512.is_supported() {
            println!("skipped: this processor lacks AVX-512");
            return;
        }
        let bytes: Vec<u8> = (0..128).map(|i| (i * 37 % 124) as u8).collect();
        for length in 0..=128 {
            // Of its own, so that a read beyond its end is seen.
            let codes = bytes[..length].to_vec().into_boxed_slice();
            let mut expected = [0.0; 64];
            for (out, &code) in expected.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = half::f16::from_le_bytes(code).to_f32();
            }
            assert_eq!(Level::Avx512.run(Part(&codes)), expected, "{length} bytes");
        }
    }
}
