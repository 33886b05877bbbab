//! Text to tokens and back, by Hugging Face's `tokenizers`.

mod pre_tokenizer;
mod stream;
#[cfg(test)]
mod tests;

pub use stream::TextStream;

use pre_tokenizer::WordSplitter;
use std::path::{Path, PathBuf};
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl};

/// A model's `tokenizer.json`. Truncation and padding that it was saved with do not count: texts are read whole, as
/// transformers reads them.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: TokenizerImpl<ModelWrapper, NormalizerWrapper, WordSplitter, PostProcessorWrapper, DecoderWrapper>,
    /// One more than the largest id.
    vocabulary: usize,
    shows_special: bool,
}

/// Why text could not become tokens, or tokens text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or no tokenizer.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library says.
        reason: String,
    },
    /// The library failed on this text or these ids.
    #[error("tokenizer: {0}")]
    Tokenize(String),
    /// The tokenizer has no such id.
    #[error("token id {found}: the tokenizer has {vocabulary} ids")]
    UnknownId {
        /// The id.
        found: u32,
        /// One more than the largest id.
        vocabulary: usize,
    },
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn read(path: &Path) -> Result<Self, TokenizerError> {
        let error = |e: std::io::Error| TokenizerError::Read { path: path.to_owned(), reason: e.to_string() };
        Self::from_json(&std::fs::read(path).map_err(error)?, path)
    }

    /// A `tokenizer.json` already read; `path` is what errors call it.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, TokenizerError> {
        let error =
            |reason: tokenizers::Error| TokenizerError::Read { path: path.to_owned(), reason: reason.to_string() };
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        let mut inner = TokenizerImpl::from_bytes(json).map_err(error)?;
        inner.with_truncation(None).map_err(error)?;
        inner.with_padding(None);
        let vocabulary = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { inner, vocabulary, shows_special: false })
    }

    /// Special tokens are part of the text that ids are decoded to.
    pub fn showing_special_tokens(self) -> Self {
        Self { shows_special: true, ..self }
    }

    /// The ids of a text, with the special tokens that the tokenizer adds around one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, true)
    }

    /// The ids of a text that has its special tokens already, as a chat template writes them.
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    /// The ids of a text, no special tokens added, and for each the byte of the text at which it ends.
    pub fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>), TokenizerError> {
        let encoding = self.inner.encode(text, false).map_err(|e| TokenizerError::Tokenize(e.to_string()))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().iter().map(|&(_, end)| end).collect()))
    }

    fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, add_special).map_err(|e| TokenizerError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, without special tokens unless they are [shown](Self::showing_special_tokens).
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let vocabulary = self.vocabulary;
        if let Some(&found) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(TokenizerError::UnknownId { found, vocabulary });
        }
        self.decode_known(ids)
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id of a token that is written so.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Special tokens and their ids: they are no part of the text that ids are decoded to.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect()
    }

    /// The text that follows `prompt`, piece by piece.
    pub fn stream(&self, prompt: &[u32]) -> TextStream<'_> {
        TextStream::new(self, prompt)
    }

    /// Ids that the tokenizer does not know have no text.
    fn decode_known(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, !self.shows_special).map_err(|e| TokenizerError::Tokenize(e.to_string()))
    }
}
