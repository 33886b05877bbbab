//! The special tokens that a tokenizer's files name, as transformers gives them to chat templates.

use super::ChatError;
use crate::config::{parse, read};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::Path};

/// `bos_token`, `eos_token` and others by name; `additional_special_tokens` is a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecialTokens(BTreeMap<String, Value>);

/// Tokens of transformers' tokenizer classes, where a file does not name them.
const OF_CLASSES: &[(&str, &[(&str, &str)])] = &[
    ("Llama", &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]),
    ("GPT2", &[("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)]),
    ("Qwen2", &[("eos_token", END_OF_TEXT), ("pad_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)]),
];

const END_OF_TEXT: &str = "<|endoftext|>";

impl SpecialTokens {
    /// Those of `tokenizer_config.json` and `special_tokens_map.json`, as far as a directory has them.
    pub fn read(directory: &Path) -> Result<Self, ChatError> {
        let file = |name: &str| {
            let path = directory.join(name);
            path.exists().then(|| parse::<Map<String, Value>>(&read(&path)?, &path)).transpose()
        };
        Ok(Self::new(
            file("tokenizer_config.json")?.unwrap_or_default(),
            file("special_tokens_map.json")?.unwrap_or_default(),
        ))
    }

    /// Those of a `tokenizer_config.json` already read; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ChatError> {
        Ok(Self::new(parse(json, path)?, Map::new()))
    }

    /// Old tokenizers keep their tokens in `special_tokens_map.json`, which counts more there; newer ones list them in
    /// `added_tokens_decoder`, and what the map says counts only where the configuration says nothing.
    pub(super) fn new(config: Map<String, Value>, map: Map<String, Value>) -> Self {
        let is_newer = config.get("added_tokens_decoder").is_some_and(Value::is_object);
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut tokens = BTreeMap::new();
        let sources = if is_newer { [map, config] } else { [config, map] };
        for (name, value) in sources.into_iter().flatten() {
            match (name.as_str(), &value) {
                // Names of a model's own: `image_token`, say.
                ("extra_special_tokens", Value::Object(named)) => {
                    tokens.extend(named.iter().map(|(name, value)| (name.clone(), content(value))));
                }
                ("additional_special_tokens" | "extra_special_tokens", Value::Array(all)) => {
                    let all = all.iter().filter_map(content).collect();
                    tokens.insert("additional_special_tokens".to_owned(), Some(Value::Array(all)));
                }
                (name, value) if name.ends_with("_token") && !value.is_boolean() => {
                    tokens.insert(name.to_owned(), content(value));
                }
                _ => (),
            }
        }
        let defaults =
            OF_CLASSES.iter().find(|(start, _)| class.starts_with(start)).map_or(&[][..], |(_, tokens)| tokens);
        for &(name, token) in defaults {
            tokens.entry(name.to_owned()).or_insert_with(|| Some(token.into()));
        }
        Self(tokens.into_iter().filter_map(|(name, token)| Some((name, token?))).collect())
    }

    /// The token of a name such as `eos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// All of them, for a template.
    pub(super) fn variables(&self) -> &BTreeMap<String, Value> {
        &self.0
    }
}

/// A token is a string, or an object with a `content`.
fn content(value: &Value) -> Option<Value> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    Some(content.into())
}
