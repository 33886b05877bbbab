//! Formats of 2 to 6 bits: groups of 16 that choose among four tables.

use super::*;
use crate::shaped;

/// The tables of a shaped format, one array for each shape.
fn tables<const N: usize>(values: &[f32]) -> [[f32; N]; 4] {
    std::array::from_fn(|shape| std::array::from_fn(|code| values[shape * N + code]))
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

/// Tables of 64 small integers: sixteen entries at a time.
pub(super) struct Shaped64 {
    /// By which bits they differ from the entry 16 codes before.
    differences: [[u8; 64]; 4],
    /// 16 in all bytes.
    sixteen: __m256i,
    /// For entries as [`Bytes`] widens them.
    scales: Box<[f32; 256]>,
    integers: Bytes,
}

impl Shaped64 {
    /// Needs AVX2.
    pub(super) fn new(scales: &[f32; 256]) -> Self {
        let differences = shaped::tables(Format::Q6)
            .map(|table| differences(&std::array::from_fn::<u8, 64, _>(|code| table[code] as u8)));
        // SAFETY: kernels are prepared only where there is AVX2.
        let sixteen = unsafe { bytes(16) };
        Self { differences, sixteen, scales: Box::new(scales.map(|scale| scale / WIDENED)), integers: Bytes::new() }
    }
}

impl Block for Shaped64 {
    type V = __m256;
    const CODE_BYTES: usize = 24;
    const SCALES: usize = 2;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        Bytes::column(lane)
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

            let first = shape(&self.differences, scales).as_ptr();
            let second = shape(&self.differences, scales.add(1)).as_ptr();
            // A negative index finds 0. So differences are taken up to the 16 codes that a code is one of.
            let (mut values, mut index) = (_mm256_setzero_si256(), codes);
            for i in 0..4 {
                let differences = load_halves(first.add(16 * i), second.add(16 * i));
                values = _mm256_xor_si256(values, _mm256_shuffle_epi8(differences, index));
                index = _mm256_sub_epi8(index, self.sixteen);
            }

            let scales =
                _mm256_blend_ps::<0b1111_0000>(one_scale(&self.scales, scales), one_scale(&self.scales, scales.add(1)));
            (self.integers.widen(values), scales)
        }
    }
}

/// Tables of 16 small integers. What a scale code says is kept together.
pub(super) struct Shaped16 {
    groups: Box<[Group16; 256]>,
    integers: Bytes,
}

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Group16 {
    entries: [i8; 16],
    /// For entries as [`Bytes`] widens them.
    scale: [f32; 4],
}

impl Shaped16 {
    /// Needs AVX2.
    pub(super) fn new(scales: &[f32; 256]) -> Self {
        let tables = shaped::tables(Format::Q4).map(|table| table.try_into().expect("16 entries"));
        let group = |code| Group16 { entries: tables[code % 4], scale: [scales[code] / WIDENED; 4] };
        Self { groups: Box::new(std::array::from_fn(group)), integers: Bytes::new() }
    }
}

impl Block for Shaped16 {
    type V = __m256;
    const CODE_BYTES: usize = 16;
    const SCALES: usize = 2;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        Bytes::column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<__m256> {
        // SAFETY: as the caller promises; entries and scales have 16 bytes.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.cast()));
            let codes = _mm256_or_si256(pairs, _mm256_slli_epi16::<4>(pairs));
            let codes = _mm256_and_si256(codes, _mm256_set1_epi8(0x0F));
            let (first, second) = (&self.groups[usize::from(*scales)], &self.groups[usize::from(*scales.add(1))]);
            let entries = load_halves(first.entries.as_ptr().cast(), second.entries.as_ptr().cast());
            let scale = load_halves(first.scale.as_ptr().cast(), second.scale.as_ptr().cast());
            (self.integers.widen(_mm256_shuffle_epi8(entries, codes)), _mm256_castsi256_ps(scale))
        }
    }
}

/// The table that each scale code chooses, times its scale.
fn scaled_tables<const N: usize>(values: &[f32], scales: &[f32; 256]) -> Box<[[f32; N]; 256]> {
    let tables = tables::<N>(values);
    Box::new(std::array::from_fn(|code| tables[code % 4].map(|value| value * scales[code])))
}

/// Tables of 8 entries: a register of scaled f32 for each scale code.
pub(super) struct Shaped8(Box<[[f32; 8]; 256]>);

impl Shaped8 {
    pub(super) fn new(values: &[f32], scales: &[f32; 256]) -> Self {
        Self(scaled_tables(values, scales))
    }
}

impl Block for Shaped8 {
    type V = __m256;
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
pub(super) struct Shaped4(Box<[[f32; 4]; 256]>);

impl Shaped4 {
    pub(super) fn new(values: &[f32], scales: &[f32; 256]) -> Self {
        Self(scaled_tables(values, scales))
    }
}

impl Block for Shaped4 {
    type V = __m256;
    const CODE_BYTES: usize = 8;
    const SCALES: usize = 2;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        Bytes::column(lane)
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
