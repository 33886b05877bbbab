//! Formats with a sign bit and a magnitude code: `sign << (bits - 1) | magnitude`.

use crate::{
    Decoder, Encoded, Format, Header, Weights,
    error::EncodeError,
    format::Law,
    pack::pack,
    projective::{K_GRID, Nearest, OCTAVES, logarithmic_table, projective_table},
    scale::{SCALE_STEPS, ZERO_GROUP, base_for, relative_scale},
};
use rayon::prelude::*;

/// Weights read to choose `k`; a matrix with more is sampled by evenly spaced rows.
const SAMPLE: usize = 1 << 15;

/// How many scale codes are tried on either side of the one whose table end meets the group's largest magnitude.
const REACH: i32 = 6;

/// The same for weights that may have been decoded from the constants given: decoding moves the largest magnitude by up
/// to half a cell, one scale code, and the code it was decoded from must still be within reach.
const REACH_AGAIN: i32 = REACH + 2;

/// Magnitude codes.
fn half(format: Format) -> usize {
    1 << (format.code_bits() - 1)
}

/// `w/s` of every code; `constant` is `k`, or the octaves.
pub(crate) fn code_values(format: Format, constant: f64) -> Vec<f32> {
    let mut table = match format.law() {
        Law::Logarithmic => logarithmic_table(constant),
        _ => projective_table(constant, half(format)),
    };
    table.extend_from_within(..);
    let half = half(format);
    table[half..].iter_mut().for_each(|value| *value = -*value);
    table
}

/// Encodes with the `k` of [`K_GRID`], or the octaves of [`OCTAVES`], of least squared error.
pub(crate) fn encode(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    let base = base_for(largest_magnitude(weights)?);
    let k = best_k(format, weights, base);
    encode_rows(Header { format, rows: weights.rows(), cols: weights.cols(), base, k }, weights, REACH)
}

/// Encodes with constants already chosen.
pub(crate) fn encode_with(header: Header, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    largest_magnitude(weights)?;
    encode_rows(header, weights, REACH_AGAIN)
}

fn encode_rows(header: Header, weights: &impl Weights, reach: i32) -> Result<Encoded, EncodeError> {
    let decoder = Decoder::new(header)?;
    let (code_bytes, scale_bytes) = (header.format.code_bytes(header.cols), header.format.scale_bytes(header.cols));
    let (mut codes, mut scales) = (vec![0; header.code_bytes()], vec![0; header.scale_bytes()]);
    if header.cols > 0 {
        let encoder = Encoder::new(header.format, header.base, header.k, reach);
        codes.par_chunks_exact_mut(code_bytes).zip(scales.par_chunks_exact_mut(scale_bytes)).enumerate().for_each_init(
            || vec![0.0; header.cols],
            |buffer, (row, (codes, scales))| {
                weights.read_row(row, buffer);
                encoder.row(buffer, codes, scales);
            },
        );
    }
    Ok(Encoded { decoder, codes, scales })
}

pub(crate) fn largest_magnitude(weights: &impl Weights) -> Result<f32, EncodeError> {
    let row_largest = |buffer: &mut Vec<f32>, row| {
        weights.read_row(row, buffer);
        let largest = |()| buffer.iter().fold(0f32, |largest, w| largest.max(w.abs()));
        EncodeError::check_finite(row, buffer).map(largest)
    };
    let rows: Vec<_> =
        (0..weights.rows()).into_par_iter().map_init(|| vec![0.0; weights.cols()], row_largest).collect();
    // In row order, so that the first bad weight is reported whatever the threads did.
    rows.into_iter().try_fold(0f32, |largest, row| Ok(largest.max(row?)))
}

fn best_k(format: Format, weights: &impl Weights, base: f32) -> f64 {
    let (rows, cols) = (weights.rows(), weights.cols());
    let step = rows.saturating_mul(cols).div_ceil(SAMPLE).max(1);
    let mut sample = vec![0.0; rows.div_ceil(step) * cols];
    if sample.is_empty() {
        return K_GRID[0];
    }
    for (i, row) in sample.chunks_exact_mut(cols).enumerate() {
        weights.read_row(i * step, row);
    }
    let grid: &[f64] = if format.law() == Law::Logarithmic { &OCTAVES } else { &K_GRID };
    let errors: Vec<f64> = grid
        .par_iter()
        .map(|&k| {
            let encoder = Encoder::new(format, base, k, REACH);
            let (mut codes, mut scales) = (vec![0; format.code_bytes(cols)], vec![0; format.scale_bytes(cols)]);
            let error = |row| {
                codes.fill(0);
                encoder.row(row, &mut codes, &mut scales)
            };
            sample.chunks_exact(cols).map(error).sum()
        })
        .collect();
    let best = (0..grid.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).expect("the grid is not empty");
    grid[best]
}

/// Encodes rows with fixed constants. Works on `|w|/base`, so that no square overflows or vanishes.
struct Encoder {
    format: Format,
    base: f32,
    nearest: Nearest,
    reach: i32,
}

impl Encoder {
    fn new(format: Format, base: f32, k: f64, reach: i32) -> Self {
        Self { format, base, nearest: Nearest::new(format.law(), half(format), k), reach }
    }

    /// Writes codes, where bytes are zero, and scale codes of one row; returns its squared error in units of the base.
    fn row(&self, row: &[f32], codes: &mut [u8], scales: &mut [u8]) -> f64 {
        let (group, bits) = (self.format.group(), self.format.code_bits());
        let mut error = 0.0;
        for (i, (weights, scale)) in row.chunks(group).zip(scales).enumerate() {
            let mut buffer = [0; MAX_GROUP];
            let of_group = &mut buffer[..weights.len()];
            error += self.encode_group(weights, of_group, scale);
            pack(of_group, bits, i * group, codes);
        }
        error
    }

    fn encode_group(&self, weights: &[f32], codes: &mut [u16], scale: &mut u8) -> f64 {
        let mut buffer = [0f32; MAX_GROUP];
        let x = &mut buffer[..weights.len()];
        for (x, w) in x.iter_mut().zip(weights) {
            *x = w.abs() / self.base;
        }
        let largest = x.iter().fold(0f32, |a, &b| a.max(b));
        // Also where the base is 0: 0/0 is NaN, which `max` ignores.
        if largest == 0.0 {
            codes.fill(0);
            *scale = ZERO_GROUP;
            return 0.0;
        }
        let start = (-largest.log2() * SCALE_STEPS as f32).round() as i32;
        let mut best = f32::INFINITY;
        let mut tried = None;
        for offset in -self.reach..=self.reach {
            let code = (start.saturating_add(offset)).clamp(0, i32::from(ZERO_GROUP) - 1) as u8;
            if tried.replace(code) == Some(code) {
                continue;
            }
            let error = self.error_at(x, code, best);
            if error < best {
                (best, *scale) = (error, code);
            }
        }
        let inverse = 1.0 / relative_scale(*scale);
        let sign = half(self.format) as u16;
        for ((code, &x), w) in codes.iter_mut().zip(&*x).zip(weights) {
            *code = self.nearest.code(x * inverse).0 | if *w < 0.0 { sign } else { 0 };
        }
        f64::from(best)
    }

    /// Squared error of a group at a scale code; stops early once above `limit`.
    fn error_at(&self, x: &[f32], code: u8, limit: f32) -> f32 {
        let s = relative_scale(code);
        let inverse = 1.0 / s;
        let mut error = 0.0;
        for &x in x {
            let difference = self.nearest.code(x * inverse).1 * s - x;
            error += difference * difference;
            if error >= limit {
                break;
            }
        }
        error
    }
}

/// The longest group of any signed format.
const MAX_GROUP: usize = 32;
