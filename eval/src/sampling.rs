use crate::{
    ClusterMean, Corpus, Estimate, EvalError, LanguageModel, Windows,
    comparison::check_pair,
    logits::{divergence, log_sum_exp},
    perplexity::for_each_part,
};
use phi35_model::Sampling;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use rayon::prelude::*;
use serde::Serialize;

/// How far what a model draws tokens from is from what a reference draws from after the same text. Distances are
/// exact; only draws depend on seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SamplingDistance {
    /// Positions of the text at which both were asked.
    pub positions: usize,
    /// Draws at each position.
    pub seeds: usize,
    /// Half the sum of the differences of all probabilities: the share of draws that must differ, however they are
    /// made.
    pub total_variation: Estimate,
    /// The Jensen-Shannon divergence: at most ln 2.
    pub js_nats: Estimate,
    /// KL(reference || model), over positions where the model may draw all that the reference may.
    pub kl_nats: Option<Estimate>,
    /// Share of positions where it may not, and the divergence is infinite.
    pub kl_infinite: Estimate,
    /// The reference's probability of tokens that the model never draws.
    pub never_drawn: Estimate,
    /// KL(reference || model) of all tokens at this temperature, before any is left out.
    pub tempered_kl_nats: Estimate,
    /// Tokens that the reference draws from.
    pub reference_kept_tokens: Estimate,
    /// Tokens that the model draws from.
    pub model_kept_tokens: Estimate,
    /// Share of draws where both, with the same random number, take the same token.
    pub same_draws: Estimate,
    /// The windows in the text's order.
    pub per_window: Vec<SampledWindow>,
}

/// What is known of one window: sums over its positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct SampledWindow {
    /// Positions.
    pub tokens: usize,
    /// Of the total variation.
    pub total_variation: f64,
    /// Of the Jensen-Shannon divergence.
    pub js_nats: f64,
    /// Draws where both took the same token, over all seeds.
    pub same_draws: usize,
}

/// One position.
struct Position {
    total_variation: f64,
    js: f64,
    /// `None` if infinite.
    kl: Option<f64>,
    never_drawn: f64,
    tempered_kl: f64,
    kept: [usize; 2],
    same_draws: usize,
}

impl Position {
    fn new(model: &[f32], reference: &[f32], sampling: &Sampling, drawn: &[f64]) -> Self {
        let tempered = |logits: &[f32]| -> Vec<f32> { logits.iter().map(|l| l / sampling.temperature).collect() };
        let q = sampling.distribution(model, &[]);
        let p = sampling.distribution(reference, &[]);
        let mut by_id = vec![0.0; model.len()];
        q.iter().for_each(|&(id, q)| by_id[id as usize] = q);
        let (mut kl, mut js, mut never_drawn, mut shared, mut met) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &(id, p) in &p {
            let q = by_id[id as usize];
            let middle = (p + q) / 2.0;
            js += p / 2.0 * (p / middle).ln();
            if q > 0.0 {
                kl += p * (p / q).ln();
                js += q / 2.0 * (q / middle).ln();
                met += q;
            } else {
                never_drawn += p;
            }
            shared += p.min(q);
        }
        // What only the model draws: there the middle is half of it.
        js += (1.0 - met).max(0.0) / 2.0 * std::f64::consts::LN_2;
        let same = |&u: &&f64| draw(&p, *u) == draw(&q, *u);
        Self {
            total_variation: (1.0 - shared).clamp(0.0, 1.0),
            js: js.max(0.0),
            kl: (never_drawn == 0.0).then_some(kl.max(0.0)),
            never_drawn,
            tempered_kl: divergence(&tempered(reference), &tempered(model)).0,
            kept: [q.len(), p.len()],
            same_draws: drawn.iter().filter(same).count(),
        }
    }
}

/// The id that a number in [0, 1) draws, as [`Sampler`](phi35_model::Sampler) does.
fn draw(distribution: &[(u32, f64)], u: f64) -> u32 {
    let mut left = u;
    let drawn = distribution.iter().find(|(_, p)| {
        left -= p;
        left < 0.0
    });
    drawn.unwrap_or(&distribution[distribution.len() - 1]).0
}

/// Runs both models over the same windows of a text and compares what they would draw each next token from.
///
/// `sampling` says how; its seed is the first of `seeds` that follow each other, and its repetition penalty counts for
/// nothing. `on_window` is told of each window when it is done.
pub fn sample(
    model: &dyn LanguageModel,
    reference: &dyn LanguageModel,
    corpus: &Corpus,
    windows: &Windows,
    sampling: &Sampling,
    seeds: usize,
    mut on_window: impl FnMut(&SampledWindow),
) -> Result<SamplingDistance, EvalError> {
    check_pair(model, reference, corpus, windows)?;
    if sampling.temperature <= 0.0 {
        return Err(EvalError::Nothing("degree of temperature above 0"));
    }
    if seeds == 0 {
        return Err(EvalError::Nothing("seed"));
    }
    let vocabulary = model.vocabulary();
    let mut random: Vec<ChaCha8Rng> =
        (0..seeds as u64).map(|seed| ChaCha8Rng::seed_from_u64(sampling.seed.wrapping_add(seed))).collect();
    let mut means: [ClusterMean; 9] = Default::default();
    let mut per_window = Vec::new();
    for window in windows.of(corpus.ids.len())? {
        let mut positions: Vec<Position> = Vec::with_capacity(window.predicted.len());
        for_each_part([model, reference], corpus, &window, |first, [model, reference]| {
            let tokens = model.len() / vocabulary;
            // 53 random bits, in [0, 1), for each position of each seed in turn.
            let drawn: Vec<f64> = (0..tokens)
                .flat_map(|_| {
                    random.iter_mut().map(|r| (r.next_u64() >> 11) as f64 / (1u64 << 53) as f64).collect::<Vec<_>>()
                })
                .collect();
            for (which, logits) in [("model", model), ("reference", reference)] {
                let rows = logits.par_chunks_exact(vocabulary);
                if let Some(row) = rows.position_first(|row| !log_sum_exp(row).is_finite()) {
                    return Err(EvalError::NotFinite { which, position: first + row });
                }
            }
            let rows = model.par_chunks_exact(vocabulary).zip(reference.par_chunks_exact(vocabulary));
            let rows = rows.zip(drawn.par_chunks_exact(seeds));
            positions.par_extend(rows.map(|((m, r), drawn)| Position::new(m, r, sampling, drawn)));
            Ok(())
        })?;
        let n = positions.len() as f64;
        let sum = |value: &dyn Fn(&Position) -> f64| positions.iter().map(value).sum::<f64>();
        let finite = positions.iter().filter(|p| p.kl.is_some()).count() as f64;
        let same_draws = positions.iter().map(|p| p.same_draws).sum();
        let sums = [
            (sum(&|p| p.total_variation), n),
            (sum(&|p| p.js), n),
            (sum(&|p| p.kl.unwrap_or(0.0)), finite),
            (n - finite, n),
            (sum(&|p| p.never_drawn), n),
            (sum(&|p| p.tempered_kl), n),
            (sum(&|p| p.kept[1] as f64), n),
            (sum(&|p| p.kept[0] as f64), n),
            (same_draws as f64, n * seeds as f64),
        ];
        let scored =
            SampledWindow { tokens: positions.len(), total_variation: sums[0].0, js_nats: sums[1].0, same_draws };
        means.iter_mut().zip(sums).for_each(|(mean, (sum, items))| mean.push(sum, items));
        on_window(&scored);
        per_window.push(scored);
    }
    let [
        total_variation,
        js_nats,
        kl_nats,
        kl_infinite,
        never_drawn,
        tempered_kl_nats,
        reference_kept,
        model_kept,
        same,
    ] = means.map(|mean| mean.mean());
    Ok(SamplingDistance {
        positions: per_window.iter().map(|window| window.tokens).sum(),
        seeds,
        total_variation,
        js_nats,
        kl_nats: kl_nats.value.is_finite().then_some(kl_nats),
        kl_infinite,
        never_drawn,
        tempered_kl_nats,
        reference_kept_tokens: reference_kept,
        model_kept_tokens: model_kept,
        same_draws: same,
        per_window,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(top_p: f32) -> Sampling {
        Sampling { temperature: 1.0, top_p, ..Sampling::default() }
    }

    fn logits(p: [f64; 4]) -> Vec<f32> {
        p.map(|p| p.ln() as f32).to_vec()
    }

    /// Evenly over [0, 1).
    fn evenly() -> Vec<f64> {
        (0..1000).map(|i| (f64::from(i) + 0.5) / 1000.0).collect()
    }

    #[test]
    fn distances_are_those_of_the_formulas() {
        let (p, q) = ([0.5f64, 0.3, 0.15, 0.05], [0.4f64, 0.3, 0.2, 0.1]);
        let found = Position::new(&logits(q), &logits(p), &sampling(1.0), &evenly());
        let kl = |a: [f64; 4], b: [f64; 4]| -> f64 { a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum() };
        let middle = std::array::from_fn(|i| (p[i] + q[i]) / 2.0);
        assert!((found.total_variation - 0.1).abs() < 1e-6);
        assert!((found.kl.unwrap() - kl(p, q)).abs() < 1e-6 && (found.tempered_kl - kl(p, q)).abs() < 1e-6);
        assert!((found.js - (kl(p, middle) + kl(q, middle)) / 2.0).abs() < 1e-6);
        // Boundaries at 0.5 0.8 0.95 and 0.4 0.7 0.9: they differ on 0.1 + 0.1 + 0.05.
        assert_eq!(found.same_draws, 750);
    }

    #[test]
    fn what_only_one_draws_is_counted() {
        // Kept: the reference's 0 and 1, the model's 0 and 2.
        let found =
            Position::new(&logits([0.5, 0.1, 0.3, 0.1]), &logits([0.5, 0.3, 0.1, 0.1]), &sampling(0.75), &evenly());
        assert_eq!((found.kept, found.kl), ([2, 2], None));
        assert!((found.never_drawn - 0.375).abs() < 1e-6 && (found.total_variation - 0.375).abs() < 1e-6);
        assert!((found.js - 0.375 * std::f64::consts::LN_2).abs() < 1e-6);
        assert_eq!(found.same_draws, 625);
        let same =
            Position::new(&logits([0.5, 0.3, 0.1, 0.1]), &logits([0.5, 0.3, 0.1, 0.1]), &sampling(0.75), &evenly());
        assert_eq!((same.total_variation, same.kl, same.js, same.same_draws), (0.0, Some(0.0), 0.0, 1000));
    }
}
