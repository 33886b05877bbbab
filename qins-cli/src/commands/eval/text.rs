//! The text that models are run on, and its windows.

use crate::{ids, source::Source, text_file};
use anyhow::{Context, Result};
use qins_eval::{Corpus, Windows};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct TextArgs {
    /// A text, taken whole as one string: nothing trimmed, no special tokens added
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// A file with a JSON array of token ids instead; needs no tokenizer
    #[arg(long, value_name = "FILE")]
    pub ids_file: Option<PathBuf>,
}

/// The text, as the output calls it.
#[derive(Serialize)]
pub struct About {
    file: PathBuf,
    bytes: Option<usize>,
    tokens: usize,
    context_tokens: usize,
    stride_tokens: usize,
    windows: usize,
}

impl TextArgs {
    /// Reads the text; `model` has the tokenizer.
    pub fn corpus(&self, model: &Source) -> Result<Corpus> {
        match (&self.text, &self.ids_file) {
            (Some(file), _) => read(file, model),
            (None, file) => Ok(Corpus::from_ids(ids::read(file.as_deref().context("expected --text or --ids-file")?)?)),
        }
    }

    fn file(&self) -> PathBuf {
        self.text.clone().or(self.ids_file.clone()).unwrap_or_default()
    }
}

/// Reads a text.
pub fn read(file: &Path, model: &Source) -> Result<Corpus> {
    let text = text_file::read(file)?;
    Ok(Corpus::new(&text, &model.require_tokenizer()?)?)
}

#[derive(clap::Args)]
pub struct WindowArgs {
    #[command(flatten)]
    pub text: TextArgs,
    /// Tokens of a window, run alone from position 0 [default: 512, or what the model holds if that is less]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens from one window's start to the next; where less than the context, what windows share is predicted once
    /// [default: the context, so that windows do not overlap]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Only the first N windows [default: all]
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
}

/// Tokens of a window where nothing else is asked for.
const CONTEXT: usize = 512;

impl WindowArgs {
    /// The text, its windows, and what the output says of both.
    pub fn read(&self, model: &Source) -> Result<(Corpus, Windows, About)> {
        let corpus = self.text.corpus(model)?;
        let context = match self.context {
            Some(context) => context,
            None => CONTEXT.min(model.config()?.max_position_embeddings),
        };
        let windows = Windows { context, stride: self.stride.unwrap_or(context), limit: self.windows };
        let about = About {
            file: self.text.file(),
            bytes: corpus.bytes(0..corpus.ids.len()),
            tokens: corpus.ids.len(),
            context_tokens: windows.context,
            stride_tokens: windows.stride,
            windows: windows.of(corpus.ids.len())?.len(),
        };
        Ok((corpus, windows, about))
    }
}

impl About {
    /// Windows that will be run.
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// As the output says it.
    pub fn line(&self) -> String {
        let Self { file, bytes, tokens, context_tokens, stride_tokens, windows } = self;
        let bytes = bytes.map(|bytes| format!("{bytes} bytes, ")).unwrap_or_default();
        format!(
            "text       {}: {bytes}{tokens} tokens; {windows} windows of {context_tokens} tokens, {stride_tokens} apart\n",
            file.display()
        )
    }
}
