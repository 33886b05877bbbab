//! `config.json` and `generation_config.json` as Hugging Face writes them.

mod fields;
mod generation;
mod rope_scaling;

pub use generation::{GenerationConfig, TokenIds};
pub use rope_scaling::RopeScaling;

use fields::Fields;
use rope_scaling::Rope;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The architecture: `config.json` of a `Phi3ForCausalLM`. What a file leaves out has the defaults of transformers'
/// `Phi3Config`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
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
    /// Longest sequence of the model before its rope was rescaled.
    pub original_max_position_embeddings: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Rescaled rotary wavelengths.
    pub rope_scaling: Option<RopeScaling>,
    /// Share of a head's dimensions that is rotated.
    pub partial_rotary_factor: f64,
    /// Keys that a query sees, itself included.
    pub sliding_window: Option<usize>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Activation of the feed-forward layers.
    pub hidden_act: String,
    /// Ids that end a text.
    pub eos_token_id: TokenIds,
}

/// Why a model's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The file is no JSON, or a field has another type.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: serde_json::Error,
    },
    /// A field has a value that this crate does not implement, or that makes no model.
    #[error("config: `{field}` is {found}: expected {expected}")]
    Field {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The same, of a file.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field and its value.
        reason: Box<ConfigError>,
    },
}

impl TryFrom<Map<String, Value>> for Config {
    type Error = ConfigError;

    /// Fields that are absent or null have the defaults of transformers' `Phi3Config`.
    fn try_from(fields: Map<String, Value>) -> Result<Self, ConfigError> {
        let mut fields = Fields::new(fields, "");
        let field = |field: &str, found: String, expected: &str| ConfigError::Field {
            field: field.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let model_type = fields.or("model_type", String::new())?;
        // Before anything else: other architectures have other fields.
        if model_type != "phi3" {
            return Err(field("model_type", format!("`{model_type}`"), "`phi3`"));
        }
        if let Some(quantized) = fields.take_value("quantization_config") {
            let method = quantized.get("quant_method").cloned().unwrap_or(Value::Bool(true));
            let expected = "a checkpoint that is not quantized already: take the float model it was made from";
            return Err(field("quantization_config", format!("{method}"), expected));
        }
        fields.refuse_what_changes_numbers()?;
        let rope = Rope::take(&mut fields)?;
        let config = Self {
            model_type,
            vocab_size: fields.or("vocab_size", 32064)?,
            hidden_size: fields.or("hidden_size", 3072)?,
            intermediate_size: fields.or("intermediate_size", 8192)?,
            num_hidden_layers: fields.or("num_hidden_layers", 32)?,
            num_attention_heads: fields.or("num_attention_heads", 32)?,
            num_key_value_heads: fields.take("num_key_value_heads")?,
            head_dim: fields.take("head_dim")?,
            max_position_embeddings: fields.or("max_position_embeddings", 4096)?,
            original_max_position_embeddings: rope.original_length.unwrap_or(4096),
            rms_norm_eps: fields.or("rms_norm_eps", 1e-5)?,
            rope_theta: rope.theta.unwrap_or(10000.0),
            rope_scaling: rope.scaling,
            partial_rotary_factor: rope.partial_rotary_factor.unwrap_or(1.0),
            sliding_window: fields.take("sliding_window")?,
            tie_word_embeddings: fields.or("tie_word_embeddings", false)?,
            hidden_act: fields.or("hidden_act", "silu".to_owned())?,
            eos_token_id: fields.or("eos_token_id", TokenIds::default())?,
        };
        // What other architectures say about the window must agree with it.
        let windowed = config.sliding_window.is_some();
        if windowed && fields.take("use_sliding_window")? == Some(false) {
            return Err(field("use_sliding_window", "false".to_owned(), "no `sliding_window` with it"));
        }
        let layer_type = if windowed { "sliding_attention" } else { "full_attention" };
        let layer_types = fields.take::<Vec<String>>("layer_types")?.unwrap_or_default();
        match layer_types.iter().find(|found| *found != layer_type) {
            Some(found) => Err(field("layer_types", format!("`{found}`"), &format!("`{layer_type}` in all layers"))),
            None => Ok(config),
        }
    }
}

impl Config {
    /// Reads and checks `config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::from_json(&read(path)?, path)
    }

    /// Checks a `config.json` already read; `path` is what errors call it. The layouts of transformers 4 and 5 are both
    /// read.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let invalid = |reason| ConfigError::Invalid { path: path.to_owned(), reason: Box::new(reason) };
        let config = Self::try_from(parse::<Map<String, Value>>(json, path)?).map_err(invalid)?;
        config.validate().map_err(invalid)?;
        Ok(config)
    }

    /// Checks that the sizes make a model and that everything asked for is implemented.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let require = |ok: bool, field: &str, found: String, expected: &str| {
            if ok {
                Ok(())
            } else {
                Err(ConfigError::Field { field: field.to_owned(), found, expected: expected.to_owned() })
            }
        };
        require(self.model_type == "phi3", "model_type", format!("`{}`", self.model_type), "`phi3`")?;
        // Two names of one function in transformers.
        let silu = ["silu", "swish"].contains(&self.hidden_act.as_str());
        require(silu, "hidden_act", format!("`{}`", self.hidden_act), "`silu`")?;
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
            for (field, factor) in [
                ("rope_scaling.factor", scaling.factor),
                ("rope_scaling.attention_factor", scaling.attention_factor),
                // By `factor` and the lengths.
                ("original_max_position_embeddings", Some(self.attention_factor())),
            ] {
                let factor = factor.unwrap_or(1.0);
                require(factor > 0.0 && factor.is_finite(), field, factor.to_string(), "a factor above 0")?;
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
        self.original_max_position_embeddings
    }

    /// What cosine and sine of the rope are multiplied by. Source: `_compute_longrope_parameters` of Hugging Face's
    /// `modeling_rope_utils`; 1 without longrope.
    pub fn attention_factor(&self) -> f64 {
        let Some(scaling) = &self.rope_scaling else { return 1.0 };
        let original = self.original_length() as f64;
        let factor = scaling.factor.unwrap_or(self.max_position_embeddings as f64 / original);
        let by_factor = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        scaling.attention_factor.unwrap_or(by_factor)
    }

    /// Dimensions of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        (self.head_size() as f64 * self.partial_rotary_factor) as usize
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })
}

pub(crate) fn parse<T: DeserializeOwned>(json: &[u8], path: &Path) -> Result<T, ConfigError> {
    // Windows' editors write a byte order mark before the text.
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    serde_json::from_slice(json).map_err(|reason| ConfigError::Parse { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests;
