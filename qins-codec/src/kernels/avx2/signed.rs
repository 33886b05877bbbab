//! Formats with a sign bit and a magnitude code.

use super::*;

/// Sign and 7-bit magnitude, of which the table falls from code 0 on. Lower bytes are looked up sixteen entries at a time;
/// upper bytes, which change slowly, among the last 16 codes, and before them by the `STEPS` codes at which they fall.
pub(super) struct SignMagnitude<'a, const GROUP: usize, const STEPS: usize> {
    /// Those of 16 codes, by which bits they differ from the 16 before.
    lower: [__m256i; 8],
    /// 16 in all bytes.
    sixteen: __m256i,
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
    pub(super) fn new(values: &[f32], scales: &'a [f32; 256]) -> Option<Self> {
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
        let lower = differences(lower);
        // SAFETY: kernels are prepared only where there is AVX2; each address is that of 16 bytes or more.
        unsafe {
            Some(Self {
                lower: std::array::from_fn(|i| load_twice(lower[16 * i..].as_ptr())),
                sixteen: bytes(16),
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

            let lower = look_up(&self.lower, self.sixteen, magnitudes);
            let scale = match GROUP {
                32 => one_scale(self.scales, scales),
                _ => load_two(&self.scales_by_four, scales),
            };
            (join_planes(upper, lower), scale)
        }
    }
}

/// The same magnitudes with a sign as integers, of which 1 is [`ONE`](panel::ONE): half the instructions of two planes.
///
/// Sixteen neighbours lie near a [`Line`]. What they are above it fits 4 bits, and a byte holds those of two codes that are 64
/// apart: so a quarter of a plane is looked up, and what else a line needs by the upper half of a code, which has the sign.
pub(super) struct Magnitudes {
    /// Those of 16 codes, by which bits they differ from the 16 before.
    residues: [__m256i; 4],
    /// 16 in all bytes.
    sixteen: __m256i,
    /// The lowest bits of all bytes.
    six_bits: __m256i,
    nibble: __m256i,
    /// The bits of a byte that are a code's own.
    own: __m256i,
    /// What residues are multiplied by.
    factors: __m256i,
    slopes: __m256i,
    /// From the last six bits of a code, counted down, to what slopes are multiplied by.
    offsets: __m256i,
    units: Box<[f32; 256]>,
}

impl Magnitudes {
    /// Sums of products are `times` too large. `None` if a scale is too small, if [`magnitudes`] are none, or if they lie too
    /// far from lines. Needs AVX2.
    pub(super) fn new(matrix: &Matrix<'_>, times: f32) -> Option<Self> {
        let decoder = matrix.decoder();
        let mut magnitudes = magnitudes(matrix.header(), &decoder.values())?;
        // Now they rise.
        magnitudes.reverse();
        let units = scales_of_integers(decoder.scales(), panel::ONE * times / 128.0)?;
        let (mut residues, mut own) = ([0; 64], [0; 16]);
        let (mut factors, mut slopes, mut offsets) = ([0i8; 16], [0i8; 16], [0; 16]);
        for (i, sixteen) in magnitudes.as_chunks().0.iter().enumerate() {
            let nibble = i as u32 / 4 * 4;
            let line = Line::near(sixteen, 1 << nibble)?;
            for (residue, of_line) in residues[i % 4 * 16..].iter_mut().zip(line.residues) {
                *residue |= of_line << nibble;
            }
            let upper = 7 - i;
            for (upper, sign) in [(upper, 1), (upper + 8, -1)] {
                own[upper] = 0x0F << nibble;
                factors[upper] = sign * (line.factor >> nibble) as i8;
                slopes[upper] = sign * line.slope as i8;
                offsets[upper] = line.first.wrapping_sub(i as u8 % 4 * 16);
            }
        }
        let residues = differences(&residues);
        // SAFETY: kernels are prepared only where there is AVX2; each address is that of 16 bytes.
        unsafe {
            Some(Self {
                residues: std::array::from_fn(|i| load_twice(residues[16 * i..].as_ptr())),
                sixteen: bytes(16),
                six_bits: bytes(0x3F),
                nibble: bytes(0x0F),
                own: load_twice(own.as_ptr()),
                factors: load_twice(factors.as_ptr().cast()),
                slopes: load_twice(slopes.as_ptr().cast()),
                offsets: load_twice(offsets.as_ptr()),
                units,
            })
        }
    }

    /// The integers of 32 codes, as [`panel::unpacked`] says which are where.
    ///
    /// # Safety
    /// Needs AVX2; 32 bytes can be read.
    #[inline(always)]
    unsafe fn integers(&self, codes: *const u8) -> [__m256i; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = _mm256_loadu_si256(codes.cast());
            let lower = _mm256_andnot_si256(codes, self.six_bits);
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), self.nibble);
            let both = look_up(&self.residues, self.sixteen, lower);
            let residues = _mm256_and_si256(both, _mm256_shuffle_epi8(self.own, upper));
            let places = _mm256_add_epi8(lower, _mm256_shuffle_epi8(self.offsets, upper));
            let factors = _mm256_shuffle_epi8(self.factors, upper);
            let slopes = _mm256_shuffle_epi8(self.slopes, upper);
            // residue * factor + place * slope
            [
                _mm256_maddubs_epi16(_mm256_unpacklo_epi8(residues, places), _mm256_unpacklo_epi8(factors, slopes)),
                _mm256_maddubs_epi16(_mm256_unpackhi_epi8(residues, places), _mm256_unpackhi_epi8(factors, slopes)),
            ]
        }
    }
}

/// Sixteen magnitudes: number `i` is `slope * (first + i) + factor * residues[i]`, to within [`LOST`](Self::LOST).
struct Line {
    slope: u8,
    first: u8,
    factor: u8,
    residues: [u8; 16],
}

impl Line {
    const LOST: f32 = 1.5;

    /// `None` if none is near enough. The factor is a multiple of `least`, a power of two.
    fn near(rising: &[f32; 16], least: i32) -> Option<Self> {
        let integers = rising.map(|magnitude| magnitude.round_ties_even() as i32);
        let chord = (integers[15] - integers[0]) / 15;
        // A factor that divides the slope and all magnitudes loses nothing; a greater one needs smaller residues.
        let divisor = 1 << integers.iter().fold(1 << 6, |all, integer| all | integer).trailing_zeros();
        let exact =
            std::iter::successors(Some(divisor), |factor| Some(factor / 2)).take_while(|&factor| factor >= least);
        let rounded = [2, 3].into_iter().filter(|factor| factor % least == 0 && *factor > divisor);
        exact.chain(rounded).find_map(|factor| {
            let step = factor.min(divisor);
            let slopes = (-1..=2).map(|steps| (chord / step + steps) * step);
            slopes.filter(|&slope| slope > 0).find_map(|slope| Self::with(rising, &integers, slope, factor))
        })
    }

    fn with(rising: &[f32; 16], integers: &[i32; 16], slope: i32, factor: i32) -> Option<Self> {
        // As high as the line can be and below all.
        let first = integers.iter().zip(0..).map(|(integer, i)| integer - slope * i).min()?.div_euclid(slope);
        let first = first.min(i32::from(u8::MAX) - 15);
        let mut residues = [0; 16];
        for (((residue, &magnitude), integer), place) in residues.iter_mut().zip(rising).zip(integers).zip(first..) {
            let of_line = slope * place;
            let found = (integer - of_line + factor / 2).div_euclid(factor);
            if !(0..16).contains(&found) || ((of_line + factor * found) as f32 - magnitude).abs() > Self::LOST {
                return None;
            }
            *residue = found as u8;
        }
        let slope = i8::try_from(slope).ok()?.cast_unsigned();
        Some(Self { slope, first: u8::try_from(first).ok()?, factor: factor as u8, residues })
    }
}

impl fixed::Integral for Magnitudes {
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 1;
    const OFFSET: i16 = 0;

    #[inline(always)]
    unsafe fn arrange([first, second]: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: as the caller promises.
        unsafe { [_mm256_permute2x128_si256::<0x20>(first, second), _mm256_permute2x128_si256::<0x31>(first, second)] }
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> ([__m256i; 2], __m256) {
        // SAFETY: as the caller promises.
        unsafe { (self.integers(codes), one_scale(&self.units, scales)) }
    }
}

impl panel::Whole for Magnitudes {
    type I = __m256i;

    fn column(place: usize) -> usize {
        panel::unpacked(place)
    }

    fn units(&self) -> &[f32; 256] {
        &self.units
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: &[u8; panel::TWO]) -> [panel::Pairs; 2] {
        // SAFETY: as the caller promises; the array has twice 32 bytes.
        unsafe { std::mem::transmute([self.integers(codes.as_ptr()), self.integers(codes.as_ptr().add(32))]) }
    }
}

/// Bytes of a table, sixteen at a time, each by which bits it differs from that 16 before.
///
/// # Safety
/// Needs AVX2; no index is negative.
#[inline(always)]
unsafe fn look_up<const N: usize>(differences: &[__m256i; N], sixteen: __m256i, mut index: __m256i) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        // A negative index finds 0. So differences are taken up to the 16 codes that a code is one of.
        let mut bytes = _mm256_shuffle_epi8(differences[0], index);
        for &differences in &differences[1..] {
            index = _mm256_sub_epi8(index, sixteen);
            bytes = _mm256_xor_si256(bytes, _mm256_shuffle_epi8(differences, index));
        }
        bytes
    }
}

/// Sign and 11-bit magnitude: a gather, as no registers hold the table.
pub(super) struct SignMagnitude12<'a> {
    /// The magnitudes are the first 2048.
    values: Vec<f32>,
    scales: &'a [f32; 256],
}

impl<'a> SignMagnitude12<'a> {
    pub(super) fn new(values: &[f32], scales: &'a [f32; 256]) -> Self {
        Self { values: values.to_vec(), scales }
    }
}

impl Block for SignMagnitude12<'_> {
    type V = __m256;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Header};

    /// Or products are as slow as in f32.
    #[test]
    fn magnitudes_of_weights_lie_near_lines() {
        if !Level::Avx2.is_supported() {
            println!("skipped: this processor lacks AVX2");
            return;
        }
        for k in [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2] {
            for (format, cols) in [(Format::Q8, 32), (Format::Fpins1, 64)] {
                let decoder = Decoder::new(Header { format, rows: 1, cols, base: 1.0, k, row_bases: false }).unwrap();
                let header = *decoder.header();
                let (codes, scales) = (vec![0; header.code_bytes()], vec![0; header.scale_bytes()]);
                let encoded = crate::Encoded::from_parts(decoder, codes, scales).unwrap();
                assert!(Magnitudes::new(&encoded.matrix(), 1.0).is_some(), "{format}, k = {k}");
            }
        }
    }
}
