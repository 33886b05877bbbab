//! The projective (Moebius) law: `|w|/s = (1-u)/(1+ku)` in a coordinate `u` of equal cells, normalised so that code 0 is 1.
//!
//! `k = 0` is linear, a large `k` is `1/x`, and the laws between fit a group scaled by its own maximum best (`k` of 0.4 to 1).

/// Values of `k` that encoders search.
pub const K_GRID: [f64; 12] = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0];

/// Magnitude codes of the formats with one byte a weight.
pub(crate) const HALF: usize = 128;

/// `|w|/s` for the magnitude codes `0..128`, largest first, each rounded to bf16 so that byte-plane decoding, bf16 dot
/// products and GPU matrix units use the very same numbers.
pub fn projective_table(k: f64) -> [f32; HALF] {
    let first = law(1.0 / (2 * HALF) as f64, k);
    std::array::from_fn(|m| {
        let centre = (2 * m + 1) as f64 / (2 * HALF) as f64;
        round_to_bf16((law(centre, k) / first) as f32)
    })
}

fn law(u: f64, k: f64) -> f64 {
    (1.0 - u) / (1.0 + k * u)
}

/// Nearest bf16, ties to even.
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

/// Finds the nearest magnitude code: a closed-form guess, mended by the true midpoints.
pub(crate) struct Nearest {
    /// Midpoint between codes `m` and `m + 1`, descending; the last is below every magnitude.
    midpoints: [f32; HALF],
    table: [f32; HALF],
    k: f32,
    first: f32,
}

impl Nearest {
    pub(crate) fn new(k: f64) -> Self {
        let table = projective_table(k);
        let midpoints = std::array::from_fn(|m| match table.get(m + 1) {
            Some(next) => (table[m] + next) / 2.0,
            None => f32::NEG_INFINITY,
        });
        Self { midpoints, table, k: k as f32, first: law(1.0 / (2 * HALF) as f64, k) as f32 }
    }

    /// The code nearest to the magnitude `x = |w|/s` (at least 0) and its table entry.
    #[inline]
    pub(crate) fn code(&self, x: f32) -> (u8, f32) {
        let scaled = x * self.first;
        let u = (1.0 - scaled) / (1.0 + self.k * scaled);
        let mut m = ((u * HALF as f32) as usize).min(HALF - 1);
        while self.midpoints[m] > x {
            m += 1;
        }
        while m > 0 && self.midpoints[m - 1] <= x {
            m -= 1;
        }
        (m as u8, self.table[m])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tables_fall_strictly_from_one() {
        for k in K_GRID {
            let t = projective_table(k);
            assert_eq!(t[0], 1.0);
            assert!(t.windows(2).all(|w| w[0] > w[1]) && t[127] > 0.0, "k = {k}");
        }
    }

    proptest! {
        #[test]
        fn nearest_is_nearest(k in prop::sample::select(K_GRID.to_vec()), x in 0.0f32..1.3) {
            let (m, value) = Nearest::new(k).code(x);
            let t = projective_table(k);
            prop_assert_eq!(value, t[m as usize]);
            let best = t.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
            prop_assert!((value - x).abs() <= best * 1.000_01);
        }
    }
}
