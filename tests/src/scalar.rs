//! Layers in plain loops and f64, to judge every backend by: shapes as Hugging Face stores them, `[out, in]`.

use crate::Weights;
use phi35_model::Config;

/// `x W^T + b` for `x [n, in]`, `w [out, in]`.
pub fn linear(x: &[f64], w: &[f32], b: Option<&[f32]>, input: usize) -> Vec<f64> {
    let dot = |row: &[f64], w: &[f32]| row.iter().zip(w).map(|(&x, &w)| x * f64::from(w)).sum::<f64>();
    let out = |row| {
        let products = w.chunks_exact(input).map(move |w| dot(row, w));
        products.enumerate().map(|(o, product)| product + b.map_or(0.0, |b| f64::from(b[o]))).collect::<Vec<_>>()
    };
    x.chunks_exact(input).flat_map(out).collect()
}

/// Softmax of `q k^T / sqrt(head)` times `v`, for each head: `q [n, heads * head]`, `k` and `v` `[n, kv_heads * head]`.
fn attend(q: &[f64], k: &[f64], v: &[f64], heads: usize, kv_heads: usize, head: usize, causal: bool) -> Vec<f64> {
    let n = q.len() / (heads * head);
    let mut out = vec![0.0; q.len()];
    for h in 0..heads {
        let kv = h * kv_heads / heads;
        for i in 0..n {
            let q = &q[(i * heads + h) * head..][..head];
            let key = |j: usize| &k[(j * kv_heads + kv) * head..][..head];
            let seen = if causal { i + 1 } else { n };
            let scores: Vec<f64> = (0..seen)
                .map(|j| q.iter().zip(key(j)).map(|(q, k)| q * k).sum::<f64>() / (head as f64).sqrt())
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (j, w) in weights.iter().enumerate() {
                for d in 0..head {
                    out[(i * heads + h) * head + d] += w / total * v[(j * kv_heads + kv) * head + d];
                }
            }
        }
    }
    out
}

/// Attention of all positions to all, with biases: `x [n, d]`.
pub fn attention(x: &[f64], weights: &Weights, name: &str, d: usize, heads: usize) -> Vec<f64> {
    let project = |x: &[f64], part: &str| {
        let (w, b) = (weights.get(&format!("{name}.{part}.weight")), weights.get(&format!("{name}.{part}.bias")));
        linear(x, w, Some(b), d)
    };
    let (q, k, v) = (project(x, "query"), project(x, "key"), project(x, "value"));
    project(&attend(&q, &k, &v, heads, heads, d / heads, false), "output")
}

/// A convolution without padding: `x [in, height, width]`, `w [out, in, k, k]`.
pub fn conv2d(x: &[f64], w: &[f32], b: &[f32], [input, height, width]: [usize; 3], k: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (w, b) in w.chunks_exact(input * k * k).zip(b) {
        for y0 in 0..=height - k {
            for x0 in 0..=width - k {
                let taps = (0..input * k * k).map(|t| (t / (k * k), t / k % k, t % k));
                let product = |(c, dy, dx): (usize, usize, usize)| {
                    x[(c * height + y0 + dy) * width + x0 + dx] * f64::from(w[(c * k + dy) * k + dx])
                };
                out.push(f64::from(*b) + taps.map(product).sum::<f64>());
            }
        }
    }
    out
}

fn rms_norm(x: &[f64], gamma: &[f32], epsilon: f64) -> Vec<f64> {
    let row = |row: &[f64]| {
        let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + epsilon).sqrt();
        row.iter().zip(gamma).map(|(x, &g)| x * scale * f64::from(g)).collect::<Vec<_>>()
    };
    x.chunks_exact(gamma.len()).flat_map(row).collect()
}

/// Logits of Phi-3 with plain rope over the whole head: `[ids, vocabulary]`.
pub fn phi3(config: &Config, weights: &Weights, ids: &[u32]) -> Vec<f64> {
    let (d, heads, kv_heads, head) =
        (config.hidden_size, config.num_attention_heads, config.key_value_heads(), config.head_size());
    let epsilon = config.rms_norm_eps;
    let embedding = weights.get("model.embed_tokens.weight");
    let mut x: Vec<f64> = ids.iter().flat_map(|&id| &embedding[id as usize * d..][..d]).map(|&v| v.into()).collect();
    for layer in 0..config.num_hidden_layers {
        let weight = |name: &str| weights.get(&format!("model.layers.{layer}.{name}.weight"));
        let normed = rms_norm(&x, weight("input_layernorm"), epsilon);
        let qkv = linear(&normed, weight("self_attn.qkv_proj"), None, d);
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (position, row) in qkv.chunks_exact((heads + 2 * kv_heads) * head).enumerate() {
            let (a, rest) = row.split_at(heads * head);
            let (b, c) = rest.split_at(kv_heads * head);
            q.extend(rotate(a, head, position, config.rope_theta));
            k.extend(rotate(b, head, position, config.rope_theta));
            v.extend(c);
        }
        let attended = attend(&q, &k, &v, heads, kv_heads, head, true);
        let projected = linear(&attended, weight("self_attn.o_proj"), None, heads * head);
        x.iter_mut().zip(projected).for_each(|(x, p)| *x += p);

        let normed = rms_norm(&x, weight("post_attention_layernorm"), epsilon);
        let both = linear(&normed, weight("mlp.gate_up_proj"), None, d);
        let inner: Vec<f64> = both
            .chunks_exact(2 * config.intermediate_size)
            .flat_map(|row| {
                let (gate, up) = row.split_at(config.intermediate_size);
                gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<_>>()
            })
            .collect();
        let down = linear(&inner, weight("mlp.down_proj"), None, config.intermediate_size);
        x.iter_mut().zip(down).for_each(|(x, p)| *x += p);
    }
    let head = if config.tie_word_embeddings { embedding } else { weights.get("lm_head.weight") };
    linear(&rms_norm(&x, weights.get("model.norm.weight"), epsilon), head, None, d)
}

/// Rotary positions by halves.
fn rotate(row: &[f64], head: usize, position: usize, theta: f64) -> Vec<f64> {
    let turn = |x: &[f64]| {
        let half = head / 2;
        let angle = |i: usize| position as f64 / theta.powf(2.0 * (i % half) as f64 / head as f64);
        (0..head)
            .map(|i| {
                let other = if i < half { -x[i + half] } else { x[i - half] };
                x[i] * angle(i).cos() + other * angle(i).sin()
            })
            .collect::<Vec<_>>()
    };
    row.chunks_exact(head).flat_map(turn).collect()
}
