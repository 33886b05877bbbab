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
                sixteen: sixteen(),
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

/// The same magnitudes with a sign as integers. Those of 16 codes are multiples of their places, counted from the last code,
/// and of bytes that are looked up; only what is multiplied by differs from 16 to 16, and has a sign.
pub(super) struct Magnitudes {
    /// Those of 16 places, by which bits they differ from the 16 before.
    bytes: [__m256i; 8],
    /// 16 in all bytes.
    sixteen: __m256i,
    /// What bytes are multiplied by, for each upper half of a code.
    of_bytes: __m256i,
    /// What places are multiplied by.
    of_places: __m256i,
    units: Box<[f32; 256]>,
}

impl Magnitudes {
    /// 1 becomes `one`, and sums of products are `times` too large besides. `None` if a scale is too small, if
    /// [`magnitudes`] are none, or if bytes cannot hold them. Needs AVX2.
    pub(super) fn new(matrix: &Matrix<'_>, one: f32, times: f32) -> Option<Self> {
        let mut integers = magnitudes(matrix, one)?;
        integers.reverse();
        let (mut bytes, mut of_bytes, mut of_places) = ([0; 128], [0i8; 16], [0i8; 16]);
        for (i, (integers, bytes)) in integers.as_chunks::<16>().0.iter().zip(bytes.as_chunks_mut().0).enumerate() {
            let (factor, slope, of_sixteen) = factors(integers, 16 * i as u16)?;
            *bytes = of_sixteen;
            let upper = 7 - i;
            (of_bytes[upper], of_bytes[upper + 8]) = (factor, -factor);
            (of_places[upper], of_places[upper + 8]) = (slope, -slope);
        }
        let differences = differences(&bytes);
        let units = scales_of_integers(matrix.decoder().scales(), one * times / 128.0)?;
        // SAFETY: kernels are prepared only where there is AVX2; each address is that of 16 bytes.
        let [of_bytes, of_places] = [of_bytes, of_places].map(|factors| unsafe { load_twice(factors.as_ptr().cast()) });
        // SAFETY: as above.
        unsafe {
            let bytes = std::array::from_fn(|i| load_twice(differences[16 * i..].as_ptr()));
            Some(Self { bytes, sixteen: sixteen(), of_bytes, of_places, units })
        }
    }

    /// The integers of 32 codes: eight of either half, then the eight after them.
    ///
    /// # Safety
    /// Needs AVX2; 32 bytes can be read.
    #[inline(always)]
    unsafe fn integers(&self, codes: *const u8) -> [__m256i; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = _mm256_loadu_si256(codes.cast());
            let places = _mm256_andnot_si256(codes, _mm256_set1_epi8(0x7F));
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(0x0F));
            let bytes = look_up(&self.bytes, self.sixteen, places);
            let of_bytes = _mm256_shuffle_epi8(self.of_bytes, upper);
            let of_places = _mm256_shuffle_epi8(self.of_places, upper);
            [
                _mm256_maddubs_epi16(_mm256_unpacklo_epi8(bytes, places), _mm256_unpacklo_epi8(of_bytes, of_places)),
                _mm256_maddubs_epi16(_mm256_unpackhi_epi8(bytes, places), _mm256_unpackhi_epi8(of_bytes, of_places)),
            ]
        }
    }
}

/// What makes sixteen integers of bytes and of their places from `first` on: factors of either, and the bytes.
fn factors(integers: &[u16; 16], first: u16) -> Option<(i8, i8, [u8; 16])> {
    let places = first..;
    // The steepest line through 0 that no integer is below.
    let slope = integers.iter().zip(places.clone()).filter_map(|(integer, place)| integer.checked_div(place)).min()?;
    let slope = slope.min(i8::MAX as u16);
    // A factor divides the integers, and the slope. Greater ones need smaller bytes, if the slope is not much less for it.
    let most = integers.iter().fold(1 << 6, |bits, integer| bits | integer).trailing_zeros();
    (0..=most).rev().find_map(|shift| {
        let slope = slope >> shift << shift;
        let mut bytes = [0; 16];
        for ((byte, integer), place) in bytes.iter_mut().zip(integers).zip(places.clone()) {
            *byte = u8::try_from((integer - slope * place) >> shift).ok()?;
        }
        Some((1 << shift, slope as i8, bytes))
    })
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
        16 * (place / 8 % 2) + 8 * (place / 16) + place % 8
    }

    #[inline(always)]
    fn unit(&self, scale: u8) -> f32 {
        self.units[usize::from(scale)]
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: &[u8; panel::TWO]) -> [panel::Pairs; 2] {
        // SAFETY: as the caller promises; the array has twice 32 bytes.
        unsafe { std::mem::transmute([self.integers(codes.as_ptr()), self.integers(codes.as_ptr().add(32))]) }
    }
}

/// Bytes of a table of 128, sixteen at a time, each by which bits it differs from that 16 before.
///
/// # Safety
/// Needs AVX2; no index is negative.
#[inline(always)]
unsafe fn look_up(differences: &[__m256i; 8], sixteen: __m256i, mut index: __m256i) -> __m256i {
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
