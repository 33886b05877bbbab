use crate::{
    ClusterMean, Estimate, EvalError, LanguageModel, PART, Sequence,
    comparison::check_vocabularies,
    logits::top,
    statistics::{mean, median},
};
use phi35_model::PromptError;
use serde::Serialize;

/// Generated tokens of a window, over which matches are counted.
pub const WINDOW: usize = 100;

/// A first difference where the reference's best logit leads its second by less: it thought the best at most a tenth
/// more likely.
pub const NEAR_TIE_LOGITS: f64 = 0.1;

/// How two models write on from the same prompts, always taking the most likely token.
///
/// Free-running, each reads what it wrote itself: after the first difference they read different texts, and a match
/// there says little. Teacher-forced, both read what the reference wrote.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Greedy {
    /// Tokens generated after each prompt.
    pub tokens: usize,
    /// Free-running: tokens before the first difference, mean over prompts.
    pub identical_prefix_tokens_mean: Estimate,
    /// Median.
    pub identical_prefix_tokens_median: f64,
    /// The shortest.
    pub identical_prefix_tokens_min: usize,
    /// Share of prompts after which both wrote the same to the end.
    pub identical_texts: Estimate,
    /// Free-running: share of places where both wrote the same token.
    pub free_running_match: Estimate,
    /// The same in windows of [`WINDOW`] tokens, first to last.
    pub free_running_match_per_window: Vec<Estimate>,
    /// Share of places where both think the same token the most likely after what the reference wrote.
    pub teacher_forced_match: Estimate,
    /// The same in windows of [`WINDOW`] tokens, first to last.
    pub teacher_forced_match_per_window: Vec<Estimate>,
    /// The lead of the reference's best logit over its second, at the first differences: median.
    pub first_difference_margin_logits_median: Option<f64>,
    /// The same lead over all that the reference wrote: median of the prompts' medians.
    pub margin_logits_median: f64,
    /// Share of first differences where that lead is less than [`NEAR_TIE_LOGITS`].
    pub first_difference_near_ties: Option<Estimate>,
    /// The prompts in their order.
    pub per_prompt: Vec<PromptResult>,
}

/// What followed one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptResult {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens before the first difference.
    pub identical_prefix_tokens: usize,
    /// `None` if there is none.
    pub first_difference: Option<FirstDifference>,
    /// The lead of the reference's best logit over its second: median.
    pub margin_logits_median: f64,
    /// Same tokens in each window of [`WINDOW`].
    pub free_running_matches: Vec<usize>,
    /// The same after what the reference wrote.
    pub teacher_forced_matches: Vec<usize>,
}

/// Where two texts part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FirstDifference {
    /// The reference's choice.
    pub reference_id: u32,
    /// The model's.
    pub model_id: u32,
    /// The lead of the reference's best logit over its second.
    pub margin_logits: f64,
    /// The reference's lead of its choice over the model's.
    pub reference_lead_logits: f64,
    /// The model's lead of its choice over the reference's.
    pub model_lead_logits: f64,
}

/// Lets both models write `tokens` tokens after each prompt, whatever ends a text.
///
/// Where a text fills the context of either, both go on from its last half. `on_prompt` is told of each prompt when it
/// is done.
pub fn greedy(
    model: &dyn LanguageModel,
    reference: &dyn LanguageModel,
    prompts: &[Vec<u32>],
    tokens: usize,
    mut on_prompt: impl FnMut(&PromptResult),
) -> Result<Greedy, EvalError> {
    check_vocabularies(model, reference)?;
    let context = model.context().min(reference.context());
    for prompt in prompts {
        model.check_ids(prompt)?;
        match prompt.len() {
            0 => return Err(PromptError::Empty.into()),
            found if found > context => return Err(PromptError::TooLong { found, limit: context }.into()),
            _ => {}
        }
    }
    if prompts.is_empty() || tokens == 0 {
        return Err(EvalError::Nothing(if tokens == 0 { "token to generate" } else { "prompt" }));
    }
    let mut per_prompt = Vec::new();
    for prompt in prompts {
        let result = follow(model, reference, prompt, tokens, context)?;
        on_prompt(&result);
        per_prompt.push(result);
    }
    Ok(Greedy::of(tokens, per_prompt))
}

impl Greedy {
    fn of(tokens: usize, per_prompt: Vec<PromptResult>) -> Self {
        let prefixes = || per_prompt.iter().map(|prompt| prompt.identical_prefix_tokens);
        let windows = tokens.div_ceil(WINDOW);
        let length = |window: usize| WINDOW.min(tokens - window * WINDOW) as f64;
        let per_window = |matches: fn(&PromptResult) -> &[usize]| -> Vec<Estimate> {
            let of = |window| {
                let shares = per_prompt.iter().map(|prompt| (matches(prompt)[window] as f64, length(window)));
                shares.collect::<ClusterMean>().mean()
            };
            (0..windows).map(of).collect()
        };
        let overall = |matches: fn(&PromptResult) -> &[usize]| {
            mean(per_prompt.iter().map(|prompt| matches(prompt).iter().sum::<usize>() as f64 / tokens as f64))
        };
        let margins: Vec<f64> =
            per_prompt.iter().filter_map(|prompt| Some(prompt.first_difference?.margin_logits)).collect();
        let near_ties = (!margins.is_empty()).then(|| mean(margins.iter().map(|&m| f64::from(m < NEAR_TIE_LOGITS))));
        let medians = per_prompt.iter().map(|prompt| prompt.margin_logits_median).collect();
        Self {
            tokens,
            identical_prefix_tokens_mean: mean(prefixes().map(|n| n as f64)),
            identical_prefix_tokens_median: median(prefixes().map(|n| n as f64).collect()).unwrap_or_default(),
            identical_prefix_tokens_min: prefixes().min().unwrap_or_default(),
            identical_texts: mean(prefixes().map(|n| f64::from(n == tokens))),
            free_running_match: overall(|prompt| &prompt.free_running_matches),
            free_running_match_per_window: per_window(|prompt| &prompt.free_running_matches),
            teacher_forced_match: overall(|prompt| &prompt.teacher_forced_matches),
            teacher_forced_match_per_window: per_window(|prompt| &prompt.teacher_forced_matches),
            first_difference_margin_logits_median: median(margins),
            margin_logits_median: median(medians).unwrap_or_default(),
            first_difference_near_ties: near_ties,
            per_prompt,
        }
    }
}

/// A text that a model writes on and on.
struct Writer<'m> {
    model: &'m dyn LanguageModel,
    context: usize,
    text: Vec<u32>,
    sequence: Box<dyn Sequence + 'm>,
    /// Where in the text the sequence starts.
    start: usize,
}

impl<'m> Writer<'m> {
    fn new(model: &'m dyn LanguageModel, prompt: &[u32], context: usize) -> Self {
        Self { model, context, text: prompt.to_vec(), sequence: model.start(0), start: 0 }
    }

    /// Logits of the token that follows the text.
    fn logits(&mut self) -> Vec<f32> {
        if let Some(start) = restart(self.start, self.text.len(), self.context) {
            self.start = start;
            self.sequence = self.model.start(0);
        }
        let run = self.start + self.sequence.tokens();
        self.sequence.next_logits(&self.text[run..])
    }
}

/// Where a text of `length` tokens goes on from, if those since `start` fill more than the context.
fn restart(start: usize, length: usize, context: usize) -> Option<usize> {
    (length - start > context).then(|| length - context.div_ceil(2))
}

fn follow(
    model: &dyn LanguageModel,
    reference: &dyn LanguageModel,
    prompt: &[u32],
    tokens: usize,
    context: usize,
) -> Result<PromptResult, EvalError> {
    let mut writers = [model, reference].map(|model| Writer::new(model, prompt, context));
    let mut first_difference = None;
    let (mut same, mut margins) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
    for _ in 0..tokens {
        let [model_logits, reference_logits] = writers.each_mut().map(Writer::logits);
        let [model_id, reference_id] = [&model_logits, &reference_logits].map(|logits| top(logits, 1)[0]);
        for (which, logits, id) in [("model", &model_logits, model_id), ("reference", &reference_logits, reference_id)]
        {
            if !logits[id as usize].is_finite() {
                return Err(EvalError::NotFinite { which, position: writers[0].text.len() });
            }
        }
        let lead = |logits: &[f32], a: u32, b: u32| f64::from(logits[a as usize]) - f64::from(logits[b as usize]);
        let margin_logits = match top(&reference_logits, 2)[..] {
            [best, second] => lead(&reference_logits, best, second),
            _ => f64::INFINITY,
        };
        margins.push(margin_logits);
        same.push(model_id == reference_id);
        if model_id != reference_id && first_difference.is_none() {
            first_difference = Some(FirstDifference {
                reference_id,
                model_id,
                margin_logits,
                reference_lead_logits: lead(&reference_logits, reference_id, model_id),
                model_lead_logits: lead(&model_logits, model_id, reference_id),
            });
        }
        for (writer, id) in writers.iter_mut().zip([model_id, reference_id]) {
            writer.text.push(id);
        }
    }
    let [_, Writer { text, .. }] = writers;
    let [by_model, by_reference] = [model, reference].map(|model| choices(model, &text, prompt.len(), context));
    let forced: Vec<bool> = by_model.iter().zip(&by_reference).map(|(m, r)| m == r).collect();
    let count = |same: &[bool]| same.chunks(WINDOW).map(|w| w.iter().filter(|&&s| s).count()).collect();
    Ok(PromptResult {
        prompt_tokens: prompt.len(),
        identical_prefix_tokens: same.iter().take_while(|&&same| same).count(),
        first_difference,
        margin_logits_median: median(margins).unwrap_or_default(),
        free_running_matches: count(&same),
        teacher_forced_matches: count(&forced),
    })
}

/// The token that a model thinks the most likely after each beginning of a text, from `prompt` tokens to one less than
/// all. Reads as a [`Writer`] of this text would.
fn choices(model: &dyn LanguageModel, text: &[u32], prompt: usize, context: usize) -> Vec<u32> {
    let mut choices = Vec::with_capacity(text.len() - prompt);
    let (mut start, mut length) = (0, prompt);
    while length < text.len() {
        start = restart(start, length, context).unwrap_or(start);
        // As long as the context lasts.
        let end = text.len().min(start + context + 1);
        let mut sequence = model.start(0);
        if length - start > 1 {
            sequence.skip(&text[start..length - 1]);
        }
        for part in text[length - 1..end - 1].chunks(PART) {
            choices.extend(sequence.logits(part).chunks_exact(model.vocabulary()).map(|row| top(row, 1)[0]));
        }
        length = end;
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the sum of all tokens it has seen since its sequence began, plus `add` where a text has `at` tokens.
    struct Sum {
        context: usize,
        at: usize,
        add: u32,
    }

    struct Seen<'m>(&'m Sum, Vec<u32>);

    const IDS: usize = 11;

    impl LanguageModel for Sum {
        fn context(&self) -> usize {
            self.context
        }
        fn vocabulary(&self) -> usize {
            IDS
        }
        fn start(&self, _: usize) -> Box<dyn Sequence + '_> {
            Box::new(Seen(self, Vec::new()))
        }
    }

    impl Sequence for Seen<'_> {
        fn tokens(&self) -> usize {
            self.1.len()
        }
        fn logits(&mut self, ids: &[u32]) -> Vec<f32> {
            ids.iter().flat_map(|id| self.next_logits(&[*id])).collect()
        }
        fn skip(&mut self, ids: &[u32]) {
            self.1.extend(ids);
        }
        fn next_logits(&mut self, ids: &[u32]) -> Vec<f32> {
            self.1.extend(ids);
            assert!(self.1.len() <= self.0.context);
            let add = if self.1.len() == self.0.at { self.0.add } else { 0 };
            let best = (self.1.iter().sum::<u32>() + add + 1) % IDS as u32;
            (0..IDS as u32).map(|id| if id == best { 2.0 } else { id as f32 / 10.0 }).collect()
        }
        fn truncate(&mut self, tokens: usize) {
            self.1.truncate(tokens);
        }
    }

    #[test]
    fn what_is_read_at_once_is_what_was_written_step_by_step() {
        let model = Sum { context: 16, at: 0, add: 0 };
        let mut writer = Writer::new(&model, &[3, 1], 16);
        for _ in 0..70 {
            let id = top(&writer.logits(), 1)[0];
            writer.text.push(id);
        }
        assert_eq!(choices(&model, &writer.text, 2, 16), writer.text[2..]);
    }

    #[test]
    fn a_model_writes_what_it_wrote_before() {
        let model = Sum { context: 16, at: 0, add: 0 };
        let found = greedy(&model, &model, &[vec![1], vec![2, 3]], 250, |_| ()).unwrap();
        assert_eq!((found.identical_prefix_tokens_min, found.identical_texts.value), (250, 1.0));
        assert_eq!(found.free_running_match_per_window.len(), 3);
        assert!(found.teacher_forced_match_per_window.iter().all(|share| share.value == 1.0));
        assert_eq!((found.first_difference_margin_logits_median, found.first_difference_near_ties), (None, None));
    }

    #[test]
    fn one_difference_spoils_what_runs_free_and_not_what_is_forced() {
        let (reference, model) = (Sum { context: 300, at: 0, add: 0 }, Sum { context: 400, at: 21, add: 1 });
        let found = greedy(&model, &reference, &[vec![1]], 200, |_| ()).unwrap();
        assert_eq!(found.identical_prefix_tokens_min, 20);
        assert!((found.teacher_forced_match.value - 199.0 / 200.0).abs() < 1e-9);
        assert!(found.free_running_match.value < 0.5);
        let difference = found.per_prompt[0].first_difference.unwrap();
        assert_eq!(difference.model_id, (difference.reference_id + 1) % IDS as u32);
        assert!(difference.margin_logits > 0.9 && difference.reference_lead_logits >= difference.margin_logits);
        assert_eq!(found.first_difference_near_ties.unwrap().value, 0.0);
    }

    #[test]
    fn prompts_that_cannot_be_run_are_refused() {
        let model = Sum { context: 4, at: 0, add: 0 };
        let fails =
            |prompts: &[Vec<u32>], tokens| greedy(&model, &model, prompts, tokens, |_| ()).unwrap_err().to_string();
        assert!(fails(&[vec![1; 5]], 1).contains("5 tokens"));
        assert!(fails(&[vec![]], 1).contains("no tokens"));
        assert!(fails(&[vec![11]], 1).contains("token id 11"));
        assert!(fails(&[], 1).contains("at least one prompt"));
        assert!(fails(&[vec![1]], 0).contains("at least one token"));
    }
}
