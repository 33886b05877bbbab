//! Means, quantiles and rank correlation, each with how uncertain it is.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use rayon::prelude::*;
use serde::Serialize;

/// A measured value and its standard error; `None` where there is one sample only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// What was measured.
    pub value: f64,
    /// The standard deviation that the value would have over other samples of the same size.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// Of a function of this value, by its slope there.
    pub fn map(self, function: impl Fn(f64) -> f64, slope: impl Fn(f64) -> f64) -> Self {
        let standard_error = self.standard_error.map(|error| error * slope(self.value).abs());
        Self { value: function(self.value), standard_error }
    }

    /// The exponential.
    pub fn exp(self) -> Self {
        self.map(f64::exp, f64::exp)
    }

    /// The root; of zero, and of what rounding put below it, zero.
    pub fn sqrt(self) -> Self {
        self.map(|v| v.max(0.0).sqrt(), |v| if v > 0.0 { 0.5 / v.sqrt() } else { 0.0 })
    }

    /// A multiple.
    pub fn times(self, factor: f64) -> Self {
        self.map(|v| v * factor, |_| factor)
    }
}

/// A mean over items that come in clusters, as tokens come in windows of a text.
///
/// Items of one cluster resemble each other, so the standard error is computed over clusters, which are taken as
/// independent: that of a ratio of two sums, the items' values and their number.
#[derive(Debug, Clone, Default)]
pub struct ClusterMean {
    clusters: Vec<(f64, f64)>,
}

impl ClusterMean {
    /// Adds a cluster by the sum of its values and their number.
    pub fn push(&mut self, sum: f64, items: f64) {
        if items > 0.0 {
            self.clusters.push((sum, items));
        }
    }

    /// The sum of all values.
    pub fn sum(&self) -> f64 {
        self.clusters.iter().map(|(sum, _)| sum).sum()
    }

    /// The mean; NaN of nothing.
    pub fn mean(&self) -> Estimate {
        let items: f64 = self.clusters.iter().map(|(_, items)| items).sum();
        let value = self.sum() / items;
        let n = self.clusters.len() as f64;
        let squares: f64 = self.clusters.iter().map(|(sum, items)| (sum - value * items).powi(2)).sum();
        let standard_error = (n > 1.0).then(|| (squares * n / (n - 1.0)).sqrt() / items);
        Estimate { value, standard_error }
    }
}

impl FromIterator<(f64, f64)> for ClusterMean {
    fn from_iter<I: IntoIterator<Item = (f64, f64)>>(clusters: I) -> Self {
        let mut mean = Self::default();
        clusters.into_iter().for_each(|(sum, items)| mean.push(sum, items));
        mean
    }
}

/// The mean of single values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Estimate {
    values.into_iter().map(|value| (value, 1.0)).collect::<ClusterMean>().mean()
}

/// The value in the middle, the mean of both where there are two; `None` of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (n, middle) = (values.len(), values.len() / 2);
    match n {
        0 => None,
        n if n.is_multiple_of(2) => Some((values[middle - 1] + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

/// Resamplings that a quantile's standard error is computed from.
const RESAMPLINGS: u64 = 200;

/// Quantiles over all values of all clusters: the smallest value that a share of at least `q` does not exceed.
///
/// Standard errors are those of the bootstrap over clusters, from fixed seeds.
pub fn quantiles<const N: usize>(clusters: &[Vec<f32>], q: [f64; N]) -> [Estimate; N] {
    let mut sorted: Vec<(f32, u32)> =
        clusters.iter().enumerate().flat_map(|(c, values)| values.iter().map(move |&v| (v, c as u32))).collect();
    sorted.par_sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    // `times[c]`: how often cluster `c` was drawn.
    let of = |times: &[u32]| -> [f64; N] {
        let total: u64 = clusters.iter().zip(times).map(|(values, &t)| values.len() as u64 * u64::from(t)).sum();
        let wanted = q.map(|q| ((q * total as f64).ceil() as u64).clamp(1, total.max(1)));
        let mut found = [f64::NAN; N];
        let mut passed = 0;
        for &(value, cluster) in &sorted {
            let before = passed;
            passed += u64::from(times[cluster as usize]);
            for (found, wanted) in found.iter_mut().zip(wanted) {
                if before < wanted && wanted <= passed {
                    *found = value.into();
                }
            }
        }
        found
    };
    let n = clusters.len();
    let values = of(&vec![1; n]);
    let resampled: Vec<[f64; N]> = (0..RESAMPLINGS)
        .into_par_iter()
        .map(|seed| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut times = vec![0; n];
            (0..n).for_each(|_| times[(random.next_u64() % n as u64) as usize] += 1);
            of(&times)
        })
        .collect();
    std::array::from_fn(|i| {
        let samples = || resampled.iter().map(|sample| sample[i]);
        let mean = samples().sum::<f64>() / RESAMPLINGS as f64;
        let variance = samples().map(|v| (v - mean).powi(2)).sum::<f64>() / (RESAMPLINGS - 1) as f64;
        Estimate { value: values[i], standard_error: (n > 1).then(|| variance.sqrt()) }
    })
}

/// Ranks from 1, the smallest value first; equal values share the mean of their ranks.
pub fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let shared = first as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&i| ranks[i] = shared);
        first += equal.len();
    }
    ranks
}

/// Spearman's rank correlation; `None` where one side has no order at all.
pub fn rank_correlation(a: &[f32], b: &[f32]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() + 1) as f64 / 2.0;
    let covariance = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum() };
    let spread = (covariance(&a, &a) * covariance(&b, &b)).sqrt();
    (spread > 0.0).then(|| covariance(&a, &b) / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64) -> impl FnMut() -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        move || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    #[test]
    fn single_values_have_the_textbook_error() {
        let Estimate { value, standard_error } = mean([1.0, 2.0, 3.0, 6.0]);
        assert_eq!(value, 3.0);
        // Deviations 4, 1, 0, 9: variance 14 / 3.
        assert!((standard_error.unwrap() - (14.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean([5.0]), Estimate { value: 5.0, standard_error: None });
        assert!(mean([]).value.is_nan());
    }

    #[test]
    fn the_error_covers_what_other_samples_give() {
        // Clusters with a level of their own: counting items as independent would give a quarter of the true error.
        let mut draw = random(1);
        let samples: Vec<Estimate> = (0..400)
            .map(|_| {
                let cluster = |_| {
                    let level = draw();
                    (0..30).map(|_| level + 0.1 * draw()).sum::<f64>()
                };
                (0..40).map(cluster).map(|sum| (sum, 30.0)).collect::<ClusterMean>().mean()
            })
            .collect();
        let spread = mean(samples.iter().map(|s| s.value)).standard_error.unwrap() * (samples.len() as f64).sqrt();
        let told = mean(samples.iter().map(|s| s.standard_error.unwrap())).value;
        assert!((told / spread - 1.0).abs() < 0.1, "told {told}, found {spread}");
    }

    #[test]
    fn larger_clusters_weigh_more() {
        let pooled: ClusterMean = [(10.0, 10.0), (0.0, 30.0), (0.0, 0.0)].into_iter().collect();
        assert_eq!((pooled.mean().value, pooled.sum()), (0.25, 10.0));
    }

    #[test]
    fn functions_carry_the_error_by_their_slope() {
        let ln = Estimate { value: 2.0, standard_error: Some(0.01) };
        let exp = ln.exp();
        assert!(
            (exp.value - 2f64.exp()).abs() < 1e-12 && (exp.standard_error.unwrap() - 0.01 * exp.value).abs() < 1e-12
        );
        let root = Estimate { value: 9.0, standard_error: Some(0.6) }.sqrt();
        assert!(root.value == 3.0 && (root.standard_error.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(
            Estimate { value: 0.0, standard_error: Some(0.0) }.sqrt(),
            Estimate { value: 0.0, standard_error: Some(0.0) }
        );
        assert_eq!(Estimate { value: 3.0, standard_error: Some(1.0) }.times(-2.0).standard_error, Some(2.0));
    }

    #[test]
    fn quantiles_are_values_of_the_sample() {
        let clusters: Vec<Vec<f32>> = (0..10).map(|c| (0..100).map(|i| (i * 10 + c) as f32).collect()).collect();
        let [low, middle, high, top] = quantiles(&clusters, [0.0, 0.5, 0.999, 1.0]).map(|estimate| estimate.value);
        assert_eq!([low, middle, high, top], [0.0, 499.0, 998.0, 999.0]);
        let one = quantiles(&clusters[..1], [0.5]);
        assert_eq!(one[0], Estimate { value: 490.0, standard_error: None });
    }

    #[test]
    fn the_error_of_a_median_is_that_of_theory() {
        // 400 uniform numbers, each its own cluster: 1 / (2 sqrt(n)).
        let mut draw = random(2);
        let clusters: Vec<Vec<f32>> = (0..400).map(|_| vec![draw() as f32]).collect();
        let error = quantiles(&clusters, [0.5])[0].standard_error.unwrap();
        assert!((0.7..1.4).contains(&(error / 0.025)), "{error}");
    }

    #[test]
    fn medians_of_even_numbers_lie_between() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn equal_values_share_their_ranks() {
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 0.0]), [3.5, 2.0, 3.5, 1.0]);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 21.0]), Some(1.0));
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        // By hand: ranks 1 2 3 4 and 2 1 4 3, 1 - 6 * 4 / 60.
        let some = rank_correlation(&[1.0, 2.0, 3.0, 4.0], &[2.0, 1.0, 9.0, 3.0]).unwrap();
        assert!((some - 0.6).abs() < 1e-12);
        assert_eq!(rank_correlation(&[1.0, 2.0], &[7.0, 7.0]), None);
    }
}
