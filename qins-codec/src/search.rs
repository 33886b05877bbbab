//! What an encoder outside the host's memory needs to find the codes that [`encode`](crate::encode) finds: the constants of a
//! matrix of which it has only seen the largest magnitudes and a sample, and the tables of the searches.

use crate::{
    Format, Header,
    bases::{Bases, RowMagnitudes, row_base},
    format::Law,
    raw,
    scale::{ZERO_GROUP, relative_scale},
    shaped, signed,
};

/// Weights read to choose `k`; a matrix with more is sampled by evenly spaced rows.
pub const SAMPLE: usize = 1 << 15;

/// Entries before the midpoints in [`Search::tables`].
pub const SCALES: usize = 256;

/// Where the largest weight of a matrix, or of a row that has a base, is smaller than this, subnormal numbers beside it may matter,
/// and not every device tells those from zero.
const LEAST: f32 = 1.0 / (1 << 24) as f32;
const LEAST_OF_ROW: f32 = 1.0 / (1u128 << 80) as f32;

/// How a matrix is encoded in a format: see `cells.rs` and `shaped.rs` for what is searched.
pub struct Search {
    /// The constants that the encoder chooses.
    pub header: Header,
    /// The base of each row where rows have their own; else one for all. None is 0: nothing is divided by that.
    pub bases: Vec<f32>,
    /// The scale of every scale code in units of the base, up to [`SCALES`], and then, by the codes' law:
    ///
    /// - Magnitudes of 7 bits: 129 midpoints, at `m` the one between magnitudes `m - 1` and `m`, of which the first is above
    ///   and the last below every magnitude; the `w/s` nearest to place `(lowest + i) * 16 + phase`, of 512 an octave, at
    ///   `phase * length + i`, the lowest being `16 - length`; and its magnitude code.
    /// - Magnitudes of 11 bits: 2049 such midpoints; `k`, `|w|/s` at the centre of the first cell before it is called 1, and
    ///   the slope of the law.
    /// - Tables chosen by groups: for each of 512 half steps the nearest entry of the four tables, and of the four turned
    ///   round; then their codes.
    ///
    /// A single zero for the bits of floats.
    pub tables: Vec<f32>,
    /// Entries of a phase.
    pub length: usize,
}

impl Search {
    /// For a matrix of whose rows these are the largest magnitudes, and the least of the largest magnitudes of a row's groups
    /// that are not zeros (infinite where all are); and rows of it that are sampled as
    /// [`sample_rows`](crate::sample_rows) samples [`SAMPLE`] weights, if they are asked for. `None` where only the host
    /// encodes: weights that are no numbers, too large for the format or too close to zero, an empty matrix, and codes of
    /// several planes, which are searched in f64.
    pub fn new(
        format: Format,
        [rows, cols]: [usize; 2],
        row_largest: &[f32],
        row_least: &[f32],
        sample: impl FnOnce() -> Vec<f32>,
    ) -> Option<Self> {
        // By bits: those of infinity and NaN are above those of every number.
        let largest = f32::from_bits(row_largest.iter().map(|row| row.to_bits()).max().unwrap_or(0));
        if rows * cols == 0 || !largest.is_finite() {
            return None;
        }
        let is_small = |magnitude: f32, least: f32| magnitude > 0.0 && magnitude < least;
        let header = |base, row_bases| Header { format, rows, cols, base, k: 0.0, row_bases };
        let (header, bases, tables, length) = match format.law() {
            Law::Raw if raw::is_in_range(format, largest) => (header(1.0, false), vec![1.0], vec![0.0], 0),
            Law::Shaped if !row_largest.iter().any(|&row| is_small(row, LEAST_OF_ROW)) => {
                let bases = row_largest.iter().map(|&row| shaped::base_for(row)).collect();
                (header(1.0, false), bases, shaped::search_tables(format), 0)
            }
            Law::Projective | Law::Logarithmic | Law::Linear if !is_small(largest, LEAST) => {
                let row = |(&largest, &least_of_groups)| RowMagnitudes { largest, least_of_groups };
                let Bases { base, by_row } = Bases::of(&row_largest.iter().zip(row_least).map(row).collect::<Vec<_>>());
                // Groups of subnormal numbers alone would be zeros there.
                let are_small = row_largest.iter().any(|&row| is_small(row, LEAST_OF_ROW))
                    || row_least.iter().any(|&group| group < f32::MIN_POSITIVE);
                if by_row && are_small {
                    return None;
                }
                let sample = if format.law() == Law::Linear { Vec::new() } else { sample() };
                let header = header(base, by_row);
                let header = Header { k: signed::best_k(&header, &sample), ..header };
                let scales = (0..=ZERO_GROUP).map(|code| if code < ZERO_GROUP { relative_scale(code) } else { 0.0 });
                let mut tables: Vec<f32> = scales.collect();
                let length = signed::search_tables(&header, &mut tables)?;
                let bases = match by_row {
                    true => row_largest.iter().map(|&largest| row_base(base, largest)).collect(),
                    false => vec![if base > 0.0 { base } else { 1.0 }],
                };
                (header, bases, tables, length)
            }
            _ => return None,
        };
        Some(Self { header, bases, tables, length })
    }
}
