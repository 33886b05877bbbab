//! Fields of a configuration: taken by name, and those refused that would change the numbers.

use super::ConfigError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a JSON object, to be taken by name.
pub(super) struct Fields {
    fields: Map<String, Value>,
    /// Written before the names in errors: `rope_scaling.`, say.
    prefix: &'static str,
}

impl Fields {
    pub(super) fn new(fields: Map<String, Value>, prefix: &'static str) -> Self {
        Self { fields, prefix }
    }

    /// A field, if it is there and not null.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.fields.remove(name).filter(|value| !value.is_null()) else { return Ok(None) };
        let found = value.to_string();
        serde_json::from_value(value).map(Some).map_err(|error| ConfigError::Field {
            field: format!("{}{name}", self.prefix),
            found,
            expected: format!("another type ({error})"),
        })
    }

    /// A field, or `default` where it is absent or null.
    pub(super) fn or<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T, ConfigError> {
        Ok(self.take(name)?.unwrap_or(default))
    }

    /// Takes a field out whatever it holds.
    pub(super) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// A number that may stand in several places, with the same value.
    pub(super) fn take_same<T: DeserializeOwned + PartialEq + std::fmt::Debug>(
        &mut self,
        name: &str,
        outer: Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let inner = self.take(name)?;
        match (&outer, &inner) {
            (Some(outer), Some(inner)) if outer != inner => Err(ConfigError::Field {
                field: format!("{}{name}", self.prefix),
                found: format!("{inner:?}"),
                expected: format!("{outer:?}, as `{name}` says elsewhere in the file"),
            }),
            _ => Ok(outer.or(inner)),
        }
    }

    /// The name and the value of some field that was not taken and is not null.
    pub(super) fn left(&self) -> Option<(String, &Value)> {
        let (name, value) = self.fields.iter().find(|(_, value)| !value.is_null())?;
        Some((format!("{}{name}", self.prefix), value))
    }

    /// Refuses the fields of [`REFUSED`], unless they hold a value that changes nothing.
    pub(super) fn refuse_what_changes_numbers(&self) -> Result<(), ConfigError> {
        for &(name, expected) in REFUSED {
            if let Some(value) = self.fields.get(name).filter(|value| !is_inert(value, expected)) {
                return Err(ConfigError::Field {
                    field: name.to_owned(),
                    found: value.to_string(),
                    expected: expected.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// Fields that would change what a Phi-3 computes and that nothing here implements, and what they may be.
///
/// Those of Hugging Face's `Phi3Config` are read where the configuration is. These are of `PreTrainedConfig` and of
/// architectures that checkpoints of this type were made from.
const REFUSED: &[(&str, &str)] = &[
    ("attention_bias", FALSE),
    ("mlp_bias", FALSE),
    ("qkv_bias", FALSE),
    ("lm_head_bias", FALSE),
    ("use_bias", FALSE),
    ("use_qk_norm", FALSE),
    ("qk_layernorm", FALSE),
    ("rope_interleaved", FALSE),
    ("is_encoder_decoder", FALSE),
    ("add_cross_attention", FALSE),
    ("attn_logit_softcapping", NONE),
    ("final_logit_softcapping", NONE),
    ("query_pre_attn_scalar", NONE),
    ("clip_qkv", NONE),
    ("num_experts", NONE),
    ("num_local_experts", NONE),
    ("pruned_heads", NONE),
    ("logit_scale", ONE),
    ("logits_scaling", ONE),
    ("embedding_multiplier", ONE),
    ("residual_multiplier", ONE),
    ("attention_multiplier", ONE),
];

const FALSE: &str = "false";
const NONE: &str = "none";
const ONE: &str = "1";

fn is_inert(value: &Value, expected: &str) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value && expected == FALSE,
        Value::Number(value) => expected == ONE && value.as_f64() == Some(1.0),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(_) => false,
    }
}
