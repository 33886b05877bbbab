use crate::{DenseKv, KvCache, KvStore, Phi3, Sampler, Sampling, model::PART};
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
    /// Tokens of a long prompt that are run at a time [default: 256].
    pub prompt_chunk: Option<usize>,
    /// Tokens that the text will reach, so that it starts as a text of that length would: with longrope, nothing is then
    /// run again when it passes the original length.
    pub expected_tokens: usize,
    /// What to do when the context is full: forget and go on, but for so many tokens at the start. Otherwise the text
    /// ends there.
    pub shift: Option<usize>,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop id came.
    Eos,
    /// As many tokens as asked for, or as the model's context holds.
    Length,
    /// The logits of the next token are no finite numbers: weights or the arithmetic are at fault.
    NotFinite,
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
/// [`Generate::stop_reason`] says why they ended.
pub fn generate<'m, B: Backend>(
    model: &'m Phi3<B>,
    prompt: &[u32],
    options: Generation,
) -> Result<Generate<'m, B>, PromptError> {
    resume(model, Prefix::new(model), prompt, options)
}

/// As [`generate`], without running again what the prompt has in common with an earlier text.
pub fn resume<'m, B: Backend, S: KvStore<B>>(
    model: &'m Phi3<B>,
    prefix: Prefix<B, S>,
    prompt: &[u32],
    options: Generation,
) -> Result<Generate<'m, B, S>, PromptError> {
    check_prompt(model, prompt)?;
    let Prefix { mut cache, ids } = prefix;
    let common = ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    // The last token is run in any case: what follows it is asked for.
    let reused = common.min(cache.tokens()).min(prompt.len() - 1);
    let reused = if cache.goes_on_from(reused, model.config().sliding_window) { reused } else { 0 };
    cache.truncate(reused);
    cache.expect(prompt.len().max(options.expected_tokens));
    cache.reserve(prompt.len() + options.max_new_tokens.min(RESERVED));
    let sampler = Sampler::new(options.sampling.clone());
    let text = prompt.to_vec();
    Ok(Generate { model, cache, text, prompt: prompt.len(), produced: 0, reused, sampler, options, stopped: None })
}

/// Tokens to generate that memory is set aside for at once: most texts end sooner than they may.
const RESERVED: usize = 1024;

/// A text that has been run, with its keys and values: what a longer text begins with need not be run again.
#[derive(Debug, Clone)]
pub struct Prefix<B: Backend, S = DenseKv<B>> {
    cache: KvCache<B, S>,
    ids: Vec<u32>,
}

impl<B: Backend> Prefix<B> {
    /// Nothing has been run.
    pub fn new(model: &Phi3<B>) -> Self {
        Self { cache: model.cache(), ids: Vec::new() }
    }
}

impl<B: Backend, S: KvStore<B>> Prefix<B, S> {
    /// Nothing has been run; layers are stored as `store` makes them.
    pub fn with(model: &Phi3<B>, store: impl FnMut() -> S) -> Self {
        Self { cache: model.cache_with(store), ids: Vec::new() }
    }

    /// A cache and the text that was run on it.
    ///
    /// # Panics
    /// If the cache holds more tokens than the text has.
    pub fn from_parts(cache: KvCache<B, S>, ids: Vec<u32>) -> Self {
        assert!(cache.tokens() <= ids.len(), "a cache of {} tokens for a text of {}", cache.tokens(), ids.len());
        Self { cache, ids }
    }

    /// What has been stored of the text.
    pub fn cache(&self) -> &KvCache<B, S> {
        &self.cache
    }

    /// The text. Its last tokens may not be in the cache.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// Fails unless the model can run these tokens in one sequence.
pub fn check_prompt<B: Backend>(model: &Phi3<B>, ids: &[u32]) -> Result<(), PromptError> {
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
pub struct Generate<'m, B: Backend, S = DenseKv<B>> {
    model: &'m Phi3<B>,
    cache: KvCache<B, S>,
    /// The prompt and the tokens given out, but for what was forgotten; the cache holds those already run.
    text: Vec<u32>,
    /// Tokens of the prompt, or of what was left after forgetting.
    prompt: usize,
    produced: usize,
    /// Tokens that were not run, because an earlier text had begun with them.
    reused: usize,
    sampler: Sampler,
    options: Generation,
    stopped: Option<StopReason>,
}

impl<B: Backend, S: KvStore<B>> Generate<'_, B, S> {
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
        let chunk = self.options.prompt_chunk.unwrap_or(PART).max(1);
        let more = self.prompt > done + chunk;
        if more {
            self.model.hidden(input(&self.text[done..done + chunk], self.model), &mut self.cache);
        }
        more
    }

    /// What has been run, for [`resume`].
    pub fn into_prefix(self) -> Prefix<B, S> {
        Prefix { cache: self.cache, ids: self.text }
    }

    /// Forgets the older half of the text after its first `kept` tokens. The rest is run again, at its new positions: what
    /// follows is what follows that text anywhere.
    fn forget(&mut self, kept: usize) {
        let limit = self.model.config().max_position_embeddings;
        let kept = kept.min(limit / 2);
        self.text.drain(kept..self.text.len() - (limit - kept) / 2);
        let goes_on = self.cache.goes_on_from(kept, self.model.config().sliding_window);
        self.cache.truncate(if goes_on { kept } else { 0 });
        self.cache.expect(self.text.len().max(self.options.expected_tokens));
        self.prompt = self.text.len();
    }

    /// Logits of the token that follows, `[vocabulary]`.
    pub(crate) fn next_logits(&mut self) -> Vec<f32> {
        while self.run_prompt_part() {}
        let next = &self.text[self.cache.tokens()..];
        let hidden = self.model.hidden(input(next, self.model), &mut self.cache);
        let tokens = hidden.dims()[1];
        let last = hidden.slice_dim(1, tokens - 1..tokens);
        self.model.logits(last).into_data().convert::<f32>().into_vec().expect("just converted to f32")
    }
}

impl<B: Backend, S: KvStore<B>> Iterator for Generate<'_, B, S> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if !self.goes_on() {
            return None;
        }
        let logits = self.next_logits();
        self.choose(&logits)
    }
}

impl<B: Backend, S: KvStore<B>> Generate<'_, B, S> {
    /// Whether another token may follow. Makes room for it where the text is told to forget.
    pub(crate) fn goes_on(&mut self) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        let is_full = self.text.len() > self.model.config().max_position_embeddings;
        if self.produced == self.options.max_new_tokens || is_full && self.options.shift.is_none() {
            self.stopped = Some(StopReason::Length);
            return false;
        }
        if let Some(kept) = self.options.shift
            && is_full
        {
            self.forget(kept);
        }
        true
    }

    /// The only token that is left to run, and where; `None` if there are more, those of a prompt.
    pub(crate) fn last_token(&mut self) -> Option<(u32, &mut KvCache<B, S>)> {
        match self.text[self.cache.tokens()..] {
            [last] => Some((last, &mut self.cache)),
            _ => None,
        }
    }

    /// Takes the logits of the token that follows, `[vocabulary]`, and adds it to the text, unless it ends it.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let considered = self.options.vocabulary.unwrap_or(logits.len()).min(logits.len());
        let Ok(id) = self.sampler.choose(&logits[..considered], &self.text) else {
            self.stopped = Some(StopReason::NotFinite);
            return None;
        };
        if self.options.stop_ids.contains(&id) {
            self.stopped = Some(StopReason::Eos);
            return None;
        }
        self.text.push(id);
        self.produced += 1;
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
        self.sequence_logits_with(ids, self.cache::<DenseKv<B>>(), PART)
    }

    /// The same over an empty cache, `chunk` tokens at a time.
    pub fn sequence_logits_with<S: KvStore<B>>(
        &self,
        ids: &[u32],
        mut cache: KvCache<B, S>,
        chunk: usize,
    ) -> Result<Tensor<B, 2>, PromptError> {
        check_prompt(self, ids)?;
        cache.expect(ids.len());
        let parts = ids.chunks(chunk.max(1)).map(|part| self.forward(input(part, self), &mut cache)).collect();
        Ok(Tensor::cat(parts, 1).squeeze_dim(0))
    }
}
