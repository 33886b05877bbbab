use crate::{Config, KvStore, QueryMask, Rope, block::linear};
use burn::{
    module::Module,
    nn::Linear,
    tensor::{Tensor, backend::Backend},
};

/// Grouped-query attention with rotary positions.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Queries, keys and values in one: `[(heads + 2 kv heads) * head, hidden]`.
    pub qkv_proj: Linear<B>,
    /// `[hidden, heads * head]`
    pub o_proj: Linear<B>,
    heads: usize,
    kv_heads: usize,
    head: usize,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(config: &Config, device: &B::Device) -> Self {
        let (heads, kv_heads, head) = (config.num_attention_heads, config.key_value_heads(), config.head_size());
        Self {
            qkv_proj: linear(config.hidden_size, (heads + 2 * kv_heads) * head, device),
            o_proj: linear(heads * head, config.hidden_size, device),
            heads,
            kv_heads,
            head,
        }
    }

    /// `x [batch, tokens, hidden]` to the same shape; the tokens' keys and values join the store.
    /// `mask` is that of [`KvStore::attend`].
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        rope: &Rope<B>,
        mask: &QueryMask<'_, B>,
        store: &mut impl KvStore<B>,
    ) -> Tensor<B, 3> {
        let [batch, tokens, _] = x.dims();
        let (heads, kv_heads, head) = (self.heads, self.kv_heads, self.head);
        let qkv = self.qkv_proj.forward(x);
        let turned = (heads + kv_heads) * head;
        let rotated = rope.apply(qkv.clone().slice_dim(2, 0..turned));
        // Views, which stores read as the numbers lie.
        let by_head = |x: Tensor<B, 3>, n| x.reshape([batch, tokens, n, head]).swap_dims(1, 2);
        let values = by_head(qkv.slice_dim(2, turned..turned + kv_heads * head), kv_heads);
        let rotated = by_head(rotated, heads + kv_heads);
        let (queries, keys) = (rotated.clone().slice_dim(1, 0..heads), rotated.slice_dim(1, heads..heads + kv_heads));
        store.append(keys, values);
        let attended = store.attend(queries, mask).swap_dims(1, 2).reshape([batch, tokens, heads * head]);
        self.o_proj.forward(attended)
    }
}
