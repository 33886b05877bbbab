//! `config.json` and `generation_config.json` as Hugging Face writes them.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The architecture: `config.json` of a `Phi3ForCausalLM`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Config {
    /// Must be `phi3`.
    pub model_type: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; as many as query heads if absent.
    pub num_key_value_heads: Option<usize>,
    /// Size of a head; `hidden_size / num_attention_heads` if absent.
    pub head_dim: Option<usize>,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Longest sequence of the model before its rope was rescaled; `max_position_embeddings` if absent.
    pub original_max_position_embeddings: Option<usize>,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Rescaled rotary wavelengths.
    pub rope_scaling: Option<RopeScaling>,
    /// Share of a head's dimensions that is rotated.
    #[serde(default = "one")]
    pub partial_rotary_factor: f64,
    /// Keys that a query sees, itself included.
    pub sliding_window: Option<usize>,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Activation of the feed-forward layers.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Ids that end a text, where no `generation_config.json` names them.
    #[serde(default)]
    pub eos_token_id: TokenIds,
}

fn one() -> f64 {
    1.0
}

fn silu() -> String {
    "silu".to_owned()
}

/// Rescaled rotary wavelengths: one factor a wavelength, and other factors for long sequences.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RopeScaling {
    /// Must be `longrope`.
    #[serde(rename = "type", alias = "rope_type")]
    pub kind: String,
    /// Factors for sequences of at most the original length.
    #[serde(default)]
    pub short_factor: Vec<f32>,
    /// Factors for longer sequences.
    #[serde(default)]
    pub long_factor: Vec<f32>,
}

/// No id, one, or several, as the same field of Hugging Face files may hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "Option<OneOrMany>")]
pub struct TokenIds(pub Vec<u32>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl From<Option<OneOrMany>> for TokenIds {
    fn from(ids: Option<OneOrMany>) -> Self {
        Self(match ids {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![id],
            Some(OneOrMany::Many(ids)) => ids,
        })
    }
}

/// What this crate reads of `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct GenerationConfig {
    /// Ids that end a text.
    #[serde(default)]
    pub eos_token_id: TokenIds,
}

/// Why a model's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no JSON, or lacks a field.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field has a value that this crate does not implement, or that makes no model.
    #[error("config: `{field}` is {found}: expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
}

impl Config {
    /// Reads and checks `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::from_json(&read(path)?, path)
    }

    /// Checks a `config.json` already read; `path` is what errors call it. Transformers 5 keeps what concerns the rope
    /// under `rope_parameters`; both layouts are read.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let mut fields: serde_json::Map<String, Value> = parse(json, path)?;
        lift_rope_parameters(&mut fields);
        let config: Self = serde_json::from_value(fields.into())
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the sizes make a model and that everything asked for is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let require = |ok: bool, field, found: String, expected: &str| {
            if ok { Ok(()) } else { Err(ConfigError::Field { field, found, expected: expected.to_owned() }) }
        };
        require(self.model_type == "phi3", "model_type", format!("`{}`", self.model_type), "`phi3`")?;
        require(self.hidden_act == "silu", "hidden_act", format!("`{}`", self.hidden_act), "`silu`")?;
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.key_value_heads()),
            ("max_position_embeddings", self.max_position_embeddings),
            ("original_max_position_embeddings", self.original_length()),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ] {
            require((1..=1 << 24).contains(&size), field, size.to_string(), "1 to 16777216")?;
        }
        // Layers are made before a weight is looked for.
        let layers = self.num_hidden_layers;
        require((1..=1 << 12).contains(&layers), "num_hidden_layers", layers.to_string(), "1 to 4096")?;
        let (heads, kv_heads) = (self.num_attention_heads, self.key_value_heads());
        require(
            heads.is_multiple_of(kv_heads),
            "num_attention_heads",
            heads.to_string(),
            &format!("a multiple of `num_key_value_heads`, {kv_heads}"),
        )?;
        require(
            self.head_dim.is_some() || self.hidden_size.is_multiple_of(heads),
            "hidden_size",
            self.hidden_size.to_string(),
            &format!("a multiple of `num_attention_heads`, {heads}"),
        )?;
        let rotary = self.rotary_dim();
        require(
            rotary.is_multiple_of(2) && (2..=self.head_size()).contains(&rotary),
            "partial_rotary_factor",
            self.partial_rotary_factor.to_string(),
            &format!("one that rotates an even number of a head's {} dimensions", self.head_size()),
        )?;
        if let Some(scaling) = &self.rope_scaling {
            require(scaling.kind == "longrope", "rope_scaling", format!("`{}`", scaling.kind), "none or `longrope`")?;
            for (field, factors) in [
                ("rope_scaling.short_factor", &scaling.short_factor),
                ("rope_scaling.long_factor", &scaling.long_factor),
            ] {
                require(
                    factors.len() == rotary / 2 && factors.iter().all(|&f| f > 0.0 && f.is_finite()),
                    field,
                    format!("{} numbers", factors.len()),
                    &format!("{} positive numbers, one a wavelength", rotary / 2),
                )?;
            }
        }
        require(self.rms_norm_eps > 0.0, "rms_norm_eps", self.rms_norm_eps.to_string(), "more than 0")?;
        require(self.rope_theta > 0.0, "rope_theta", self.rope_theta.to_string(), "more than 0")
    }

    /// Key and value heads.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Dimensions of a head.
    pub fn head_size(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Longest sequence that takes the short factors.
    pub fn original_length(&self) -> usize {
        self.original_max_position_embeddings.unwrap_or(self.max_position_embeddings)
    }

    /// Dimensions of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        (self.head_size() as f64 * self.partial_rotary_factor) as usize
    }
}

impl GenerationConfig {
    /// Reads `generation_config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::from_json(&read(path)?, path)
    }

    /// A `generation_config.json` already read; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ConfigError> {
        parse(json, path)
    }
}

/// Brings the layout of transformers 5 to that of transformers 4.
fn lift_rope_parameters(fields: &mut serde_json::Map<String, Value>) {
    if let Some(parameters) = fields.remove("rope_parameters") {
        for name in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"] {
            if let Some(value) = parameters.get(name) {
                fields.insert(name.to_owned(), value.clone());
            }
        }
        fields.insert("rope_scaling".to_owned(), parameters);
    }
    let scaling = fields.get("rope_scaling");
    if scaling.and_then(|s| s.get("rope_type").or(s.get("type"))).is_some_and(|kind| kind == "default") {
        fields.remove("rope_scaling");
    }
    // An old file may name the kind twice.
    if let Some(Value::Object(scaling)) = fields.get_mut("rope_scaling")
        && scaling.contains_key("rope_type")
    {
        scaling.remove("type");
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

pub(crate) fn parse<T: DeserializeOwned>(json: &[u8], path: &Path) -> Result<T, ConfigError> {
    serde_json::from_slice(json).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{"model_type": "phi3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "eos_token_id": [2, 7]}"#;

    fn with(field: &str, value: serde_json::Value) -> Result<(), String> {
        let mut json: serde_json::Value = serde_json::from_str(MINIMAL).unwrap();
        json[field] = value;
        serde_json::from_value::<Config>(json).unwrap().validate().map_err(|e| e.to_string())
    }

    #[test]
    fn absent_fields_have_hugging_faces_defaults() {
        let config: Config = serde_json::from_str(MINIMAL).unwrap();
        config.validate().unwrap();
        assert_eq!((config.key_value_heads(), config.head_size(), config.rotary_dim()), (4, 4, 4));
        assert_eq!(config.eos_token_id, TokenIds(vec![2, 7]));
        assert!(!config.tie_word_embeddings);
    }

    #[test]
    fn both_layouts_of_the_rope_are_read() {
        let mut json: serde_json::Map<String, Value> = serde_json::from_str(MINIMAL).unwrap();
        let read = |json: &serde_json::Map<String, Value>| {
            Config::from_json(Value::from(json.clone()).to_string().as_bytes(), Path::new("config.json"))
        };
        let plain = read(&json).unwrap();
        json.remove("rope_theta");
        assert!(read(&json).unwrap_err().to_string().contains("rope_theta"));
        json.insert("rope_parameters".to_owned(), serde_json::json!({"rope_theta": 10000.0, "rope_type": "default"}));
        assert_eq!(read(&json).unwrap(), plain);

        let factors = serde_json::json!({"rope_type": "longrope", "type": "longrope", "rope_theta": 500.0,
            "short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.5});
        json.insert("rope_parameters".to_owned(), factors);
        let long = read(&json).unwrap();
        assert_eq!((long.rope_theta, long.original_length(), long.rotary_dim()), (500.0, 16, 2));
        assert_eq!(long.rope_scaling.unwrap().long_factor, [2.0]);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_field() {
        let unknown = with("model_type", "llama".into()).unwrap_err();
        assert_eq!(unknown, "config: `model_type` is `llama`: expected `phi3`");
        assert!(with("rope_scaling", serde_json::json!({"type": "yarn"})).unwrap_err().contains("`yarn`"));
        let short = serde_json::json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]});
        let message = with("rope_scaling", short).unwrap_err();
        assert!(message.contains("`rope_scaling.short_factor` is 1 numbers: expected 2"), "{message}");
        assert!(with("hidden_act", "gelu".into()).is_err());
    }

    #[test]
    fn sizes_that_make_no_model_are_refused() {
        for (field, value) in [
            ("num_attention_heads", 3),
            ("num_key_value_heads", 3),
            ("num_key_value_heads", 0),
            ("num_attention_heads", 0),
            ("vocab_size", 0),
            ("sliding_window", 0),
            ("hidden_size", 1u64 << 40),
            ("num_hidden_layers", 0),
            ("num_hidden_layers", 5000),
        ] {
            assert!(with(field, value.into()).is_err(), "{field} = {value}");
        }
        assert!(with("partial_rotary_factor", 0.3.into()).is_err());
        assert!(with("rope_theta", 0.0.into()).is_err());
    }
}
