//! Formats of a sign and a magnitude code: `sign << (bits - 1) | magnitude`, or in equal steps the integer that they are.

use crate::{
    Decoder, Encoded, Format, Header, Weights,
    bases::{Bases, base_of_decoded_row, base_of_row, rating, survey},
    cells::{Bins, Cells, Group, LANES, Moebius, best_scale},
    dispatch::{Kernel, Level},
    error::EncodeError,
    format::Law,
    pack::pack,
    projective::{K_GRID, Nearest, OCTAVES, linear_table, logarithmic_table, projective_table},
    scale::ZERO_GROUP,
    search::SAMPLE,
    weights::sample_rows,
};
use rayon::prelude::*;

/// First of each [`LANES`] scale codes tried, counted from the one whose table end meets the group's largest magnitude.
const REACH: &[i32] = &[-9];

/// The same for weights that may have been decoded from the constants given: decoding moves the largest magnitude by up
/// to half a cell, one scale code, and the code it was decoded from must still be within reach.
const REACH_AGAIN: &[i32] = &[-(LANES as i32), 0];

/// Magnitude codes.
fn half(format: Format) -> usize {
    1 << (format.code_bits() - 1)
}

/// `w/s` of every code; `constant` is `k`, or the octaves, or nothing.
pub(crate) fn code_values(format: Format, constant: f64) -> Vec<f32> {
    if format.law() == Law::Linear {
        return (0..=u8::MAX).map(|code| f32::from(code as i8) / 128.0).collect();
    }
    let mut values = magnitudes(format, constant);
    values.extend_from_within(..);
    values[half(format)..].iter_mut().for_each(|value| *value = -*value);
    values
}

/// `w/s` of every magnitude code, largest first.
fn magnitudes(format: Format, constant: f64) -> Vec<f32> {
    match format.law() {
        Law::Logarithmic => logarithmic_table(constant),
        Law::Linear => linear_table(),
        _ => projective_table(constant, half(format)),
    }
}

/// The code of a magnitude code and a sign.
#[inline(always)]
fn code(format: Format, magnitude: u16, negative: bool) -> u16 {
    let half = half(format) as u16;
    match (format.law(), negative) {
        (Law::Linear, false) => half - 1 - magnitude,
        (Law::Linear, true) => (half + 1 + magnitude) & (2 * half - 1),
        _ => magnitude + u16::from(negative) * half,
    }
}

/// Encodes with the `k` of [`K_GRID`], or the octaves of [`OCTAVES`], of least squared error.
pub(crate) fn encode(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    let Bases { base, by_row: row_bases } = Bases::of(&survey(format, weights)?);
    let header = Header { format, rows: weights.rows(), cols: weights.cols(), base, k: 0.0, row_bases };
    let k = best_k(&header, &sample_rows(weights, SAMPLE));
    encode_rows(Header { k, ..header }, weights, REACH)
}

/// Encodes with constants already chosen.
pub(crate) fn encode_with(header: Header, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    survey(header.format, weights)?;
    encode_rows(header, weights, REACH_AGAIN)
}

fn encode_rows(header: Header, weights: &impl Weights, reach: &'static [i32]) -> Result<Encoded, EncodeError> {
    let decoder = Decoder::new(header)?;
    let (code_bytes, scale_bytes) = (header.format.code_bytes(header.cols), header.scale_bytes_of_row());
    let (mut codes, mut scales) = (vec![0; header.code_bytes()], vec![0; header.scale_bytes()]);
    if header.cols > 0 {
        let encoder = Encoder::new(header.format, header.k, reach);
        let may_be_decoded = reach != REACH;
        codes.par_chunks_exact_mut(code_bytes).zip(scales.par_chunks_exact_mut(scale_bytes)).enumerate().for_each_init(
            || vec![0.0; header.cols],
            |buffer, (row, (codes, scales))| {
                weights.read_row(row, buffer);
                let error = |base: f32| encoder.row(buffer, base, None) * f64::from(base).powi(2);
                let base = match may_be_decoded {
                    true => base_of_decoded_row(&header, buffer, error),
                    false => base_of_row(&header, buffer),
                };
                let (own, scales) = scales.split_at_mut(header.base_bytes());
                own.copy_from_slice(&base.to_le_bytes()[..own.len()]);
                encoder.row(buffer, base, Some((codes, scales)));
            },
        );
    }
    Ok(Encoded { decoder, codes, scales })
}

/// By sampled rows; the header's own `k` is not looked at.
pub(crate) fn best_k(header: &Header, sample: &[f32]) -> f64 {
    let Header { format, cols, .. } = *header;
    let grid: &[f64] = match format.law() {
        Law::Logarithmic => &OCTAVES,
        Law::Linear => return 0.0,
        _ => &K_GRID,
    };
    let errors: Vec<f64> = grid
        .par_iter()
        .map(|&k| {
            let encoder = Encoder::new(format, k, REACH);
            let error = |row: &[f32]| {
                let base = base_of_row(header, row);
                let error = encoder.row(row, base, None);
                if header.row_bases { rating(error, row, base) } else { error }
            };
            sample.chunks_exact(cols.max(1)).map(error).sum()
        })
        .collect();
    let best = (0..grid.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).expect("the grid is not empty");
    grid[best]
}

/// Encodes rows with fixed constants. Works on `|w|/base`, so that no square overflows or vanishes.
struct Encoder {
    format: Format,
    cells: Table,
    reach: &'static [i32],
    level: Level,
}

/// The table of magnitudes, prepared for the fastest search that it allows.
enum Table {
    Bins(Bins),
    Moebius(Moebius),
    Any(Nearest),
}

impl Encoder {
    fn new(format: Format, k: f64, reach: &'static [i32]) -> Self {
        let table = &magnitudes(format, k)[..];
        let cells = match (Bins::new(table), format.law()) {
            (Some(bins), _) => Table::Bins(bins),
            // Far beyond any k of use, its square in f32 overflows.
            (None, Law::Projective) if half(format) == 2048 && k < 1e15 => Table::Moebius(Moebius::new(table, k)),
            (None, law) => Table::Any(Nearest::new(law, half(format), k)),
        };
        Self { format, cells, reach, level: Level::current() }
    }

    /// Writes codes and scale codes of one row if they are wanted; returns its squared error in units of the base.
    fn row(&self, row: &[f32], base: f32, out: Option<(&mut [u8], &mut [u8])>) -> f64 {
        self.level.run(EncodeRow { encoder: self, row, base, out })
    }
}

/// Adds what an encoder outside the host's memory needs after the scales (`search.rs`); gives the entries of a phase. `None` for
/// constants that no encoder chooses.
pub(crate) fn search_tables(header: &Header, tables: &mut Vec<f32>) -> Option<usize> {
    match Encoder::new(header.format, header.k, REACH).cells {
        Table::Bins(bins) => Some(bins.append_to(tables)),
        Table::Moebius(moebius) => {
            moebius.append_to(tables);
            Some(0)
        }
        Table::Any(_) => None,
    }
}

struct EncodeRow<'a> {
    encoder: &'a Encoder,
    row: &'a [f32],
    base: f32,
    out: Option<(&'a mut [u8], &'a mut [u8])>,
}

impl Kernel for EncodeRow<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Encoder { format, cells, .. } = self.encoder;
        match (cells, format.group(), format.code_bits()) {
            (Table::Bins(cells), 32, 8) => self.with::<_, 32, 8>(cells),
            (Table::Bins(cells), 16, 8) => self.with::<_, 16, 8>(cells),
            (Table::Moebius(cells), 32, 12) => self.with::<_, 32, 12>(cells),
            (Table::Any(cells), 32, 8) => self.with::<_, 32, 8>(cells),
            (Table::Any(cells), 16, 8) => self.with::<_, 16, 8>(cells),
            (Table::Any(cells), 32, 12) => self.with::<_, 32, 12>(cells),
            _ => unreachable!("{format} has no encoder of these groups and codes"),
        }
    }
}

impl EncodeRow<'_> {
    #[inline(always)]
    fn with<C: Cells, const N: usize, const BITS: usize>(self, cells: &C) -> f64 {
        let (&Encoder { format, reach, .. }, base) = (self.encoder, self.base);
        let (mut codes, scales) = match self.out {
            Some((codes, scales)) => (Some(codes), scales),
            None => (None, &mut [][..]),
        };
        let mut error = 0.0;
        for (i, weights) in self.row.chunks(N).enumerate() {
            let group = Group::<N>::new(weights, if base > 0.0 { base } else { 1.0 });
            // A base of 0 has no scale but 0.
            let start = group.start().filter(|_| base > 0.0);
            let scale_code = match start {
                Some(start) => {
                    let (code, squared) = best_scale(cells, &group, start, reach);
                    error += f64::from(squared);
                    code
                }
                None => ZERO_GROUP,
            };
            let Some(codes) = &mut codes else { continue };
            scales[i] = scale_code;
            if scale_code == ZERO_GROUP {
                // As they are: zeros.
                continue;
            }
            let mut signed = cells.codes(&group, scale_code);
            for (signed, &weight) in signed.iter_mut().zip(weights) {
                *signed = code(format, *signed, weight < 0.0);
            }
            pack::<BITS>(&signed[..weights.len()], i * N, codes);
        }
        error
    }
}
