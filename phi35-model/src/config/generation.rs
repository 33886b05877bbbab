use super::{ConfigError, parse, read};
use crate::Sampling;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

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
    /// Whether tokens are drawn; false takes the most likely one each time.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Only the so many most likely tokens; 0 for all.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Only tokens at least this likely beside the most likely one.
    pub min_p: Option<f32>,
    /// Makes tokens already in the text less likely.
    pub repetition_penalty: Option<f32>,
    /// All other fields.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Fields that would choose other tokens and that nothing here implements, and their values that change nothing.
const NOT_IMPLEMENTED: &[(&str, &[f64])] = &[
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("top_h", &[]),
    ("no_repeat_ngram_size", &[0.0]),
    ("num_beams", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("guidance_scale", &[1.0]),
    ("bad_words_ids", &[]),
    ("suppress_tokens", &[]),
    ("begin_suppress_tokens", &[]),
    ("sequence_bias", &[]),
    ("forced_bos_token_id", &[]),
    ("min_new_tokens", &[0.0]),
    ("min_length", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
];

impl GenerationConfig {
    /// Reads `generation_config.json`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::from_json(&read(path)?, path)
    }

    /// A `generation_config.json` already read; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ConfigError> {
        let config: Self = parse(json, path)?;
        let legal = |field: &str, value: Option<f32>, legal: fn(f32) -> bool, expected: &str| match value {
            Some(value) if !legal(value) => Err(ConfigError::Invalid {
                path: path.to_owned(),
                reason: Box::new(ConfigError::Field {
                    field: field.to_owned(),
                    found: value.to_string(),
                    expected: expected.to_owned(),
                }),
            }),
            _ => Ok(()),
        };
        let probability = |value: f32| (0.0..=1.0).contains(&value);
        legal("temperature", config.temperature, |t| t.is_finite() && t >= 0.0, "a number of at least 0")?;
        legal("top_p", config.top_p, probability, "a number from 0 to 1")?;
        legal("min_p", config.min_p, probability, "a number from 0 to 1")?;
        let penalty = config.repetition_penalty;
        legal("repetition_penalty", penalty, |r| r.is_finite() && r > 0.0, "a number above 0")?;
        Ok(config)
    }

    /// How the file asks for tokens to be drawn, as transformers reads it: where it samples, what it does not name has
    /// transformers' defaults (temperature 1, the 50 most likely tokens). `None` if it says nothing of that.
    pub fn sampling(&self) -> Option<Sampling> {
        let named = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let samples = self.do_sample.or(named.then_some(true))?;
        Some(Sampling {
            temperature: if samples { self.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: self.top_k.unwrap_or(if samples { 50 } else { 0 }),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            seed: 0,
        })
    }

    /// Fields of the file that would choose other tokens and that nothing here implements.
    pub fn not_implemented(&self) -> Vec<&'static str> {
        let changes = |value: &Value, inert: &[f64]| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(values) => !values.is_empty(),
            Value::Object(values) => !values.is_empty(),
            value => !value.as_f64().is_some_and(|value| inert.contains(&value)),
        };
        let field = |&(name, inert): &(&'static str, &[f64])| {
            self.others.get(name).is_some_and(|value| changes(value, inert)).then_some(name)
        };
        NOT_IMPLEMENTED.iter().filter_map(field).collect()
    }
}
