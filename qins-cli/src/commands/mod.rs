//! One file a command: its arguments, its work, its JSON.

pub mod chat;
pub mod generate;
pub mod logits;
pub mod tokenize;
