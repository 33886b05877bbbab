//! The projective law as the record first had it: `|w| = 256 / code`, one scale for all tensors.
//!
//! Broken: the smallest magnitude with a code is 256/255, so that every weight below 1 becomes 1.004. The record tells of
//! an error of 87 % without its weights: that of a magnitude of 0.54. Those of a model are far smaller and lose far more.

use super::{Origin, with_signs};

pub(super) const ORIGIN: Origin =
    Origin { name: "inverse", code_bytes: 1, decoded: |weights| with_signs(weights, |w| magnitude(code(w))) };

/// The magnitude of code 1.
pub const SCALE: f64 = 256.0;

/// The code of a magnitude above 0: `256 / |w|` rounded and clamped to `1..=255`.
pub fn code(magnitude: f64) -> u8 {
    (SCALE / magnitude).round().clamp(1.0, 255.0) as u8
}

/// The magnitude that a code stands for; code 0, which no magnitude has, stands for that of 1.
pub fn magnitude(code: u8) -> f64 {
    SCALE / f64::from(code.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_formula() {
        let codes = [1e30, 256.0, 100.0, 2.0, 1.0, 0.02, 1e-45].map(code);
        assert_eq!(codes, [1, 1, 3, 128, 255, 255, 255]);
        assert!((1..=255).all(|c| code(magnitude(c)) == c && (c == 1 || magnitude(c) < magnitude(c - 1))));
    }

    #[test]
    fn weights_below_one_all_become_the_same() {
        let decoded = (ORIGIN.decoded)(&[0.9, -0.02, 0.0, 1e-9]);
        let smallest = (256.0 / 255.0) as f32;
        assert_eq!(decoded, [smallest, -smallest, 0.0, smallest]);
        // The record's 87 %.
        assert!((magnitude(code(0.537)) / 0.537 - 1.0 - 0.87).abs() < 1e-3);
    }
}
