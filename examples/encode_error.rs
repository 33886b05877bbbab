//! What every format loses, beside 8-bit linear rounding in groups of 32 with a 16-bit scale: signal to noise and bits a weight.
//!
//!     cargo run --release --example encode_error

use qins_codec::{Format, Slice, encode};

/// Numbers from a fixed generator.
struct Random(u64);

impl Random {
    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Student's t with 5 degrees of freedom: heavier tails than most trained layers have.
    fn student(&mut self) -> f64 {
        let square: f64 = (0..5).map(|_| self.normal().powi(2)).sum();
        self.normal() / (square / 5.0).sqrt()
    }
}

/// Eight-bit integers and a scale of `max / 127` for each group of 32; 8.5 bits a weight.
fn linear(weights: &[f32]) -> Vec<f32> {
    let group = |group: &[f32]| {
        let scale = group.iter().fold(0f32, |a, w| a.max(w.abs())) / 127.0;
        group.iter().map(|w| (w / scale).round() * scale).collect::<Vec<_>>()
    };
    weights.chunks(32).flat_map(group).collect()
}

fn sqnr_db(weights: &[f32], decoded: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let noise: f64 = weights.iter().zip(decoded).map(|(w, d)| square(w - d)).sum();
    10.0 * (weights.iter().map(|&w| square(w)).sum::<f64>() / noise).log10()
}

fn main() -> Result<(), qins_codec::EncodeError> {
    const ROWS: usize = 256;
    const COLS: usize = 3072;
    println!("{:<14} {:>10} {:>16} {:>16}", "", "bits", "Gaussian", "Student-t 5");
    let mut random = Random(1);
    let gaussian: Vec<f32> = (0..ROWS * COLS).map(|_| (random.normal() * 0.02) as f32).collect();
    let student: Vec<f32> = (0..ROWS * COLS).map(|_| (random.student() * 0.02) as f32).collect();
    let draws = [&gaussian, &student];
    let [a, b] = draws.map(|w| sqnr_db(w, &linear(w)));
    println!("{:<14} {:>10.2} {a:>13.2} dB {b:>13.2} dB", "linear 8-bit", 8.5);
    for &format in Format::ALL {
        let encoded =
            [encode(format, &Slice::new(draws[0], ROWS, COLS))?, encode(format, &Slice::new(draws[1], ROWS, COLS))?];
        let bits = encoded[0].header().bits_per_weight();
        let [a, b] = [0, 1].map(|i| sqnr_db(draws[i], &encoded[i].matrix().decode()));
        println!("{:<14} {bits:>10.2} {a:>13.2} dB {b:>13.2} dB", format.name());
    }
    Ok(())
}
