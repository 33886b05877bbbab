//! Formats of 2 to 6 bits: a group of 16 has a header byte, which is the sign of its scale, a 5-bit scale code of a quarter
//! octave and one of four tables; codes are indices of the table, whose entries are integers that bf16 holds. A row has a
//! base of its own.
//!
//! At these widths a group's largest weight owns a code of its own: so tables are not symmetric, and the scale's sign
//! turns them round.

use crate::{
    Decoder, Encoded, Format, Header, Weights,
    cells::{padded, place},
    dispatch::{Kernel, Level},
    error::EncodeError,
    magnitude::largest_magnitude,
    pack::pack,
    scale::{self, SCALE_STEPS},
    search,
};
use rayon::prelude::*;

/// Tables that a group chooses from.
const SHAPES: usize = 4;

/// Scale codes in an octave.
const STEPS: usize = 4;

/// Codes of [`relative_scale`](crate::scale::relative_scale) in one of these.
const STEP: u8 = (SCALE_STEPS / STEPS) as u8;

/// The scale code of a group of zeros.
const ZERO_GROUP: u8 = 31;

/// The largest magnitude in a table.
const LARGEST: f32 = 127.0;

/// Weights in a group.
const GROUP: usize = 16;

const U6: [[i8; 64]; SHAPES] = [
    [
        -127, -122, -117, -112, -108, -102, -98, -93, -88, -84, -80, -76, -72, -68, -64, -60, -56, -53, -49, -46, -42,
        -39, -35, -32, -29, -26, -22, -19, -16, -12, -9, -6, -2, 1, 4, 8, 11, 14, 18, 21, 24, 28, 31, 34, 38, 42, 45,
        48, 52, 55, 59, 62, 66, 70, 74, 78, 82, 86, 91, 96, 100, 104, 109, 114,
    ],
    [
        -127, -121, -116, -110, -105, -99, -94, -89, -84, -79, -74, -70, -65, -61, -58, -54, -50, -46, -43, -40, -36,
        -33, -30, -27, -24, -21, -18, -15, -12, -9, -6, -3, -1, 2, 5, 8, 11, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40,
        44, 47, 50, 54, 57, 61, 64, 68, 72, 76, 80, 85, 90, 95, 100, 106, 111,
    ],
    [
        -127, -119, -112, -105, -98, -92, -87, -82, -77, -73, -68, -64, -59, -56, -52, -48, -45, -41, -38, -35, -32,
        -29, -26, -23, -20, -18, -15, -13, -10, -8, -6, -3, -1, 2, 4, 6, 9, 11, 14, 17, 19, 22, 24, 27, 30, 32, 35, 38,
        41, 44, 47, 50, 54, 58, 61, 65, 70, 76, 82, 88, 96, 103, 112, 121,
    ],
    [
        -127, -118, -111, -103, -97, -91, -84, -78, -71, -66, -61, -56, -52, -48, -44, -40, -37, -34, -31, -28, -25,
        -23, -20, -18, -16, -13, -11, -9, -7, -5, -3, -1, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 21, 23, 25, 28, 30, 33,
        36, 38, 41, 44, 47, 50, 53, 57, 61, 68, 75, 82, 92, 102, 114, 124,
    ],
];

const U4: [[i8; 16]; SHAPES] = [
    [-127, -109, -89, -71, -57, -43, -28, -13, 3, 20, 35, 50, 64, 79, 97, 115],
    [-127, -105, -83, -64, -50, -36, -23, -9, 4, 16, 30, 44, 58, 72, 90, 111],
    [-127, -97, -79, -60, -43, -29, -18, -7, 3, 14, 25, 37, 50, 64, 85, 119],
    [-127, -97, -71, -50, -35, -23, -12, -4, 4, 12, 21, 31, 43, 56, 73, 117],
];

const U3: [[i8; 8]; SHAPES] = [
    [-127, -84, -54, -24, 6, 37, 71, 105],
    [-127, -86, -51, -21, 5, 31, 63, 127],
    [-127, -79, -43, -17, 4, 26, 51, 85],
    [-127, -56, -29, -10, 5, 21, 42, 69],
];

const U2: [[i8; 4]; SHAPES] = [[-127, -46, 23, 119], [-127, -55, 4, 72], [-127, -29, 17, 76], [-127, -46, -3, 38]];

/// The tables of a format, ascending.
pub(crate) fn tables(format: Format) -> [&'static [i8]; SHAPES] {
    fn each<const N: usize>(tables: &'static [[i8; N]; SHAPES]) -> [&'static [i8]; SHAPES] {
        tables.each_ref().map(|table| table.as_slice())
    }
    match format {
        Format::Q6 => each(&U6),
        Format::Q4 => each(&U4),
        Format::Q3 => each(&U3),
        _ => each(&U2),
    }
}

/// The header byte: sign, scale code, table.
fn header_byte(negative: bool, code: u8, shape: usize) -> u8 {
    u8::from(negative) << 7 | code << 2 | shape as u8
}

/// The scale of a header byte as a multiple of its row's base: 0 for a group of zeros.
pub(crate) fn relative_scale(header: u8) -> f32 {
    let magnitude = match header >> 2 & 31 {
        ZERO_GROUP => 0.0,
        code => scale::relative_scale(code * STEP),
    };
    if header >> 7 == 1 { -magnitude } else { magnitude }
}

/// The base of a row: the power of two at which scale code 0 puts the largest table entry a quarter octave or more above
/// `largest`. Any base decodes; with powers of two all rows share one grid of scales, and encoding decoded weights anew
/// finds the same groups.
pub(crate) fn base_for(largest: f32) -> f32 {
    let covering = f64::from(largest) * 2f64.powf(1.0 / STEPS as f64) / f64::from(LARGEST);
    let bits = (covering as f32).to_bits();
    let exponent = (bits >> 23) + u32::from(bits & 0x7F_FFFF != 0);
    // Normal, and 127 times it within f32.
    f32::from_bits(exponent.clamp(1, 247) << 23)
}

/// How far an encoder looks.
struct Search {
    /// Scale codes below and above the one at which the largest weight meets the end of a table.
    reach: [i32; 2],
    /// Multiples of a row's base.
    factors: &'static [f32],
}

const SEARCH: Search = Search { reach: [1, 4], factors: &[1.0] };

/// For weights that may have been decoded from codes: that has moved the largest of a group and of a row.
const SEARCH_AGAIN: Search = Search { reach: [7, 9], factors: &[1.0, 0.5, 2.0] };

/// Encodes each group with the sign, scale and table of least squared error.
pub(crate) fn encode(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    encode_rows(format, weights, SEARCH)
}

/// The same for weights that may have been decoded from codes: then nothing more is lost.
pub(crate) fn encode_again(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    encode_rows(format, weights, SEARCH_AGAIN)
}

fn encode_rows(format: Format, weights: &impl Weights, search: Search) -> Result<Encoded, EncodeError> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let header = Header { format, rows, cols, base: 1.0, k: 0.0, row_bases: false };
    let decoder = Decoder::new(header)?;
    let (code_bytes, scale_bytes) = (format.code_bytes(cols), header.scale_bytes_of_row());
    let (mut codes, mut scales) = (vec![0; header.code_bytes()], vec![0; header.scale_bytes()]);
    if cols == 0 {
        return Ok(Encoded { decoder, codes, scales });
    }
    let encoder = Encoder::new(format, search);
    let encode_row = |buffer: &mut Vec<f32>, (row, (codes, scales)): (usize, (&mut [u8], &mut [u8]))| {
        weights.read_row(row, buffer);
        largest_magnitude(row, buffer).map(|largest| encoder.row(buffer, largest, codes, scales))
    };
    let rows: Vec<_> = codes
        .par_chunks_exact_mut(code_bytes)
        .zip(scales.par_chunks_exact_mut(scale_bytes))
        .enumerate()
        .map_init(|| vec![0.0; cols], encode_row)
        .collect();
    // In row order, so that the first bad weight is reported whatever the threads did.
    rows.into_iter().collect::<Result<(), _>>()?;
    Ok(Encoded { decoder, codes, scales })
}

/// Candidates side by side: the four tables, and the same turned round.
const LANES: usize = 2 * SHAPES;

/// Half steps of a table's integers: midpoints are whole in half steps, so that each lies nearest to one entry.
const HALF_STEPS: usize = 512;

/// The entry nearest to every half step, in every table and for either sign of the scale, side by side.
struct Entries {
    /// Turned back for negative scales, so that all lanes are in units of the scale's magnitude.
    values: Box<[[f32; LANES]; HALF_STEPS]>,
    codes: Box<[[u8; LANES]; HALF_STEPS]>,
}

impl Entries {
    fn new(format: Format) -> Self {
        let tables = tables(format);
        let (mut values, mut codes) = (Box::new([[0.0; LANES]; HALF_STEPS]), Box::new([[0; LANES]; HALF_STEPS]));
        for at in 0..HALF_STEPS {
            for lane in 0..LANES {
                let (table, sign) = (tables[lane % SHAPES], if lane < SHAPES { 1 } else { -1 });
                // The middle of the half step, in quarters; no midpoint is one.
                let middle = sign * (2 * at as i32 + 1 - HALF_STEPS as i32);
                let below = |pair: &[i8]| 2 * (i32::from(pair[0]) + i32::from(pair[1])) < middle;
                let code = table.windows(2).take_while(|pair| below(pair)).count();
                (codes[at][lane], values[at][lane]) = (code as u8, (sign * i32::from(table[code])) as f32);
            }
        }
        Self { values, codes }
    }

    /// The half step of a weight in units of its scale.
    #[inline(always)]
    fn half_step(x: f32) -> u32 {
        // Where an f32 of this size has steps of 1: the sum rounds.
        const ROUND: f32 = 8_388_608.0;
        const LAST: f32 = (HALF_STEPS - 1) as f32;
        let inside = x * 2.0 + (HALF_STEPS as f32 / 2.0 - 0.5);
        let inside = if inside > 0.0 { inside } else { 0.0 };
        let inside = if inside < LAST { inside } else { LAST };
        (inside + ROUND).to_bits() % HALF_STEPS as u32
    }

    /// Adds the squared differences of a weight from the entries nearest to its half step.
    #[inline(always)]
    fn add_squares(&self, sums: &mut [f32; LANES], half_step: u32, x: f32) {
        let values = &self.values[half_step as usize % HALF_STEPS];
        for lane in 0..LANES {
            let difference = values[lane] - x;
            sums[lane] += difference * difference;
        }
    }
}

/// What an encoder outside the host's memory needs, as `search.rs` describes it.
pub(crate) fn search_tables(format: Format) -> Vec<f32> {
    let Encoder { scales, entries, .. } = Encoder::new(format, SEARCH);
    let mut tables = scales.to_vec();
    tables.resize(search::SCALES, 0.0);
    tables.extend(entries.values.as_flattened());
    tables.extend(entries.codes.as_flattened().iter().map(|&code| f32::from(code)));
    tables
}

pub(crate) struct Encoder {
    bits: usize,
    search: Search,
    entries: Entries,
    /// Relative scales by scale code.
    scales: [f32; ZERO_GROUP as usize],
    level: Level,
}

impl Encoder {
    /// Of single rows in [`Format::Q4`].
    pub(crate) fn of_q4() -> Self {
        Self::new(Format::Q4, SEARCH)
    }

    fn new(format: Format, search: Search) -> Self {
        let scales = std::array::from_fn(|code| relative_scale(header_byte(false, code as u8, 0)));
        let (bits, entries) = (format.code_bits(), Entries::new(format));
        Self { bits, search, entries, scales, level: Level::current() }
    }

    /// Writes codes, and the base and header bytes of one row.
    pub(crate) fn row(&self, row: &[f32], largest: f32, codes: &mut [u8], scales: &mut [u8]) {
        self.level.run(EncodeRow { encoder: self, row, largest, codes, scales });
    }

    /// The header byte of a group, and its squared error in units of the base.
    #[inline(always)]
    fn best_header(&self, group: &Group, tried: &mut [Tried; MOST_TRIED]) -> (u8, f32) {
        let (x, [below, above], largest) = (&group.x, self.search.reach, group.largest_place());
        if largest < NOTHING {
            return (header_byte(false, ZERO_GROUP, 0), group.squares());
        }
        // The scale at which the largest weight meets the end of a table, in units of the base; and those near it.
        let start = (END - largest) >> PLACES.ilog2();
        let last = i32::from(ZERO_GROUP) - 1;
        let (mut least, mut chosen) = ([f32::INFINITY; LANES], [0f32; LANES]);
        let [lowest, highest] = [start - below, start + above].map(|code| code.clamp(0, last));
        for (code, tried) in (lowest..=highest).zip(tried.iter_mut()) {
            let inverse = 1.0 / self.scales[code as usize];
            for (i, x) in x.iter().enumerate() {
                let scaled = x * inverse;
                (tried.scaled[i], tried.half_steps[i]) = (scaled, Entries::half_step(scaled));
            }
        }
        for (code, Tried { scaled, half_steps }) in (lowest..=highest).zip(tried.iter()) {
            let s = self.scales[code as usize];
            // Two sums, because an addition takes longer than what comes between two.
            let (mut even, mut odd) = ([0f32; LANES], [0f32; LANES]);
            let mut i = 0;
            while i + 1 < group.count {
                self.entries.add_squares(&mut even, half_steps[i], scaled[i]);
                self.entries.add_squares(&mut odd, half_steps[i + 1], scaled[i + 1]);
                i += 2;
            }
            if i < group.count {
                self.entries.add_squares(&mut even, half_steps[i], scaled[i]);
            }
            for lane in 0..LANES {
                let error = (even[lane] + odd[lane]) * (s * s);
                chosen[lane] = if error < least[lane] { code as f32 } else { chosen[lane] };
                least[lane] = if error < least[lane] { error } else { least[lane] };
            }
        }
        // Weights far below their row's largest are lost less as zeros.
        let (mut best, mut header) = (group.squares(), header_byte(false, ZERO_GROUP, 0));
        for lane in 0..LANES {
            if least[lane] < best {
                (best, header) = (least[lane], header_byte(lane >= SHAPES, chosen[lane] as u8, lane % SHAPES));
            }
        }
        (header, best)
    }

    #[inline(always)]
    fn codes(&self, group: &Group, header: u8) -> [u16; GROUP] {
        let code = usize::from(header >> 2 & 31);
        if code >= self.scales.len() {
            return [0; GROUP];
        }
        let (inverse, lane) = (1.0 / self.scales[code], usize::from(header >> 7) * SHAPES + usize::from(header & 3));
        std::array::from_fn(|i| self.entries.codes[Entries::half_step(group.x[i] * inverse) as usize][lane].into())
    }
}

/// Places of [`place`] in a step of the scale codes.
const PLACES: i32 = place(2.0) / STEPS as i32;

/// The place of [`LARGEST`].
const END: i32 = place(LARGEST);

/// The place of half a step at the least scale, 2^-8.5: below it no entry is nearer than zero.
const NOTHING: i32 = -17 * place(2.0) / 2;

/// Weights of a group in units of the base, so that no square overflows or vanishes; zeros after the last.
struct Group {
    count: usize,
    x: [f32; GROUP],
}

impl Group {
    #[inline(always)]
    fn new(weights: &[f32], base: f32) -> Self {
        let mut x = padded(weights);
        for x in &mut x {
            *x /= base;
        }
        Self { count: weights.len(), x }
    }

    #[inline(always)]
    fn largest_place(&self) -> i32 {
        let mut bits = 0;
        for x in self.x {
            bits = (x.to_bits() as i32 & i32::MAX).max(bits);
        }
        place(f32::from_bits(bits as u32))
    }

    #[inline(always)]
    fn squares(&self) -> f32 {
        let (mut sums, halves) = ([0f32; GROUP / 2], self.x.as_chunks::<{ GROUP / 2 }>().0);
        for half in halves {
            for i in 0..GROUP / 2 {
                sums[i] += half[i] * half[i];
            }
        }
        sums.iter().sum()
    }
}

/// A group in units of a scale that is tried. All scales are prepared before the first is compared, so that the
/// processor has more than one to work at.
#[derive(Clone, Copy)]
struct Tried {
    scaled: [f32; GROUP],
    half_steps: [u32; GROUP],
}

/// Scale codes of the wider search.
const MOST_TRIED: usize = (SEARCH_AGAIN.reach[0] + 1 + SEARCH_AGAIN.reach[1]) as usize;

struct EncodeRow<'a> {
    encoder: &'a Encoder,
    row: &'a [f32],
    largest: f32,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Kernel for EncodeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.encoder.bits {
            6 => self.with::<6>(),
            4 => self.with::<4>(),
            3 => self.with::<3>(),
            _ => self.with::<2>(),
        }
    }
}

impl EncodeRow<'_> {
    #[inline(always)]
    fn with<const BITS: usize>(self) {
        let Self { encoder, row, largest, codes, scales } = self;
        let mut tried = [Tried { scaled: [0.0; GROUP], half_steps: [0; GROUP] }; MOST_TRIED];
        let base = base_for(largest);
        let mut factor = encoder.search.factors[0];
        if encoder.search.factors.len() > 1 {
            let mut least = f64::INFINITY;
            for &candidate in encoder.search.factors {
                let mut error = 0.0;
                for weights in row.chunks(GROUP) {
                    error += f64::from(encoder.best_header(&Group::new(weights, base * candidate), &mut tried).1);
                }
                error *= f64::from(candidate) * f64::from(candidate);
                if error < least {
                    (least, factor) = (error, candidate);
                }
            }
        }
        let base = base * factor;
        let (base_bytes, headers) = scales.split_at_mut(size_of::<f32>());
        base_bytes.copy_from_slice(&base.to_le_bytes());
        for (i, (weights, header)) in row.chunks(GROUP).zip(headers).enumerate() {
            let group = Group::new(weights, base);
            (*header, _) = encoder.best_header(&group, &mut tried);
            pack::<BITS>(&encoder.codes(&group, *header)[..weights.len()], i * GROUP, codes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scales_are_powers_of_two_rounded_to_f32() {
        for code in 0..ZERO_GROUP {
            assert_eq!(relative_scale(header_byte(false, code, 0)), 2f64.powf(-f64::from(code) / 4.0) as f32, "{code}");
        }
    }

    proptest! {
        #[test]
        fn nearest_is_nearest(format in prop::sample::select(vec![Format::Q6, Format::Q4, Format::Q3, Format::Q2]), x in -140.0f32..140.0) {
            let (entries, at) = (Entries::new(format), Entries::half_step(x) as usize);
            for (lane, (value, code)) in entries.values[at].into_iter().zip(entries.codes[at]).enumerate() {
                let (table, sign) = (tables(format)[lane % SHAPES], if lane < SHAPES { 1.0 } else { -1.0 });
                prop_assert_eq!(value, f32::from(table[usize::from(code)]) * sign);
                let best = table.iter().map(|&entry| (f32::from(entry) * sign - x).abs()).fold(f32::INFINITY, f32::min);
                // Weights are rounded to 2^-16.
                prop_assert!((value - x).abs() <= best + 4e-5, "{} instead of {}", value, best);
            }
        }
    }
}
