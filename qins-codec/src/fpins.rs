//! Progressive codes: byte planes of which a reader may stop after any.
//!
//! Plane 1 is a sign and a 7-bit cell of the projective coordinate, as in `q8`; each further byte cuts the cell of the
//! planes before into 256. Read to depth 1 they are codes of `q8`; deeper, a weight is the centre of its last cell.

use crate::{
    Decoder, Encoded, Format, Header, Weights,
    bases::{Bases, base_of_decoded_row, base_of_row, rating, survey},
    error::EncodeError,
    projective::{K_GRID, law},
    scale::{ZERO_GROUP, scale},
    weights::sample_rows,
};
use rayon::prelude::*;

/// Weights read to choose `k`.
const SAMPLE: usize = 1 << 13;

/// Cells of plane 1, for each sign.
const FIRST_CELLS: u32 = 128;

/// Weights in a group.
const GROUP: usize = 32;

/// Several planes: what each of their cells stands for, and which a weight is in.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    /// Their number.
    count: usize,
    k: f64,
    /// Cells of all planes together, for each sign.
    cells: u32,
    /// The law at the centre of the first cell of plane 1, where `|w|/s` is 1.
    first: f64,
}

impl Planes {
    pub(crate) fn new(format: Format, k: f64) -> Self {
        let count = format.planes();
        let cells = FIRST_CELLS << (8 * (count - 1));
        Self { count, k, cells, first: law(1.0 / f64::from(2 * FIRST_CELLS), k) }
    }

    /// `|w|/s` at the centre of a cell.
    #[inline(always)]
    fn value(&self, cell: u32) -> f64 {
        law(f64::from(2 * cell + 1) / f64::from(2 * self.cells), self.k) / self.first
    }

    /// The cell of a magnitude `|w|/s`; beyond either end, the last there.
    fn cell(&self, x: f64) -> u32 {
        // The law is its own inverse.
        let u = law(x * self.first, self.k);
        ((u * f64::from(self.cells)) as u32).min(self.cells - 1)
    }

    /// Decodes groups of a row: codes in each plane, and scales.
    #[inline(always)]
    pub(crate) fn decode<const COUNT: usize>(
        &self,
        planes: [&[u8]; COUNT],
        scales: impl Iterator<Item = f32>,
        out: &mut [f32],
    ) {
        let decode = |i: usize, s: f32, out: &mut [f32]| {
            let planes = planes.map(|plane| &plane[i * GROUP..][..out.len()]);
            for (j, o) in out.iter_mut().enumerate() {
                let signed = u32::from(planes[0][j]);
                let next = |cell: u32, plane: &&[u8]| cell << 8 | u32::from(plane[j]);
                let cell = planes[1..].iter().fold(signed % FIRST_CELLS, next);
                let magnitude = (f64::from(s) * self.value(cell)) as f32;
                *o = if signed < FIRST_CELLS { magnitude } else { -magnitude };
            }
        };
        for ((i, out), s) in out.chunks_mut(GROUP).enumerate().zip(scales) {
            // A known length makes vectors of it.
            match out.as_chunks_mut::<GROUP>() {
                ([out], []) => decode(i, s, out),
                _ => decode(i, s, out),
            }
        }
    }
}

/// Encodes with the `k` of [`K_GRID`] and the scales of least squared error at depth 1: there they matter most, and all of
/// the cells beneath are about as good.
pub(crate) fn encode(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let Bases { base, by_row: row_bases } = Bases::of(&survey(format, weights)?);
    let header = Header { format, rows, cols, base, k: 0.0, row_bases };
    let sample = sample_rows(weights, SAMPLE);
    let error = |k| {
        let encoder = Encoder { planes: Planes::new(format, k), judged: Planes::new(format.at_depth(1), k) };
        let rows = || sample.chunks_exact(cols.max(1));
        if row_bases {
            let of_row = |row: &[f32]| {
                let base = base_of_row(&header, row);
                rating(encoder.row_error(row, base) / f64::from(base).powi(2), row, base)
            };
            return rows().map(of_row).sum::<f64>();
        }
        rows().flat_map(|row| row.chunks(GROUP)).map(|group| encoder.scale_code(group, base).1).sum::<f64>()
    };
    let errors = K_GRID.map(|k| (k, error(k)));
    let (k, _) = errors.into_iter().min_by(|(_, a), (_, b)| a.total_cmp(b)).expect("the grid is not empty");
    encode_rows(Header { k, ..header }, 1, weights)
}

/// Encodes with constants already chosen, by the error of all planes: weights decoded with them find their codes again.
pub(crate) fn encode_with(header: Header, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    survey(header.format, weights)?;
    encode_rows(header, header.format.planes(), weights)
}

fn encode_rows(header: Header, judged_at: usize, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    let Header { format, rows, cols, k, .. } = header;
    let decoder = Decoder::new(header)?;
    let (mut codes, mut scales) = (vec![0; header.code_bytes()], vec![0; header.scale_bytes()]);
    if rows * cols == 0 {
        return Ok(Encoded { decoder, codes, scales });
    }
    let [all, judged] = [format, format.at_depth(judged_at)].map(|format| Planes::new(format, k));
    let encoder = Encoder { planes: all, judged };
    let row_bytes = format.code_bytes(cols);
    // Of each row, its codes in every plane.
    let mut of_rows: Vec<Vec<&mut [u8]>> = (0..rows).map(|_| Vec::with_capacity(format.planes())).collect();
    for plane in codes.chunks_exact_mut(rows * row_bytes) {
        of_rows.iter_mut().zip(plane.chunks_exact_mut(row_bytes)).for_each(|(row, codes)| row.push(codes));
    }
    let of_rows = of_rows.par_iter_mut().zip(scales.par_chunks_exact_mut(header.scale_bytes_of_row()));
    of_rows.enumerate().for_each_init(
        || vec![0.0; cols],
        |buffer, (row, (planes, scales))| {
            weights.read_row(row, buffer);
            let base = match judged_at == format.planes() {
                true => base_of_decoded_row(&header, buffer, |base| encoder.row_error(buffer, base)),
                false => base_of_row(&header, buffer),
            };
            let (own, scales) = scales.split_at_mut(header.base_bytes());
            own.copy_from_slice(&base.to_le_bytes()[..own.len()]);
            encoder.row(buffer, base, planes, scales);
        },
    );
    Ok(Encoded { decoder, codes, scales })
}

struct Encoder {
    planes: Planes,
    /// Those by which scales are chosen: of fewer planes, or the same.
    judged: Planes,
}

impl Encoder {
    /// Writes the codes of a row in every plane, and its scale codes.
    fn row(&self, row: &[f32], base: f32, planes: &mut [&mut [u8]], scale_codes: &mut [u8]) {
        for (i, (group, scale_code)) in row.chunks(GROUP).zip(scale_codes).enumerate() {
            (*scale_code, _) = self.scale_code(group, base);
            let s = f64::from(scale(base, *scale_code));
            for (j, &w) in group.iter().enumerate() {
                let mut cell = if s > 0.0 { self.planes.cell(f64::from(w.abs()) / s) } else { 0 };
                // The centre of the cell of the largest numbers may lie beyond them.
                while s * self.planes.value(cell) > f64::from(f32::MAX) {
                    cell += 1;
                }
                for (plane, codes) in planes.iter_mut().enumerate() {
                    codes[i * GROUP + j] = (cell >> (8 * (self.planes.count - 1 - plane))) as u8;
                }
                planes[0][i * GROUP + j] |= u8::from(w < 0.0) << 7;
            }
        }
    }

    /// The squared error of a row with its best scale codes.
    fn row_error(&self, row: &[f32], base: f32) -> f64 {
        row.chunks(GROUP).map(|group| self.scale_code(group, base).1).sum()
    }

    /// The scale code of least squared error near the last that covers the group, and that error.
    fn scale_code(&self, group: &[f32], base: f32) -> (u8, f64) {
        let largest = group.iter().fold(0f32, |largest, w| largest.max(w.abs()));
        let zeros = (ZERO_GROUP, group.iter().map(|&w| f64::from(w).powi(2)).sum());
        if largest == 0.0 {
            return zeros;
        }
        // How many scale codes cover the group.
        let (mut covering, mut end) = (0u8, ZERO_GROUP);
        while covering < end {
            let middle = covering + (end - covering) / 2;
            if scale(base, middle) >= largest { covering = middle + 1 } else { end = middle }
        }
        // The last three of those; and those next to them, where the cells that are judged show what is cut off, for
        // decoding moves the largest weight a little.
        let shows = u8::from(self.judged.count == self.planes.count);
        let last = covering.saturating_add(shows).saturating_sub(1).min(ZERO_GROUP - 1);
        let near = last.saturating_sub(2 + 2 * shows)..=last;
        let errors = near.map(|code| (code, self.error(group, scale(base, code))));
        errors.chain([zeros]).min_by(|(_, a), (_, b)| a.total_cmp(b)).expect("zeros at least")
    }

    fn error(&self, group: &[f32], s: f32) -> f64 {
        if s == 0.0 {
            return f64::INFINITY;
        }
        let s = f64::from(s);
        let difference = |&w: &f32| {
            let w = f64::from(w.abs());
            // Rounded as decoding does, so that decoded weights show no error at their own scale.
            f64::from((s * self.judged.value(self.judged.cell(w / s))) as f32) - w
        };
        group.iter().map(|w| difference(w).powi(2)).sum()
    }
}
