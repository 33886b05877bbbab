use crate::{
    Config, ConfigError, DecoderLayer, KvCache, KvStore, Mask, QueryMask, Rope,
    batch::Rows,
    block::{linear, norm},
};
use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, Linear, RmsNorm},
    tensor::{Int, Tensor, TensorData, backend::Backend},
};

/// `Phi3ForCausalLM`: the decoder and the head that turns its state into logits.
///
/// Field names are Hugging Face's parameter names, so that a checkpoint loads without a table of names.
#[derive(Module, Debug)]
pub struct Phi3<B: Backend> {
    /// Embedding and layers.
    pub model: Decoder<B>,
    /// `[vocabulary, hidden]`; absent where the embedding serves as head.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    config: Config,
}

/// Tokens of a long sequence that are run at a time, so that the memory for scores, `[heads, tokens, length]`, stays small.
pub(crate) const PART: usize = 256;

/// The embedding, the layers and the last norm.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// `[vocabulary, hidden]`
    pub embed_tokens: Embedding<B>,
    /// Decoder layers.
    pub layers: Vec<DecoderLayer<B>>,
    /// Before the head.
    pub norm: RmsNorm<B>,
}

impl Config {
    /// A model with random weights, which no memory is spent on until they are read: replace them by loading.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Result<Phi3<B>, ConfigError> {
        self.validate()?;
        let head = || linear(self.hidden_size, self.vocab_size, device);
        Ok(Phi3 {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(self.vocab_size, self.hidden_size).init(device),
                layers: (0..self.num_hidden_layers).map(|_| DecoderLayer::new(self, device)).collect(),
                norm: norm(self, device),
            },
            lm_head: (!self.tie_word_embeddings).then(head),
            config: self.clone(),
        })
    }
}

impl<B: Backend> Phi3<B> {
    /// The architecture.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// An empty cache of this model's depth.
    pub fn cache<S: KvStore<B> + Default>(&self) -> KvCache<B, S> {
        KvCache::new(self.config().num_hidden_layers)
    }

    /// A cache whose layers are made by `store`.
    pub fn cache_with<S: KvStore<B>>(&self, store: impl FnMut() -> S) -> KvCache<B, S> {
        KvCache::with(self.config().num_hidden_layers, store)
    }

    /// A cache of stores that already hold the tokens `ids` of one sequence, rotated for `rotated_for` tokens
    /// ([`KvCache::rotated_for`]).
    pub fn cache_from<S: KvStore<B>>(&self, layers: Vec<S>, ids: &[u32], rotated_for: usize) -> KvCache<B, S> {
        let mut layers = layers.into_iter();
        let mut cache = self.cache_with(|| layers.next().expect("a store for each layer"));
        if self.config.rope_scaling.is_some() && !ids.is_empty() {
            let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
            let shape = [1, ids.len()];
            cache.note_ids(Tensor::from_data(TensorData::new(ids, shape), &self.model.norm.gamma.device()));
        }
        cache.rotated_for = rotated_for;
        cache
    }

    /// Runs new tokens `[batch, tokens]` after those in the cache: the state before the head, `[batch, tokens, hidden]`.
    ///
    /// Where a longrope sequence passes its original length, every cached key is stale: those tokens are run again.
    pub fn hidden<S: KvStore<B>>(&self, ids: Tensor<B, 2, Int>, cache: &mut KvCache<B, S>) -> Tensor<B, 3> {
        let length = self.prepare(&ids, cache);
        self.run(ids, length, cache)
    }

    /// Runs one new token of each of several sequences after those in its own cache, `[rows, 1]`: the state before the
    /// head, `[rows, 1, hidden]`. Weights are read once for all; attention is that of each row alone.
    ///
    /// # Panics
    /// If there are not as many caches as rows, or one is of a batch.
    pub fn hidden_rows<S: KvStore<B>>(
        &self,
        ids: Tensor<B, 2, Int>,
        caches: &mut [&mut KvCache<B, S>],
    ) -> Tensor<B, 3> {
        let (rows, device) = (ids.dims()[0], ids.device());
        assert!(rows == caches.len() && caches.iter().all(|cache| cache.left_padding.len() <= 1));
        let mut positions = Vec::with_capacity(rows);
        for (row, cache) in caches.iter_mut().enumerate() {
            let length = self.prepare(&ids.clone().slice_dim(0, row..row + 1), cache);
            positions.extend(cache.positions(1, length));
        }
        let rope = Rope::new(&self.config, &positions, &device);
        let rules: Vec<Mask> = caches.iter().map(|cache| self.mask(cache)).collect();
        let masks: Vec<QueryMask<'_, B>> =
            rules.iter().zip(caches.iter()).map(|(rule, cache)| rule.queries(1, cache.tokens() + 1, &device)).collect();
        // Each row has one of these; a layer needs some mask.
        let no_mask = Mask::default();
        let no_mask = no_mask.queries(1, 1, &device);
        let mut x = self.model.embed_tokens.forward(ids);
        for (i, layer) in self.model.layers.iter().enumerate() {
            let stores = caches.iter_mut().map(|cache| &mut cache.layers[i]).collect();
            x = layer.forward(x, &rope, &no_mask, &mut Rows::new(stores, &masks));
        }
        caches.iter_mut().for_each(|cache| cache.free_unseen(self.config.sliding_window));
        self.model.norm.forward(x)
    }

    /// Makes a cache ready for new tokens, which it notes: the length of the sequence that they are rotated for.
    fn prepare<S: KvStore<B>>(&self, ids: &Tensor<B, 2, Int>, cache: &mut KvCache<B, S>) -> usize {
        let ([_, new], before) = (ids.dims(), cache.tokens());
        let length = (before + new).max(cache.expected);
        if self.config.rope_scaling.is_some() {
            let is_long =
                |padding: usize, length: usize| length.saturating_sub(padding) > self.config.original_length();
            let is_stale = |&padding: &usize| is_long(padding, cache.rotated_for) != is_long(padding, length);
            if cache.paddings().iter().any(is_stale)
                && let Some(stored) = cache.noted_ids()
            {
                cache.truncate(0);
                cache.note_ids(stored.clone());
                for part in stored.split(PART, 1) {
                    self.run(part, length, cache);
                }
            }
            cache.note_ids(ids.clone());
        }
        cache.rotated_for = length;
        length
    }

    fn mask<S: KvStore<B>>(&self, cache: &KvCache<B, S>) -> Mask {
        Mask { window: self.config.sliding_window, left_padding: cache.left_padding.clone() }
    }

    /// Runs tokens of a sequence that has `length` tokens with them, or will have.
    fn run<S: KvStore<B>>(&self, ids: Tensor<B, 2, Int>, length: usize, cache: &mut KvCache<B, S>) -> Tensor<B, 3> {
        let ([_, tokens], device) = (ids.dims(), ids.device());
        let rope = Rope::new(&self.config, &cache.positions(tokens, length), &device);
        let mask = self.mask(cache);
        let mask = mask.queries(tokens, cache.tokens() + tokens, &device);

        let mut x = self.model.embed_tokens.forward(ids);
        for (layer, store) in self.model.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(x, &rope, &mask, store);
        }
        cache.free_unseen(self.config.sliding_window);
        self.model.norm.forward(x)
    }

    /// The head: `[batch, tokens, hidden]` to logits `[batch, tokens, vocabulary]`.
    pub fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => hidden.matmul(self.model.embed_tokens.weight.val().transpose().unsqueeze()),
        }
    }

    /// Logits of every new token, `[batch, tokens, vocabulary]`.
    pub fn forward<S: KvStore<B>>(&self, ids: Tensor<B, 2, Int>, cache: &mut KvCache<B, S>) -> Tensor<B, 3> {
        self.logits(self.hidden(ids, cache))
    }
}
