//! Decoding on AVX-512 with VBMI, whose permutations look up 64 or 128 bytes at once.
//!
//! Values that bf16 holds are looked up as two planes of bytes, as on AVX2. A quarter of a register, 128 bits, holds 16
//! neighbouring weights, so that whatever the group, the scales are the same in all vectors.

use super::{
    AT_ONCE, Block, Decoded, MOST_INPUTS, Pass, VECTORS, Vector, WIDENED,
    attention::{Full, Rows, of_whole},
    avx2, magnitudes, panel, pass, pass_at, scales_of_integers,
};
use crate::{Format, Header, Matrix, dispatch::Level, kv::Encoding};
use raw::{Brain, Half, Integers, Linear};
use shaped::{Scaled, Shaped64};
use signed::{Magnitudes, SignMagnitude};
use std::{arch::x86_64::*, slice::ChunksExact};

mod raw;
mod shaped;
mod signed;

pub(super) fn prepare<'a>(matrix: Matrix<'a>, x: ChunksExact<'_, f32>, level: Level) -> Option<Box<dyn Pass + 'a>> {
    let decoder = matrix.decoder();
    // Made only where they are asked for: there are 65,536 of 16-bit floats, which are decoded without.
    let (values, scales) = (|| decoder.values(), decoder.scales());
    let many_fixed = level == Level::Avx512Fixed && x.len() > MOST_INPUTS;
    Some(match matrix.header().format {
        Format::Q8 | Format::Log8 | Format::Fpins1
            if many_fixed && let Some(whole) = Magnitudes::new(matrix.header(), &values(), scales) =>
        {
            panel::of_whole::<_, 16>(whole, matrix, &x)
        }
        Format::Q8 | Format::Log8 | Format::Fpins1 => {
            pass_at::<Fixed, _>(level, SignMagnitude::<2>::new(&values(), scales), matrix, x)
        }
        Format::Lin8 if many_fixed && let Some(whole) = panel::Bytes::<__m512i>::new(scales) => {
            panel::of_whole::<_, 16>(whole, matrix, &x)
        }
        Format::Lin8 => pass_at::<Fixed, _>(level, Integers::new(scales)?, matrix, x),
        Format::Q8h => pass_at::<Fixed, _>(level, SignMagnitude::<4>::new(&values(), scales), matrix, x),
        Format::Q6 => pass_at::<Fixed, _>(level, Shaped64::new(&values(), scales), matrix, x),
        Format::Q4 => pass_at::<Fixed, _>(level, Scaled::<4>::new(&values(), scales), matrix, x),
        Format::Q3 => pass_at::<Fixed, _>(level, Scaled::<3>::new(&values(), scales), matrix, x),
        Format::Q2 => pass_at::<Fixed, _>(level, Scaled::<2>::new(&values(), scales), matrix, x),
        Format::F16 => pass(Half, matrix, x),
        Format::Bf16 => pass(Brain, matrix, x),
        // A gather, which more lanes make no faster.
        Format::Q12 => return avx2::prepare(matrix, x, level),
        Format::Fpins2 | Format::Fpins3 => panel::of_rows::<__m512>(matrix, &x),
    })
}

/// How panels are multiplied in fixed point, where groups are not of 32.
type Fixed = panel::Fixed<__m512i, panel::Rounded, 16>;

impl panel::Integers for __m512i {
    type Floats = __m512;
    const LEVEL: Level = Level::Avx512Fixed;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has found the instructions of the level, here and below.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn load(from: *const [i16; 2]) -> Self {
        // SAFETY: as above, and sixteen pairs can be read.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const [i16; 2]) -> Self {
        // SAFETY: as above, and a pair can be read.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_dpwssd_epi32(self, a, b) }
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(self) }
    }

    #[inline(always)]
    unsafe fn largest(table: &[[f32; 16]], least: u32) -> [u32; 16] {
        // SAFETY: as above; the arrays hold a vector.
        unsafe {
            let mut largest = _mm512_set1_epi32(least as i32);
            for x in table {
                let bits = _mm512_and_si512(_mm512_loadu_si512(x.as_ptr().cast()), _mm512_set1_epi32(i32::MAX));
                largest = _mm512_max_epu32(largest, bits);
            }
            let mut lanes = [0; 16];
            _mm512_storeu_si512(lanes.as_mut_ptr().cast(), largest);
            lanes
        }
    }

    #[inline(always)]
    unsafe fn round(x: &[f32; 16], times: &[f32; 16]) -> [[i16; 2]; 8] {
        // At so large a number f32 holds integers, and rounds to them.
        const SHIFT: f32 = 1.5 * (1 << 23) as f32;
        let mut rounded = [[0; 2]; 8];
        // SAFETY: as above; the arrays hold a vector, or half of one.
        unsafe {
            let shifted = __m512::load(x.as_ptr()).mul_add(__m512::load(times.as_ptr()), __m512::splat(&SHIFT));
            let lower = _mm512_cvtepi32_epi16(_mm512_castps_si512(shifted));
            _mm256_storeu_si256(rounded.as_mut_ptr().cast(), lower);
        }
        rounded
    }
}

/// Rows of keys and values.
pub(super) fn attention_rows(encoding: Encoding, head: usize) -> Box<dyn Rows> {
    match encoding {
        Encoding::Full => of_whole(Full::<__m512>::default(), encoding, head),
        Encoding::Half => of_whole(Half, encoding, head),
        Encoding::Linear => of_whole(Linear::new(), encoding, head),
        // Half a register is what two groups of 16 fill.
        Encoding::Shaped => avx2::attention_rows(encoding, head),
    }
}

impl Vector for __m512 {
    const LANES: usize = 16;
    const SUMS: usize = 24;
    const LEVEL: Level = Level::Avx512;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has found the instructions of the level, here and in all functions of this file.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and a value can be read.
        unsafe { _mm512_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and sixteen values can be read.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and sixteen values can be written.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(self, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(self) }
    }

    #[inline(always)]
    unsafe fn sum_each(vectors: [Self; AT_ONCE]) -> [f32; AT_ONCE] {
        // SAFETY: as above; the level has AVX2 besides.
        unsafe {
            let halves = vectors.map(|vector| {
                let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(vector));
                _mm256_add_ps(_mm512_castps512_ps256(vector), _mm256_castpd_ps(upper))
            });
            __m256::sum_each(halves)
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address is legal.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// The upper and lower bytes of 64 bf16 numbers as f32; [`bf16_column`] says which are where.
///
/// # Safety
/// Needs AVX-512 BW.
#[inline(always)]
unsafe fn join_planes(upper: __m512i, lower: __m512i) -> [__m512; VECTORS] {
    // SAFETY: as the caller promises.
    unsafe { widen(_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)) }
}

/// The even and the odd of either 32 bf16 numbers as f32.
///
/// # Safety
/// Needs AVX-512 F.
#[inline(always)]
unsafe fn widen(first: __m512i, second: __m512i) -> [__m512; VECTORS] {
    // SAFETY: as the caller promises.
    unsafe {
        let mask = _mm512_set1_epi32(0xFFFF_0000u32 as i32);
        [
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)),
            _mm512_castsi512_ps(_mm512_and_si512(first, mask)),
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(second)),
            _mm512_castsi512_ps(_mm512_and_si512(second, mask)),
        ]
    }
}

/// The column in a lane after [`join_planes`].
fn bf16_column(lane: usize) -> usize {
    let (vector, quarter, lane) = (lane / 16, lane / 4 % 4, lane % 4);
    16 * quarter + 8 * (vector / 2) + 2 * lane + vector % 2
}

/// The scales of `N` codes, each in its part of the lanes.
///
/// # Safety
/// Needs AVX-512 F; `N` bytes can be read at `codes`.
#[inline(always)]
unsafe fn scales<const N: usize>(table: &[f32; 256], codes: *const u8) -> __m512 {
    const { assert!(N.is_power_of_two() && N <= 16) };
    // SAFETY: as the caller promises.
    unsafe {
        let mut scales = _mm512_set1_ps(table[usize::from(*codes)]);
        for i in 1..N {
            let scale = _mm_load_ss(&table[usize::from(*codes.add(i))]);
            // All lanes from this part on: the next overwrites the rest.
            scales = _mm512_mask_broadcastss_ps(scales, u16::MAX << (16 / N * i), scale);
        }
        scales
    }
}

/// 64 bytes of a table.
///
/// # Safety
/// Needs AVX-512 F.
#[inline(always)]
unsafe fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: as the caller promises; the array has 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The `byte`th bytes of numbers, 64 and 64.
fn plane<const N: usize>(values: &[f32], byte: usize) -> [[u8; 64]; N] {
    std::array::from_fn(|n| std::array::from_fn(|i| values[64 * n + i].to_bits().to_le_bytes()[byte]))
}
