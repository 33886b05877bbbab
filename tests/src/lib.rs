//! What the tests across crates share: where the reference data lies, and a model's files made on the spot.

pub mod scalar;

use phi35_model::Config;
use qins_codec::{Format, Slice};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// A file or folder of the reference data, which is no part of the project: `$QINS_SHARED`, or `shared` beside it.
///
/// `None` where it is missing; the test then says on standard error that it was skipped.
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let root = std::env::var_os("QINS_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    skip(&format!("no reference data at {}", found.display()));
    None
}

/// Says that the current test is skipped, on its own line and past the test runner's capture.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "skipped: {}: {why}", thread.name().unwrap_or("test"));
}

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The ids in a JSON array.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A tensor of a safetensors file, as f32.
pub fn read_tensor(path: &Path, name: &str) -> Vec<f32> {
    qins_import::Checkpoint::open_file(path).unwrap().tensor(name).unwrap().to_f32()
}

/// Random numbers in (-1, 1) from a fixed generator.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `n` numbers of about the spread `scale`, bell-shaped as trained weights are.
    pub fn weights(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (0..6).map(|_| self.draw()).sum::<f32>() * scale / 1.4).collect()
    }
}

/// A weight as a checkpoint stores it.
pub struct Weight {
    /// Its name.
    pub name: String,
    /// `[out, in]`, or `[n]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// A model's weights by name.
pub struct Weights(pub Vec<Weight>);

impl Weights {
    /// The values of a weight.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> &[f32] {
        &self.weight(name).values
    }

    /// A weight.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn weight(&self, name: &str) -> &Weight {
        self.0.iter().find(|weight| weight.name == name).unwrap_or_else(|| panic!("no weight {name}"))
    }

    /// As a safetensors file of f32.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            self.0.iter().map(|weight| weight.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = self.0.iter().zip(&bytes).map(|(weight, bytes)| {
            (weight.name.as_str(), TensorView::new(Dtype::F32, weight.shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    /// The weights of more than one dimension as they are after encoding, by the codec's scalar decoder.
    pub fn decoded(&self, format: Format) -> Self {
        let decoded = |weight: &Weight| {
            let rows = weight.shape[0];
            let values = match weight.shape.len() {
                1 => weight.values.clone(),
                _ => {
                    let matrix = Slice::new(&weight.values, rows, weight.values.len() / rows);
                    qins_codec::encode(format, &matrix).unwrap().matrix().decode()
                }
            };
            Weight { name: weight.name.clone(), shape: weight.shape.clone(), values }
        };
        Self(self.0.iter().map(decoded).collect())
    }
}

/// A random model: its configuration, as JSON and read, and its weights.
pub fn random_model(config: Value) -> (Value, Config, Weights) {
    let mut json = json!({"model_type": "phi3", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "rope_scaling": null, "sliding_window": null, "eos_token_id": 2, "dtype": "float32"});
    json.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    let config: Config = serde_json::from_value(json.clone()).unwrap();
    let (hidden, inner, head) = (config.hidden_size, config.intermediate_size, config.head_size());
    let (heads, kv_heads) = (config.num_attention_heads, config.key_value_heads());

    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        for (name, shape) in [
            ("self_attn.qkv_proj", vec![(heads + 2 * kv_heads) * head, hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head]),
            ("mlp.gate_up_proj", vec![2 * inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }

    let mut random = Random(7);
    let weights = shapes.into_iter().map(|(name, shape)| {
        let n = shape.iter().product();
        let values = match shape.len() {
            1 => random.weights(n, 0.1).into_iter().map(|w| 1.0 + w).collect(),
            _ => random.weights(n, (shape[1] as f32).powf(-0.5)),
        };
        Weight { name, shape, values }
    });
    let weights = Weights(weights.collect());
    (json, config, weights)
}

/// Writes a random model as Hugging Face would store it; returns its configuration and weights.
pub fn write_model(directory: &Path, config: Value) -> (Config, Vec<Weight>) {
    let (json, config, weights) = random_model(config);
    std::fs::write(directory.join("config.json"), json.to_string()).unwrap();
    std::fs::write(directory.join("model.safetensors"), weights.to_safetensors()).unwrap();
    (config, weights.0)
}

/// Whether there is a graphics device, of software or not, for the tests that need one. Where there is none they are
/// skipped, and say so; `QINS_REQUIRE_GPU=1` makes that a failure.
///
/// # Panics
/// If there is no device and one is required.
pub fn has_gpu() -> bool {
    use burn::tensor::Tensor;
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let found = *FOUND.get_or_init(|| {
        std::panic::catch_unwind(|| {
            Tensor::<burn_wgpu::Wgpu, 1>::from_data([1.0f32], &Default::default()).into_data();
        })
        .is_ok()
    });
    let required = std::env::var_os("QINS_REQUIRE_GPU").is_some_and(|value| value == "1");
    assert!(found || !required, "QINS_REQUIRE_GPU=1, and there is no graphics device");
    if !found {
        skip("no graphics device (Debian: mesa-vulkan-drivers and libvulkan1 give one of software)");
    }
    found
}
