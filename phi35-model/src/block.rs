use crate::{Attention, Config, KvStore, Mlp, QueryMask, Rope};
use burn::{
    module::Module,
    nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig},
    tensor::{Tensor, backend::Backend},
};

/// One decoder layer: attention and feed-forward, each on the normalised residual stream and added to it.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Attention.
    pub self_attn: Attention<B>,
    /// Feed-forward.
    pub mlp: Mlp<B>,
    /// Before attention.
    pub input_layernorm: RmsNorm<B>,
    /// Before the feed-forward layer.
    pub post_attention_layernorm: RmsNorm<B>,
}

impl<B: Backend> DecoderLayer<B> {
    pub(crate) fn new(config: &Config, device: &B::Device) -> Self {
        Self {
            self_attn: Attention::new(config, device),
            mlp: Mlp::new(config, device),
            input_layernorm: norm(config, device),
            post_attention_layernorm: norm(config, device),
        }
    }

    /// `x [batch, tokens, hidden]` to the same shape.
    /// `mask` is that of [`KvStore::attend`].
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        rope: &Rope<B>,
        mask: &QueryMask<'_, B>,
        store: &mut impl KvStore<B>,
    ) -> Tensor<B, 3> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x), rope, mask, store);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

/// A layer without bias, as all of Phi-3's.
pub(crate) fn linear<B: Backend>(input: usize, output: usize, device: &B::Device) -> Linear<B> {
    LinearConfig::new(input, output).with_bias(false).init(device)
}

pub(crate) fn norm<B: Backend>(config: &Config, device: &B::Device) -> RmsNorm<B> {
    RmsNormConfig::new(config.hidden_size).with_epsilon(config.rms_norm_eps).init(device)
}
