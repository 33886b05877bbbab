use crate::{Config, block::linear};
use burn::{
    module::Module,
    nn::Linear,
    tensor::{Tensor, activation::silu, backend::Backend},
};

/// The gated feed-forward layer: `down(silu(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Gate and up in one, gate first: `[2 * intermediate, hidden]`.
    pub gate_up_proj: Linear<B>,
    /// `[hidden, intermediate]`
    pub down_proj: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub(crate) fn new(config: &Config, device: &B::Device) -> Self {
        Self {
            gate_up_proj: linear(config.hidden_size, 2 * config.intermediate_size, device),
            down_proj: linear(config.intermediate_size, config.hidden_size, device),
        }
    }

    /// `x [batch, tokens, hidden]` to the same shape.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, _] = x.dims();
        let both = self.gate_up_proj.forward(x);
        let width = both.dims()[2] / 2;
        // Reshaped, a half becomes a tensor of its own: backends are slow to step over halves of rows again and again.
        let half = |from| both.clone().slice_dim(2, from..from + width).reshape([batch * tokens, width]);
        let gated = silu(half(0)) * half(width);
        self.down_proj.forward(gated.reshape([batch, tokens, width]))
    }
}
