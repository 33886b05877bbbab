//! The record's FPINS: a magnitude as a product of factors, one byte each, found greedily by roots.
//!
//! From the record: variable depth, one byte a level, a greedy factorisation by roots, and at depth 2 (3 bytes with the
//! sign) a mean relative error of 0.86 % and a largest of 2.4 %. It gives neither the rule nor the weights.
//!
//! Our reading: the inverse law with a product for a code, `|w| = max * 21^L / (f_1 f_2 .. f_L)`. With `v = 21^L max / |w|`,
//! level `l` of `L` takes the factor nearest to the root that spreads the rest evenly over the levels left,
//! `f_l = round(v^(1 / (L - l + 1)))` in `1..=255`, and hands on `v / f_l`. The last factor is at least 21, for an error of
//! at most 1/42 = 2.4 %: the record's, from which the 21 is chosen. On magnitudes spread evenly from a tenth of the largest
//! to the largest, a draw that is ours, the mean at depth 2 is 0.85 % (`cargo run --release -p qins-codec --example origins`).
//!
//! So a level widens the range, by 255/21, and adds no precision. Magnitudes below the range are clamped: they decode to
//! many times their size. The format `fpins:L` of the project is another: there each byte splits the cell of the ones before.

use super::{Origin, largest, with_signs};

/// The entry of depth 1, 2 or 3.
pub(super) const fn origin<const DEPTH: usize>() -> Origin {
    let name = match DEPTH {
        1 => "fpins-greedy:1",
        2 => "fpins-greedy:2",
        3 => "fpins-greedy:3",
        _ => panic!("no such depth in the list"),
    };
    Origin {
        name,
        code_bytes: DEPTH,
        decoded: |weights| {
            let codec = Codec::<DEPTH>::of(weights);
            with_signs(weights, |magnitude| codec.magnitude(codec.factors(magnitude)))
        },
    }
}

/// Every factor of the largest magnitude.
pub const SMALLEST_FACTOR: f64 = 21.0;

/// The largest magnitude of a tensor, for products of `DEPTH` factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codec<const DEPTH: usize> {
    /// The largest magnitude.
    pub largest: f64,
}

impl<const DEPTH: usize> Codec<DEPTH> {
    /// The constant of these finite weights.
    pub fn of(weights: &[f32]) -> Self {
        Self { largest: largest(weights) }
    }

    /// The factors of a magnitude above 0: larger ones for a smaller magnitude.
    pub fn factors(&self, magnitude: f64) -> [u8; DEPTH] {
        let mut rest = SMALLEST_FACTOR.powi(DEPTH as i32) * (self.largest / magnitude);
        std::array::from_fn(|level| {
            let root = rest.powf(1.0 / (DEPTH - level) as f64);
            let factor = root.round().clamp(1.0, 255.0);
            rest /= factor;
            factor as u8
        })
    }

    /// The magnitude that factors stand for; 0 counts as 1.
    pub fn magnitude(&self, factors: [u8; DEPTH]) -> f64 {
        factors.iter().fold(self.largest, |magnitude, &factor| magnitude * (SMALLEST_FACTOR / f64::from(factor.max(1))))
    }

    /// The smallest magnitude that is not clamped, all factors 255.
    pub fn smallest(&self) -> f64 {
        self.magnitude([255; DEPTH])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn factors_follow_the_rule() {
        let codec = Codec::<2> { largest: 4.0 };
        assert_eq!(codec.factors(4.0), [21, 21]);
        // v = 1764: a square. v = 1000: 31.6 gives 32, and 1000 / 32 = 31.25 gives 31.
        assert_eq!(codec.factors(1.0), [42, 42]);
        assert_eq!(codec.factors(1.764), [32, 31]);
        assert!((codec.magnitude([32, 31]) - 1764.0 / 992.0).abs() < 1e-12);
        assert_eq!(codec.factors(1e-9), [255, 255]);
        // One factor is the inverse law.
        assert_eq!(Codec::<1> { largest: 4.0 }.factors(1.0), [84]);
        // v = 74088: 42 each.
        assert_eq!(Codec::<3> { largest: 4.0 }.factors(0.5), [42, 42, 42]);
    }

    #[test]
    fn each_level_widens_the_range_by_255_21sts() {
        let range = 255.0f64 / 21.0;
        assert!((Codec::<1> { largest: 2.0 }.smallest() - 2.0 / range).abs() < 1e-12);
        assert!((Codec::<2> { largest: 2.0 }.smallest() - 2.0 / range.powi(2)).abs() < 1e-12);
        assert!((Codec::<3> { largest: 2.0 }.smallest() - 2.0 / range.powi(3)).abs() < 1e-12);
        // Not clamped at it, clamped below.
        let codec = Codec::<2> { largest: 2.0 };
        assert_eq!([codec.smallest() * 1.03, codec.smallest(), 1e-30].map(|w| codec.factors(w)[1]), [252, 255, 255]);
    }

    fn relative_error<const DEPTH: usize>(magnitude: f64) -> f64 {
        let codec = Codec::<DEPTH> { largest: 1.0 };
        (codec.magnitude(codec.factors(magnitude)) / magnitude - 1.0).abs()
    }

    #[test]
    fn figures_of_the_record_at_depth_2() {
        let steps = 100_000;
        let errors = || (0..steps).map(|i| relative_error::<2>(0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(steps)));
        let (mean, max) = (errors().sum::<f64>() / f64::from(steps), errors().fold(0.0, f64::max));
        assert!((mean - 0.0086).abs() < 0.0002, "mean {mean}");
        assert!((max - 0.024).abs() < 0.0005, "max {max}");
    }

    proptest! {
        #[test]
        fn no_depth_loses_more_than_half_of_a_21st_in_its_range(n in 0.0f64..=1.0) {
            let at = |smallest: f64| smallest.powf(n) * (1.0 + 1e-12);
            for error in [
                relative_error::<1>(at(21.0 / 255.0)),
                relative_error::<2>(at((21f64 / 255.0).powi(2))),
                relative_error::<3>(at((21f64 / 255.0).powi(3))),
            ] {
                prop_assert!(error <= 1.0 / 42.0 + 1e-9, "{}", error);
            }
        }

        #[test]
        fn the_first_factor_of_a_smaller_magnitude_is_no_smaller(a in 1e-9f64..1.0, b in 1e-9f64..1.0) {
            let first = |w| Codec::<3> { largest: 1.0 }.factors(w)[0];
            prop_assert!(first(a.min(b)) >= first(a.max(b)));
        }
    }
}
