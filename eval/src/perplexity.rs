use crate::{
    ClusterMean, Corpus, Estimate, EvalError, LanguageModel, PART, Windows,
    corpus::Window,
    logits::{log_sum_exp, top},
};
use rayon::prelude::*;
use serde::Serialize;

/// What is known of a text's perplexity under a model. `nll` is the negative natural logarithm of the probability that
/// the model gives to what follows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens that were predicted.
    pub predicted_tokens: usize,
    /// Bytes of text that they stand for; `None` where only ids are known.
    pub predicted_bytes: Option<usize>,
    /// Sum over all predicted tokens.
    pub nll_nats: f64,
    /// Mean over all predicted tokens.
    pub nll_nats_per_token: Estimate,
    /// `exp(nll_nats_per_token)`.
    pub perplexity_per_token: Estimate,
    /// Over the bytes that the predicted tokens stand for: comparable between tokenizers.
    pub nll_nats_per_byte: Option<Estimate>,
    /// The same to the base 2.
    pub bits_per_byte: Option<Estimate>,
    /// `exp(nll_nats_per_byte)`.
    pub perplexity_per_byte: Option<Estimate>,
    /// Share of predicted tokens that the model thought the most likely.
    pub top1_accuracy: Estimate,
}

/// A text that was run: its perplexity and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoredText {
    /// Over the whole text.
    #[serde(flatten)]
    pub perplexity: Perplexity,
    /// The windows in the text's order.
    pub per_window: Vec<WindowScore>,
}

/// What is known of one window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WindowScore {
    /// Tokens predicted.
    pub tokens: usize,
    /// Bytes that they stand for.
    pub bytes: Option<usize>,
    /// Sum over them.
    pub nll_nats: f64,
    /// How many of them the model thought the most likely.
    pub top1: usize,
}

/// Perplexity of a text: each window alone, without a token that begins a text.
///
/// `on_window` is told of each window when it is done.
pub fn perplexity(
    model: &dyn LanguageModel,
    corpus: &Corpus,
    windows: &Windows,
    mut on_window: impl FnMut(&WindowScore),
) -> Result<ScoredText, EvalError> {
    model.check_context(windows.context.min(corpus.ids.len()))?;
    model.check_ids(&corpus.ids)?;
    let mut scores = Vec::new();
    for window in windows.of(corpus.ids.len())? {
        let mut score =
            WindowScore { tokens: 0, bytes: corpus.bytes(window.predicted.clone()), nll_nats: 0.0, top1: 0 };
        for_each_part([model], corpus, &window, |first, [logits]| {
            let rows: Vec<(f64, bool)> = logits
                .par_chunks_exact(model.vocabulary())
                .zip(&corpus.ids[first..])
                .map(|(row, &id)| (log_sum_exp(row) - f64::from(row[id as usize]), top(row, 1) == [id]))
                .collect();
            for (i, (nll, top1)) in rows.into_iter().enumerate() {
                if !nll.is_finite() {
                    return Err(EvalError::NotFinite { which: "model", position: first + i });
                }
                score.tokens += 1;
                score.nll_nats += nll;
                score.top1 += usize::from(top1);
            }
            Ok(())
        })?;
        on_window(&score);
        scores.push(score);
    }
    Ok(ScoredText { perplexity: Perplexity::of(&scores), per_window: scores })
}

impl Perplexity {
    pub(crate) fn of(per_window: &[WindowScore]) -> Self {
        let over = |items: &dyn Fn(&WindowScore) -> usize, value: &dyn Fn(&WindowScore) -> f64| {
            per_window.iter().map(|window| (value(window), items(window) as f64)).collect::<ClusterMean>().mean()
        };
        let nll_nats_per_token = over(&|w| w.tokens, &|w| w.nll_nats);
        let predicted_bytes: Option<usize> = per_window.iter().map(|window| window.bytes).sum();
        let nll_nats_per_byte = predicted_bytes.map(|_| over(&|w| w.bytes.unwrap_or(0), &|w| w.nll_nats));
        Self {
            predicted_tokens: per_window.iter().map(|window| window.tokens).sum(),
            predicted_bytes,
            nll_nats: per_window.iter().map(|window| window.nll_nats).sum(),
            nll_nats_per_token,
            perplexity_per_token: nll_nats_per_token.exp(),
            nll_nats_per_byte,
            bits_per_byte: nll_nats_per_byte.map(|nll| nll.times(std::f64::consts::LOG2_E)),
            perplexity_per_byte: nll_nats_per_byte.map(Estimate::exp),
            top1_accuracy: over(&|w| w.tokens, &|w| w.top1 as f64),
        }
    }
}

/// Runs a window on some models side by side, a part at a time, and hands on the logits that predict its tokens:
/// `[tokens, vocabulary]` of each model, and the place in the text of the token that the first row predicts.
pub(crate) fn for_each_part<const N: usize>(
    models: [&dyn LanguageModel; N],
    corpus: &Corpus,
    window: &Window,
    mut part: impl FnMut(usize, [&[f32]; N]) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let mut sequences = models.map(|model| model.start(window.tokens.len()));
    // What the last token is followed by is not asked for. Tokens that are only context need no logits.
    let asked = window.predicted.start - 1..window.tokens.end - 1;
    let context = &corpus.ids[window.tokens.start..asked.start];
    if !context.is_empty() {
        sequences.iter_mut().for_each(|sequence| sequence.skip(context));
    }
    for start in asked.clone().step_by(PART) {
        let ids = &corpus.ids[start..(start + PART).min(asked.end)];
        let logits = sequences.each_mut().map(|sequence| sequence.logits(ids));
        part(start + 1, logits.each_ref().map(Vec::as_slice))?;
    }
    Ok(())
}
