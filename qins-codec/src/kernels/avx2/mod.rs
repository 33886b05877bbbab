//! Decoding on AVX2.
//!
//! Values that bf16 holds are looked up as two planes of bytes, the upper and the lower halves of a bf16, and joined: the
//! bits of a bf16 are the upper half of an f32. A group of 16 is one 128-bit half of a register, a group of 32 both.

use super::{
    Block, Decoded, MOST_INPUTS, Pass, VECTORS, Vector, WIDENED,
    attention::{Full, Rows, of_groups, of_whole},
    magnitudes, panel, pass, pass_at, scales_of_integers,
};
use crate::{Format, Matrix, dispatch::Level, kv::Encoding};
use fixed::{Entries16, Integers8};
use raw::{Brain, Bytes, Half, Integers, Linear};
use shaped::{Shaped4, Shaped8, Shaped16, Shaped64};
use signed::{Magnitudes, SignMagnitude, SignMagnitude12};
use std::{arch::x86_64::*, slice::ChunksExact};

mod fixed;
mod raw;
mod shaped;
mod signed;

pub(super) fn prepare<'a>(matrix: Matrix<'a>, x: ChunksExact<'_, f32>, level: Level) -> Option<Box<dyn Pass + 'a>> {
    let decoder = matrix.decoder();
    let scales = decoder.scales();
    let one_fixed = level == Level::Avx2Fixed && x.len() == 1;
    let many_fixed = level == Level::Avx2Fixed && x.len() > MOST_INPUTS;
    Some(match matrix.header().format {
        Format::Q8 | Format::Fpins1 if one_fixed && let Some(block) = Magnitudes::new(&matrix, fixed::ONE) => {
            fixed::pass(block, matrix, x)
        }
        Format::Q8 | Format::Fpins1 if many_fixed && let Some(whole) = Magnitudes::new(&matrix, 1.0) => {
            panel::of_whole::<_, 8>(whole, matrix, &x)
        }
        Format::Q8 | Format::Log8 | Format::Fpins1 => sign_magnitude::<32>(level, matrix, x)?,
        Format::Lin8 if many_fixed && let Some(whole) = panel::Bytes::<__m256i>::new(scales) => {
            panel::of_whole::<_, 8>(whole, matrix, &x)
        }
        Format::Lin8 => match Integers8::new(scales) {
            Some(block) if one_fixed => fixed::pass(block, matrix, x),
            _ => pass_at::<Fixed, _>(level, Integers::new(scales)?, matrix, x),
        },
        Format::Q8h => sign_magnitude::<16>(level, matrix, x)?,
        Format::Q12 => pass(SignMagnitude12::new(&decoder.values(), scales), matrix, x),
        Format::Q6 => pass_at::<Fixed, _>(level, Shaped64::new(scales), matrix, x),
        Format::Q4 if one_fixed => fixed::pass(Entries16::new(scales), matrix, x),
        Format::Q4 => pass_at::<Fixed, _>(level, Shaped16::new(scales), matrix, x),
        Format::Q3 => pass_at::<Fixed, _>(level, Shaped8::new(&decoder.values(), scales), matrix, x),
        Format::Q2 => pass_at::<Fixed, _>(level, Shaped4::new(&decoder.values(), scales), matrix, x),
        Format::F16 => pass(Half, matrix, x),
        Format::Bf16 => pass(Brain, matrix, x),
        Format::Fpins2 | Format::Fpins3 => panel::of_rows::<__m256>(matrix, &x),
    })
}

/// How panels are multiplied in fixed point, where groups are not of 32.
type Fixed = panel::Fixed<__m256i, panel::Rounded, 8>;

impl panel::Integers for __m256i {
    type Floats = __m256;
    const LEVEL: Level = Level::Avx2Fixed;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has found the instructions of the level, here and below.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn load(from: *const [i16; 2]) -> Self {
        // SAFETY: as above, and eight pairs can be read.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const [i16; 2]) -> Self {
        // SAFETY: as above, and a pair can be read.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add_products(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(self, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn to_floats(self) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(self) }
    }

    #[inline(always)]
    unsafe fn largest(table: &[[f32; 16]], least: u32) -> [u32; 16] {
        let mut lanes = [0; 16];
        for half in [0, 8] {
            // SAFETY: as above; half of an array holds a vector.
            unsafe {
                let mut largest = _mm256_set1_epi32(least as i32);
                for x in table {
                    let bits = _mm256_loadu_si256(x[half..].as_ptr().cast());
                    largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX)));
                }
                _mm256_storeu_si256(lanes[half..].as_mut_ptr().cast(), largest);
            }
        }
        lanes
    }

    #[inline(always)]
    unsafe fn round(x: &[f32; 16], times: &[f32; 16]) -> [[i16; 2]; 8] {
        let mut rounded = [[0; 2]; 8];
        // SAFETY: as above; half of an array holds a vector.
        unsafe {
            let [first, second] = [0, 8].map(|half| {
                _mm256_cvtps_epi32(__m256::load(x[half..].as_ptr()).mul(__m256::load(times[half..].as_ptr())))
            });
            // Packing works on halves.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(first, second));
            _mm256_storeu_si256(rounded.as_mut_ptr().cast(), packed);
        }
        rounded
    }
}

/// Rows of keys and values.
pub(super) fn attention_rows(encoding: Encoding, head: usize) -> Box<dyn Rows> {
    match encoding {
        Encoding::Full => of_whole(Full::<__m256>::default(), encoding, head),
        Encoding::Half => of_whole(Half, encoding, head),
        Encoding::Linear => of_whole(Linear::new(), encoding, head),
        Encoding::Shaped => of_groups(Shaped16::new(Encoding::shaped_scales()), encoding, head),
    }
}

/// With as few steps of the upper bytes as the table allows.
fn sign_magnitude<'a, const GROUP: usize>(
    level: Level,
    matrix: Matrix<'a>,
    x: ChunksExact<'_, f32>,
) -> Option<Box<dyn Pass + 'a>> {
    let (values, scales) = (&matrix.decoder().values(), matrix.decoder().scales());
    Some(match SignMagnitude::<GROUP, 2>::new(values, scales) {
        Some(block) => pass_at::<Fixed, _>(level, block, matrix, x),
        None => pass_at::<Fixed, _>(level, SignMagnitude::<GROUP, 6>::new(values, scales)?, matrix, x),
    })
}

impl Vector for __m256 {
    const LANES: usize = 8;
    const SUMS: usize = 12;
    const LEVEL: Level = Level::Avx2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has found AVX2 and FMA, here and in all functions of this file.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and a value can be read.
        unsafe { _mm256_broadcast_ss(&*from) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and eight values can be read.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and eight values can be written.
        unsafe { _mm256_storeu_ps(to, self) }
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
        unsafe { self.store(lanes.as_mut_ptr()) };
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    }

    /// By adding neighbours of two vectors to neighbours of one, three times.
    #[inline(always)]
    unsafe fn sum_each(vectors: [Self; 8]) -> [f32; 8] {
        let [a, b, c, d, e, f, g, h] = vectors;
        let mut sums = [0f32; 8];
        // SAFETY: as above; the array holds eight values.
        unsafe {
            let first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let second = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
            let lower = _mm256_permute2f128_ps::<0x20>(first, second);
            let upper = _mm256_permute2f128_ps::<0x31>(first, second);
            lower.add(upper).store(sums.as_mut_ptr());
        }
        sums
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
        let (first, second) = (_mm256_unpacklo_epi8(lower, upper), _mm256_unpackhi_epi8(lower, upper));
        widen(first, second)
    }
}

/// The even and the odd of either 16 bf16 numbers as f32.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn widen(first: __m256i, second: __m256i) -> [__m256; VECTORS] {
    // SAFETY: as the caller promises.
    unsafe {
        let mask = _mm256_set1_epi32(0xFFFF_0000u32 as i32);
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

/// By which bits each entry differs from the one 16 codes before, so that lookups of 16 entries at a time add up.
fn differences<const N: usize>(table: &[u8; N]) -> [u8; N] {
    std::array::from_fn(|code| table[code] ^ if code < 16 { 0 } else { table[code - 16] })
}

/// The same in all bytes, to be kept in a register: what the compiler knows it puts together where it is needed, and loads
/// multiples of.
///
/// # Safety
/// Needs AVX2.
unsafe fn bytes(value: i8) -> __m256i {
    // SAFETY: as the caller promises.
    std::hint::black_box(unsafe { _mm256_set1_epi8(value) })
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

/// Each scale four times, to be loaded to half a register.
fn by_four(scales: &[f32; 256]) -> Box<[[f32; 4]; 256]> {
    Box::new(scales.map(|scale| [scale; 4]))
}

/// What a table has for one scale code in one half, for the next in the other.
///
/// # Safety
/// Needs AVX2; two bytes can be read at `codes`.
#[inline(always)]
unsafe fn load_two(table: &[[f32; 4]; 256], codes: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe {
        let [first, second] = [*codes, *codes.add(1)].map(|code| table[usize::from(code)].as_ptr());
        _mm256_castsi256_ps(load_halves(first.cast(), second.cast()))
    }
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

/// Sixteen bytes for either half.
///
/// # Safety
/// Needs AVX2; 16 bytes can be read at both.
#[inline(always)]
unsafe fn load_halves(first: *const u8, second: *const u8) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe { _mm256_set_m128i(_mm_loadu_si128(second.cast()), _mm_loadu_si128(first.cast())) }
}
