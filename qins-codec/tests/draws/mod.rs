//! Synthetic weights from a fixed generator.

use std::f64::consts::TAU;

pub struct Draws {
    state: u64,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Uniform in `(0, 1]`, by SplitMix64.
    pub fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }

    /// Student's t of 5 degrees of freedom.
    pub fn student(&mut self) -> f64 {
        let squares: f64 = (0..5).map(|_| self.normal().powi(2)).sum();
        self.normal() / (squares / 5.0).sqrt()
    }
}

/// `n` Gaussian weights of standard deviation 0.02.
pub fn gaussian(n: usize) -> Vec<f32> {
    let mut draws = Draws::new(1);
    (0..n).map(|_| (0.02 * draws.normal()) as f32).collect()
}

/// `n` weights of Student's t of 5 degrees of freedom, times 0.02.
pub fn student(n: usize) -> Vec<f32> {
    let mut draws = Draws::new(2);
    (0..n).map(|_| (0.02 * draws.student()) as f32).collect()
}
