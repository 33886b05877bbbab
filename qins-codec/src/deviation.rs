//! How far decoded weights are from the true ones.

use crate::{Matrix, Weights};
use rayon::prelude::*;

/// The difference of an encoded matrix from the weights it was made of.
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
}

impl Deviation {
    /// Compares row by row.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn of(matrix: &Matrix<'_>, weights: &impl Weights) -> Self {
        let (rows, cols) = (matrix.header().rows, matrix.header().cols);
        assert_eq!((rows, cols), (weights.rows(), weights.cols()), "the matrix was made of other weights");
        let sums: Vec<[f64; 5]> = (0..rows)
            .into_par_iter()
            .map_init(
                || (vec![0.0; cols], vec![0.0; cols]),
                |(decoded, exact), row| {
                    matrix.decode_row(row, decoded);
                    weights.read_row(row, exact);
                    let difference = |(d, w): (&f32, &f32)| (f64::from(*d), f64::from(*w));
                    decoded.iter().zip(exact.iter()).map(difference).fold(
                        [0.0; 5],
                        |[signal, noise, largest, relative, counted], (d, w)| {
                            let off = (d - w).abs();
                            let (ratio, one) = if w == 0.0 { (0.0, 0.0) } else { (off / w.abs(), 1.0) };
                            [signal + w * w, noise + off * off, largest.max(off), relative + ratio, counted + one]
                        },
                    )
                },
            )
            .collect();
        // In row order: the same sum for any number of threads.
        let [signal, noise, max_abs_error, relative, counted] = sums
            .into_iter()
            .fold([0.0; 5], |a, b| [a[0] + b[0], a[1] + b[1], f64::max(a[2], b[2]), a[3] + b[3], a[4] + b[4]]);
        let mean = |sum: f64| if rows * cols > 0 { sum / (rows * cols) as f64 } else { 0.0 };
        Self {
            sqnr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
            max_abs_error,
            rmse: mean(noise).sqrt(),
            rms: mean(signal).sqrt(),
            mean_relative_error: if counted > 0.0 { relative / counted } else { 0.0 },
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
        assert!((found.mean_relative_error - off.abs() / f64::from(0.1f32) / 4.0).abs() < 1e-15);
        let exact = [1.0, -0.5, 0.25, 0.0];
        let coded = encode(Format::Bf16, &Slice::new(&exact, 2, 2)).unwrap();
        assert_eq!(Deviation::of(&coded.matrix(), &Slice::new(&exact, 2, 2)).sqnr_db, None);
    }
}
