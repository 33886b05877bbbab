//! A small Phi-3 in plain loops, whose weights and activations can be tampered with: the toys of the record.

use crate::rules::Rules;
use burn::tensor::{Tensor, backend::Backend};
use phi35_model::{Config, Phi3};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// `[rows, cols]`, row-major: the weight `[out, in]` of a linear layer.
#[derive(Clone)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..][..self.cols]
    }

    /// `W x` of each input.
    pub fn products(&self, inputs: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let mut outputs = vec![vec![0.0; self.rows]; inputs.len()];
        for (r, row) in self.values.chunks_exact(self.cols).enumerate() {
            for (input, output) in inputs.iter().zip(&mut outputs) {
                output[r] = dot(row, input);
            }
        }
        outputs
    }

    fn of<B: Backend>(weight: Tensor<B, 2>) -> Self {
        let [rows, cols] = weight.dims();
        Self { rows, cols, values: weight.into_data().iter::<f32>().collect() }
    }
}

/// In sixteen sums, which the compiler keeps in vector registers.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Which linear layer a weight belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Qkv,
    AttentionOutput,
    GateUp,
    Down,
    Head,
}

/// One decoder layer, as in `phi35_model`.
#[derive(Clone)]
pub struct Layer {
    qkv: Matrix,
    output: Matrix,
    gate_up: Matrix,
    down: Matrix,
    input_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
}

/// The whole model.
#[derive(Clone)]
pub struct Toy {
    pub config: Config,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
}

/// Keys and values of one text: a layer's, one token after the other, `[tokens, kv heads * head]`.
#[derive(Clone, Default)]
pub struct Text {
    tokens: usize,
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

/// Sees the residual stream of each text after the embedding (0) and after each layer.
pub type Watch<'w> = &'w mut dyn FnMut(usize, &[Vec<f32>]);

/// Sees the inputs of every linear layer: its place and its layer.
pub type Tap<'t> = &'t mut dyn FnMut(Place, usize, &[Vec<f32>]);

impl Toy {
    /// The same weights.
    pub fn of<B: Backend>(model: &Phi3<B>, config: &Config) -> Self {
        let linear = |weight: Tensor<B, 2>| Matrix::of(weight.transpose());
        let vector = |weight: Tensor<B, 1>| weight.into_data().iter::<f32>().collect();
        let embedding = Matrix::of(model.model.embed_tokens.weight.val());
        let layers = model.model.layers.iter().map(|layer| Layer {
            qkv: linear(layer.self_attn.qkv_proj.weight.val()),
            output: linear(layer.self_attn.o_proj.weight.val()),
            gate_up: linear(layer.mlp.gate_up_proj.weight.val()),
            down: linear(layer.mlp.down_proj.weight.val()),
            input_norm: vector(layer.input_layernorm.gamma.val()),
            mlp_norm: vector(layer.post_attention_layernorm.gamma.val()),
        });
        Self {
            config: config.clone(),
            layers: layers.collect(),
            norm: vector(model.model.norm.gamma.val()),
            head: model.lm_head.as_ref().map_or_else(|| embedding.clone(), |head| linear(head.weight.val())),
            embedding,
        }
    }

    /// Random weights as Burn and PyTorch make them: linear ones uniform up to `in^-0.5`, embeddings of spread 1, norms 1.
    /// The same for a seed on every machine.
    pub fn random(config: &Config, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = move || random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
        let mut matrix = |rows: usize, cols: usize, limit: f32| {
            let values = (0..rows * cols).map(|_| limit * uniform()).collect();
            Matrix { rows, cols, values }
        };
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let heads = config.num_attention_heads * config.head_size();
        let both = 2 * config.key_value_heads() * config.head_size();
        let embedding = matrix(config.vocab_size, width, 3f32.sqrt());
        let mut linear = |rows, cols: usize| matrix(rows, cols, (cols as f32).powf(-0.5));
        let layers = (0..config.num_hidden_layers).map(|_| Layer {
            qkv: linear(heads + both, width),
            output: linear(width, heads),
            gate_up: linear(2 * inner, width),
            down: linear(width, inner),
            input_norm: vec![1.0; width],
            mlp_norm: vec![1.0; width],
        });
        let layers = layers.collect();
        let head = linear(config.vocab_size, width);
        Self { config: config.clone(), embedding, layers, norm: vec![1.0; width], head }
    }

    /// With every linear weight replaced.
    pub fn with_weights(mut self, mut change: impl FnMut(Place, usize, &Matrix) -> Matrix) -> Self {
        for (place, layer, matrix) in self.matrices_mut() {
            *matrix = change(place, layer, matrix);
        }
        self
    }

    fn matrices_mut(&mut self) -> impl Iterator<Item = (Place, usize, &mut Matrix)> {
        let layers = self.layers.len();
        let of_layers = self.layers.iter_mut().enumerate().flat_map(|(i, layer)| {
            [
                (Place::Qkv, i, &mut layer.qkv),
                (Place::AttentionOutput, i, &mut layer.output),
                (Place::GateUp, i, &mut layer.gate_up),
                (Place::Down, i, &mut layer.down),
            ]
        });
        of_layers.chain([(Place::Head, layers, &mut self.head)])
    }

    /// Logits after the next token of each text.
    pub fn step(&self, rules: &Rules, texts: &mut [Text], ids: &[u32]) -> Vec<Vec<f32>> {
        self.step_watched(rules, texts, ids, &mut |_, _| (), &mut |_, _, _| ())
    }

    /// The same, observed.
    pub fn step_watched(
        &self,
        rules: &Rules,
        texts: &mut [Text],
        ids: &[u32],
        watch: Watch<'_>,
        tap: Tap<'_>,
    ) -> Vec<Vec<f32>> {
        let mut linear = |place, layer, matrix: &Matrix, inputs: Vec<Vec<f32>>| {
            tap(place, layer, &inputs);
            let inputs =
                rules.inputs.as_ref().map_or_else(|| inputs.clone(), |code| inputs.iter().map(|x| code(x)).collect());
            matrix.products(&inputs)
        };
        let norm = |stream: &[Vec<f32>], gamma: &[f32]| -> Vec<Vec<f32>> {
            stream.iter().map(|x| self.normalised(rules, x, gamma)).collect()
        };
        let mut stream: Vec<Vec<f32>> = ids.iter().map(|&id| self.embedding.row(id as usize).to_vec()).collect();
        watch(0, &stream);
        for (i, layer) in self.layers.iter().enumerate() {
            let qkv = linear(Place::Qkv, i, &layer.qkv, norm(&stream, &layer.input_norm));
            let attended: Vec<Vec<f32>> =
                texts.iter_mut().zip(qkv).map(|(text, qkv)| self.attended(rules, text, i, qkv)).collect();
            add(&mut stream, &linear(Place::AttentionOutput, i, &layer.output, attended));
            let gate_up = linear(Place::GateUp, i, &layer.gate_up, norm(&stream, &layer.mlp_norm));
            let gated = gate_up.iter().map(|both| {
                let (gate, up) = both.split_at(both.len() / 2);
                gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
            });
            let gated = gated.collect();
            add(&mut stream, &linear(Place::Down, i, &layer.down, gated));
            if let Some(code) = &rules.between_layers {
                stream.iter_mut().for_each(|x| *x = code(x));
            }
            watch(i + 1, &stream);
        }
        texts.iter_mut().for_each(|text| text.tokens += 1);
        linear(Place::Head, self.layers.len(), &self.head, norm(&stream, &self.norm))
    }

    fn normalised(&self, rules: &Rules, x: &[f32], gamma: &[f32]) -> Vec<f32> {
        let coded = rules.norm_inputs.as_ref().map(|code| code(x));
        let x = coded.as_deref().unwrap_or(x);
        let mean = dot(x, x) / x.len() as f32;
        let scale = 1.0 / (mean + self.config.rms_norm_eps as f32).sqrt();
        x.iter().zip(gamma).map(|(x, g)| x * scale * g).collect()
    }

    /// The heads of one text's next token, over all before it and itself.
    fn attended(&self, rules: &Rules, text: &mut Text, layer: usize, mut qkv: Vec<f32>) -> Vec<f32> {
        let (heads, kv_heads, head) =
            (self.config.num_attention_heads, self.config.key_value_heads(), self.config.head_size());
        text.layers.resize(self.layers.len(), Default::default());
        let position = text.tokens as f32;
        for rotated in qkv[..(heads + kv_heads) * head].chunks_exact_mut(head) {
            for i in 0..head / 2 {
                let angle = position / (self.config.rope_theta as f32).powf((2 * i) as f32 / head as f32);
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (rotated[i], rotated[i + head / 2]);
                (rotated[i], rotated[i + head / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        let (queries, rest) = qkv.split_at(heads * head);
        let (new_keys, new_values) = rest.split_at(kv_heads * head);
        let (keys, values) = &mut text.layers[layer];
        keys.extend(new_keys);
        match &rules.values {
            Some(code) => values.extend(code(new_values)),
            None => values.extend(new_values),
        }
        let width = kv_heads * head;
        let mut output = vec![0.0; heads * head];
        for (h, output) in output.chunks_exact_mut(head).enumerate() {
            let at = h / (heads / kv_heads) * head;
            let query = &queries[h * head..][..head];
            let scores: Vec<f32> =
                keys.chunks_exact(width).map(|key| dot(query, &key[at..][..head]) / (head as f32).sqrt()).collect();
            let top = scores.iter().copied().fold(f32::MIN, f32::max);
            let shares: Vec<f32> = scores.iter().map(|score| (score - top).exp()).collect();
            let total: f32 = shares.iter().sum();
            for (share, value) in shares.iter().zip(values.chunks_exact(width)) {
                output.iter_mut().zip(&value[at..][..head]).for_each(|(o, v)| *o += share / total * v);
            }
        }
        output
    }
}

fn add(stream: &mut [Vec<f32>], increments: &[Vec<f32>]) {
    for (x, increment) in stream.iter_mut().zip(increments) {
        x.iter_mut().zip(increment).for_each(|(x, i)| *x += i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source;
    use burn::tensor::{Int, TensorData};
    use burn_flex::Flex;
    use phi35_model::DenseKv;

    #[test]
    fn logits_are_those_of_phi35_model() {
        let config = source::config(2, 64, 96);
        let model = config.init::<Flex>(&Default::default()).unwrap();
        let random = (Toy::of(&model, &config), model);
        for (toy, model) in [random, source::demo_with_phi3().unwrap()] {
            let ids: Vec<u32> = vec![5, 17, 80, 3, 9, 33, 2, 61];
            let input = TensorData::new(ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), [1, ids.len()]);
            let input = Tensor::<Flex, 2, Int>::from_data(input, &Default::default());
            let expected = model.forward(input, &mut model.cache::<DenseKv<Flex>>()).into_data();
            let expected: Vec<f32> = expected.iter::<f32>().collect();
            let mut text = [Text::default()];
            for (id, expected) in ids.iter().zip(expected.chunks_exact(toy.config.vocab_size)) {
                let logits = &toy.step(&Rules::default(), &mut text, &[*id])[0];
                for (found, expected) in logits.iter().zip(expected) {
                    assert!((found - expected).abs() < 2e-4 * (1.0 + expected.abs()), "{found} for {expected}");
                }
            }
        }
    }
}
