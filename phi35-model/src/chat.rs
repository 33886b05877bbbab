//! Conversations as text: the chat template of a model, rendered as Hugging Face renders it.

use crate::{
    ConfigError, PromptError, Tokenizer, TokenizerError,
    config::{parse, read},
};
use minijinja::{Environment, ErrorKind, syntax::SyntaxConfig, value::Serde};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Why a conversation could not become a prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The file cannot be read, or is no JSON of the expected form.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// The model is not made for conversations.
    #[error("{}: expected a `chat_template`, found none", path.display())]
    NoTemplate {
        /// The file.
        path: PathBuf,
    },
    /// The template is wrong, or refuses these messages.
    #[error("{}: chat template: {reason}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What the engine says, or the template itself.
        reason: String,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The last message alone is longer than the model's context.
    #[error(transparent)]
    Prompt(#[from] PromptError),
}

/// The Jinja template that writes a conversation as the model was trained to read it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and others, which templates may name.
    special_tokens: BTreeMap<String, String>,
    path: PathBuf,
}

/// What is read of `tokenizer_config.json`.
#[derive(Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<Templates>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// Steps of the engine that a template may take; Phi-3.5's takes about 20 a message.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// The template of a model directory: `chat_template.jinja` if there is one, else that of `tokenizer_config.json`.
    pub fn read(directory: &Path) -> Result<Self, ChatError> {
        let path = directory.join("tokenizer_config.json");
        let beside = directory.join("chat_template.jinja");
        let json = read(&path)?;
        if !beside.exists() {
            return Self::from_json(&json, &path);
        }
        let template = String::from_utf8(read(&beside)?)
            .map_err(|error| ChatError::Template { path: beside.clone(), reason: error.to_string() })?;
        Self::new(template, parse::<TokenizerConfig>(&json, &path)?.special_tokens(), beside)
    }

    /// The template of a `tokenizer_config.json` already read; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ChatError> {
        let mut config: TokenizerConfig = parse(json, path)?;
        let template = match config.chat_template.take() {
            Some(Templates::One(template)) => Some(template),
            Some(Templates::Named(all)) => all.into_iter().find(|t| t.name == "default").map(|t| t.template),
            None => None,
        };
        let template = template.ok_or_else(|| ChatError::NoTemplate { path: path.to_owned() })?;
        Self::new(template, config.special_tokens(), path.to_owned())
    }

    /// Settings of Hugging Face's `apply_chat_template`.
    fn new(template: String, special_tokens: BTreeMap<String, String>, path: PathBuf) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters differ"));
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        let added = environment.add_template_owned(TEMPLATE, template);
        added.map_err(|error| ChatError::Template { path: path.clone(), reason: error.to_string() })?;
        Ok(Self { environment, special_tokens, path })
    }

    /// The conversation as text; with `answer_follows`, up to where the model's answer begins.
    pub fn render(&self, messages: &[Message], answer_follows: bool) -> Result<String, ChatError> {
        #[derive(Serialize)]
        struct Context<'a> {
            messages: &'a [Message],
            add_generation_prompt: bool,
            #[serde(flatten)]
            special_tokens: &'a BTreeMap<String, String>,
        }
        let context = Context { messages, add_generation_prompt: answer_follows, special_tokens: &self.special_tokens };
        self.environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(Serde(context)))
            .map_err(|error| ChatError::Template { path: self.path.clone(), reason: error.to_string() })
    }
}

const TEMPLATE: &str = "chat_template";

impl TokenizerConfig {
    /// Fields such as `eos_token`: a string, or an object with a `content`.
    fn special_tokens(self) -> BTreeMap<String, String> {
        let content = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => Some(text),
            value => value.get("content")?.as_str().map(str::to_owned),
        };
        let named = self.others.into_iter().filter(|(name, _)| name.ends_with("_token"));
        named.filter_map(|(name, value)| Some((name, content(value)?))).collect()
    }
}

/// A conversation that forgets its oldest exchanges where the model's context would not hold them.
#[derive(Debug, Clone)]
pub struct Conversation {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    /// What the model is told before the first message.
    pub system: Option<String>,
    /// Messages of the user and the assistant, in turn.
    pub messages: Vec<Message>,
}

/// A conversation as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// The model's answer follows these.
    pub ids: Vec<u32>,
    /// Of the oldest messages, so many were left out to make the others fit.
    pub left_out: usize,
}

impl Conversation {
    /// Nothing has been said.
    pub fn new(template: ChatTemplate, tokenizer: Tokenizer) -> Self {
        Self { template, tokenizer, system: None, messages: Vec::new() }
    }

    /// The system message, if there is one, and all others.
    pub fn all_messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text.as_str()));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Tokens that every prompt begins with: those of the system message and of what comes before a user's first word.
    pub fn system_tokens(&self) -> Result<usize, ChatError> {
        let system: Vec<Message> = self.system.iter().map(|text| Message::new("system", text.as_str())).collect();
        let ids = |word: &str| {
            let messages = [&system[..], &[Message::new("user", word)]].concat();
            Ok::<_, ChatError>(self.tokenizer.encode_chat(&self.template.render(&messages, true)?)?)
        };
        let (a, b) = (ids("yes")?, ids("no")?);
        Ok(a.iter().zip(&b).take_while(|(a, b)| a == b).count())
    }

    /// At most `limit` tokens: the system message and the latest exchanges, whole ones, up to the user's last message.
    ///
    /// # Errors
    /// [`PromptError::TooLong`] if that message and the system's do not fit by themselves.
    pub fn prompt(&self, limit: usize) -> Result<ChatPrompt, ChatError> {
        let mut messages = self.all_messages();
        let first = usize::from(self.system.is_some());
        let mut left_out = 0;
        loop {
            let ids = self.tokenizer.encode_chat(&self.template.render(&messages, true)?)?;
            if ids.len() <= limit {
                return Ok(ChatPrompt { ids, left_out });
            }
            // An exchange ends before the user's next message.
            let next = messages.iter().skip(first + 1).position(|message| message.role == "user");
            let Some(next) = next else {
                return Err(PromptError::TooLong { found: ids.len(), limit }.into());
            };
            messages.drain(first..first + 1 + next);
            left_out += next + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: serde_json::Value) -> Result<ChatTemplate, ChatError> {
        ChatTemplate::from_json(value.to_string().as_bytes(), Path::new("tokenizer_config.json"))
    }

    const ROLES: &str = "{% for m in messages %}\n[{{ m['role'] }}] {{ m.content.strip() }}\n{% endfor %}\n\
        {% if add_generation_prompt %}[assistant]{% else %}{{ eos_token }}{% endif %}";

    fn hello() -> Vec<Message> {
        vec![Message::new("user", " hello ")]
    }

    #[test]
    fn templates_render_as_hugging_face_renders_them() {
        let rendered = template(json!({"chat_template": ROLES, "eos_token": "</s>"})).unwrap();
        assert_eq!(rendered.render(&hello(), true).unwrap(), "[user] hello\n[assistant]");
        assert_eq!(rendered.render(&hello(), false).unwrap(), "[user] hello\n</s>");
        let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": ROLES}]);
        let rendered = template(json!({"chat_template": named, "eos_token": {"content": "<e>"}})).unwrap();
        assert_eq!(rendered.render(&[], false).unwrap(), "<e>");
    }

    #[test]
    fn a_template_can_refuse_and_cannot_hang() {
        let refusing = template(json!({"chat_template": "{{ raise_exception('roles must alternate') }}"})).unwrap();
        assert!(refusing.render(&hello(), true).unwrap_err().to_string().contains("roles must alternate"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x\
            {% endfor %}{% endfor %}{% endfor %}";
        let error = template(json!({"chat_template": endless})).unwrap().render(&hello(), true).unwrap_err();
        assert!(matches!(error, ChatError::Template { .. }), "{error}");
        assert!(matches!(template(json!({"chat_template": "{% if %}"})), Err(ChatError::Template { .. })));
        assert!(matches!(template(json!({})), Err(ChatError::NoTemplate { .. })));
    }

    /// Every letter is a token.
    fn letters() -> Tokenizer {
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            ('a'..='z').enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
        let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "z"}});
        Tokenizer::from_json(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap()
    }

    #[test]
    fn the_oldest_exchanges_are_left_out_first_and_the_system_message_never() {
        let plain = template(json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})).unwrap();
        let mut talk = Conversation::new(plain, letters());
        talk.system = Some("ss".to_owned());
        let turns = [("user", "aaa"), ("assistant", "bbb"), ("user", "cc"), ("assistant", "dd"), ("user", "e")];
        talk.messages = turns.iter().map(|&(role, text)| Message::new(role, text)).collect();
        let tokens = |limit| talk.prompt(limit).map(|prompt| (prompt.ids.len(), prompt.left_out));
        assert_eq!(talk.system_tokens().unwrap(), 2);
        assert_eq!(tokens(13).unwrap(), (13, 0));
        assert_eq!(tokens(12).unwrap(), (7, 2));
        assert_eq!(tokens(6).unwrap(), (3, 4));
        assert!(matches!(tokens(2), Err(ChatError::Prompt(PromptError::TooLong { found: 3, limit: 2 }))));
    }
}
