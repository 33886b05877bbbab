use super::{ChatError, Message, SpecialTokens, jinja_source, json, python};
use crate::{
    Tokenizer,
    config::{parse, read},
};
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The Jinja template that writes a conversation as the model was trained to read it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: SpecialTokens,
    path: PathBuf,
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

const TEMPLATE: &str = "chat_template";

/// Steps of the engine that a template may take; Phi-3.5's takes about 20 a message.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// The template of a model directory: `chat_template.jinja` if there is one, else the default one of
    /// `additional_chat_templates`, else that of `tokenizer_config.json`.
    pub fn read(directory: &Path) -> Result<Self, ChatError> {
        let special_tokens = SpecialTokens::read(directory)?;
        for file in ["chat_template.jinja", "additional_chat_templates/default.jinja"] {
            let path = directory.join(file);
            if path.exists() {
                let template = String::from_utf8(read(&path)?)
                    .map_err(|error| ChatError::Template { path: path.clone(), reason: error.to_string() })?;
                return Self::new(&template, special_tokens, path);
            }
        }
        let path = directory.join("tokenizer_config.json");
        Self::of_config(parse(&read(&path)?, &path)?, special_tokens, path)
    }

    /// The template of a `tokenizer_config.json` already read; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ChatError> {
        let config: Map<String, serde_json::Value> = parse(json, path)?;
        let special_tokens = SpecialTokens::new(config.clone(), Map::new());
        Self::of_config(config, special_tokens, path.to_owned())
    }

    fn of_config(
        mut config: Map<String, serde_json::Value>,
        special_tokens: SpecialTokens,
        path: PathBuf,
    ) -> Result<Self, ChatError> {
        let wrong = |reason: String| ChatError::Template { path: path.clone(), reason };
        let template = match config.remove("chat_template").filter(|template| !template.is_null()) {
            None => return Err(ChatError::NoTemplate { path }),
            Some(template) => match serde_json::from_value(template) {
                Ok(Templates::One(template)) => template,
                Ok(Templates::Named(all)) => {
                    let names: Vec<String> = all.iter().map(|template| format!("`{}`", template.name)).collect();
                    let default = all.into_iter().find(|template| template.name == "default");
                    let missing = || wrong(format!("expected one that is named `default`, found {}", names.join(", ")));
                    default.ok_or_else(missing)?.template
                }
                Err(_) => {
                    return Err(wrong("expected a text, or a list of objects with `name` and `template`".to_owned()));
                }
            },
        };
        Self::new(&template, special_tokens, path)
    }

    /// Settings of Hugging Face's `apply_chat_template`.
    fn new(template: &str, special_tokens: SpecialTokens, path: PathBuf) -> Result<Self, ChatError> {
        let mut environment = environment();
        let added = environment.add_template_owned(TEMPLATE, jinja_source::rewrite(template));
        added.map_err(|error| ChatError::Template { path: path.clone(), reason: error.to_string() })?;
        Ok(Self { environment, special_tokens, path })
    }

    /// The conversation as text; with `answer_follows`, up to where the model's answer begins.
    pub fn render(&self, messages: &[Message], answer_follows: bool) -> Result<String, ChatError> {
        /// What transformers gives to templates.
        #[derive(Serialize)]
        struct Context<'a> {
            messages: &'a [Message],
            tools: Option<()>,
            documents: Option<()>,
            add_generation_prompt: bool,
            #[serde(flatten)]
            special_tokens: &'a BTreeMap<String, serde_json::Value>,
        }
        let context = Context {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: answer_follows,
            special_tokens: self.special_tokens.variables(),
        };
        self.environment
            .get_template(TEMPLATE)
            .and_then(|template| template.render(Serde(context)))
            .map_err(|error| ChatError::Template { path: self.path.clone(), reason: error.to_string() })
    }

    /// The special token that follows an assistant's message, whatever comes after it. `None` if the template writes
    /// none, or does not write such messages.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const ANSWER: &str = "The answer of the assistant.";
        let messages =
            [Message::new("user", "Hello."), Message::new("assistant", ANSWER), Message::new("user", "Thank you.")];
        let special_tokens = tokenizer.special_tokens();
        let after = |messages: &[Message]| {
            let text = self.render(messages, false).ok()?;
            let rest = text.rsplit_once(ANSWER)?.1.trim_start();
            let begins = special_tokens.iter().filter(|(_, token)| !token.is_empty() && rest.starts_with(token));
            begins.max_by_key(|(_, token)| token.len()).map(|&(id, _)| id)
        };
        // What follows the last message alone might begin the next.
        let [last, followed] = [after(&messages[..2])?, after(&messages)?];
        (last == followed).then_some(last)
    }

    /// Whether the template writes nothing of a system message.
    pub fn drops_system(&self, text: &str) -> bool {
        let rendered =
            |system: &str| self.render(&[Message::new("system", system), Message::new("user", "Hello.")], true).ok();
        let other = format!("{text}?");
        rendered(text).is_some_and(|with| rendered(&other) == Some(with))
    }
}

/// Jinja as transformers sets it up, in its sandbox.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters differ"));
    environment.set_fuel(Some(FUEL));
    minijinja_contrib::add_to_environment(&mut environment);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", json::to_json);
    environment.add_filter(jinja_source::PERCENT, |left: &Value, right: &Value| python::percent(left, right));
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_test("iterable", |value: &Value| {
        let kinds = [ValueKind::Seq, ValueKind::Map, ValueKind::String, ValueKind::Iterable, ValueKind::Undefined];
        kinds.contains(&value.kind())
    });
    environment
        .add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain) && value.as_object().is_some());
    environment.add_function("raise_exception", |reason: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// The time here and now, formatted as Python's `datetime.now().strftime` does in the C locale.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut understood = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match (c, if c == '%' { rest.next() } else { None }) {
            // Python's time here and now knows no zone, and its microseconds are six digits.
            ('%', Some('z' | 'Z')) => (),
            ('%', Some('f')) => understood.push_str("%6f"),
            ('%', Some(other)) => understood.extend(['%', other]),
            ('%', None) => understood.push_str("%%"),
            _ => understood.push(c),
        }
    }
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let now = BrokenDownTime::from(&jiff::ZonedDateTime::now());
    now.to_string_with_config(&config, &understood)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}
