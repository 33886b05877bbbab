//! How near products with encoded weights come to the speed of memory:
//!
//! ```sh
//! cargo run --release -p qins-codec --example matmul_speed -- [--prompts] [--level LEVEL] [FORMAT...]
//! ```
//!
//! For 1, 4 and 8 inputs, on one thread and on two: the best of some passes over as many matrices as no cache holds, in
//! milliseconds a matrix and in GB/s of codes and scales; that as a share of what a loop reads that only sums, measured in
//! the same run; the speed-up over decoding row after row, which is level `scalar`, and over a plain dot product with f32
//! weights. Last, for 1 input, milliseconds for as much
//! of a matrix that stays in the cache.
//!
//! Before that, and alone with `--prompts`, the first shape with 8 to 256 inputs: milliseconds a matrix, GFLOP/s, and those as a share of what a
//! loop that only multiplies and adds reaches, measured beside it.

use qins_codec::{Encoded, Format, Level, Slice, encode};
use rayon::prelude::*;
use std::{hint::black_box, time::Instant};

/// More than caches hold.
const STREAMED: usize = 256 << 20;

/// `[out, in]` of the layers of a 3.8 B-parameter model.
const SHAPES: [(usize, usize); 2] = [(8192, 3072), (3072, 3072)];

const INPUTS: [usize; 3] = [1, 4, 8];

/// Those of prompts.
const MANY_INPUTS: [usize; 10] = [8, 10, 12, 16, 20, 24, 32, 64, 128, 256];

const PASSES: usize = 5;

/// Seconds of one pass, the best of some.
fn best(passes: usize, mut pass: impl FnMut()) -> f64 {
    let timed = |_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    (0..passes).map(timed).fold(f64::INFINITY, f64::min)
}

/// Numbers in `-1..1`, bell-shaped.
fn draws(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..4).map(|_| uniform()).sum::<f32>() / 2.0).collect()
}

/// Bytes a second of a loop that does nothing but read.
fn read_bandwidth() -> f64 {
    let words = vec![1u64; STREAMED / 8];
    let sum = |words: &[u64]| {
        let mut sums = [0u64; 32];
        for words in words.as_chunks::<32>().0 {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(*word);
            }
        }
        sums.iter().sum::<u64>()
    };
    STREAMED as f64 / best(PASSES, || _ = black_box(words.par_chunks(1 << 15).map(sum).sum::<u64>()))
}

/// Seconds of a product with one input and f32 weights.
fn float_product(rows: usize, cols: usize) -> f64 {
    let count = (STREAMED / 4).div_ceil(rows * cols);
    let (weights, x) = (vec![1f32; count * rows * cols], draws(cols));
    let dot = |weights: &[f32]| {
        let mut sums = [0f32; 64];
        for (weights, x) in weights.as_chunks::<64>().0.iter().zip(x.as_chunks::<64>().0) {
            for ((sum, w), x) in sums.iter_mut().zip(weights).zip(x) {
                *sum += w * x;
            }
        }
        sums.iter().sum::<f32>()
    };
    let all = || _ = black_box(weights.par_chunks_exact(cols).with_min_len(16).map(dot).collect::<Vec<_>>());
    best(PASSES, all) / count as f64
}

/// GFLOP/s of `threads` that do nothing but multiply and add.
fn peak(threads: usize) -> f64 {
    const SUMS: usize = 12;
    const ROUNDS: usize = 1 << 22;

    #[inline(always)]
    fn chains<const LANES: usize>() {
        let mut sums = black_box([[1f32; LANES]; SUMS]);
        let (a, b) = (black_box(0.999), black_box(0.001));
        for _ in 0..ROUNDS {
            for sums in &mut sums {
                *sums = sums.map(|sum| f32::mul_add(sum, a, b));
            }
        }
        black_box(sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2() {
        chains::<8>();
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512() {
        chains::<16>();
    }

    let (lanes, chains): (usize, fn()) = match Level::current() {
        // SAFETY: the level is this processor's, and has the instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx2Fixed => (8, || unsafe { avx2() }),
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Fixed => (16, || unsafe { avx512() }),
        _ => (8, chains::<8>),
    };
    let all = || (0..threads).into_par_iter().with_max_len(1).for_each(|_| chains());
    (2 * lanes * SUMS * ROUNDS * threads) as f64 / best(PASSES, all) / 1e9
}

fn copies(encoded: Encoded, count: usize) -> Vec<Encoded> {
    let (decoder, codes, scales) = encoded.into_parts();
    let copy = || Encoded::from_parts(decoder.clone(), codes.clone(), scales.clone()).expect("the same lengths");
    (0..count).map(|_| copy()).collect()
}

/// Seconds a matrix.
fn product(matrices: &[Encoded], level: Level, passes: usize, m: usize) -> f64 {
    let x = draws(m * matrices[0].header().cols);
    let all = || {
        for encoded in matrices {
            black_box(encoded.matrix().matmul_at(level, &x, m));
        }
    };
    best(passes, all) / matrices.len() as f64
}

fn prompts(formats: &[Format], pools: &[(usize, rayon::ThreadPool)], level: Level) {
    let (rows, cols) = SHAPES[0];
    println!("\n[m, {cols}] x [{cols}, {rows}]");
    println!("{:8}{:>5}{:>9}{:>9}{:>9}{:>8}", "format", "m", "threads", "ms", "GFLOP/s", "share");
    let weights = draws(rows * cols);
    for &format in formats {
        let matrix = [encode(format, &Slice::new(&weights, rows, cols)).expect("finite weights")];
        for (threads, pool) in pools {
            for m in MANY_INPUTS {
                let seconds = pool.install(|| product(&matrix, level, PASSES, m));
                let rate = (2 * m * rows * cols) as f64 / seconds / 1e9;
                let share = rate / pool.install(|| peak(*threads)) * 100.0;
                println!("{:8}{m:5}{threads:9}{:9.2}{rate:9.1}{share:7.0}%", format.name(), seconds * 1e3);
            }
        }
    }
}

fn main() {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let only_prompts = names.iter().position(|name| name == "--prompts").map(|at| names.remove(at)).is_some();
    if let Some(at) = names.iter().position(|name| name == "--level") {
        let level: Level = names.drain(at..at + 2).nth(1).unwrap_or_default().parse().expect("a level");
        level.set_current();
    }
    let mut formats: Vec<Format> = names.iter().map(|name| name.parse().expect("a format")).collect();
    if formats.is_empty() {
        formats = Format::ALL.to_vec();
    }
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let pools = [1, 2].map(|threads| (threads, pool(threads)));
    let level = Level::current();
    println!("level {}", level.name());
    prompts(&formats, &pools, level);
    if only_prompts {
        return;
    }
    for (rows, cols) in SHAPES {
        let mut limits = Vec::new();
        println!("\n[m, {cols}] x [{cols}, {rows}]");
        for (threads, pool) in &pools {
            let (bandwidth, float) = pool.install(|| (read_bandwidth(), float_product(rows, cols)));
            limits.push((bandwidth, float));
            let float_rate = (4 * rows * cols) as f64 / float / 1e9;
            println!(
                "{threads} threads read {:.1} GB/s; f32 {:.2} ms, {float_rate:.1} GB/s",
                bandwidth / 1e9,
                float * 1e3
            );
        }
        println!(
            "{:8}{:>3}{:>9}{:>9}{:>8}{:>8}{:>10}{:>9}{:>11}",
            "format", "m", "threads", "ms", "GB/s", "share", "x scalar", "x float", "cached ms"
        );
        let weights = draws(rows * cols);
        for &format in &formats {
            let encoded = encode(format, &Slice::new(&weights, rows, cols)).expect("finite weights");
            let bytes = encoded.codes().len() + encoded.scales().len();
            let matrices = copies(encoded, STREAMED.div_ceil(bytes));
            // Few rows, to fit the second-level cache.
            let part =
                encode(format, &Slice::new(&weights[..rows / 64 * cols], rows / 64, cols)).expect("finite weights");
            for m in INPUTS {
                for ((threads, pool), &(bandwidth, float)) in pools.iter().zip(&limits) {
                    let seconds = pool.install(|| product(&matrices, level, PASSES, m));
                    let scalar = pool.install(|| product(&matrices[..1], Level::Scalar, 2, m));
                    let rate = bytes as f64 / seconds;
                    print!(
                        "{:8}{m:3}{threads:9}{:9.3}{:8.2}{:7.0}%{:10.1}{:9.2}",
                        format.name(),
                        seconds * 1e3,
                        rate / 1e9,
                        rate / bandwidth * 100.0,
                        scalar / seconds,
                        float / seconds,
                    );
                    if m == 1 && *threads == 1 {
                        let cached = pool.install(|| product(std::slice::from_ref(&part), level, 2000, 1));
                        print!("{:11.3}", cached * 64e3);
                    }
                    println!();
                }
            }
        }
    }
}
