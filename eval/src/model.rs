//! What an evaluation asks of a model, without its type: so two models of different backends meet in one function.

use crate::EvalError;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use phi35_model::{DenseKv, KvCache, KvStore, Phi3, PromptError};

/// Tokens whose logits are held at a time, so that memory does not grow with the window.
pub const PART: usize = 256;

/// A model that continues sequences of token ids.
pub trait LanguageModel {
    /// Tokens of the longest sequence.
    fn context(&self) -> usize;

    /// Token ids, and logits of a position.
    fn vocabulary(&self) -> usize;

    /// Starts a sequence that is known to reach `expected` tokens; 0 where it is not known.
    fn start(&self, expected: usize) -> Box<dyn Sequence + '_>;

    /// Fails unless all ids are the model's.
    fn check_ids(&self, ids: &[u32]) -> Result<(), EvalError> {
        let vocabulary = self.vocabulary();
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&found) => Err(PromptError::UnknownId { found, vocabulary }.into()),
            None => Ok(()),
        }
    }

    /// Fails unless sequences of so many tokens fit.
    fn check_context(&self, found: usize) -> Result<(), EvalError> {
        let limit = self.context();
        if found > limit { Err(EvalError::Context { found, limit }) } else { Ok(()) }
    }
}

/// A sequence as it is run.
pub trait Sequence {
    /// Tokens run so far.
    fn tokens(&self) -> usize;

    /// Runs more tokens, at least one: their logits, `[tokens, vocabulary]` row-major. The last row tells the next token.
    fn logits(&mut self, ids: &[u32]) -> Vec<f32>;

    /// Runs more tokens, at least one, whose logits are not asked for.
    fn skip(&mut self, ids: &[u32]);

    /// Runs more tokens, at least one: the logits of the token that follows them, `[vocabulary]`.
    fn next_logits(&mut self, ids: &[u32]) -> Vec<f32>;

    /// Forgets all but the first `tokens` tokens.
    fn truncate(&mut self, tokens: usize);
}

/// Over a key-value cache of the backend's floats.
impl<B: Backend> LanguageModel for Phi3<B> {
    fn context(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn vocabulary(&self) -> usize {
        self.config().vocab_size
    }

    fn start(&self, expected: usize) -> Box<dyn Sequence + '_> {
        start(self, DenseKv::default, expected)
    }
}

/// A model whose key-value cache is made of other stores.
#[derive(Debug, Clone, Copy)]
pub struct WithStore<'m, B: Backend, F> {
    /// The model.
    pub model: &'m Phi3<B>,
    /// Makes an empty store of one layer.
    pub store: F,
}

impl<B: Backend, S: KvStore<B> + 'static, F: Fn() -> S> LanguageModel for WithStore<'_, B, F> {
    fn context(&self) -> usize {
        self.model.context()
    }

    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn start(&self, expected: usize) -> Box<dyn Sequence + '_> {
        start(self.model, &self.store, expected)
    }
}

fn start<'m, B: Backend, S: KvStore<B> + 'static>(
    model: &'m Phi3<B>,
    store: impl FnMut() -> S,
    expected: usize,
) -> Box<dyn Sequence + 'm> {
    let mut cache = model.cache_with(store);
    cache.expect(expected);
    cache.reserve(expected);
    Box::new(Cached { model, cache })
}

/// A sequence over its key-value cache.
struct Cached<'m, B: Backend, S> {
    model: &'m Phi3<B>,
    cache: KvCache<B, S>,
}

impl<B: Backend, S: KvStore<B>> Cached<'_, B, S> {
    fn hidden(&mut self, ids: &[u32]) -> Tensor<B, 3> {
        let device = self.model.model.norm.gamma.device();
        let shape = [1, ids.len()];
        let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let input: Tensor<B, 2, Int> = Tensor::from_data(TensorData::new(ids, shape), &device);
        self.model.hidden(input, &mut self.cache)
    }

    fn head(&self, hidden: Tensor<B, 3>) -> Vec<f32> {
        self.model.logits(hidden).into_data().convert::<f32>().into_vec().expect("just converted to f32")
    }
}

impl<B: Backend, S: KvStore<B>> Sequence for Cached<'_, B, S> {
    fn tokens(&self) -> usize {
        self.cache.tokens()
    }

    fn logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let hidden = self.hidden(ids);
        self.head(hidden)
    }

    fn skip(&mut self, ids: &[u32]) {
        ids.chunks(PART).for_each(|part| drop(self.hidden(part)));
    }

    fn next_logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let parts = ids.chunks(PART).map(|part| self.hidden(part));
        let hidden = parts.last().expect("at least one token");
        let last = hidden.dims()[1] - 1;
        self.head(hidden.slice_dim(1, last..last + 1))
    }

    fn truncate(&mut self, tokens: usize) {
        self.cache.truncate(tokens);
    }
}
