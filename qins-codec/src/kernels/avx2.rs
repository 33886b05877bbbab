//! Decoding on AVX2.
//!
//! Values that bf16 holds are looked up as two planes of bytes, the upper and the lower halves of a bf16, and joined: the
//! bits of a bf16 are the upper half of an f32. A group of 16 is one 128-bit half of a register, a group of 32 both.

use super::{Block, Decoded, Pass, VECTORS, Vector, pass};
use crate::{Format, Matrix, dispatch::Level, shaped};
use std::{arch::x86_64::*, slice::ChunksExact};

pub(super) fn prepare<'a>(matrix: Matrix<'a>, x: ChunksExact<'_, f32>) -> Option<Box<dyn Pass + 'a>> {
    let decoder = matrix.decoder();
    let scales = decoder.scales();
    Some(match matrix.header().format {
        Format::Q8 | Format::Log8 | Format::Fpins1 => {
            let values = &decoder.values();
            match SignMagnitude::<32, 2>::new(values, scales) {
                Some(block) => pass(block, matrix, x),
                None => pass(SignMagnitude::<32, 6>::new(values, scales)?, matrix, x),
            }
        }
        Format::Q8h => {
            let values = &decoder.values();
            match SignMagnitude::<16, 2>::new(values, scales) {
                Some(block) => pass(block, matrix, x),
                None => pass(SignMagnitude::<16, 6>::new(values, scales)?, matrix, x),
            }
        }
        Format::Q12 => pass(SignMagnitude12 { values: decoder.values().into_owned(), scales }, matrix, x),
        Format::Q6 => pass(Shaped64 { entries: entries(Format::Q6), scales }, matrix, x),
        Format::Q4 => pass(Shaped16::new(&decoder.values(), scales), matrix, x),
        Format::Q3 => pass(Shaped8(scaled_tables(&decoder.values(), scales)), matrix, x),
        Format::Q2 => pass(Shaped4(scaled_tables(&decoder.values(), scales)), matrix, x),
        Format::F16 => pass(Half, matrix, x),
        Format::Bf16 => pass(Brain, matrix, x),
        Format::Fpins2 | Format::Fpins3 => return None,
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

/// Sign and 7-bit magnitude, of which the table falls from code 0 on. Lower bytes are looked up sixteen entries at a time;
/// upper bytes, which change slowly, among the last 16 codes, and before them by the `STEPS` codes at which they fall.
struct SignMagnitude<'a, const GROUP: usize, const STEPS: usize> {
    lower: [__m256i; 8],
    upper_end: __m256i,
    /// An upper byte is greater by one for each of these codes that is greater than its own.
    steps: [__m256i; STEPS],
    scales: &'a [f32; 256],
    /// For groups of 16.
    scales_by_four: Box<[[f32; 4]; 256]>,
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
                scales_by_four: by_four(scales),
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
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
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

            let scale = match GROUP {
                32 => one_scale(self.scales, scales),
                _ => load_two(&self.scales_by_four, scales),
            };
            (join_planes(upper, lower), scale)
        }
    }
}

/// Sign and 11-bit magnitude: a gather, as no registers hold the table.
struct SignMagnitude12<'a> {
    /// The magnitudes are the first 2048.
    values: Vec<f32>,
    scales: &'a [f32; 256],
}

impl Block for SignMagnitude12<'_> {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
    const CODE_BYTES: usize = 48;
    const SCALES: usize = 1;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // The two bytes with code `i` of eight in each 32 bits; those with an odd one begin with four bits of another.
        const BYTES: [u8; 32] = {
            let mut bytes = [0x80; 32];
            let mut i = 0;
            while i < 8 {
                (bytes[4 * i], bytes[4 * i + 1]) = ((i * 3 / 2) as u8, (i * 3 / 2 + 1) as u8);
                i += 1;
            }
            bytes
        };
        // SAFETY: as the caller promises; the last load is that of the last 16 bytes; eleven bits are less than 2048.
        unsafe {
            let bytes = _mm256_loadu_si256(BYTES.as_ptr().cast());
            let shifts = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
            let mut weights = [_mm256_setzero_ps(); VECTORS];
            for (j, weights) in weights.iter_mut().enumerate() {
                let eight = if j < 3 {
                    _mm256_shuffle_epi8(load_twice(codes.add(12 * j)), bytes)
                } else {
                    _mm256_shuffle_epi8(load_twice(codes.add(32)), _mm256_add_epi8(bytes, _mm256_set1_epi8(4)))
                };
                let eight = _mm256_srlv_epi32(eight, shifts);
                let magnitudes = _mm256_and_si256(eight, _mm256_set1_epi32(0x7FF));
                let signs = _mm256_and_si256(_mm256_slli_epi32::<20>(eight), _mm256_set1_epi32(i32::MIN));
                let magnitudes = _mm256_i32gather_ps::<4>(self.values.as_ptr(), magnitudes);
                *weights = _mm256_xor_ps(magnitudes, _mm256_castsi256_ps(signs));
            }
            (weights, one_scale(self.scales, scales))
        }
    }
}

/// The tables of a shaped format, one array for each shape.
fn tables<const N: usize>(values: &[f32]) -> [[f32; N]; 4] {
    std::array::from_fn(|shape| std::array::from_fn(|code| values[shape * N + code]))
}

/// The entries of each shape as they are.
fn entries(format: Format) -> [[i8; 64]; 4] {
    shaped::tables(format).map(|table| table.try_into().expect("64 entries"))
}

/// The table that a scale code chooses.
///
/// # Safety
/// A byte can be read at `scale`.
#[inline(always)]
unsafe fn shape<T>(tables: &[T; 4], scale: *const u8) -> &T {
    // SAFETY: as the caller promises.
    &tables[usize::from(unsafe { *scale } & 3)]
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

/// Tables of 64 small integers: sixteen entries at a time.
struct Shaped64<'a> {
    entries: [[i8; 64]; 4],
    scales: &'a [f32; 256],
}

impl Block for Shaped64<'_> {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
    const CODE_BYTES: usize = 24;
    const SCALES: usize = 2;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        let (vector, half, lane) = (lane / 8, lane / 4 % 2, lane % 4);
        16 * half + 4 * lane + 2 * (vector % 2) + vector / 2
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // Four codes are three bytes; of those the first two and the last two, as two numbers of 16 bits.
        const BYTES: [u8; 32] = {
            let mut bytes = [0; 32];
            let mut i = 0;
            while i < 32 {
                // The second half's load starts 4 bytes before it.
                bytes[i] = (i / 16 * 4 + i % 16 / 4 * 3 + [0, 1, 1, 2][i % 4]) as u8;
                i += 1;
            }
            bytes
        };
        // SAFETY: as the caller promises; the loads overlap within 24 bytes, and tables have 64.
        unsafe {
            let bytes = _mm256_loadu_si256(BYTES.as_ptr().cast());
            let pairs = _mm256_shuffle_epi8(load_halves(codes, codes.add(8)), bytes);
            // The first pair starts at bit 0, the second at bit 4: so both do.
            let pairs = _mm256_mullo_epi16(pairs, _mm256_set1_epi32(0x0001_0010));
            let even = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), _mm256_set1_epi16(0x003F));
            let odd = _mm256_and_si256(_mm256_srli_epi16::<2>(pairs), _mm256_set1_epi16(0x3F00));
            let codes = _mm256_or_si256(even, odd);

            let first = shape(&self.entries, scales).as_ptr().cast::<u8>();
            let second = shape(&self.entries, scales.add(1)).as_ptr().cast::<u8>();
            let mut quarters = [codes; 4];
            for (i, quarter) in quarters.iter_mut().enumerate() {
                *quarter = _mm256_shuffle_epi8(load_halves(first.add(16 * i), second.add(16 * i)), codes);
            }
            let [a, b, c, d] = quarters;
            // A blend looks at the upper bit of each byte.
            let [bit_4, bit_5] = [_mm256_slli_epi16::<3>(codes), _mm256_slli_epi16::<2>(codes)];
            let values = _mm256_blendv_epi8(_mm256_blendv_epi8(a, b, bit_4), _mm256_blendv_epi8(c, d, bit_4), bit_5);

            // Products with 1 and 0 pick bytes of pairs, then 16 bits of pairs.
            let [even, odd] = [0x0001, 0x0100].map(|pick| _mm256_maddubs_epi16(_mm256_set1_epi16(pick), values));
            let [first, second] = [0x0000_0001, 0x0001_0000].map(|pick| _mm256_set1_epi32(pick));
            let weights = [
                _mm256_cvtepi32_ps(_mm256_madd_epi16(even, first)),
                _mm256_cvtepi32_ps(_mm256_madd_epi16(even, second)),
                _mm256_cvtepi32_ps(_mm256_madd_epi16(odd, first)),
                _mm256_cvtepi32_ps(_mm256_madd_epi16(odd, second)),
            ];
            let scales =
                _mm256_blend_ps::<0b1111_0000>(one_scale(self.scales, scales), one_scale(self.scales, scales.add(1)));
            (weights, scales)
        }
    }
}

/// Tables of 16 entries, looked up as two planes of bytes. What a scale code says is kept together.
struct Shaped16(Box<[Planes; 256]>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Planes {
    /// Of the entries as bf16.
    lower: [u8; 16],
    upper: [u8; 16],
    scale: [f32; 4],
}

impl Shaped16 {
    fn new(values: &[f32], scales: &[f32; 256]) -> Self {
        let tables = tables::<16>(values);
        let plane = |shape: usize, byte: usize| tables[shape].map(|value| value.to_bits().to_le_bytes()[byte]);
        let of_shapes = [0, 1, 2, 3].map(|shape| (plane(shape, 2), plane(shape, 3)));
        Self(Box::new(std::array::from_fn(|code| {
            let (lower, upper) = of_shapes[code % 4];
            Planes { lower, upper, scale: [scales[code]; 4] }
        })))
    }
}

impl Block for Shaped16 {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
    const CODE_BYTES: usize = 16;
    const SCALES: usize = 2;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        bf16_column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises; planes and scales have 16 bytes.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.cast()));
            let codes = _mm256_or_si256(pairs, _mm256_slli_epi16::<4>(pairs));
            let codes = _mm256_and_si256(codes, _mm256_set1_epi8(0x0F));
            let (first, second) = (&self.0[usize::from(*scales)], &self.0[usize::from(*scales.add(1))]);
            let lower = _mm256_shuffle_epi8(load_halves(first.lower.as_ptr(), second.lower.as_ptr()), codes);
            let upper = _mm256_shuffle_epi8(load_halves(first.upper.as_ptr(), second.upper.as_ptr()), codes);
            let scale = load_halves(first.scale.as_ptr().cast(), second.scale.as_ptr().cast());
            (join_planes(upper, lower), _mm256_castsi256_ps(scale))
        }
    }
}

/// The table that each scale code chooses, times its scale.
fn scaled_tables<const N: usize>(values: &[f32], scales: &[f32; 256]) -> Box<[[f32; N]; 256]> {
    let tables = tables::<N>(values);
    Box::new(std::array::from_fn(|code| tables[code % 4].map(|value| value * scales[code])))
}

/// Tables of 8 entries: a register of scaled f32 for each scale code.
struct Shaped8(Box<[[f32; 8]; 256]>);

impl Block for Shaped8 {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
    const CODE_BYTES: usize = 12;
    const SCALES: usize = 2;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises; the last load is that of the last 4 bytes; tables have eight entries.
        unsafe {
            // Eight codes are three bytes; a lookup heeds the lowest three bits.
            let shifts = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);
            let last_shifts = _mm256_add_epi32(shifts, _mm256_set1_epi32(8));
            let [first, second] = [*scales, *scales.add(1)].map(|code| self.0[usize::from(code)].as_ptr());
            let (first, second) = (_mm256_loadu_ps(first), _mm256_loadu_ps(second));
            let bits = |at: usize| _mm256_set1_epi32(codes.add(at).cast::<i32>().read_unaligned());
            let weights = [
                _mm256_permutevar8x32_ps(first, _mm256_srlv_epi32(bits(0), shifts)),
                _mm256_permutevar8x32_ps(first, _mm256_srlv_epi32(bits(3), shifts)),
                _mm256_permutevar8x32_ps(second, _mm256_srlv_epi32(bits(6), shifts)),
                _mm256_permutevar8x32_ps(second, _mm256_srlv_epi32(bits(8), last_shifts)),
            ];
            (weights, _mm256_setzero_ps())
        }
    }
}

/// Tables of 4 entries: half a register of scaled f32 for each scale code.
struct Shaped4(Box<[[f32; 4]; 256]>);

impl Block for Shaped4 {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
    const CODE_BYTES: usize = 8;
    const SCALES: usize = 2;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        let (vector, half, lane) = (lane / 8, lane / 4 % 2, lane % 4);
        16 * half + 4 * vector + lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises; tables have four entries.
        unsafe {
            // The 32 bits of a group four times.
            let codes = _mm256_set1_epi64x(codes.cast::<i64>().read_unaligned());
            let codes = _mm256_shuffle_epi8(
                codes,
                _mm256_setr_epi32(
                    0x0302_0100,
                    0x0302_0100,
                    0x0302_0100,
                    0x0302_0100,
                    0x0706_0504,
                    0x0706_0504,
                    0x0706_0504,
                    0x0706_0504,
                ),
            );
            let table = load_two(&self.0, scales);
            // A lookup heeds the lowest two bits.
            let mut shifts = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
            let mut weights = [_mm256_setzero_ps(); VECTORS];
            for weights in &mut weights {
                *weights = _mm256_permutevar_ps(table, _mm256_srlv_epi32(codes, shifts));
                shifts = _mm256_add_epi32(shifts, _mm256_set1_epi32(8));
            }
            (weights, _mm256_setzero_ps())
        }
    }
}

/// IEEE half precision.
struct Half;

impl Block for Half {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
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
struct Brain;

impl Block for Brain {
    type V = __m256;
    const LEVEL: Level = Level::Avx2;
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
