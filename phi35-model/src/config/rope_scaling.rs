//! The rope of a configuration, in the layouts of transformers 4 and 5.

use super::{ConfigError, fields::Fields};
use serde_json::{Map, Value};

/// Rescaled rotary wavelengths: one factor a wavelength, and other factors for long sequences (longrope).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeScaling {
    /// Factors for sequences of at most the original length.
    pub short_factor: Vec<f32>,
    /// Factors for longer sequences.
    pub long_factor: Vec<f32>,
    /// How much longer sequences became; `max_position_embeddings / original_max_position_embeddings` if absent. Only the
    /// attention factor depends on it.
    pub factor: Option<f64>,
    /// What cosine and sine are multiplied by; follows from `factor` if absent.
    pub attention_factor: Option<f64>,
}

/// What a configuration says of its rope.
pub(super) struct Rope {
    pub(super) theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) original_length: Option<usize>,
    pub(super) scaling: Option<RopeScaling>,
}

impl Rope {
    /// Transformers 4 has `rope_theta`, `partial_rotary_factor` and `original_max_position_embeddings` beside
    /// `rope_scaling`, transformers 5 keeps all of them in `rope_parameters`. What a file says twice must be the same.
    pub(super) fn take(config: &mut Fields) -> Result<Self, ConfigError> {
        let mut rope = Self {
            theta: config.take("rope_theta")?,
            partial_rotary_factor: config.take("partial_rotary_factor")?,
            original_length: config.take("original_max_position_embeddings")?,
            scaling: None,
        };
        for (layout, prefix) in [("rope_scaling", "rope_scaling."), ("rope_parameters", "rope_parameters.")] {
            let Some(fields) = config.take::<Map<String, Value>>(layout)? else { continue };
            let found = rope.take_layout(Fields::new(fields, prefix))?;
            match (&rope.scaling, &found) {
                (Some(before), Some(found)) if before != found => {
                    return Err(ConfigError::Field {
                        field: layout.to_owned(),
                        found: format!("{found:?}"),
                        expected: "the same as `rope_scaling`".to_owned(),
                    });
                }
                _ => rope.scaling = found.or(rope.scaling.take()),
            }
        }
        Ok(rope)
    }

    fn take_layout(&mut self, mut fields: Fields) -> Result<Option<RopeScaling>, ConfigError> {
        self.theta = fields.take_same("rope_theta", self.theta)?;
        self.partial_rotary_factor = fields.take_same("partial_rotary_factor", self.partial_rotary_factor)?;
        self.original_length = fields.take_same("original_max_position_embeddings", self.original_length)?;
        // `rope_type` was `type` at first; a file may have both.
        let kinds = [fields.take::<String>("type")?, fields.take::<String>("rope_type")?];
        let [short_factor, long_factor] =
            [fields.take::<Vec<f32>>("short_factor")?, fields.take::<Vec<f32>>("long_factor")?];
        let refused = |kind: &str, expected: &str| {
            Err(ConfigError::Field {
                field: "rope_scaling".to_owned(),
                found: format!("`{kind}`"),
                expected: expected.to_owned(),
            })
        };
        let has_factors = short_factor.is_some() || long_factor.is_some();
        let mut longrope = None;
        for kind in kinds.into_iter().flatten() {
            let is_longrope = match kind.as_str() {
                "default" => false,
                "longrope" => true,
                // What Phi-3 called longrope in 2024.
                "su" | "yarn" if has_factors => true,
                kind => return refused(kind, "none or `longrope`"),
            };
            if longrope.is_some_and(|before| before != is_longrope) {
                return refused(&kind, "one kind: `type` and `rope_type` contradict each other");
            }
            longrope = Some(is_longrope);
        }
        let scaling = match longrope {
            Some(true) => Some(RopeScaling {
                short_factor: short_factor.unwrap_or_default(),
                long_factor: long_factor.unwrap_or_default(),
                factor: fields.take("factor")?,
                attention_factor: fields.take("attention_factor")?,
            }),
            _ if has_factors => return refused("no type", "`longrope` for `short_factor` and `long_factor`"),
            _ => None,
        };
        match fields.left() {
            Some((field, value)) => Err(ConfigError::Field {
                field,
                found: value.to_string(),
                expected: match longrope {
                    Some(true) => "no such field in a `longrope`",
                    _ => "no such field in a rope without scaling",
                }
                .to_owned(),
            }),
            None => Ok(scaling),
        }
    }
}
