//! Why decoding comes first: a product with a matrix is made of sums of multiples, and a nonlinear code does not keep them.
//!
//! `Q(a x + b y)` against `a Q(x) + b Q(y)`, with one set of constants for all three vectors.

use crate::growth::relative_error;
use qins_codec::origins::log::Codec;

/// A way to write numbers in a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinate {
    /// The log codec's codes with the sign, a large magnitude small.
    Log,
    /// The same, turned round.
    LogDirect,
    /// `sign / (|v| + 1)` of numbers scaled to a mean magnitude of 1: the projective coordinate, not rounded.
    Projective,
    /// 255 linear steps.
    Linear,
    /// The log codec's decoded values: what codec at rest computes with.
    Decoded,
}

impl Coordinate {
    /// Every one, with what the table calls it.
    pub const ALL: [(Coordinate, &'static str); 5] = [
        (Coordinate::Log, "codes of `log`"),
        (Coordinate::LogDirect, "codes of `log`, direct order"),
        (Coordinate::Projective, "projective coordinate, not rounded"),
        (Coordinate::Linear, "linear codes"),
        (Coordinate::Decoded, "`log`, decoded first"),
    ];

    /// The coordinates of numbers, with constants of `all`.
    fn of(self, numbers: &[f32], all: &[f32]) -> Vec<f32> {
        let codec = Codec::of(all);
        let largest = all.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let mean = all.iter().map(|v| v.abs()).sum::<f32>() / all.len() as f32;
        let coordinate = |&v: &f32| {
            let code = codec.code(f64::from(v.abs()));
            match self {
                _ if v == 0.0 => 0.0,
                Self::Log => f32::from(code).copysign(v),
                Self::LogDirect => (256.0 - f32::from(code)).copysign(v),
                Self::Projective => (1.0 / (v.abs() / mean + 1.0)).copysign(v),
                Self::Linear => (v / largest * 127.0).round(),
                Self::Decoded => (codec.magnitude(code) as f32).copysign(v),
            }
        };
        numbers.iter().map(coordinate).collect()
    }
}

/// `|Q(a x + b y) - (a Q(x) + b Q(y))| / |Q(a x + b y)|`.
pub fn error(coordinate: Coordinate, [a, b]: [f32; 2], x: &[f32], y: &[f32]) -> f64 {
    let combined = |x: &[f32], y: &[f32]| -> Vec<f32> { x.iter().zip(y).map(|(x, y)| a * x + b * y).collect() };
    let sum = combined(x, y);
    let all = [x, y, &sum].concat();
    let code = |numbers| coordinate.of(numbers, &all);
    relative_error(&combined(&code(x), &code(y)), &code(&sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::gaussian;

    #[test]
    fn nonlinear_codes_are_far_from_linear_and_decoded_ones_are_not() {
        let (x, y) = (gaussian(4096, 1), gaussian(4096, 2));
        for factors in [[1.0, 1.0], [0.7, -0.4], [3.0, 2.0]] {
            let of = |coordinate| error(coordinate, factors, &x, &y);
            for coordinate in [Coordinate::Log, Coordinate::LogDirect, Coordinate::Projective] {
                assert!(of(coordinate) > 0.3, "{coordinate:?} {}", of(coordinate));
            }
            assert!(of(Coordinate::Linear) < 0.05, "{}", of(Coordinate::Linear));
            assert!(of(Coordinate::Decoded) < 0.05, "{}", of(Coordinate::Decoded));
        }
    }

    #[test]
    fn even_twice_a_vector_is_not_twice_its_codes() {
        let x = gaussian(4096, 1);
        assert!(error(Coordinate::Log, [1.0, 1.0], &x, &x) > 0.9);
        assert!(error(Coordinate::Decoded, [1.0, 1.0], &x, &x) < 0.05);
    }
}
