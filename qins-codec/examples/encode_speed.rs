//! Weights a second of every format, encoding and decoding, at every instruction set this processor has:
//!
//! ```sh
//! cargo run --release -p qins-codec --example encode_speed -- [WEIGHTS [THREADS [FORMAT...]]]
//! ```
//!
//! Best of three, on Gaussian draws in rows of 3072; beside them what the format loses of these and of draws of
//! Student's t with 5 degrees of freedom. Bytes, and so losses, are the same at every level.

use qins_codec::{Deviation, Encoded, Format, Level, Slice, encode};
use std::time::Instant;

const COLS: usize = 3072;

/// Draws from a fixed generator.
struct Draws(u64);

impl Draws {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Box and Muller.
    fn gaussian(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    fn student_5(&mut self) -> f64 {
        let z = self.gaussian();
        let chi_square: f64 = (0..5).map(|_| self.gaussian().powi(2)).sum();
        z / (chi_square / 5.0).sqrt()
    }
}

fn best_of_three<T>(mut work: impl FnMut() -> T) -> (T, f64) {
    let mut timed = || {
        let start = Instant::now();
        let result = work();
        (result, start.elapsed().as_secs_f64())
    };
    let (result, first) = timed();
    (result, (0..2).fold(first, |best, _| best.min(timed().1)))
}

fn sqnr(encoded: &Encoded, weights: &Slice<'_>) -> String {
    Deviation::of(&encoded.matrix(), weights).sqnr_db.map_or("exact".into(), |db| format!("{db:.3}"))
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(default, |a| a.parse().expect("a number"));
    let rows = number(4 << 20).div_ceil(COLS);
    let threads = number(std::thread::available_parallelism().map_or(1, usize::from));
    let mut formats: Vec<Format> = arguments.map(|name| name.parse().expect("a format")).collect();
    if formats.is_empty() {
        formats = Format::ALL.to_vec();
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("no pool yet");

    let mut draws = Draws(1);
    let gaussian: Vec<f32> = (0..rows * COLS).map(|_| (draws.gaussian() * 0.02) as f32).collect();
    let student: Vec<f32> = (0..256 * COLS).map(|_| (draws.student_5() * 0.02) as f32).collect();
    let (gaussian, student) = (Slice::new(&gaussian, rows, COLS), Slice::new(&student, 256, COLS));
    let million_a_second = |seconds: f64| (rows * COLS) as f64 / seconds / 1e6;
    println!("{rows} x {COLS} weights, {threads} threads; millions of weights a second");
    println!("{:8}{:8}{:>10}{:>10}{:>14}{:>14}", "format", "level", "encode", "decode", "Gaussian dB", "Student-t dB");
    for format in formats {
        for level in Level::all_supported() {
            level.set_current();
            let (encoded, encoding) = best_of_three(|| encode(format, &gaussian).expect("finite weights"));
            let mut row = vec![0.0; COLS];
            let (_, decoding) = best_of_three(|| (0..rows).for_each(|i| encoded.matrix().decode_row(i, &mut row)));
            println!(
                "{:8}{:8}{:10.1}{:10.1}{:>14}{:>14}",
                format.name(),
                level.name(),
                million_a_second(encoding),
                million_a_second(decoding),
                sqnr(&encoded, &gaussian),
                sqnr(&encode(format, &student).expect("finite weights"), &student),
            );
        }
    }
}
