//! Conversations as text: the chat template of a model, rendered as Hugging Face renders it.

mod conversation;
mod jinja_source;
mod json;
mod python;
mod special_tokens;
mod template;
#[cfg(test)]
mod tests;

pub use conversation::{ChatPrompt, Conversation};
pub use special_tokens::SpecialTokens;
pub use template::ChatTemplate;

use crate::{ConfigError, PromptError, TokenizerError};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
