//! The encodings of the original record: what they do with any weights, and the record's figures on drawn ones.

mod draws;

use proptest::prelude::*;
use qins_codec::{
    Deviation, EncodeError, Format, Slice, encode,
    origins::{self, Origin, inverse, linear, log},
};

/// The shape of the project's synthetic draws.
const SHAPE: [usize; 2] = [256, 3072];

fn origin(name: &str) -> &'static Origin {
    origins::ALL.iter().find(|origin| origin.name() == name).expect(name)
}

fn round_trip(name: &str, weights: &[f32]) -> Vec<f32> {
    origin(name).round_trip(&Slice::new(weights, 1, weights.len())).expect("finite weights")
}

fn deviation(name: &str, weights: &[f32]) -> Deviation {
    let [rows, cols] = SHAPE;
    let decoded = origin(name).round_trip(&Slice::new(weights, rows, cols)).expect("finite weights");
    Deviation::of(&Slice::new(&decoded, rows, cols), &Slice::new(weights, rows, cols))
}

fn gaussian() -> Vec<f32> {
    draws::gaussian(SHAPE[0] * SHAPE[1])
}

fn student() -> Vec<f32> {
    draws::student(SHAPE[0] * SHAPE[1])
}

fn db(deviation: Deviation) -> f64 {
    deviation.sqnr_db.expect("some loss")
}

fn magnitudes(weights: &[f32]) -> impl Iterator<Item = f64> {
    weights.iter().map(|w| f64::from(w.abs()))
}

#[test]
fn draws_are_what_they_are_called() {
    let moment = |weights: &[f32], power| {
        weights.iter().map(|&w| (f64::from(w) / 0.02).powi(power)).sum::<f64>() / weights.len() as f64
    };
    let (gaussian, student) = (gaussian(), student());
    for (found, expected, tolerance) in [
        (moment(&gaussian, 1), 0.0, 0.005),
        (moment(&gaussian, 2), 1.0, 0.01),
        (moment(&gaussian, 4), 3.0, 0.05),
        (moment(&student, 1), 0.0, 0.01),
        (moment(&student, 2), 5.0 / 3.0, 0.02),
    ] {
        assert!((found - expected).abs() < tolerance, "{found} instead of {expected}");
    }
}

#[test]
fn names_are_distinct_and_bits_count_the_sign() {
    let found: Vec<_> = origins::ALL.iter().map(|origin| (origin.to_string(), origin.bits_per_weight())).collect();
    let expected = [
        ("log", 16.0),
        ("inverse", 16.0),
        ("linear-repair", 16.0),
        ("fpins-greedy:1", 16.0),
        ("fpins-greedy:2", 24.0),
        ("fpins-greedy:3", 32.0),
    ];
    assert_eq!(found, expected.map(|(name, bits)| (name.to_owned(), bits)));
}

#[test]
fn bad_weights_are_named() {
    for origin in origins::ALL {
        let error = origin.round_trip(&Slice::new(&[0.5, 1.0, 2.0, f32::NEG_INFINITY], 2, 2)).unwrap_err();
        assert_eq!(error, EncodeError::NotFinite { row: 1, col: 1, value: f32::NEG_INFINITY }, "{origin}");
        let error = origin.round_trip(&Slice::new(&[0.5, f32::NAN], 1, 2)).unwrap_err();
        assert!(matches!(error, EncodeError::NotFinite { row: 0, col: 1, .. }), "{origin}");
    }
}

#[test]
fn matrices_without_weights_stay_so() {
    for (origin, (rows, cols)) in origins::ALL.iter().flat_map(|origin| [(0, 3), (3, 0), (0, 0)].map(|s| (origin, s))) {
        assert_eq!(origin.round_trip(&Slice::new(&[], rows, cols)), Ok(vec![]), "{origin}");
    }
}

/// 34.96 dB Gaussian and 33.96 Student-t in the record; the smallest weight of a draw, by chance, makes 0.7 dB.
#[test]
fn log_reaches_the_figures_of_the_record() {
    for (weights, recorded) in [(gaussian(), 34.96), (student(), 33.96)] {
        let found = db(deviation("log", &weights));
        assert!((found - recorded).abs() < 1.5, "{found:.2} dB, {recorded} in the record");
        // A relative error spread evenly over a cell of the range of this draw.
        let log::Codec { log_min, log_max } = log::Codec::of(&weights);
        let expected = 20.0 * (12f64.sqrt() * 254.0 / (log_max - log_min)).log10();
        assert!((found - expected).abs() < 0.1, "{found:.2} dB, {expected:.2} expected");
    }
}

/// 44.3 dB Gaussian and 30.1 Student-t in the record; the largest weight of a draw, by chance, makes 0.5 and 2.2 dB.
#[test]
fn linear_repair_reaches_the_figures_of_the_record_and_fails_on_tails() {
    for (weights, recorded, tolerance) in [(gaussian(), 44.3, 1.0), (student(), 30.1, 4.0)] {
        let found = deviation("linear-repair", &weights);
        assert!((db(found) - recorded).abs() < tolerance, "{:.2} dB, {recorded} in the record", db(found));
        // An error spread evenly over a step of this draw.
        let step = magnitudes(&weights).fold(0.0, f64::max) / 254.0;
        let expected = 20.0 * (12f64.sqrt() * found.rms / step).log10();
        assert!((db(found) - expected).abs() < 0.1, "{:.2} dB, {expected:.2} expected", db(found));
    }
    // One outlier in 786,432 weights, 500 standard deviations away.
    let mut weights = gaussian();
    weights[0] = 10.0;
    let rest = |decoded: &[f32]| {
        let n = weights.len() - 1;
        db(Deviation::of(&Slice::new(&decoded[1..], 1, n), &Slice::new(&weights[1..], 1, n)))
    };
    let found = rest(&round_trip("linear-repair", &weights));
    assert!(found < 6.0, "{found:.2} dB of the other weights");
    let [rows, cols] = SHAPE;
    let q8 = encode(Format::Q8, &Slice::new(&weights, rows, cols)).unwrap().matrix().decode();
    // The outlier takes the 31 others of its group with it, 1 in 25,000: 44 dB.
    assert!(rest(&q8) > 43.5, "{:.2} dB of the other weights in q8", rest(&q8));
}

/// The record's 0.06 % is not found in any usual measure: of the largest weight the mean difference is a quarter step.
#[test]
fn linear_repair_loses_a_quarter_step_in_the_mean() {
    let weights = gaussian();
    let decoded = round_trip("linear-repair", &weights);
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / weights.len() as f64;
    let difference = mean(&mut weights.iter().zip(&decoded).map(|(w, d)| f64::from((w - d).abs())));
    let largest = magnitudes(&weights).fold(0.0, f64::max);
    assert!((difference / largest - 0.25 / 254.0).abs() < 2e-5, "{}", difference / largest);
    assert!((0.005..0.007).contains(&(difference / mean(&mut magnitudes(&weights)))));
    assert!(deviation("linear-repair", &weights).mean_relative_error > 0.02);
}

/// The record's error of 87 % is not that of weights as a layer has them.
#[test]
fn the_inverse_law_keeps_nothing_but_signs() {
    let weights = gaussian();
    let found = deviation("inverse", &weights);
    assert!(db(found) < -33.0 && found.mean_relative_error > 100.0, "{found:?}");
    let smallest = inverse::magnitude(255) as f32;
    assert!(round_trip("inverse", &weights).iter().zip(&weights).all(|(d, w)| *d == smallest.copysign(*w)));
    // Within its range it is as good as its codes are large.
    let in_range: Vec<f32> = (0..1000).map(|i| 1.01 + i as f32 / 1000.0).collect();
    assert!(round_trip("inverse", &in_range).iter().zip(&in_range).all(|(d, w)| (d / w - 1.0).abs() < 0.5 / 127.0));
}

/// Depth widens the range: a Gaussian tensor is clamped at its small weights, less so with each level.
#[test]
fn fpins_gains_range_by_depth_and_no_precision() {
    let weights = gaussian();
    let [one, two, three] =
        ["fpins-greedy:1", "fpins-greedy:2", "fpins-greedy:3"].map(|name| deviation(name, &weights));
    assert!(one.mean_relative_error > 2.0 * two.mean_relative_error);
    assert!(two.mean_relative_error > 2.0 * three.mean_relative_error);
    assert!(db(two) - db(one) > 10.0 && db(two) > db(three), "{one:?} {two:?} {three:?}");
    // 32 bits, and less than 8.25 of the project.
    let q8 = encode(Format::Q8, &Slice::new(&weights, SHAPE[0], SHAPE[1])).unwrap();
    assert!(db(Deviation::of(&q8.matrix(), &Slice::new(&weights, SHAPE[0], SHAPE[1]))) > db(two) + 4.0);
}

fn any_weights() -> impl Strategy<Value = Vec<f32>> {
    let weight = prop_oneof![
        6 => -1.0f32..1.0,
        2 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => -1e-39f32..1e-39,
        1 => Just(f32::MAX),
        1 => any::<f32>().prop_filter("finite", |x| x.is_finite()),
    ];
    prop::collection::vec(weight, 0..60)
}

proptest! {
    #[test]
    fn finite_weights_decode_to_finite_ones_of_the_same_sign(weights in any_weights()) {
        for origin in origins::ALL {
            let decoded = round_trip(origin.name(), &weights);
            prop_assert_eq!(decoded.len(), weights.len());
            for (&w, &d) in weights.iter().zip(&decoded) {
                prop_assert!(d.is_finite(), "{}: {} became {}", origin, w, d);
                prop_assert!(if w == 0.0 { d == 0.0 } else { d == 0.0 || (d < 0.0) == (w < 0.0) }, "{}: {} became {}", origin, w, d);
            }
        }
    }

    #[test]
    fn log_loses_half_a_cell_of_the_range(weights in any_weights()) {
        let log::Codec { log_min, log_max } = log::Codec::of(&weights);
        let bound = ((log_max - log_min) / 508.0).exp() - 1.0;
        for (w, d) in magnitudes(&weights).zip(magnitudes(&round_trip("log", &weights))) {
            prop_assert!((d - w).abs() <= w * (bound + 1e-6) + f64::from(f32::from_bits(1)), "{} became {}", w, d);
        }
    }

    #[test]
    fn linear_repair_loses_half_a_step(weights in any_weights()) {
        let largest = magnitudes(&weights).fold(0.0, f64::max);
        for (w, d) in magnitudes(&weights).zip(magnitudes(&round_trip("linear-repair", &weights))) {
            prop_assert!((d - w).abs() <= largest * (1.0 / 508.0 + 1e-6) + f64::from(f32::from_bits(1)), "{} became {}", w, d);
        }
    }

    #[test]
    fn codes_are_in_the_order_of_magnitudes(weights in any_weights(), a in any::<f32>(), b in any::<f32>()) {
        prop_assume!(a.is_finite() && b.is_finite() && a != 0.0 && b != 0.0);
        let weights = [&weights[..], &[a, b]].concat();
        let (large, small) = (f64::from(a.abs().max(b.abs())), f64::from(a.abs().min(b.abs())));
        let (log, linear) = (log::Codec::of(&weights), linear::Codec::of(&weights));
        prop_assert!(log.code(large) <= log.code(small) && log.code(large) >= 1);
        prop_assert!(inverse::code(large) <= inverse::code(small) && inverse::code(large) >= 1);
        prop_assert!(linear.code(large) >= linear.code(small) && linear.code(small) >= 1);
    }
}
