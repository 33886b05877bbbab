//! Rotary positions. Source: Hugging Face `modeling_rope_utils` and `apply_rotary_pos_emb` of `modeling_phi3`.

use crate::Config;
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Angles for a range of positions: cosine and sine, each `[1, 1, positions, rotary / 2]`.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rope<B> {
    /// Angles `position / theta^(2i/rotary)`, in f32 as Hugging Face computes them.
    pub fn new(config: &Config, first: usize, positions: usize, device: &B::Device) -> Self {
        let rotary = config.rotary_dim();
        let inverse: Vec<f32> =
            (0..rotary / 2).map(|i| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / rotary as f32)).collect();
        let angles = (first..first + positions).flat_map(|p| inverse.iter().map(move |f| p as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let tensor = |v| Tensor::from_data(TensorData::new(v, [1, 1, positions, rotary / 2]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Rotates the first `rotary` dimensions of each head by halves: dimension `i` with `i + rotary/2`. The rest pass.
    ///
    /// `x`: `[batch, heads, positions, head]`.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, heads, positions, head] = x.dims();
        let half = self.cos.dims()[3];
        let part = |from, to| x.clone().slice([0..batch, 0..heads, 0..positions, from..to]);
        let (a, b) = (part(0, half), part(half, 2 * half));
        let rotated_a = a.clone() * self.cos.clone() - b.clone() * self.sin.clone();
        let rotated_b = b * self.cos.clone() + a * self.sin.clone();
        let mut parts = vec![rotated_a, rotated_b];
        if 2 * half < head {
            parts.push(part(2 * half, head));
        }
        Tensor::cat(parts, 3)
    }
}
