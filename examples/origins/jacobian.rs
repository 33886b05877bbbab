//! Weight transport: the record's `M_W = J_D W J_E^-1`, a matrix that acts on coordinates as `W` acts on values.
//!
//! Coordinates are those of the log codec before rounding, `c(v) = -ln |v|` with the sign apart. Near an input `x0` the
//! output's coordinates are `c(y0) + M (c(x) - c(x0))`, `M_ij = W_ij x0_j / y0_i`: the Jacobians of both codings are
//! diagonal and depend on `x0` and on `y0 = W x0`. So `M` is another matrix for every token, it takes `out * in`
//! multiplications more than the product it replaces, and it needs that product's result.

use crate::toy::{Matrix, dot};

/// `|found - W x| / |W x|` of an output, the median over outputs, where `found` is transported from `x0`. The mean would be
/// that of the few outputs near 0, whose coordinates run away.
pub fn transport_error(weight: &Matrix, x0: &[f32], x: &[f32]) -> f64 {
    // c(x) - c(x0) turned to a change of value by the first Jacobian: x0 ln(x / x0), where the sign stays.
    let change: Vec<f32> = x0.iter().zip(x).map(|(&x0, &x)| x0 * (x.abs() / x0.abs()).ln()).collect();
    let error = |row: usize| {
        let (y0, y) = (dot(weight.row(row), x0), dot(weight.row(row), x));
        // The coordinate's change is -(W change) / y0, and decoding turns it back.
        let found = y0 * (dot(weight.row(row), &change) / y0).exp();
        f64::from((found - y).abs() / y.abs())
    };
    let mut errors: Vec<f64> = (0..weight.rows).map(error).collect();
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

/// A random layer of `[width, width]`, and the error for inputs off `x0` by each share of it.
pub fn table(width: usize, shares: &[f32]) -> Vec<f64> {
    let values = crate::source::gaussian(width * width, 3).iter().map(|w| w / (width as f32).sqrt()).collect();
    let weight = Matrix { rows: width, cols: width, values };
    let (x0, other) = (crate::source::gaussian(width, 4), crate::source::gaussian(width, 5));
    let input = |share: f32| -> Vec<f32> { x0.iter().zip(&other).map(|(a, b)| a + share * b).collect() };
    shares.iter().map(|&share| transport_error(&weight, &x0, &input(share))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_is_exact_where_it_was_made_and_wrong_elsewhere() {
        let errors = table(256, &[0.0, 0.01, 1.0]);
        assert!(errors[0] < 1e-5 && errors[1] < 0.05 && errors[2] > 0.3, "{errors:?}");
    }
}
