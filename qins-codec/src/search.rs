//! What an encoder outside the host's memory needs: the constants of a matrix that is only sampled, and the tables of the
//! search for scales, so that it finds the same codes.

use crate::{Format, Header, cells::Bins, scale::base_for, signed};

/// Weights read to choose `k`; a matrix with more is sampled by evenly spaced rows.
pub const SAMPLE: usize = 1 << 15;

/// The constants that [`encode`](crate::encode) chooses for a `q8` matrix `[rows, cols]` with this largest magnitude, by rows
/// sampled as [`sample_rows`](crate::sample_rows) samples [`SAMPLE`] weights.
pub fn q8_header(rows: usize, cols: usize, largest: f32, sample: &[f32]) -> Header {
    let (format, base) = (Format::Q8, base_for(largest));
    Header { format, rows, cols, base, k: signed::best_k(format, sample, cols, base) }
}

/// The tables of the search for scales of 7-bit magnitudes; see `cells.rs`.
pub struct Search {
    /// `w/s` nearest to place `(lowest + i) * 16 + phase`, of 512 an octave, at `phase * length + i`; negative lowest.
    pub values: Vec<f32>,
    /// Its magnitude code.
    pub codes: Vec<u8>,
    /// Entries of each phase.
    pub length: usize,
    /// Scale codes from the lowest place to that of 1.
    pub below: usize,
    /// Between magnitude codes `m - 1` and `m` at `m`; the first is above and the last below every magnitude.
    pub midpoints: Vec<f32>,
    /// The scale of every scale code but the last, in units of the base.
    pub scales: Vec<f32>,
}

impl Search {
    /// For the `k` of a `q8` matrix. `None` for one that no encoder chooses, with cells too narrow.
    pub fn q8(k: f64) -> Option<Self> {
        Bins::new(&crate::projective_table(k, 128)).map(Bins::into_search)
    }
}
