//! The model against the architecture written out in plain loops, in f64, on random weights: grouped queries, partial
//! rotation, tied and separate heads, any split of the sequence over the cache.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Distribution, Int, Tensor, TensorData, Tolerance, backend::Backend},
};
use burn_flex::Flex;
use phi35_model::{Config, KvCache, Phi3};

/// Burn's initial norm weights are all one: random ones test more.
struct Randomize;

impl<B: Backend> ModuleMapper<B> for Randomize {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.map(|t| Tensor::random(t.shape(), Distribution::Normal(0.3, 0.4), &t.device()))
    }
}

/// Parameters in the order of the fields, as f64.
#[derive(Default)]
struct Collect(Vec<Vec<f64>>);

impl<B: Backend> ModuleVisitor<B> for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.push(param.val().into_data().convert::<f64>().into_vec().unwrap());
    }
}

fn config(extra: serde_json::Value) -> Config {
    let mut json = serde_json::json!({"model_type": "phi3", "vocab_size": 11, "hidden_size": 12, "intermediate_size": 10,
        "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "rope_theta": 100.0});
    json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(json).unwrap()
}

/// `x W` for `W [in, out]`, row-major.
fn linear(x: &[f64], weight: &[f64], output: usize) -> Vec<f64> {
    (0..output).map(|o| x.iter().enumerate().map(|(i, x)| x * weight[i * output + o]).sum()).collect()
}

fn rms_norm(x: &[f64], gamma: &[f64], epsilon: f64) -> Vec<f64> {
    let root = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + epsilon).sqrt();
    x.iter().zip(gamma).map(|(x, g)| x / root * g).collect()
}

/// Rotates dimension `i` with `i + rotary/2` by `position / theta^(2i/rotary)`.
fn rotate(x: &mut [f64], position: usize, rotary: usize, theta: f64) {
    for i in 0..rotary / 2 {
        let (sin, cos) = (position as f64 / theta.powf((2 * i) as f64 / rotary as f64)).sin_cos();
        let (a, b) = (x[i], x[i + rotary / 2]);
        (x[i], x[i + rotary / 2]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Logits of every position.
fn by_formula(config: &Config, weights: &[Vec<f64>], ids: &[usize]) -> Vec<f64> {
    let (hidden, inner, head) = (config.hidden_size, config.intermediate_size, config.head_size());
    let (heads, kv_heads, rotary) = (config.num_attention_heads, config.key_value_heads(), config.rotary_dim());
    let mut weights = weights.iter();
    let mut next = || weights.next().unwrap();
    let embedding = next();
    let mut stream: Vec<Vec<f64>> = ids.iter().map(|&id| embedding[id * hidden..][..hidden].to_vec()).collect();
    for _ in 0..config.num_hidden_layers {
        let (qkv, o, gate_up, down, before, after) = (next(), next(), next(), next(), next(), next());
        let mut queries = Vec::new();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in stream.iter().enumerate() {
            let all = linear(&rms_norm(x, before, config.rms_norm_eps), qkv, (heads + 2 * kv_heads) * head);
            let mut parts: Vec<Vec<f64>> = all.chunks(head).map(<[f64]>::to_vec).collect();
            parts[..heads + kv_heads].iter_mut().for_each(|x| rotate(x, position, rotary, config.rope_theta));
            values.push(parts.split_off(heads + kv_heads));
            keys.push(parts.split_off(heads));
            queries.push(parts);
        }
        for (position, x) in stream.iter_mut().enumerate() {
            let mut attended = Vec::new();
            for (h, query) in queries[position].iter().enumerate() {
                let kv = h / (heads / kv_heads);
                let dot = |k: &[f64]| query.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                let scores: Vec<f64> =
                    (0..=position).map(|t| (dot(&keys[t][kv]) / (head as f64).sqrt()).exp()).collect();
                let total: f64 = scores.iter().sum();
                attended.extend((0..head).map(|d| {
                    scores.iter().zip(&values).map(|(score, value)| score / total * value[kv][d]).sum::<f64>()
                }));
            }
            add(x, &linear(&attended, o, hidden));
            let both = linear(&rms_norm(x, after, config.rms_norm_eps), gate_up, 2 * inner);
            let gated: Vec<f64> = (0..inner).map(|i| both[i] / (1.0 + (-both[i]).exp()) * both[inner + i]).collect();
            add(x, &linear(&gated, down, hidden));
        }
    }
    let norm = next();
    let normed = stream.iter().map(|x| rms_norm(x, norm, config.rms_norm_eps));
    if config.tie_word_embeddings {
        let rows =
            |x: &[f64]| embedding.chunks(hidden).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect();
        normed.flat_map(|x| -> Vec<f64> { rows(&x) }).collect()
    } else {
        let head = next();
        normed.flat_map(|x| linear(&x, head, config.vocab_size)).collect()
    }
}

#[test]
fn logits_equal_the_formula_for_any_split_over_the_cache() {
    let ids = [3usize, 1, 4, 1, 5, 9, 2, 6, 5];
    for extra in [
        serde_json::json!({}),
        serde_json::json!({"num_key_value_heads": 1, "tie_word_embeddings": true}),
        serde_json::json!({"num_attention_heads": 6, "num_key_value_heads": 2}),
        serde_json::json!({"num_attention_heads": 2, "head_dim": 8, "partial_rotary_factor": 0.75}),
    ] {
        let config = config(extra);
        let device = Default::default();
        let model: Phi3<Flex> = config.init(&device).unwrap().map(&mut Randomize);
        let mut weights = Collect::default();
        model.visit(&mut weights);
        let expected = by_formula(&config, &weights.0, &ids);
        let expected = TensorData::new(expected, [1, ids.len(), config.vocab_size]).convert::<f32>();
        for split in [vec![9], vec![1; 9], vec![4, 1, 3, 1]] {
            let mut cache: KvCache<Flex> = model.cache();
            let mut rest = &ids[..];
            let parts = split.iter().map(|&n| {
                let part: Vec<i64> = rest[..n].iter().map(|&id| id as i64).collect();
                rest = &rest[n..];
                let part = Tensor::<Flex, 2, Int>::from_data(TensorData::new(part, [1, n]), &device);
                model.forward(part, &mut cache)
            });
            let logits = Tensor::cat(parts.collect(), 1);
            logits.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-3, 1e-3));
        }
    }
}
