use crate::{KvCache, Phi3, Sampler, Sampling, model::PART};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// How to generate.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Ids that end the text; they are not given out.
    pub stop_ids: Vec<u32>,
    /// Only ids below this are considered: rows of the head beyond the tokenizer's vocabulary are padding.
    pub vocabulary: Option<usize>,
    /// How each token is chosen.
    pub sampling: Sampling,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop id came.
    Eos,
    /// As many tokens as asked for, or as the model's context holds.
    Length,
}

/// Why a prompt cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Nothing to start from.
    #[error("the prompt has no tokens: expected at least one")]
    Empty,
    /// The context is too short for it.
    #[error("the prompt has {found} tokens: the model's context holds {limit}")]
    TooLong {
        /// Tokens of the prompt.
        found: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// The model has no row for this id.
    #[error("token id {found}: the model's vocabulary has {vocabulary} ids")]
    UnknownId {
        /// The id.
        found: u32,
        /// `vocab_size`.
        vocabulary: usize,
    },
}

/// Checks a prompt and returns the tokens that follow it, one at a time: drop the iterator to cancel.
pub fn generate<'m, B: Backend>(
    model: &'m Phi3<B>,
    prompt: &[u32],
    options: Generation,
) -> Result<Generate<'m, B>, PromptError> {
    resume(model, Prefix::new(model), prompt, options)
}

/// As [`generate`], without running again what the prompt has in common with an earlier text.
pub fn resume<'m, B: Backend>(
    model: &'m Phi3<B>,
    prefix: Prefix<B>,
    prompt: &[u32],
    options: Generation,
) -> Result<Generate<'m, B>, PromptError> {
    check_prompt(model, prompt)?;
    let Prefix { mut cache, ids } = prefix;
    let common = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    // The last token is run in any case: what follows it is asked for.
    let reused = common.min(cache.tokens()).min(prompt.len() - 1);
    cache.truncate(reused);
    cache.expect(prompt.len());
    cache.reserve(prompt.len() + options.max_new_tokens.min(RESERVED));
    let sampler = Sampler::new(options.sampling.clone());
    let text = prompt.to_vec();
    Ok(Generate { model, cache, text, prompt: prompt.len(), reused, sampler, options, stopped: None })
}

/// Tokens to generate that memory is set aside for at once: most texts end sooner than they may.
const RESERVED: usize = 1024;

/// A text that has been run, with its keys and values: what a longer text begins with need not be run again.
#[derive(Debug, Clone)]
pub struct Prefix<B: Backend> {
    cache: KvCache<B>,
    ids: Vec<u32>,
}

impl<B: Backend> Prefix<B> {
    /// Nothing has been run.
    pub fn new(model: &Phi3<B>) -> Self {
        Self { cache: model.cache(), ids: Vec::new() }
    }
}

/// Fails unless the model can run these tokens in one sequence.
pub(crate) fn check_prompt<B: Backend>(model: &Phi3<B>, ids: &[u32]) -> Result<(), PromptError> {
    let (limit, vocabulary) = (model.config().max_position_embeddings, model.config().vocab_size);
    if ids.is_empty() {
        return Err(PromptError::Empty);
    }
    if ids.len() > limit {
        return Err(PromptError::TooLong { found: ids.len(), limit });
    }
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(&found) => Err(PromptError::UnknownId { found, vocabulary }),
        None => Ok(()),
    }
}

/// Tokens as they are generated.
#[derive(Debug)]
pub struct Generate<'m, B: Backend> {
    model: &'m Phi3<B>,
    cache: KvCache<B>,
    /// The prompt and the tokens given out; the cache holds those already run.
    text: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens that were not run, because an earlier text had begun with them.
    reused: usize,
    sampler: Sampler,
    options: Generation,
    stopped: Option<StopReason>,
}

impl<B: Backend> Generate<'_, B> {
    /// Why the iterator ended; `None` before.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stopped
    }

    /// Tokens of the prompt that an earlier text had begun with.
    pub fn reused_tokens(&self) -> usize {
        self.reused
    }

    /// Tokens of the text that have been run.
    pub fn tokens_run(&self) -> usize {
        self.cache.tokens()
    }

    /// Runs a part of a long prompt; false if only its last part is left, which the iterator runs for the first token.
    /// This need not be called; it lets a caller show progress, or cancel.
    pub fn run_prompt_part(&mut self) -> bool {
        let done = self.cache.tokens();
        let more = self.prompt > done + PART;
        if more {
            self.model.hidden(input(&self.text[done..done + PART], self.model), &mut self.cache);
        }
        more
    }

    /// What has been run, for [`resume`].
    pub fn into_prefix(self) -> Prefix<B> {
        Prefix { cache: self.cache, ids: self.text }
    }

    /// Logits of the token that follows, `[vocabulary]`.
    fn next_logits(&mut self) -> Vec<f32> {
        while self.run_prompt_part() {}
        let next = &self.text[self.cache.tokens()..];
        let hidden = self.model.hidden(input(next, self.model), &mut self.cache);
        let tokens = hidden.dims()[1];
        let last = hidden.slice_dim(1, tokens - 1..tokens);
        self.model.logits(last).into_data().convert::<f32>().into_vec().expect("just converted to f32")
    }
}

impl<B: Backend> Iterator for Generate<'_, B> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.stopped.is_some() {
            return None;
        }
        let produced = self.text.len() - self.prompt;
        if produced == self.options.max_new_tokens || self.text.len() > self.model.config().max_position_embeddings {
            self.stopped = Some(StopReason::Length);
            return None;
        }
        let logits = self.next_logits();
        let considered = self.options.vocabulary.unwrap_or(logits.len()).min(logits.len());
        let id = self.sampler.choose(&logits[..considered], &self.text);
        if self.options.stop_ids.contains(&id) {
            self.stopped = Some(StopReason::Eos);
            return None;
        }
        self.text.push(id);
        Some(id)
    }
}

fn input<B: Backend>(ids: &[u32], model: &Phi3<B>) -> Tensor<B, 2, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let n = ids.len();
    Tensor::from_data(TensorData::new(ids, [1, n]), &model.model.norm.gamma.device())
}

impl<B: Backend> Phi3<B> {
    /// Logits at every position of one sequence, `[tokens, vocabulary]`.
    pub fn sequence_logits(&self, ids: &[u32]) -> Result<Tensor<B, 2>, PromptError> {
        check_prompt(self, ids)?;
        let mut cache: KvCache<B> = self.cache();
        cache.expect(ids.len());
        let parts = ids.chunks(PART).map(|part| self.forward(input(part, self), &mut cache)).collect();
        Ok(Tensor::cat(parts, 1).squeeze_dim(0))
    }
}
