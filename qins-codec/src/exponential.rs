//! The exponential of kernels, and the function of neural networks that is made of it. Written once for vectors of any width:
//! bits are the same at every [`Level`].

use crate::dispatch::{Kernel, Level};
use rayon::prelude::*;

/// Values that one task computes: less time than to wake a thread.
const TASK: usize = 16 << 10;

/// `1 / (1 + e^-x)` of each, within 4e-7 of itself, or of 1e-38 below -87. NaN stays NaN.
///
/// ```
/// assert_eq!(qins_codec::sigmoid(&[0.0, f32::INFINITY]), [0.5, 1.0]);
/// ```
pub fn sigmoid(x: &[f32]) -> Vec<f32> {
    let level = Level::current();
    let mut out = vec![0.0; x.len()];
    if x.len() <= TASK {
        level.run(Sigmoid { x, out: &mut out });
    } else {
        let tasks = out.par_chunks_mut(TASK).zip(x.par_chunks(TASK));
        tasks.for_each(|(out, x)| level.run(Sigmoid { x, out }));
    }
    out
}

struct Sigmoid<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Sigmoid<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            // Of a positive number it would overflow.
            let power = exp(-x.abs());
            *out = if x < 0.0 { power } else { 1.0 } / (1.0 + power);
        }
    }
}

/// `e^x` for `x` of at most 0, within 2e-7 of itself; 0 below -87; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Where an f32 of this size has steps of 1: the sum rounds.
    const ROUND: f32 = 12_582_912.0;
    let place = x * std::f32::consts::LOG2_E + ROUND;
    let whole = place - ROUND;
    // ln 2 in two parts, the first of which has few bits.
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    // Of Cephes' expf.
    let mut series = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        series = series * rest + coefficient;
    }
    let fraction = series * rest * rest + rest + 1.0;
    let power = f32::from_bits(place.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { fraction * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_close_and_ends_in_zero() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 3e-7, "e^{x} = {found}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-87.1), exp(-1e30), exp(f32::NEG_INFINITY)], [0.0; 3]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoids_are_those_of_the_formula_at_every_level() {
        let x: Vec<f32> = (-90_000..=90_000).map(|i| i as f32 / 1000.0).collect();
        let found = sigmoid(&x);
        for (&x, &found) in x.iter().zip(&found) {
            let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(found) - expected).abs() <= 4e-7 * expected + 2e-38, "of {x}: {found}");
        }
        for level in Level::all_supported() {
            let mut out = vec![0.0; x.len()];
            level.run(Sigmoid { x: &x, out: &mut out });
            assert!(out == found, "{level:?}");
        }
        assert_eq!(sigmoid(&[f32::NEG_INFINITY, -0.0, f32::INFINITY]), [0.0, 0.5, 1.0]);
        assert!(sigmoid(&[f32::NAN])[0].is_nan());
        assert!(sigmoid(&[]).is_empty());
    }
}
