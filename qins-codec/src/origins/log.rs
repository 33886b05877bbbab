//! The log codec: logarithmic over the whole range of a tensor, `n = (log|w| - log_min) / (log_max - log_min)` and
//! `code = 255 - round(254 n)`, so that a large magnitude has a small code.
//!
//! Its relative error is the same everywhere and as large as the tensor's range: one tiny weight coarsens all others.

use super::{Origin, magnitudes, with_signs};

pub(super) const ORIGIN: Origin = Origin {
    name: "log",
    code_bytes: 1,
    decoded: |weights| {
        let codec = Codec::of(weights);
        with_signs(weights, |magnitude| codec.magnitude(codec.code(magnitude)))
    },
};

/// The constants of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codec {
    /// Natural logarithm of the smallest magnitude that is not 0.
    pub log_min: f64,
    /// Natural logarithm of the largest magnitude.
    pub log_max: f64,
}

impl Codec {
    /// The constants of these finite weights. Zeros do not count; without others, both are 0.
    pub fn of(weights: &[f32]) -> Self {
        let logs = || magnitudes(weights).map(f64::ln);
        let Some(log_min) = logs().reduce(f64::min) else { return Self { log_min: 0.0, log_max: 0.0 } };
        Self { log_min, log_max: logs().fold(log_min, f64::max) }
    }

    /// The code of a magnitude above 0: 1 for the largest, 255 for the smallest, and 1 for all where they are equal.
    pub fn code(&self, magnitude: f64) -> u8 {
        let range = self.log_max - self.log_min;
        let n = if range > 0.0 { (magnitude.ln() - self.log_min) / range } else { 1.0 };
        255 - (254.0 * n.clamp(0.0, 1.0)).round() as u8
    }

    /// The magnitude that a code stands for; code 0, which no magnitude has, stands for that of 1.
    pub fn magnitude(&self, code: u8) -> f64 {
        let n = f64::from(255 - code.max(1)) / 254.0;
        (self.log_min + n * (self.log_max - self.log_min)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_formula() {
        let codec = Codec::of(&[-1.0, 0.0, 0.001, 0.1, -0.02]);
        assert_eq!(codec, Codec { log_min: f64::from(0.001f32).ln(), log_max: 0.0 });
        // Three decades in 254 steps: 0.1 lies a third below the top, 0.01 two thirds.
        assert_eq!([1.0, 0.1, 0.01, 0.001].map(|w| codec.code(w)), [1, 86, 170, 255]);
        for (code, expected) in [(1, 1.0), (86, 10f64.powf(-3.0 * 85.0 / 254.0)), (255, 0.001)] {
            assert!((codec.magnitude(code) / expected - 1.0).abs() < 1e-7, "{code}");
        }
    }

    #[test]
    fn a_large_magnitude_has_a_small_code_and_codes_are_their_own() {
        let codec = Codec { log_min: -15.0, log_max: -2.0 };
        for code in 1..=255 {
            assert_eq!(codec.code(codec.magnitude(code)), code);
            assert!(code == 1 || codec.magnitude(code) < codec.magnitude(code - 1));
        }
    }

    #[test]
    fn equal_magnitudes_and_zeros_come_back() {
        let weights = [0.0, -0.75, 0.75];
        assert_eq!((ORIGIN.decoded)(&weights), weights);
        assert_eq!((ORIGIN.decoded)(&[0.0; 3]), [0.0; 3]);
    }
}
