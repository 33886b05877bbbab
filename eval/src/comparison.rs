use crate::{
    ClusterMean, Corpus, Estimate, EvalError, LanguageModel, Perplexity, WindowScore, Windows,
    logits::{common, divergence, top},
    perplexity::for_each_part,
    statistics::{quantiles, rank_correlation},
};
use rayon::prelude::*;
use serde::Serialize;

/// How far a model is from a reference that reads the same text, position by position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The divergence KL(reference || model).
    pub kl_nats: Divergence,
    /// What the model gives the text's true token more than the reference, as a probability: mean.
    pub probability_change_mean: Estimate,
    /// The same: root of the mean square.
    pub probability_change_rms: Estimate,
    /// Share of positions where both think the same token the most likely.
    pub same_top1: Estimate,
    /// Share of the reference's 5 most likely tokens that are among the model's 5.
    pub top5_overlap: Estimate,
    /// Of 10.
    pub top10_overlap: Estimate,
    /// Of 50.
    pub top50_overlap: Estimate,
    /// Spearman's correlation over the reference's 50 most likely tokens.
    pub top50_rank_correlation: Estimate,
    /// The largest difference of a logit at any position.
    pub logit_error_largest: f64,
    /// Root of the mean square over all logits.
    pub logit_error_rms: Estimate,
    /// `exp` of the difference of the mean negative log-likelihoods; its error is that of the paired difference.
    pub perplexity_ratio: Estimate,
    /// The model's.
    pub model_perplexity: Perplexity,
    /// The reference's.
    pub reference_perplexity: Perplexity,
    /// The windows in the text's order.
    pub per_window: Vec<WindowComparison>,
    /// Positions by their divergence.
    pub kl_histogram: Histogram,
}

/// Statistics of the divergence over all positions, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean.
    pub mean: Estimate,
    /// Half of the positions have less.
    pub median: Estimate,
    /// 99 % of the positions have less.
    pub quantile_99: Estimate,
    /// 99.9 % of the positions have less.
    pub quantile_99_9: Estimate,
    /// The largest of all.
    pub largest: f64,
}

/// What is known of one window: sums over its predicted tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WindowComparison {
    /// Tokens predicted.
    pub tokens: usize,
    /// Of the divergence.
    pub kl_nats: f64,
    /// Positions where both think the same token the most likely.
    pub same_top1: usize,
    /// Of the model's negative log-likelihood.
    pub model_nll_nats: f64,
    /// Of the reference's.
    pub reference_nll_nats: f64,
    /// The largest difference of a logit.
    pub logit_error_largest: f64,
}

/// Counts of positive values on a logarithmic axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    /// Logarithm to the base 10 of the first bin's lower end.
    pub log10_start: f64,
    /// Width of a bin on that axis.
    pub log10_step: f64,
    /// Values of each bin; the first and the last also hold what lies beyond.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// From 1e-10 to 100, five bins a decade.
    fn of(values: impl Iterator<Item = f32>) -> Self {
        let (start, step, bins) = (-10.0, 0.2, 60);
        let mut counts = vec![0; bins];
        for value in values {
            let bin = ((f64::from(value).log10() - start) / step).floor();
            counts[bin.clamp(0.0, (bins - 1) as f64) as usize] += 1;
        }
        Self { log10_start: start, log10_step: step, counts }
    }
}

/// One position. Sums of these make every mean.
struct Position {
    kl: f64,
    model_nll: f64,
    reference_nll: f64,
    /// One of each model: whether the true token is the most likely.
    correct: [bool; 2],
    same_top1: bool,
    /// Shares of 5, 10 and 50.
    overlap: [f64; 3],
    rank_correlation: Option<f64>,
    largest_error: f64,
    mean_square_error: f64,
}

/// Tokens whose overlap is counted.
const TOPS: [usize; 3] = [5, 10, 50];

impl Position {
    fn new(model: &[f32], reference: &[f32], id: u32) -> Self {
        let (kl, reference_log, model_log) = divergence(reference, model);
        let [model_top, reference_top] = [model, reference].map(|logits| top(logits, TOPS[2]));
        let overlap = TOPS.map(|k| {
            let k = k.min(model.len());
            common(&model_top[..k], &reference_top[..k]) as f64 / k as f64
        });
        let of = |logits: &[f32]| -> Vec<f32> { reference_top.iter().map(|&id| logits[id as usize]).collect() };
        let errors = || model.iter().zip(reference).map(|(&m, &r)| (f64::from(m) - f64::from(r)).abs());
        Self {
            kl,
            model_nll: model_log - f64::from(model[id as usize]),
            reference_nll: reference_log - f64::from(reference[id as usize]),
            correct: [model_top[0] == id, reference_top[0] == id],
            same_top1: model_top[0] == reference_top[0],
            overlap,
            rank_correlation: rank_correlation(&of(model), &of(reference)),
            largest_error: errors().fold(0.0, f64::max),
            mean_square_error: errors().map(|error| error * error).sum::<f64>() / model.len() as f64,
        }
    }
}

/// The means that [`Comparison`] tells, window by window.
#[derive(Default)]
struct Means {
    kl: ClusterMean,
    change: ClusterMean,
    squared_change: ClusterMean,
    same_top1: ClusterMean,
    overlap: [ClusterMean; 3],
    rank_correlation: ClusterMean,
    squared_error: ClusterMean,
    log_ratio: ClusterMean,
}

impl Means {
    fn push(&mut self, positions: &[Position]) {
        let n = positions.len() as f64;
        let sum = |value: &dyn Fn(&Position) -> f64| positions.iter().map(value).sum::<f64>();
        let change = |p: &Position| (-p.model_nll).exp() - (-p.reference_nll).exp();
        self.kl.push(sum(&|p| p.kl), n);
        self.change.push(sum(&change), n);
        self.squared_change.push(sum(&|p| change(p).powi(2)), n);
        self.same_top1.push(sum(&|p| f64::from(p.same_top1)), n);
        for (i, overlap) in self.overlap.iter_mut().enumerate() {
            overlap.push(sum(&|p| p.overlap[i]), n);
        }
        let ranked = positions.iter().filter(|p| p.rank_correlation.is_some()).count() as f64;
        self.rank_correlation.push(sum(&|p| p.rank_correlation.unwrap_or(0.0)), ranked);
        self.squared_error.push(sum(&|p| p.mean_square_error), n);
        self.log_ratio.push(sum(&|p| p.model_nll - p.reference_nll), n);
    }
}

/// Runs both models over the same windows of a text, side by side: at no time are more logits held than those of
/// [`PART`](crate::PART) tokens of each.
///
/// `on_window` is told of each window when it is done.
pub fn compare(
    model: &dyn LanguageModel,
    reference: &dyn LanguageModel,
    corpus: &Corpus,
    windows: &Windows,
    mut on_window: impl FnMut(&WindowComparison),
) -> Result<Comparison, EvalError> {
    check_pair(model, reference, corpus, windows)?;
    let vocabulary = model.vocabulary();
    let mut means = Means::default();
    let (mut scores, mut per_window, mut divergences) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
    for window in windows.of(corpus.ids.len())? {
        let mut positions = Vec::with_capacity(window.predicted.len());
        for_each_part([model, reference], corpus, &window, |first, [model, reference]| {
            let rows = model.par_chunks_exact(vocabulary).zip(reference.par_chunks_exact(vocabulary));
            let rows = rows.zip(&corpus.ids[first..]).map(|((m, r), &id)| Position::new(m, r, id));
            positions.par_extend(rows);
            Ok(())
        })?;
        for (i, p) in positions.iter().enumerate() {
            for (which, nll) in [("model", p.model_nll), ("reference", p.reference_nll)] {
                if !nll.is_finite() {
                    return Err(EvalError::NotFinite { which, position: window.predicted.start + i });
                }
            }
        }
        let sum = |value: &dyn Fn(&Position) -> f64| positions.iter().map(value).sum::<f64>();
        let bytes = corpus.bytes(window.predicted.clone());
        let nll_nats = [sum(&|p| p.model_nll), sum(&|p| p.reference_nll)];
        for (i, scores) in scores.iter_mut().enumerate() {
            let top1 = positions.iter().filter(|p| p.correct[i]).count();
            scores.push(WindowScore { tokens: positions.len(), bytes, nll_nats: nll_nats[i], top1 });
        }
        let comparison = WindowComparison {
            tokens: positions.len(),
            kl_nats: sum(&|p| p.kl),
            same_top1: positions.iter().filter(|p| p.same_top1).count(),
            model_nll_nats: nll_nats[0],
            reference_nll_nats: nll_nats[1],
            logit_error_largest: positions.iter().map(|p| p.largest_error).fold(0.0, f64::max),
        };
        means.push(&positions);
        divergences.push(positions.iter().map(|p| p.kl as f32).collect::<Vec<f32>>());
        on_window(&comparison);
        per_window.push(comparison);
    }
    let [median, quantile_99, quantile_99_9, largest] = quantiles(&divergences, [0.5, 0.99, 0.999, 1.0]);
    let kl_nats = Divergence { mean: means.kl.mean(), median, quantile_99, quantile_99_9, largest: largest.value };
    let [top5_overlap, top10_overlap, top50_overlap] = means.overlap.each_ref().map(ClusterMean::mean);
    let [model_perplexity, reference_perplexity] = scores.map(|scores| Perplexity::of(&scores));
    Ok(Comparison {
        kl_nats,
        probability_change_mean: means.change.mean(),
        probability_change_rms: means.squared_change.mean().sqrt(),
        same_top1: means.same_top1.mean(),
        top5_overlap,
        top10_overlap,
        top50_overlap,
        top50_rank_correlation: means.rank_correlation.mean(),
        logit_error_largest: per_window.iter().map(|window| window.logit_error_largest).fold(0.0, f64::max),
        logit_error_rms: means.squared_error.mean().sqrt(),
        perplexity_ratio: means.log_ratio.mean().exp(),
        model_perplexity,
        reference_perplexity,
        per_window,
        kl_histogram: Histogram::of(divergences.into_iter().flatten()),
    })
}

/// Fails unless both models can run the windows of this text and speak of the same tokens.
pub(crate) fn check_pair(
    model: &dyn LanguageModel,
    reference: &dyn LanguageModel,
    corpus: &Corpus,
    windows: &Windows,
) -> Result<(), EvalError> {
    check_vocabularies(model, reference)?;
    let longest = windows.context.min(corpus.ids.len());
    [model, reference].into_iter().try_for_each(|model| model.check_context(longest))?;
    model.check_ids(&corpus.ids)
}

pub(crate) fn check_vocabularies(model: &dyn LanguageModel, reference: &dyn LanguageModel) -> Result<(), EvalError> {
    let (model, reference) = (model.vocabulary(), reference.vocabulary());
    if model == reference { Ok(()) } else { Err(EvalError::Vocabularies { model, reference }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_tell_what_two_rows_of_logits_differ_in() {
        let reference: Vec<f32> = (0..60).map(|i| -(i as f32) / 10.0).collect();
        let mut model = reference.clone();
        model.swap(0, 1);
        model[59] += 0.25;
        let same = Position::new(&reference, &reference, 3);
        assert_eq!((same.kl, same.largest_error, same.overlap), (0.0, 0.0, [1.0; 3]));
        assert_eq!((same.rank_correlation, same.same_top1, same.model_nll), (Some(1.0), true, same.reference_nll));
        let other = Position::new(&model, &reference, 0);
        assert!(!other.same_top1 && other.correct == [false, true] && other.overlap == [1.0; 3]);
        assert!(other.kl > 0.0 && (other.largest_error - 0.25).abs() < 1e-6);
        // Two of 50 ranks are exchanged: 1 - 6 * 2 / (50 * 2499).
        assert!((other.rank_correlation.unwrap() - (1.0 - 12.0 / 124_950.0)).abs() < 1e-9);
        assert!((other.model_nll - other.reference_nll - 0.1).abs() < 1e-2);
    }

    #[test]
    fn every_value_falls_in_a_bin() {
        let histogram = Histogram::of([0.0, 1e-12, 1.5e-10, 0.5, 1e9].into_iter());
        assert_eq!(histogram.counts.iter().sum::<u64>(), 5);
        assert_eq!((histogram.counts[0], histogram.counts[48], histogram.counts[59]), (3, 1, 1));
    }
}
