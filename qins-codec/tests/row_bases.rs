//! Rows that differ in magnitude by more than scale codes reach: each keeps what it has alone.

use proptest::prelude::*;
use qins_codec::{
    Decoder, Deviation, Encoded, Format, Header, HeaderError, Slice, ZERO_GROUP, encode, needs_row_bases, scale,
};

mod levels;
use levels::levels;

/// The formats whose rows have bases of their own only where they need them, and what a row of bell-shaped weights keeps at
/// least, in dB.
const FORMATS: [(Format, f64); 8] = [
    (Format::Q8, 45.0),
    (Format::Q8h, 45.0),
    (Format::Q12, 69.0),
    (Format::Log8, 39.5),
    (Format::Lin8, 44.0),
    (Format::Fpins1, 45.0),
    (Format::Fpins2, 92.0),
    (Format::Fpins3, 136.0),
];

/// Bell-shaped weights: sums of uniform draws.
fn bell(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..rows * cols).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * 0.02).collect()
}

/// Of one row; infinite where nothing is lost.
fn sqnr_db(decoded: &[f32], weights: &[f32]) -> f64 {
    let of_row = |values| Slice::new(values, 1, values.len());
    Deviation::of(&of_row(decoded), &of_row(weights)).sqnr_db.unwrap_or(f64::INFINITY)
}

fn encoded(format: Format, weights: &[f32], rows: usize) -> Encoded {
    encode(format, &Slice::new(weights, rows, weights.len() / rows)).unwrap()
}

/// Products at every level against sums over decoded weights.
fn check_products(encoded: &Encoded, decoded: &[f32], case: &str) {
    let cols = encoded.header().cols;
    // One input, a few, and a prompt.
    for m in [1, 5, 16] {
        let x = bell(m, cols, 77);
        for level in levels() {
            let product = encoded.matrix().matmul_at(level, &x, m);
            for (i, x) in x.chunks_exact(cols).enumerate() {
                for (row, weights) in decoded.chunks_exact(cols).enumerate() {
                    let terms = || x.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                    let largest = |of: &[f32]| of.iter().fold(0.0, |a, b| f64::max(a, b.abs().into()));
                    // Fixed point moves inputs and weights by 2^-12.4 of the largest, all in one direction at worst.
                    let moved = 2f64.powf(-12.4) * largest(x) * largest(weights) * 2.0 * cols as f64;
                    let allowed = if level == level.in_float() { 0.0 } else { moved };
                    let found = f64::from(product[i * encoded.header().rows + row]);
                    assert!(
                        (found - sum).abs() <= 1e-5 * size + allowed + 1e-44 * cols as f64,
                        "{case} at {level:?}, {m} inputs: [{i}, {row}] is {found:e}, not {sum:e}"
                    );
                }
            }
        }
    }
}

/// One weight far above all others costs the other rows nothing.
#[test]
fn an_outlier_leaves_other_rows_as_they_are() {
    let (rows, cols) = (48, 256);
    let weights = bell(rows, cols, 1);
    for (format, _) in FORMATS {
        let before = encoded(format, &weights, rows);
        assert!(!before.header().row_bases, "{format}");
        let mut weights = weights.clone();
        weights[3 * cols + 40] = 2000.0;
        let after = encoded(format, &weights, rows);
        assert!(after.header().row_bases && after.header().base_bytes() == 4, "{format}");
        let [before_rows, after_rows] = [&before, &after].map(|encoded| encoded.matrix().decode());
        let mean = |decoded: &[f32]| {
            let of_row = |row: usize| sqnr_db(&decoded[row * cols..][..cols], &weights[row * cols..][..cols]);
            (0..rows).filter(|&row| row != 3).map(of_row).sum::<f64>() / (rows - 1) as f64
        };
        let (before_db, after_db) = (mean(&before_rows), mean(&after_rows));
        assert!((after_db - before_db).abs() < 0.25, "{format}: {before_db:.2} dB before, {after_db:.2} after");
        // 32 bits a row.
        let more = after.header().bits_per_weight() - before.header().bits_per_weight();
        assert!((more - 32.0 / cols as f64).abs() < 1e-12, "{format}: {more}");
        check_products(&after, &after_rows, format.name());
    }
}

/// Read at less than their depth, too.
#[test]
fn first_planes_have_the_same_bases() {
    let mut weights = bell(8, 96, 2);
    weights[0] = 1e6;
    let (decoder, codes, scales) = encoded(Format::Fpins3, &weights, 8).into_parts();
    for (format, least) in [(Format::Fpins1, 44.0), (Format::Fpins2, 91.0)] {
        let header = Header { format, ..*decoder.header() };
        let decoder = Decoder::new(header).unwrap();
        let decoded = decoder.matrix(&codes[..header.code_bytes()], &scales).unwrap().decode();
        for (decoded, weights) in decoded.chunks(96).zip(weights.chunks(96)).skip(1) {
            assert!(sqnr_db(decoded, weights) > least, "{format}");
        }
    }
}

#[test]
fn rows_of_zeros_and_of_extremes_stay_what_they_are() {
    let cols = 70;
    let mut weights = vec![0.0; 5 * cols];
    // Near the largest number, among the smallest, the smallest alone, and ordinary ones.
    for (col, x) in bell(1, cols, 3).into_iter().enumerate() {
        let x = x.clamp(-0.05, 0.05);
        weights[cols + col] = x * 20.0 * f32::MAX;
        weights[2 * cols + col] = x * 1e-38;
        weights[4 * cols + col] = x;
    }
    weights[3 * cols] = f32::from_bits(1);
    for (format, least) in FORMATS {
        let encoded = encoded(format, &weights, 5);
        assert!(encoded.header().row_bases);
        let decoded = encoded.matrix().decode();
        assert!(decoded.iter().all(|w| w.is_finite()), "{format}");
        assert!(decoded[..cols].iter().all(|w| w.to_bits() == 0), "{format}");
        for row in [1, 4] {
            let db = sqnr_db(&decoded[row * cols..][..cols], &weights[row * cols..][..cols]);
            assert!(db > least - 1.5, "{format}, row {row}: {db:.2} dB");
        }
        let product = encoded.matrix().matmul(&vec![0.01; cols], 1);
        assert!(product.iter().all(|sum| sum.is_finite()), "{format}: {product:?}");
        assert_eq!(product[0], 0.0);
    }
}

#[test]
fn formats_that_always_or_never_have_bases_are_not_told_so() {
    for &format in Format::ALL {
        let header = Header { format, rows: 1, cols: 1, base: 1.0, k: 0.5, row_bases: true };
        let expected = if format.allows_row_bases() { Ok(()) } else { Err(HeaderError::RowBases(format)) };
        assert_eq!(header.validate(), expected);
    }
}

/// The rule, from its words.
fn needed(weights: &[f32], cols: usize, group: usize) -> bool {
    let largest = |weights: &[f32]| weights.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
    let base_of = |largest: f32| (f64::from(largest) * 2f64.powf(1.0 / 32.0)) as f32;
    let base = base_of(largest(weights)).min(f32::MAX);
    let floor = scale(base, ZERO_GROUP - 1);
    weights.chunks(cols.max(1)).any(|row| {
        let halved = base / 2.0 >= base_of(largest(row)).max(f32::MIN_POSITIVE);
        halved && row.chunks(group).any(|group| largest(group) > 0.0 && largest(group) < floor)
    })
}

proptest! {
    #[test]
    fn any_spread_of_rows_keeps_every_row(
        (format, least) in prop::sample::select(&FORMATS[..]),
        exponents in prop::collection::vec(-20i32..=20, 1..7),
        cols in prop::sample::select(vec![256usize, 300, 511]),
        seed in any::<u64>(),
    ) {
        let mut weights = bell(exponents.len(), cols, seed);
        for (row, exponent) in weights.chunks_exact_mut(cols).zip(&exponents) {
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * 10f64.powi(*exponent)) as f32);
        }
        let encoded = encoded(format, &weights, exponents.len());
        let decoded = encoded.matrix().decode();
        for (row, (decoded, weights)) in decoded.chunks(cols).zip(weights.chunks(cols)).enumerate() {
            let db = sqnr_db(decoded, weights);
            prop_assert!(db >= least, "{} {:?}, row {}: {:.2} dB", format, exponents, row, db);
        }
        check_products(&encoded, &decoded, &format!("{format} {exponents:?}"));
    }

    #[test]
    fn rows_have_bases_where_the_rule_says_and_nowhere_else(
        format in prop::sample::select(Format::ALL),
        (rows, cols) in (1usize..5, 0usize..100),
        exponents in prop::collection::vec(-45i32..=38, 20),
        seed in any::<u64>(),
    ) {
        let mut weights = bell(rows, cols, seed);
        for (i, w) in weights.iter_mut().enumerate() {
            // Neighbours have one magnitude, or are zeros.
            let exponent = exponents[i / 37 % 20];
            *w = if exponent % 7 == 0 { 0.0 } else { (f64::from(*w) * 10f64.powi(exponent)) as f32 };
        }
        let of = Slice::new(&weights, rows, cols);
        let allows = FORMATS.iter().any(|&(with, _)| with == format);
        let expected = allows && needed(&weights, cols, format.group());
        prop_assert_eq!(needs_row_bases(format, &of), Ok(expected));
        if let Ok(encoded) = encode(format, &of) {
            prop_assert_eq!(encoded.header().row_bases, expected);
        }
    }
}
