//! How far decoded weights are from the true ones.

use crate::Weights;
use rayon::prelude::*;

/// The difference of decoded weights from those they were made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Signal to quantization noise, `10 log10(sum w^2 / sum (w - d)^2)`; `None` where nothing differs.
    pub sqnr_db: Option<f64>,
    /// Largest difference of a weight.
    pub max_abs_error: f64,
    /// Root of the mean square of the differences.
    pub rmse: f64,
    /// Root of the mean square of the weights.
    pub rms: f64,
    /// Mean of `|w - d| / |w|` over the weights that are not 0.
    pub mean_relative_error: f64,
    /// Largest `|w - d| / |w|` over the same weights.
    pub max_relative_error: f64,
    /// The row of least signal to noise, of those in which anything differs; the first of several. `None` where nothing differs.
    pub worst_row: Option<WorstRow>,
}

/// A row and its signal to quantization noise.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WorstRow {
    /// Counted from 0, along `out`.
    pub row: usize,
    /// Minus infinity for a row of zeros that were decoded to something else.
    pub sqnr_db: f64,
}

impl Deviation {
    /// Compares row by row: a [`Matrix`](crate::Matrix), or decoded weights in a [`Slice`](crate::Slice).
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn of(decoded: &impl Weights, weights: &impl Weights) -> Self {
        let (rows, cols) = (decoded.rows(), decoded.cols());
        assert_eq!((rows, cols), (weights.rows(), weights.cols()), "the matrix was made of other weights");
        let sums: Vec<Sums> = (0..rows)
            .into_par_iter()
            .map_init(
                || (vec![0.0; cols], vec![0.0; cols]),
                |(row_decoded, exact), row| {
                    decoded.read_row(row, row_decoded);
                    weights.read_row(row, exact);
                    let pairs = row_decoded.iter().zip(exact.iter());
                    pairs.fold(Sums::default(), |sums, (&d, &w)| sums.join(Sums::of(d.into(), w.into())))
                },
            )
            .collect();
        let differing =
            sums.iter().enumerate().filter_map(|(row, sums)| Some(WorstRow { row, sqnr_db: sums.sqnr_db()? }));
        let worst_row = differing.min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        // In row order: the same sum for any number of threads.
        let sums = sums.into_iter().fold(Sums::default(), Sums::join);
        let mean = |sum: f64| if rows * cols > 0 { sum / (rows * cols) as f64 } else { 0.0 };
        Self {
            sqnr_db: sums.sqnr_db(),
            max_abs_error: sums.largest,
            rmse: mean(sums.noise).sqrt(),
            rms: mean(sums.signal).sqrt(),
            mean_relative_error: if sums.counted > 0.0 { sums.relative / sums.counted } else { 0.0 },
            max_relative_error: sums.largest_relative,
            worst_row,
        }
    }
}

/// Sums over weights, and the largest differences among them.
#[derive(Default)]
struct Sums {
    signal: f64,
    noise: f64,
    largest: f64,
    relative: f64,
    largest_relative: f64,
    /// Weights that are not 0.
    counted: f64,
}

impl Sums {
    fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }

    /// Of the weight `w` decoded as `d`.
    fn of(d: f64, w: f64) -> Self {
        let off = (d - w).abs();
        let (relative, counted) = if w == 0.0 { (0.0, 0.0) } else { (off / w.abs(), 1.0) };
        Self { signal: w * w, noise: off * off, largest: off, relative, largest_relative: relative, counted }
    }

    fn join(self, other: Self) -> Self {
        Self {
            signal: self.signal + other.signal,
            noise: self.noise + other.noise,
            largest: self.largest.max(other.largest),
            relative: self.relative + other.relative,
            largest_relative: self.largest_relative.max(other.largest_relative),
            counted: self.counted + other.counted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Slice, encode};

    #[test]
    fn differences_are_measured_by_the_formula() {
        let weights = [1.0, -0.5, 0.25, 0.1];
        let coded = encode(Format::Bf16, &Slice::new(&weights, 2, 2)).unwrap();
        let off = f64::from(half::bf16::from_f32(0.1).to_f32()) - f64::from(0.1f32);
        let found = Deviation::of(&coded.matrix(), &Slice::new(&weights, 2, 2));
        assert!((found.max_abs_error - off.abs()).abs() < 1e-15 && (found.rmse - off.abs() / 2.0).abs() < 1e-15);
        let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
        assert!((found.sqnr_db.unwrap() - 10.0 * (signal / (off * off)).log10()).abs() < 1e-9);
        assert!((found.rms - (signal / 4.0).sqrt()).abs() < 1e-15);
        // The first row is exact.
        let of_second = (0.25f64.powi(2) + f64::from(0.1f32).powi(2)) / (off * off);
        let worst = found.worst_row.unwrap();
        assert!(worst.row == 1 && (worst.sqnr_db - 10.0 * of_second.log10()).abs() < 1e-9, "{worst:?}");
        let relative = off.abs() / f64::from(0.1f32);
        assert!((found.mean_relative_error - relative / 4.0).abs() < 1e-15);
        assert!((found.max_relative_error - relative).abs() < 1e-15);
        let decoded = coded.matrix().decode();
        assert_eq!(Deviation::of(&Slice::new(&decoded, 2, 2), &Slice::new(&weights, 2, 2)), found);
        let exact = [1.0, -0.5, 0.25, 0.0];
        let coded = encode(Format::Bf16, &Slice::new(&exact, 2, 2)).unwrap();
        let found = Deviation::of(&coded.matrix(), &Slice::new(&exact, 2, 2));
        assert_eq!((found.sqnr_db, found.worst_row), (None, None));
    }
}
