//! Decoding on AVX2.
//!
//! Values that bf16 holds are looked up as two planes of bytes, the upper and the lower halves of a bf16, and joined: the
//! bits of a bf16 are the upper half of an f32. A group of 16 is one 128-bit half of a register, a group of 32 both.

use super::{Block, Products, VECTORS, Vector, fused};
use crate::{Format, Matrix, dispatch::Level};
use std::arch::x86_64::*;

pub(super) fn prepare<'a>(matrix: Matrix<'a>, x: &[f32], m: usize) -> Option<Box<dyn Products + 'a>> {
    let decoder = matrix.decoder();
    let scales = decoder.scales();
    Some(match matrix.header().format {
        Format::Q8 | Format::Log8 | Format::Fpins1 => {
            let values = &decoder.values();
            match SignMagnitude::<32, 2>::new(values, scales) {
                Some(block) => fused(block, matrix, x, m),
                None => fused(SignMagnitude::<32, 6>::new(values, scales)?, matrix, x, m),
            }
        }
        Format::Q8h => {
            let values = &decoder.values();
            match SignMagnitude::<16, 2>::new(values, scales) {
                Some(block) => fused(block, matrix, x, m),
                None => fused(SignMagnitude::<16, 6>::new(values, scales)?, matrix, x, m),
            }
        }
        _ => return None,
    })
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has found AVX2 and FMA, here and in all functions of this file.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and eight values can be read.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0f32; 8];
        // SAFETY: as above; the array holds eight values.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), self) };
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address is legal.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// The upper and lower bytes of 32 bf16 numbers as f32; [`bf16_column`] says which are where.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn join_planes(upper: __m256i, lower: __m256i) -> [__m256; VECTORS] {
    // SAFETY: as the caller promises.
    unsafe {
        let mask = _mm256_set1_epi32(0xFFFF_0000u32 as i32);
        let (first, second) = (_mm256_unpacklo_epi8(lower, upper), _mm256_unpackhi_epi8(lower, upper));
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(first)),
            _mm256_castsi256_ps(_mm256_and_si256(first, mask)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(second)),
            _mm256_castsi256_ps(_mm256_and_si256(second, mask)),
        ]
    }
}

/// The column in a lane after [`join_planes`].
fn bf16_column(lane: usize) -> usize {
    let (vector, half, lane) = (lane / 8, lane / 4 % 2, lane % 4);
    16 * half + 8 * (vector / 2) + 2 * lane + vector % 2
}

/// One scale for all lanes.
///
/// # Safety
/// Needs AVX2; a byte can be read at `codes`.
#[inline(always)]
unsafe fn one_scale(table: &[f32; 256], codes: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_broadcast_ss(&table[usize::from(*codes)]) }
}

/// One scale for either half.
///
/// # Safety
/// Needs AVX2; two bytes can be read at `codes`.
#[inline(always)]
unsafe fn two_scales(table: &[f32; 256], codes: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_blend_ps::<0b1111_0000>(one_scale(table, codes), one_scale(table, codes.add(1))) }
}

/// The 16 bytes at an address in both halves.
///
/// # Safety
/// Needs AVX2; 16 bytes can be read.
#[inline(always)]
unsafe fn load_twice(from: *const u8) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())) }
}

/// Sign and 7-bit magnitude, of which the table falls from code 0 on. Lower bytes are looked up sixteen entries at a time;
/// upper bytes, which change slowly, among the last 16 codes, and before them by the `STEPS` codes at which they fall.
struct SignMagnitude<'a, const GROUP: usize, const STEPS: usize> {
    lower: [__m256i; 8],
    upper_end: __m256i,
    /// An upper byte is greater by one for each of these codes that is greater than its own.
    steps: [__m256i; STEPS],
    scales: &'a [f32; 256],
}

/// The first code of those whose upper bytes are looked up.
const END: usize = 112;

impl<'a, const GROUP: usize, const STEPS: usize> SignMagnitude<'a, GROUP, STEPS> {
    /// `None` if the upper bytes fall more often before [`END`], or rise. Needs AVX2.
    fn new(values: &[f32], scales: &'a [f32; 256]) -> Option<Self> {
        let mut planes = [[0u8; 128]; 2];
        for (m, &value) in values[..128].iter().enumerate() {
            let [0, 0, lower, upper] = value.to_bits().to_le_bytes() else { return None };
            (planes[0][m], planes[1][m]) = (lower, upper);
        }
        let [lower, upper] = &planes;
        if upper[0] > 0x7F {
            return None;
        }
        let (mut steps, mut found) = ([0i8; STEPS], 0);
        for m in 1..=END {
            for _ in 0..upper[m - 1].checked_sub(upper[m])? {
                *steps.get_mut(found)? = m as i8;
                found += 1;
            }
        }
        // SAFETY: kernels are prepared only where there is AVX2; each address is that of 16 bytes or more.
        unsafe {
            Some(Self {
                lower: std::array::from_fn(|i| load_twice(lower[16 * i..].as_ptr())),
                upper_end: load_twice(upper[END..].as_ptr()),
                steps: steps.map(|code| _mm256_set1_epi8(code)),
                scales,
            })
        }
    }
}

impl<const GROUP: usize, const STEPS: usize> Block for SignMagnitude<'_, GROUP, STEPS> {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 32 / GROUP;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        bf16_column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> ([__m256; VECTORS], __m256) {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = _mm256_loadu_si256(codes.cast());
            let magnitudes = _mm256_and_si256(codes, _mm256_set1_epi8(0x7F));

            let mut upper = _mm256_subs_epu8(magnitudes, _mm256_set1_epi8(END as i8));
            upper = _mm256_shuffle_epi8(self.upper_end, upper);
            for &step in &self.steps {
                // A true comparison is -1.
                upper = _mm256_sub_epi8(upper, _mm256_cmpgt_epi8(step, magnitudes));
            }
            upper = _mm256_or_si256(upper, _mm256_andnot_si256(_mm256_set1_epi8(0x7F), codes));

            // A blend looks at the upper bit of each byte.
            let [bit_4, bit_5] = [_mm256_slli_epi16::<3>(codes), _mm256_slli_epi16::<2>(codes)];
            let bit_6 = _mm256_slli_epi16::<1>(codes);
            let mut quarters = [magnitudes; 4];
            for (i, quarter) in quarters.iter_mut().enumerate() {
                let [even, odd] = [2 * i, 2 * i + 1].map(|at| _mm256_shuffle_epi8(self.lower[at], magnitudes));
                *quarter = _mm256_blendv_epi8(even, odd, bit_4);
            }
            let [a, b, c, d] = quarters;
            let lower = _mm256_blendv_epi8(_mm256_blendv_epi8(a, b, bit_5), _mm256_blendv_epi8(c, d, bit_5), bit_6);

            let scale = if GROUP == 32 { one_scale(self.scales, scales) } else { two_scales(self.scales, scales) };
            (join_planes(upper, lower), scale)
        }
    }
}
