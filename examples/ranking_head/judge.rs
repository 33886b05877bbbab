//! How far logits are from those of the model in float, at the same positions of the same text.

use crate::{TOP, WINDOW, first, logits};

/// What the model in float makes of the text.
pub struct Judge {
    cols: usize,
    vocabulary: usize,
    logits: Vec<f32>,
    ranking: Vec<Vec<usize>>,
}

/// Means over each window, and the largest error of any logit.
pub struct Scores {
    /// Share of positions whose first id is the same.
    equal: Vec<f64>,
    /// Share of those whose first [`TOP`] ids are, in the same order.
    order: Vec<f64>,
    /// Overlap of the first [`TOP`] ids.
    overlap: Vec<f64>,
    /// Kendall's tau of the true first [`TOP`].
    tau: Vec<f64>,
    /// KL divergence.
    divergence: Vec<f64>,
    largest: f32,
}

impl Judge {
    pub fn new(states: &[f32], head: &[f32], cols: usize) -> Self {
        let (logits, vocabulary) = (logits(states, head, cols), head.len() / cols);
        let ranking = logits.chunks(vocabulary).map(|logits| first(logits, TOP)).collect();
        Self { cols, vocabulary, logits, ranking }
    }

    pub fn scores(&self, states: &[f32], head: &[f32]) -> Scores {
        let mut windows: [Vec<f64>; 5] = Default::default();
        let mut largest = 0f32;
        let truth = self.logits.chunks(WINDOW * self.vocabulary).zip(self.ranking.chunks(WINDOW));
        for (states, (truth, ranking)) in states.chunks(WINDOW * self.cols).zip(truth) {
            let found = logits(states, head, self.cols);
            let mut sums = [0.0; 5];
            let positions = found.chunks(self.vocabulary).zip(truth.chunks(self.vocabulary)).zip(ranking);
            for ((found, truth), best) in positions {
                let now = first(found, TOP);
                let agree = |(a, b): (usize, usize)| if found[best[a]] > found[best[b]] { 1.0 } else { -1.0 };
                let pairs = (0..TOP).flat_map(|b| (0..b).map(move |a| (a, b)));
                let of_position = [
                    f64::from(u8::from(now[0] == best[0])),
                    f64::from(u8::from(now == *best)),
                    now.iter().filter(|id| best.contains(id)).count() as f64 / TOP as f64,
                    pairs.map(agree).sum::<f64>() / (TOP * (TOP - 1) / 2) as f64,
                    divergence(truth, found),
                ];
                sums.iter_mut().zip(of_position).for_each(|(sum, score)| *sum += score);
                let errors = truth.iter().zip(found).map(|(truth, found)| (truth - found).abs());
                largest = errors.fold(largest, f32::max);
            }
            windows.iter_mut().zip(sums).for_each(|(all, sum)| all.push(sum / ranking.len() as f64));
        }
        let [equal, order, overlap, tau, divergence] = windows;
        Scores { equal, order, overlap, tau, divergence, largest }
    }
}

/// KL divergence, written so that a small one is not lost in rounding: with `p` in proportion to `exp(truth)` and `d` the
/// errors, the logarithm of the mean of `exp(d)` less the mean of `d`.
fn divergence(truth: &[f32], found: &[f32]) -> f64 {
    let largest = truth.iter().fold(f32::MIN, |a, &b| a.max(b));
    let (mut total, mut mean, mut moved) = (0.0, 0.0, 0.0);
    for (truth, found) in truth.iter().zip(found) {
        let (p, d) = (f64::from((truth - largest).exp()), f64::from(found - truth));
        total += p;
        mean += p * d;
        moved += p * d.exp_m1();
    }
    (moved / total).ln_1p() - mean / total
}

/// Mean and its standard error over windows.
fn mean(windows: &[f64]) -> (f64, f64) {
    let n = windows.len() as f64;
    let mean = windows.iter().sum::<f64>() / n;
    let variance = windows.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

fn percent(windows: &[f64]) -> String {
    let (mean, error) = mean(windows);
    format!("{:.2} ± {:.2}", 100.0 * mean, 100.0 * error)
}

/// The heading of a table of [`Scores::line`]s.
pub const HEADING: &str = "\
| head | bits | first equal, % | first ten in order, % | less plain `q12`'s | less the line above | overlap, % | tau | KL | largest error |
|---|---|---|---|---|---|---|---|---|---|";

impl Scores {
    /// A line of a table; differences are taken window by window.
    pub fn line(&self, mark: &Self, above: Option<&Self>) -> String {
        let less = |other: &Self| percent(&self.order.iter().zip(&other.order).map(|(a, b)| a - b).collect::<Vec<_>>());
        let (tau, tau_error) = mean(&self.tau);
        format!(
            "{} | {} | {} | {} | {} | {tau:.4} ± {tau_error:.4} | {:.1e} ± {:.0e} | {:.1e} |",
            percent(&self.equal),
            percent(&self.order),
            less(mark),
            above.map(less).unwrap_or_default(),
            percent(&self.overlap),
            mean(&self.divergence).0,
            mean(&self.divergence).1,
            self.largest,
        )
    }
}
