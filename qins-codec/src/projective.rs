//! The projective (Moebius) law: `|w|/s = (1-u)/(1+ku)` in a coordinate `u` of equal cells, normalised so that code 0 is 1.
//!
//! `k = 0` is linear, a large `k` is `1/x`, and the laws between fit a group scaled by its own maximum best (`k` of 0.4 to 1).

use crate::format::Law;

/// Octaves that encoders of the logarithmic law search.
pub const OCTAVES: [f64; 4] = [5.0, 6.0, 7.0, 8.0];

/// Values of `k` that encoders search.
pub const K_GRID: [f64; 12] = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0];

/// `|w|/s` for the magnitude codes `0..half`, largest first. Those of 7 bits are rounded to bf16, so that byte-plane
/// decoding, bf16 dot products and GPU matrix units use the very same numbers.
pub fn projective_table(k: f64, half: usize) -> Vec<f32> {
    let cells = (2 * half) as f64;
    let first = law(1.0 / cells, k);
    let entry = |m: usize| (law((2 * m + 1) as f64 / cells, k) / first) as f32;
    (0..half).map(|m| if half == 128 { round_to_bf16(entry(m)) } else { entry(m) }).collect()
}

/// The logarithmic law of the original codec: `2^(-octaves m / 127)` for `m` in `0..128`, largest first, in bf16.
pub fn logarithmic_table(octaves: f64) -> Vec<f32> {
    (0..128).map(|m| round_to_bf16(2f64.powf(-octaves * f64::from(m) / 127.0) as f32)).collect()
}

/// The law at coordinate `u`: 1 at 0, 0 at 1.
pub(crate) fn law(u: f64, k: f64) -> f64 {
    (1.0 - u) / (1.0 + k * u)
}

/// Equal steps down to 0, `(127 - m) / 128` for `m` in `0..128`: bf16 holds every one.
pub fn linear_table() -> Vec<f32> {
    (0..128u8).map(|m| f32::from(127 - m) / 128.0).collect()
}

/// Nearest bf16, ties to even.
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

/// Finds the nearest magnitude code: a closed-form guess, mended by the true midpoints. Plain and slow, for any table; the
/// searches of `cells.rs` are tested against it.
pub(crate) struct Nearest {
    /// Midpoint between codes `m` and `m + 1`, descending; the last is below every magnitude.
    midpoints: Vec<f32>,
    table: Vec<f32>,
    guess: Guess,
}

enum Guess {
    Projective { k: f32, first: f32 },
    Logarithmic { codes_an_octave: f32 },
}

impl Nearest {
    /// `constant` is `k`, or the octaves.
    pub(crate) fn new(law: Law, half: usize, constant: f64) -> Self {
        let (table, guess) = match law {
            Law::Logarithmic => {
                let codes_an_octave = if constant > 0.0 { (127.0 / constant) as f32 } else { 0.0 };
                (logarithmic_table(constant), Guess::Logarithmic { codes_an_octave })
            }
            Law::Linear => (linear_table(), Guess::Projective { k: 0.0, first: 1.0 }),
            _ => {
                let first = self::law(1.0 / (2 * half) as f64, constant) as f32;
                (projective_table(constant, half), Guess::Projective { k: constant as f32, first })
            }
        };
        let mut midpoints: Vec<f32> = table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        midpoints.push(f32::NEG_INFINITY);
        Self { midpoints, table, guess }
    }

    /// The code nearest to the magnitude `x = |w|/s` (at least 0) and its table entry.
    #[inline]
    pub(crate) fn code(&self, x: f32) -> (u16, f32) {
        let guess = match self.guess {
            Guess::Projective { k, first } => {
                let scaled = x * first;
                (1.0 - scaled) / (1.0 + k * scaled) * self.table.len() as f32
            }
            Guess::Logarithmic { codes_an_octave } => -x.log2() * codes_an_octave,
        };
        let mut m = (guess as usize).min(self.table.len() - 1);
        while self.midpoints[m] > x {
            m += 1;
        }
        while m > 0 && self.midpoints[m - 1] <= x {
            m -= 1;
        }
        (m as u16, self.table[m])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tables_fall_strictly_from_one() {
        for k in K_GRID {
            for half in [128, 2048] {
                let t = projective_table(k, half);
                assert_eq!((t.len(), t[0]), (half, 1.0));
                assert!(t.windows(2).all(|w| w[0] > w[1]) && t[half - 1] > 0.0, "k = {k}");
            }
        }
    }

    proptest! {
        #[test]
        fn nearest_is_nearest(k in prop::sample::select(K_GRID.to_vec()), x in 0.0f32..1.3) {
            let tables = [
                (Nearest::new(Law::Projective, 128, k), projective_table(k, 128)),
                (Nearest::new(Law::Projective, 2048, k), projective_table(k, 2048)),
                (Nearest::new(Law::Logarithmic, 128, k * 8.0), logarithmic_table(k * 8.0)),
            ];
            for (nearest, t) in tables {
                let (m, value) = nearest.code(x);
                prop_assert_eq!(value, t[m as usize]);
                let best = t.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
                // Midpoints are rounded to f32.
                prop_assert!((value - x).abs() <= best + f32::EPSILON);
            }
        }
    }
}
