//! One file a command: its arguments, its work, its JSON.

pub mod bench;
pub mod chat;
pub mod convert;
pub mod devices;
pub mod eval;
pub mod export;
pub mod generate;
pub mod inspect;
pub mod logits;
pub mod measure;
pub mod report;
pub mod tokenize;
pub mod verify;
