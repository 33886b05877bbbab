//! Rotary positions. Source: Hugging Face `modeling_rope_utils` and `apply_rotary_pos_emb` of `modeling_phi3`.

use crate::{Config, config::RopeScaling};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use std::iter::repeat_n;

/// What rotates queries and keys to the positions of some tokens: `x cos + swapped(x) sin`, where the halves that turn with
/// each other are swapped.
///
/// Both factors are there for every head, so that backends multiply numbers as they lie.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    /// `[batch or 1, tokens * heads * head]`, 1 for dimensions that do not turn.
    cos: Tensor<B, 2>,
    /// The same shape, negative for the first half, 0 for dimensions that do not turn.
    sin: Tensor<B, 2>,
    head: usize,
    rotary: usize,
}

/// Where the tokens of one row stand, and how long its sequence is with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Position of each new token. Those of padding do not matter.
    pub tokens: Vec<usize>,
    /// Length of the sequence, cached and expected tokens included and padding not.
    pub length: usize,
}

impl Positions {
    /// The whole of a sequence of `length` tokens.
    pub fn whole(length: usize) -> Self {
        Self { tokens: (0..length).collect(), length }
    }
}

impl<B: Backend> Rope<B> {
    /// Angles `position / (factor * theta^(2i/rotary))`, in f32 as Hugging Face computes them, for one row or each row.
    ///
    /// With longrope, a row of at most the original length takes the short factors and a longer one the long ones, for
    /// all its tokens; each row by itself, so that a row in a batch equals the row alone. Cosine and sine are scaled
    /// alike with either.
    pub fn new(config: &Config, rows: &[Positions], device: &B::Device) -> Self {
        let rotary = config.rotary_dim();
        let scale = config.attention_factor() as f32;
        let angles = |row: &Positions| -> Vec<f32> {
            let factors = config.rope_scaling.as_ref().map(|scaling| factors(scaling, config, row.length));
            let inverse: Vec<f32> = (0..rotary / 2)
                .map(|i| {
                    let wavelength = (config.rope_theta as f32).powf((2 * i) as f32 / rotary as f32);
                    1.0 / (factors.map_or(1.0, |f| f[i]) * wavelength)
                })
                .collect();
            row.tokens.iter().flat_map(|&p| inverse.iter().map(move |f| p as f32 * f)).collect()
        };
        let (heads, head) = (config.num_attention_heads + config.key_value_heads(), config.head_size());
        let tokens = rows.first().map_or(0, |row| row.tokens.len());
        let shape = [rows.len(), tokens * heads * head];
        let [mut cos, mut sin] = [(); 2].map(|()| Vec::with_capacity(rows.len() * tokens * heads * head));
        for row in rows {
            for angles in angles(row).chunks_exact(rotary / 2) {
                let half = || angles.iter().map(|a| a.cos() * scale);
                let of_head: Vec<f32> = half().chain(half()).chain(repeat_n(1.0, head - rotary)).collect();
                (0..heads).for_each(|_| cos.extend_from_slice(&of_head));
                let half = || angles.iter().map(|a| a.sin() * scale);
                let minus = half().map(|sin| -sin);
                let of_head: Vec<f32> = minus.chain(half()).chain(repeat_n(0.0, head - rotary)).collect();
                (0..heads).for_each(|_| sin.extend_from_slice(&of_head));
            }
        }
        let tensor = |v: Vec<f32>| Tensor::from_data(TensorData::new(v, shape), device);
        Self { cos: tensor(cos), sin: tensor(sin), head, rotary }
    }

    /// Rotates the first `rotary` dimensions of each head by halves: dimension `i` with `i + rotary/2`. The rest pass.
    ///
    /// `x`: `[batch, tokens, (heads + kv heads) * head]`, queries and then keys.
    pub fn apply(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let (shape, half, head) = (x.dims(), self.rotary / 2, self.head);
        let [batch, tokens, width] = shape;
        let x = x.reshape([batch, tokens * width]);
        let heads = x.clone().reshape([batch * tokens * width / head, head]);
        let part = |from, to| heads.clone().slice_dim(1, from..to);
        let mut swapped = vec![part(half, 2 * half), part(0, half)];
        if 2 * half < head {
            swapped.push(part(2 * half, head));
        }
        let swapped = Tensor::cat(swapped, 1).reshape([batch, tokens * width]);
        drop(heads);
        (x * self.cos.clone() + swapped * self.sin.clone()).reshape(shape)
    }
}

fn factors<'c>(scaling: &'c RopeScaling, config: &Config, length: usize) -> &'c [f32] {
    if length > config.original_length() { &scaling.long_factor } else { &scaling.short_factor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phi35_scales_attention_by_the_published_factor() {
        let config: Config = serde_json::from_str(
            r#"{"model_type": "phi3", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.0, 2.0]}}"#,
        )
        .unwrap();
        config.validate().unwrap();
        assert!((config.attention_factor() - 1.190_238_071_4).abs() < 1e-9);
        assert_eq!(factors(config.rope_scaling.as_ref().unwrap(), &config, 4096), [1.0, 1.1]);
        assert_eq!(factors(config.rope_scaling.as_ref().unwrap(), &config, 4097), [1.0, 2.0]);
    }
}
