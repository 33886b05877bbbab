//! The searches of `qins_codec` (`cells.rs`, `shaped.rs` and `raw.rs` there), operation by operation, so that codes are the same
//! on a device that rounds each operation.

use super::{
    decode::{byte, half},
    layout::{Law, Layout},
};
use cubecl::prelude::*;
use qins_codec::search::SCALES;

/// Units of a cube.
pub(super) const UNITS: usize = 64;

/// Scale codes tried for magnitudes.
const LANES: usize = 16;

/// The first of them, below the one that is nearest to the largest magnitude.
const REACH: i32 = 9;

/// The scale code of zeros beside magnitudes.
const ZEROS: u32 = 255;

/// Of 7-bit magnitudes, where values follow the midpoints in the tables.
const VALUES: usize = SCALES + 129;

/// Of 11-bit magnitudes, where three constants do.
const CONSTANTS: usize = SCALES + 2049;

/// Candidates of tables that groups choose: four, and the same turned round.
const CHOICES: usize = 8;

/// Half steps of such a table.
const HALF_STEPS: usize = 512;

/// The scale code of zeros beside such tables.
const CHOSEN_ZEROS: i32 = 31;

/// Some rows of a float matrix, and where its floats lie.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Matrix {
    /// Rows before these.
    first_row: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// How floats lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Floats {
    F32,
    /// Two in a word.
    F16,
    /// Two in a word.
    Bf16,
}

/// By arithmetic: not every device has the 16-bit types, nor all of their subnormal numbers.
#[cube]
fn weight(values: &Array<u32>, matrix: &Matrix, row: usize, col: usize, #[comptime] floats: Floats) -> f32 {
    let at = (matrix.first_row + row) * matrix.row_stride + col * matrix.col_stride;
    match comptime!(floats) {
        Floats::F32 => f32::reinterpret(values[at]),
        Floats::F16 => half(half_word(values, at)),
        Floats::Bf16 => f32::reinterpret(half_word(values, at) << 16),
    }
}

#[cube]
fn half_word(values: &Array<u32>, at: usize) -> u32 {
    (values[at / 2] >> (u32::cast_from(at % 2) * 16)) & 0xFFFF
}

/// The largest magnitude of each row, and then for each row the least of the largest magnitudes of its groups that are not
/// zeros, infinite where all are. As bits, which for infinities and NaN are beyond those of every number. So many `units` read
/// a row together.
#[cube(launch_unchecked)]
pub(super) fn magnitudes(
    values: &Array<u32>,
    matrix: &Matrix,
    out: &mut Array<u32>,
    #[comptime] units: usize,
    #[comptime] group: usize,
    #[comptime] floats: Floats,
) {
    let (row, of_row, unit) = (ABSOLUTE_POS / units, ABSOLUTE_POS % units, UNIT_POS as usize);
    let mut largest = 0u32;
    let mut least = 0x7F80_0000u32;
    if row < matrix.rows {
        let mut first = of_row * group;
        while first < matrix.cols {
            let mut of_group = 0u32;
            for col in first..min(first + group, matrix.cols) {
                of_group = max(of_group, u32::reinterpret(weight(values, matrix, row, col, floats)) & 0x7FFF_FFFF);
            }
            largest = max(largest, of_group);
            least = select(of_group > 0, min(least, of_group), least);
            first += comptime!(units * group);
        }
    }
    let mut shared = SharedMemory::<u32>::new(comptime!(2 * UNITS));
    shared[unit] = largest;
    shared[UNITS + unit] = least;
    sync_cube();
    if row < matrix.rows && of_row == 0 {
        for i in 1..units {
            largest = max(largest, shared[unit + i]);
            least = min(least, shared[UNITS + unit + i]);
        }
        out[row] = largest;
        out[matrix.rows + row] = least;
    }
}

/// A word of bases and scale codes, of rows that follow each other.
#[cube(launch_unchecked)]
pub(super) fn scales(
    values: &Array<u32>,
    matrix: &Matrix,
    bases: &Array<f32>,
    tables: &Array<f32>,
    out: &mut Array<u32>,
    length: usize,
    scale_bytes: usize,
    #[comptime] layout: Layout,
    #[comptime] floats: Floats,
) {
    let bytes = matrix.rows * scale_bytes;
    if ABSOLUTE_POS * 4 < bytes {
        let mut word = 0u32;
        for i in 0..4usize {
            let (row, index) = ((ABSOLUTE_POS * 4 + i) / scale_bytes, (ABSOLUTE_POS * 4 + i) % scale_bytes);
            if row < matrix.rows {
                let base = base(matrix, bases, row, layout);
                let mut found = (u32::reinterpret(base) >> (u32::cast_from(index % 4) * 8)) & 0xFF;
                if index >= comptime!(layout.base_bytes) {
                    let first = (index - comptime!(layout.base_bytes)) * comptime!(layout.group);
                    let count = min(matrix.cols - first, comptime!(layout.group));
                    let mut x = Array::<f32>::new(comptime!(layout.group));
                    for i in 0..comptime!(layout.group) {
                        x[i] = 0.0;
                        if i < count {
                            x[i] = weight(values, matrix, row, first + i, floats) / base;
                        }
                    }
                    found = match comptime!(layout.law) {
                        Law::ChosenTable => header_byte(&x, count, tables),
                        _ => scale_code(&mut x, count, tables, length, layout),
                    };
                }
                word |= found << (u32::cast_from(i) * 8);
            }
        }
        out[ABSOLUTE_POS] = word;
    }
}

/// What the weights of a row are divided by: its own base, or that of all.
#[cube]
fn base(matrix: &Matrix, bases: &Array<f32>, row: usize, #[comptime] layout: Layout) -> f32 {
    if comptime!(layout.base_bytes > 0) { bases[matrix.first_row + row] } else { bases[0] }
}

/// Codes that fill whole words, of the scales found.
#[cube(launch_unchecked)]
pub(super) fn codes(
    values: &Array<u32>,
    matrix: &Matrix,
    bases: &Array<f32>,
    tables: &Array<f32>,
    scales: &Array<u32>,
    out: &mut Array<u32>,
    length: usize,
    scale_bytes: usize,
    units: usize,
    #[comptime] layout: Layout,
    #[comptime] floats: Floats,
) {
    let (row, unit) = (ABSOLUTE_POS / units, ABSOLUTE_POS % units);
    if row < matrix.rows {
        let base = base(matrix, bases, row, layout);
        let mut words = Array::<u32>::new(comptime!(layout.unit_words));
        #[unroll]
        for i in 0..comptime!(layout.unit_words) {
            words[i] = 0;
        }
        #[unroll]
        for i in 0..comptime!(layout.unit_codes()) {
            let col = unit * comptime!(layout.unit_codes()) + i;
            if col < matrix.cols {
                let weight = weight(values, matrix, row, col, floats);
                let code = match comptime!(layout.law) {
                    Law::F16 => f16_bits(u32::reinterpret(weight)),
                    Law::Bf16 => bf16_bits(u32::reinterpret(weight)),
                    _ => {
                        let at = row * scale_bytes + comptime!(layout.base_bytes) + col / comptime!(layout.group);
                        let scale = byte(scales, at);
                        match comptime!(layout.law) {
                            Law::ChosenTable => entry(weight / base, scale, tables),
                            _ => magnitude(weight, base, scale, tables, length, layout),
                        }
                    }
                };
                let (bit, bits) = comptime!((i * layout.bits, layout.bits));
                words[comptime!(bit / 32)] |= code << comptime!(bit as u32 % 32);
                if comptime!(bit % 32 + bits > 32) {
                    words[comptime!(bit / 32 + 1)] |= code >> comptime!(32 - bit as u32 % 32);
                }
            }
        }
        #[unroll]
        for i in 0..comptime!(layout.unit_words) {
            out[ABSOLUTE_POS * comptime!(layout.unit_words) + i] = words[i];
        }
    }
}

/// A magnitude in units of the base that no square of overflows.
#[cube]
fn clipped(x: f32) -> f32 {
    min(f32::abs(x), 1e15f32)
}

/// The scale code of least squared error for magnitudes of a group, `x` in units of the base.
#[cube]
fn scale_code(x: &mut Array<f32>, count: usize, tables: &Array<f32>, length: usize, #[comptime] layout: Layout) -> u32 {
    let mut places = Array::<i32>::new(comptime!(layout.group));
    let mut largest = i32::new(-1_000_000);
    for i in 0..comptime!(layout.group) {
        x[i] = clipped(x[i]);
        places[i] = place(x[i]);
        largest = max(largest, places[i]);
    }
    let mut found = u32::cast_from(ZEROS);
    if largest >= -51200 {
        let start = clamp((8 - largest) >> 4, 0, 254) - REACH;
        let mut best = 0xFFFF_FFFFu32;
        for lane in 0..LANES {
            let code = start + i32::cast_from(lane);
            if clamp(code, 0, 254) == code {
                let scale = tables[usize::cast_from(code)];
                let inverse = 1.0 / scale;
                let mut even = 0.0f32;
                let mut odd = 0.0f32;
                for i in 0..comptime!(layout.group) {
                    if i < count {
                        let difference = if comptime!(layout.bits == 12) {
                            from_centre(x[i] * inverse, tables) * scale
                        } else {
                            let along = clamp((places[i] >> 4) + start + below(length), 0, below(length));
                            let at = usize::cast_from(places[i] & 15) * length + usize::cast_from(along) + lane;
                            tables[VALUES + at] * scale - x[i]
                        };
                        if comptime!(layout.bits == 12) || i % 2 == 0 {
                            even += difference * difference;
                        } else {
                            odd += difference * difference;
                        }
                    }
                }
                best = min(best, ((u32::reinterpret(even + odd) >> 4) << 4) | u32::cast_from(lane));
            }
        }
        found = u32::cast_from(clamp(start + i32::cast_from(best & 15), 0, 254));
    }
    found
}

/// Scale codes from the lowest place to that of 1.
#[cube]
fn below(length: usize) -> i32 {
    i32::cast_from(length - LANES)
}

/// How far a magnitude in units of its scale is from the centre of its cell of 11 bits, about.
#[cube]
fn from_centre(x: f32, tables: &Array<f32>) -> f32 {
    let (coordinate, below) = coordinate(x, tables);
    let centre = f32::cast_from(cell(coordinate)) + 0.5;
    let inside = (coordinate - centre) * below * below * tables[CONSTANTS + 2];
    select(x > 1.0, x - 1.0, inside)
}

/// The coordinate of the projective law in cells, and `1 + kY`.
#[cube]
fn coordinate(x: f32, tables: &Array<f32>) -> (f32, f32) {
    let scaled = x * tables[CONSTANTS + 1];
    let below = 1.0 + tables[CONSTANTS] * scaled;
    ((1.0 - scaled) / below * 2048.0, below)
}

/// The cell of a coordinate.
#[cube]
fn cell(coordinate: f32) -> u32 {
    // Where an f32 of this size has steps of 1: the sum rounds.
    u32::reinterpret(clamp(coordinate - 0.5, 0.0, 2047.0) + 8_388_608.0) - 0x4B00_0000
}

/// Sign and magnitude nearest to a weight at a scale code.
#[cube]
fn magnitude(
    weight: f32,
    base: f32,
    scale_code: u32,
    tables: &Array<f32>,
    length: usize,
    #[comptime] layout: Layout,
) -> u32 {
    let mut code = 0u32;
    if scale_code != ZEROS {
        let x = clipped(weight / base);
        let value = x * (1.0 / tables[usize::cast_from(scale_code)]);
        let guess = if comptime!(layout.bits == 12) {
            let (coordinate, _below) = coordinate(value, tables);
            cell(coordinate)
        } else {
            let place = place(x);
            let along = (place >> 4) + i32::cast_from(scale_code) + below(length);
            let along = clamp(along, 0, i32::cast_from(length - 1));
            let at = usize::cast_from(place & 15) * length + usize::cast_from(along);
            u32::cast_from(tables[VALUES + length * 16 + at])
        };
        // It is at most one cell off.
        let above = tables[SCALES + usize::cast_from(guess)];
        let below = tables[SCALES + usize::cast_from(guess) + 1];
        code = guess + select(below > value, 1u32, 0u32) - select(above <= value, 1u32, 0u32);
        // By bits: a comparison may take small numbers for zeros.
        let negative = u32::reinterpret(weight) > 0x8000_0000u32;
        if comptime!(layout.law == Law::Integers) {
            code = select(negative, (code + 129) & 0xFF, 127 - code);
        } else {
            code |= select(negative, comptime!(1u32 << (layout.bits - 1)), 0u32);
        }
    }
    code
}

/// Sign, scale code and table of least squared error for a group of 16, `x` in units of its row's base.
#[cube]
fn header_byte(x: &Array<f32>, count: usize, tables: &Array<f32>) -> u32 {
    let mut bits = 0u32;
    let mut squares = Array::<f32>::new(8usize);
    #[unroll]
    for i in 0..8usize {
        bits = max(bits, max(u32::reinterpret(x[i]) & 0x7FFF_FFFF, u32::reinterpret(x[i + 8]) & 0x7FFF_FFFF));
        squares[i] = x[i] * x[i];
        squares[i] += x[i + 8] * x[i + 8];
    }
    let mut best = 0.0f32;
    #[unroll]
    for i in 0..8usize {
        best += squares[i];
    }
    // Zeros, unless a scale is better.
    let mut header = u32::cast_from(CHOSEN_ZEROS << 2);
    let largest = place(f32::reinterpret(bits));
    if largest >= -4352 {
        // The place of 127 is 3578; a scale code has 128 places.
        let start = (3578 - largest) >> 7;
        let (lowest, highest) = (clamp(start - 1, 0, CHOSEN_ZEROS - 1), clamp(start + 4, 0, CHOSEN_ZEROS - 1));
        let mut least = Array::<f32>::new(CHOICES);
        let mut chosen = Array::<u32>::new(CHOICES);
        #[unroll]
        for lane in 0..CHOICES {
            least[lane] = 3.4e38;
            chosen[lane] = 0;
        }
        for code in lowest..highest + 1 {
            let scale = tables[usize::cast_from(code)];
            let inverse = 1.0 / scale;
            let mut even = Array::<f32>::new(CHOICES);
            let mut odd = Array::<f32>::new(CHOICES);
            #[unroll]
            for lane in 0..CHOICES {
                even[lane] = 0.0;
                odd[lane] = 0.0;
            }
            for i in 0..16usize {
                if i < count {
                    let scaled = x[i] * inverse;
                    let at = SCALES + half_step(scaled) * CHOICES;
                    #[unroll]
                    for lane in 0..CHOICES {
                        let difference = tables[at + lane] - scaled;
                        if i % 2 == 0 {
                            even[lane] += difference * difference;
                        } else {
                            odd[lane] += difference * difference;
                        }
                    }
                }
            }
            #[unroll]
            for lane in 0..CHOICES {
                let error = (even[lane] + odd[lane]) * (scale * scale);
                if error < least[lane] {
                    least[lane] = error;
                    chosen[lane] = u32::cast_from(code);
                }
            }
        }
        #[unroll]
        for lane in 0..CHOICES {
            if least[lane] < best {
                best = least[lane];
                header = comptime!((((lane / 4) << 7) | (lane % 4)) as u32) | (chosen[lane] << 2);
            }
        }
    }
    header
}

/// The half step of a weight in units of its scale.
#[cube]
fn half_step(x: f32) -> usize {
    let inside = clamp(x * 2.0 + 255.5, 0.0, 511.0);
    usize::cast_from(u32::reinterpret(inside + 8_388_608.0) & 511)
}

/// The entry nearest to a weight in units of its row's base, in the table that a header byte chooses.
#[cube]
fn entry(x: f32, header: u32, tables: &Array<f32>) -> u32 {
    let mut code = 0u32;
    let scale_code = (header >> 2) & 31;
    if scale_code != u32::cast_from(CHOSEN_ZEROS) {
        let scaled = x * (1.0 / tables[usize::cast_from(scale_code)]);
        let lane = (header >> 7) * 4 + (header & 3);
        let at = half_step(scaled) * CHOICES + usize::cast_from(lane);
        code = u32::cast_from(tables[comptime!(SCALES + HALF_STEPS * CHOICES) + at]);
    }
    code
}

/// The upper half of a number's bits, rounded to the nearest, ties to even.
#[cube]
fn bf16_bits(bits: u32) -> u32 {
    (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
}

/// The bits of the nearest IEEE half, ties to even, by arithmetic: not every device has the type.
#[cube]
fn f16_bits(bits: u32) -> u32 {
    let magnitude = bits & 0x7FFF_FFFF;
    let normal = (magnitude + 0xFFF + ((magnitude >> 13) & 1) - 0x3800_0000) >> 13;
    // Below 2^-14, in units of 2^-24.
    let shift = min(126 - min(magnitude >> 23, 112), 25);
    let mantissa = (magnitude & 0x7F_FFFF) | 0x80_0000;
    let subnormal = (mantissa + (1u32 << (shift - 1)) - 1 + ((mantissa >> shift) & 1)) >> shift;
    select(magnitude < 0x3880_0000, subnormal, normal) | ((bits >> 16) & 0x8000)
}

/// `log2(x)` in places of 512 an octave, rounded to the nearest.
#[cube]
fn place(x: f32) -> i32 {
    let bits = u32::reinterpret(x);
    let exponent = i32::cast_from(bits >> 23) - 127;
    let t = f32::reinterpret((bits & 0x7F_FFFF) | 0x3F80_0000) - 1.0;
    let log2 = t + t * (1.0 - t) * (0.438_725_33 + t * (t * 0.082_128_88 - 0.239_056_35));
    let places = (f32::cast_from(exponent) + log2) * 512.0;
    // Where an f32 of this size has steps of 1: the sum rounds.
    i32::cast_from(u32::reinterpret(places + 12_582_912.0)) - 0x4B40_0000
}
