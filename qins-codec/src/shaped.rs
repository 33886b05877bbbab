//! Formats of 2 to 6 bits: a group of 16 has a header byte, which is the sign of its scale, a 5-bit scale code of a quarter
//! octave and one of four tables; codes are indices of the table, whose entries are integers that bf16 holds. A row has a
//! base of its own.
//!
//! At these widths a group's largest weight owns a code of its own: so tables are not symmetric, and the scale's sign
//! turns them round.

use crate::{
    Decoder, Encoded, Format, Header, Weights,
    error::EncodeError,
    pack::pack,
    scale::{self, SCALE_STEPS},
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
fn base_for(largest: f32) -> f32 {
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
    let decoder = Decoder::new(Header { format, rows, cols, base: 1.0, k: 0.0 })?;
    let (code_bytes, scale_bytes) = (format.code_bytes(cols), format.scale_bytes(cols));
    let (mut codes, mut scales) = (vec![0; decoder.header().code_bytes()], vec![0; decoder.header().scale_bytes()]);
    if cols == 0 {
        return Ok(Encoded { decoder, codes, scales });
    }
    let encoder = Encoder::new(format, search);
    let encode_row = |buffer: &mut Vec<f32>, (row, (codes, scales)): (usize, (&mut [u8], &mut [u8]))| {
        weights.read_row(row, buffer);
        EncodeError::check_finite(row, buffer).map(|()| encoder.row(buffer, codes, scales))
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

/// A table with the nearest entry of every half step: midpoints of integers are whole in half steps.
struct Table {
    entries: &'static [i8],
    /// Nearest entry for `ceil(2 x)`, from -256 to 256.
    nearest: Box<[u8; 513]>,
}

impl Table {
    fn new(entries: &'static [i8]) -> Self {
        let midpoints: Vec<i32> = entries.windows(2).map(|pair| i32::from(pair[0]) + i32::from(pair[1])).collect();
        let below = |half_steps: i32| midpoints.iter().filter(|&&midpoint| midpoint < half_steps).count() as u8;
        Self { entries, nearest: Box::new(std::array::from_fn(|i| below(i as i32 - 256))) }
    }

    fn code(&self, x: f32) -> u8 {
        let half_steps = (2.0 * x).ceil().clamp(-256.0, 256.0) as i32;
        self.nearest[(half_steps + 256) as usize]
    }
}

struct Encoder {
    bits: usize,
    search: Search,
    tables: [Table; SHAPES],
}

impl Encoder {
    fn new(format: Format, search: Search) -> Self {
        Self { bits: format.code_bits(), search, tables: tables(format).map(Table::new) }
    }

    /// Writes codes, where bytes are zero, and the base and header bytes of one row.
    fn row(&self, row: &[f32], codes: &mut [u8], scales: &mut [u8]) {
        let base = base_for(row.iter().fold(0f32, |largest, w| largest.max(w.abs())));
        let error = |&factor: &f32| {
            let base = base * factor;
            let errors = row.chunks(GROUP).map(|weights| self.group(weights, base, &mut [0; GROUP][..weights.len()]).1);
            errors.map(f64::from).sum::<f64>() * f64::from(factor).powi(2)
        };
        let factor = match self.search.factors {
            [factor] => factor,
            factors => factors.iter().min_by(|a, b| error(a).total_cmp(&error(b))).expect("factors to choose from"),
        };
        let base = base * factor;
        let (base_bytes, headers) = scales.split_at_mut(size_of::<f32>());
        base_bytes.copy_from_slice(&base.to_le_bytes());
        for (i, (weights, header)) in row.chunks(GROUP).zip(headers).enumerate() {
            let mut buffer = [0; GROUP];
            let group = &mut buffer[..weights.len()];
            (*header, _) = self.group(weights, base, group);
            pack(group, self.bits, i * GROUP, codes);
        }
    }

    /// Writes the codes of a group; returns its header byte, and its squared error in units of the base.
    fn group(&self, weights: &[f32], base: f32, codes: &mut [u16]) -> (u8, f32) {
        // In units of the base, so that no square overflows or vanishes.
        let mut buffer = [0f32; GROUP];
        let x = &mut buffer[..weights.len()];
        x.iter_mut().zip(weights).for_each(|(x, w)| *x = w / base);
        let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        // Also where the base is 0: 0/0 is NaN, which `max` ignores.
        if largest == 0.0 || !largest.is_finite() {
            return (header_byte(false, ZERO_GROUP, 0), 0.0);
        }
        // The scale at which the largest weight meets the end of a table, in units of the base; and those near it.
        let start = ((LARGEST / largest).log2() * STEPS as f32).floor() as i32;
        // Weights far below their row's largest are lost less as zeros.
        let (mut best, mut chosen) = (x.iter().map(|x| x * x).sum::<f32>(), header_byte(false, ZERO_GROUP, 0));
        let [below, above] = self.search.reach;
        for code in start - below..=start + above {
            let code = code.clamp(0, i32::from(ZERO_GROUP) - 1) as u8;
            for negative in [false, true] {
                for (shape, table) in self.tables.iter().enumerate() {
                    let header = header_byte(negative, code, shape);
                    let error = error_at(x, relative_scale(header), table, best);
                    if error < best {
                        (best, chosen) = (error, header);
                    }
                }
            }
        }
        if relative_scale(chosen) == 0.0 {
            return (chosen, best);
        }
        let (table, inverse) = (&self.tables[usize::from(chosen & 3)], 1.0 / relative_scale(chosen));
        codes.iter_mut().zip(&*x).for_each(|(code, x)| *code = table.code(x * inverse).into());
        (chosen, best)
    }
}

/// Squared error of a group at a scale; stops early once above `limit`.
fn error_at(x: &[f32], s: f32, table: &Table, limit: f32) -> f32 {
    let inverse = 1.0 / s;
    let mut error = 0.0;
    for &x in x {
        let difference = f32::from(table.entries[usize::from(table.code(x * inverse))]) * s - x;
        error += difference * difference;
        if error >= limit {
            break;
        }
    }
    error
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
            for entries in tables(format) {
                let table = Table::new(entries);
                let found = (f32::from(entries[usize::from(table.code(x))]) - x).abs();
                let best = entries.iter().map(|&entry| (f32::from(entry) - x).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!(found <= best * 1.000_01, "{} instead of {}", found, best);
            }
        }
    }
}
