use crate::{
    Config, ConfigError, DecoderLayer, KvCache, KvStore, Mask, Positions, Rope,
    block::{linear, norm},
    rope::crosses,
};
use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, Linear, RmsNorm},
    tensor::{Int, Tensor, backend::Backend},
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

    /// Runs new tokens `[batch, tokens]` after those in the cache: the state before the head, `[batch, tokens, hidden]`.
    ///
    /// Where the new tokens take a longrope sequence past its original length, every cached key is stale: the whole
    /// sequence is run again.
    pub fn hidden<S: KvStore<B>>(&self, ids: Tensor<B, 2, Int>, cache: &mut KvCache<B, S>) -> Tensor<B, 3> {
        let [_, new] = ids.dims();
        if self.config.rope_scaling.is_none() {
            return self.run(ids, cache);
        }
        let before = cache.tokens();
        let all = match cache.ids.take() {
            Some(stored) => Tensor::cat(vec![stored, ids.clone()], 1),
            None => ids.clone(),
        };
        cache.ids = Some(all.clone());
        let stale = cache.paddings().iter().any(|&padding| {
            crosses(&self.config, before.saturating_sub(padding), (before + new).saturating_sub(padding))
        });
        if !stale {
            return self.run(ids, cache);
        }
        cache.layers.iter_mut().for_each(KvStore::clear);
        self.run(all, cache).slice_dim(1, before..before + new)
    }

    fn run<S: KvStore<B>>(&self, ids: Tensor<B, 2, Int>, cache: &mut KvCache<B, S>) -> Tensor<B, 3> {
        let ([_, tokens], device) = (ids.dims(), ids.device());
        let first = cache.tokens();
        let positions = |&padding: &usize| Positions {
            tokens: (first..first + tokens).map(|slot| slot.saturating_sub(padding)).collect(),
            length: (first + tokens).saturating_sub(padding),
        };
        let rope = Rope::new(&self.config, &cache.paddings().iter().map(positions).collect::<Vec<_>>(), &device);
        let mask = Mask { window: self.config.sliding_window, left_padding: cache.left_padding.clone() };
        let hidden = mask.hidden(tokens, first + tokens, &device);

        let mut x = self.model.embed_tokens.forward(ids);
        for (layer, store) in self.model.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(x, &rope, hidden.as_ref(), store);
        }
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
