//! Products at every level, against sums in f64 over decoded rows: odd shapes, any bytes, zero groups, extreme scales.

use proptest::prelude::*;
use qins_codec::{Decoder, Encoded, Format, Header, Level};

mod levels;
use levels::levels;

/// As many groups as there may be in blocks of every kernel, and some more.
const MOST_COLS: usize = 200;

/// A format, and whether its rows are told to have bases of their own.
#[derive(Debug, Clone, Copy)]
struct Kind {
    format: Format,
    row_bases: bool,
}

impl From<Format> for Kind {
    fn from(format: Format) -> Self {
        Self { format, row_bases: false }
    }
}

/// All that there are.
fn kinds() -> Vec<Kind> {
    let all = Format::ALL.iter().flat_map(|&format| [false, true].map(|row_bases| Kind { format, row_bases }));
    let is_legal = |kind: &Kind| header(*kind, 1, 1, 1.0, 0.5).validate().is_ok();
    all.filter(is_legal).collect()
}

fn header(Kind { format, row_bases }: Kind, rows: usize, cols: usize, base: f32, k: f64) -> Header {
    Header { format, rows, cols, base, k, row_bases }
}

/// Any bytes that hold finite numbers. Bases of rows are up to 2^-30 of the matrix's.
fn matrix(kind: impl Into<Kind>, rows: usize, cols: usize, base: f32, k: f64, seed: u64) -> Encoded {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let header = header(kind.into(), rows, cols, base, k);
    let mut codes: Vec<u8> = (0..header.code_bytes()).map(|_| byte()).collect();
    let mut scales: Vec<u8> = (0..header.scale_bytes()).map(|_| byte()).collect();
    if header.format.is_raw() {
        // Far from infinity, in either format.
        codes.as_chunks_mut::<2>().0.iter_mut().for_each(|[_, upper]| *upper &= 0xBB);
    }
    let scales_of_rows = scales.chunks_exact_mut(header.scale_bytes_of_row().max(1));
    for (row, scales) in scales_of_rows.enumerate() {
        let (own, scales) = scales.split_at_mut(header.base_bytes());
        own.copy_from_slice(&(base * 0.5f32.powi(row as i32 * 7 % 31)).to_le_bytes()[..own.len()]);
        // Groups of zeros.
        let zeros = if header.format.tables() > 1 { 31 << 2 } else { 255 };
        scales.iter_mut().step_by(5).for_each(|scale| *scale = zeros);
    }
    Encoded::from_parts(Decoder::new(header).unwrap(), codes, scales).unwrap()
}

fn inputs(m: usize, cols: usize, seed: u64) -> Vec<f32> {
    (0..m * cols).map(|i| ((i as f64 * 0.7 + seed as f64 * 0.01).sin() * 3.0) as f32).collect()
}

/// A sign and a magnitude of 7 bits, in groups of 32.
const PROJECTIVE: [Format; 2] = [Format::Q8, Format::Fpins1];

/// How far numbers may be moved before they are multiplied: of each 256, by so much of the largest.
#[derive(Clone, Copy)]
struct Rounding {
    inputs: f64,
    weights: f64,
}

impl Rounding {
    fn of(level: Level, format: Format, m: usize) -> Self {
        let (one, many) = (2f64.powi(-15), 2f64.powi(-14));
        // Integers that lie near lines.
        let near = 1.5 * 2f64.powi(-13);
        let few_bits = format.code_bits() <= 8 && format.planes() == 1;
        match (level, m) {
            (Level::Avx2Fixed, 1) if matches!(format, Format::Lin8 | Format::Q4) => Self { inputs: one, weights: 0.0 },
            (Level::Avx2Fixed, 1) if PROJECTIVE.contains(&format) => Self { inputs: one, weights: near },
            (Level::Avx2Fixed, PANEL_INPUTS..) if PROJECTIVE.contains(&format) => Self { inputs: many, weights: near },
            (Level::Avx2Fixed | Level::Avx512Fixed, PANEL_INPUTS..) if few_bits => Self { inputs: many, weights: many },
            _ => Self { inputs: 0.0, weights: 0.0 },
        }
    }

    /// By how much, for each number.
    fn moves(x: &[f32], by: f64) -> Vec<f64> {
        // Units are not less than so much of what is the largest.
        let smallest = 2f64.powi(-112);
        let largest = |x: &[f32]| x.iter().fold(smallest, |largest: f64, x| largest.max(f64::from(x.abs())));
        x.chunks(256).flat_map(|x| vec![largest(x) * by; x.len()]).collect()
    }
}

/// From so many inputs on, weights are decoded to memory.
const PANEL_INPUTS: usize = 13;

/// Panics where a product is further from the sum over decoded weights than rounding explains.
fn check(encoded: &Encoded, x: &[f32], m: usize) {
    let Header { format, rows, cols, .. } = *encoded.header();
    let decoded = encoded.matrix().decode();
    for level in levels() {
        let product = encoded.matrix().matmul_at(level, x, m);
        assert_eq!(product.len(), m * rows);
        let rounding = Rounding::of(level, format, m);
        let of_inputs: Vec<_> = x.chunks(cols.max(1)).map(|x| Rounding::moves(x, rounding.inputs)).collect();
        let of_weights: Vec<_> = decoded.chunks(cols.max(1)).map(|w| Rounding::moves(w, rounding.weights)).collect();
        for i in 0..m {
            for row in 0..rows {
                let terms = (0..cols).map(|c| f64::from(x[i * cols + c]) * f64::from(decoded[row * cols + c]));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                let found = f64::from(product[i * rows + row]);
                let (x, weights) = (&x[i * cols..][..cols], &decoded[row * cols..][..cols]);
                let numbers = x.iter().zip(weights).zip(of_inputs.get(i).into_iter().flatten());
                let rounded: f64 = numbers
                    .zip(of_weights.get(row).into_iter().flatten())
                    .map(|(((x, w), dx), dw)| dx * f64::from(w.abs()) + dw * f64::from(x.abs()) + dx * dw)
                    .sum();
                // Scales below the smallest normal number are rounded to multiples of 1.4e-45, and are those of up to 127.
                let subnormal = (cols as f64 + x.iter().map(|x| f64::from(x.abs())).sum::<f64>()) * 1e-43;
                assert!(
                    (found - sum).abs() <= 1e-6 * size + rounded + subnormal,
                    "{format} at {level:?}, [{m}, {cols}] x [{cols}, {rows}]: [{i}, {row}] is {found}, not {sum} of {size}"
                );
            }
        }
    }
}

#[test]
fn every_number_of_columns_and_inputs() {
    for kind in kinds() {
        for cols in 1..=MOST_COLS {
            let (rows, m) = (1 + cols % 11, cols % 10);
            let k = if kind.format == Format::Log8 { 6.0 } else { 0.5 };
            check(&matrix(kind, rows, cols, 0.02, k, cols as u64), &inputs(m, cols, 3), m);
        }
    }
}

/// On both sides of where panels begin, with odd rows and columns of several pieces and tiles.
#[test]
fn every_number_of_many_inputs() {
    for kind in kinds() {
        let k = if kind.format == Format::Log8 { 6.0 } else { 0.5 };
        for m in (0..=40).chain([63, 64, 65, 100, 131]) {
            let (rows, cols) = (1 + m * 7 % 60, 1 + m * 37 % 600);
            check(&matrix(kind, rows, cols, 0.02, k, m as u64), &inputs(m, cols, 3), m);
        }
        // Whole pieces, and one column or one group more.
        for cols in [32, 64, 96, 256, 257, 288, 512, 513, 544] {
            for (m, seed) in [(1, 1), (1, 2), (17, 1)] {
                check(&matrix(kind, 49, cols, 0.02, k, seed), &inputs(m, cols, 3), m);
            }
        }
    }
}

/// Numbers of inputs whose products with the columns or the rows overflow are not taken for small ones.
#[test]
fn sizes_that_overflow_are_refused() {
    let panics = |cols: usize, m: usize| {
        let encoded = matrix(Format::Q8, 4, cols, 1.0, 0.5, 1);
        std::panic::catch_unwind(|| encoded.matrix().matmul_at(Level::Scalar, &[], m)).is_err()
    };
    assert!(panics(2, usize::MAX / 2 + 1) && panics(0, usize::MAX / 4 + 1));
    assert!(!panics(2, 0) && !panics(0, 3));
}

/// One row has more bytes of codes than a task is given.
#[test]
fn the_longest_rows() {
    for format in [Format::Q8, Format::Bf16, Format::Fpins3] {
        for m in [1, 12] {
            check(&matrix(format, 50, 40_001, 0.02, 0.5, 1), &inputs(m, 40_001, 3), m);
        }
    }
}

/// What else is in the call does not change a product.
#[test]
fn bits_do_not_depend_on_the_number_of_many_inputs() {
    for kind in kinds() {
        let (rows, cols) = (61, 300);
        let encoded = matrix(kind, rows, cols, 0.02, 0.5, 7);
        let x = inputs(48, cols, 1);
        for level in levels() {
            let all = encoded.matrix().matmul_at(level, &x, 48);
            for m in [16, 17, 25, 40] {
                let some = encoded.matrix().matmul_at(level, &x[..m * cols], m);
                assert!(some == all[..m * rows], "{kind:?} at {level:?}, {m} inputs");
            }
        }
    }
}

/// Bell-shaped numbers.
fn draws(count: usize, mut state: u64) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..8).map(|_| uniform()).sum()).collect()
}

/// What products in fixed point lose beside what codes have lost, in decibels below it.
fn below_codes(level: Level, format: Format, m: usize, greatest: f32) -> f64 {
    const COLS: usize = 3072;
    const ROWS: usize = 256;
    let weights = draws(ROWS * COLS, 1);
    let encoded = qins_codec::encode(format, &qins_codec::Slice::new(&weights, ROWS, COLS)).unwrap();
    let decoded = encoded.matrix().decode();
    let mut x = draws(m * COLS, 2);
    x.chunks_exact_mut(COLS).for_each(|x| x[1000] *= greatest);
    let sums = |weights: &[f32]| -> Vec<f64> {
        let sum = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        x.chunks_exact(COLS).flat_map(|x| weights.chunks_exact(COLS).map(move |row| sum(row, x))).collect()
    };
    let of_codes = sums(&decoded);
    let noise = |found: &mut dyn Iterator<Item = f64>| -> f64 {
        of_codes.iter().zip(found).map(|(sum, found)| (sum - found).powi(2)).sum()
    };
    let lost = noise(&mut sums(&weights).into_iter());
    let rounded = noise(&mut encoded.matrix().matmul_at(level, &x, m).into_iter().map(f64::from));
    10.0 * (lost / rounded).log10()
}

/// So with inputs of which one is far greater than the others, as transformers have.
#[test]
fn fixed_point_loses_less_than_codes() {
    let of_8_bits = [Format::Q8, Format::Q8h, Format::Lin8, Format::Log8, Format::Fpins1];
    let of_few_bits = [Format::Q6, Format::Q4, Format::Q3, Format::Q2];
    let many = [&of_8_bits[..], &of_few_bits].concat();
    let cases: [(Level, usize, &[Format]); 3] = [
        (Level::Avx2Fixed, 1, &[Format::Q8, Format::Fpins1, Format::Lin8, Format::Q4]),
        (Level::Avx2Fixed, 16, &many),
        (Level::Avx512Fixed, 16, &many),
    ];
    for (level, m, formats) in cases {
        if !level.is_supported() {
            println!("skipped: this processor lacks what {} needs", level.name());
            continue;
        }
        for &format in formats {
            for (greatest, least) in [(1.0, 26.0), (100.0, 20.0), (1e4, 20.0)] {
                let less = below_codes(level, format, m, greatest);
                println!(
                    "{} with {format}, {m} inputs, one value {greatest} times the others: {less:.1} dB less than codes",
                    level.name()
                );
                assert!(less > least, "{less}");
            }
        }
    }
}

/// Longer than what is multiplied at once, and more rows than one task has.
#[test]
fn long_rows_and_many() {
    for kind in kinds() {
        for m in [1, 2, 3, 8, 9] {
            check(&matrix(kind, 3, 9001, 0.02, 0.5, 1), &inputs(m, 9001, 3), m);
            check(&matrix(kind, 1201, 67, 0.02, 0.5, 1), &inputs(m, 67, 3), m);
        }
    }
}

/// Upper bytes of these tables fall often or seldom, which kernels tell apart.
#[test]
fn every_table() {
    for k in [0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 8.0, 11.0, 17.0, 40.0, 1e3, 1e9, 1e100, 1e300] {
        for format in [Format::Q8, Format::Q8h, Format::Fpins1, Format::Log8, Format::Lin8, Format::Q12] {
            let cols = 4096;
            let decoder = Decoder::new(Header { format, rows: 1, cols, base: 1.0, k, row_bases: false }).unwrap();
            let code = |i: usize| if format == Format::Q12 { i * 37 } else { i } as u8;
            let codes: Vec<u8> = (0..decoder.header().code_bytes()).map(code).collect();
            let scales = vec![0; decoder.header().scale_bytes()];
            let encoded = Encoded::from_parts(decoder, codes, scales).unwrap();
            // One weight at a time.
            let decoded = encoded.matrix().decode();
            for col in (0..260).chain(cols - 8..cols) {
                let mut x = vec![0.0; cols];
                x[col] = 1.0;
                for level in levels() {
                    // Groups have a scale of 1, and magnitudes up to that.
                    let rounded = Rounding::of(level, format, 1).weights as f32;
                    let found = encoded.matrix().matmul_at(level, &x, 1)[0];
                    let difference = (found - decoded[col]).abs();
                    assert!(
                        difference <= rounded,
                        "{format} at {level:?}, k = {k}, column {col}: {found}, not {}",
                        decoded[col]
                    );
                    // All but the last 16 magnitudes.
                    let exact = col % 128 < 112;
                    assert!(difference == 0.0 || !exact, "{format} at {level:?}, k = {k}, column {col}: {found}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for kind in kinds() {
        let encoded = matrix(kind, 997, 300, 0.02, 0.5, 7);
        for m in [1, 3, 8, 20, 65] {
            let x = inputs(m, 300, 1);
            for level in levels() {
                let run = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| encoded.matrix().matmul_at(level, &x, m))
                };
                let one = run(1);
                assert!(run(2) == one && run(7) == one, "{kind:?} at {level:?}, {m} inputs");
            }
        }
    }
}

/// A weight of 0 times infinity is NaN, as in any sum of products.
#[test]
fn inputs_that_are_not_finite_reach_the_products() {
    for kind in kinds() {
        let encoded = matrix(kind, 20, 70, 0.02, 0.5, 5);
        for level in levels() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for m in [3, 19] {
                    let mut x = inputs(m, 70, 1);
                    x[70 + 69] = bad;
                    let product = encoded.matrix().matmul_at(level, &x, m);
                    let finite = |i: usize| product[i * 20..][..20].iter().filter(|p| p.is_finite()).count();
                    assert!((0..m).all(|i| finite(i) == if i == 1 { 0 } else { 20 }), "{kind:?} at {level:?}, {m}");
                    if bad.is_nan() {
                        assert!(product[20..40].iter().all(|p| p.is_nan()));
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_and_any_scale(
        kind in prop::sample::select(kinds()),
        (rows, cols, m) in (0usize..20, 0usize..MOST_COLS, 0usize..30),
        exponent in -40i32..36,
        k in prop_oneof![0.0..3.0, 0.0..100.0f64],
        seed in any::<u64>(),
    ) {
        check(&matrix(kind, rows, cols, 10f32.powi(exponent), k, seed), &inputs(m, cols, seed % 1000), m);
    }
}
