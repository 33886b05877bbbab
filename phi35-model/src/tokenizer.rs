//! Text to tokens and back, by Hugging Face's `tokenizers`.

use std::path::{Path, PathBuf};

/// A model's `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
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
        let inner = tokenizers::Tokenizer::from_file(path)
            .map_err(|e| TokenizerError::Read { path: path.to_owned(), reason: e.to_string() })?;
        Ok(Self { inner })
    }

    /// The ids of a text, with the special tokens that the tokenizer adds around one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true).map_err(|e| TokenizerError::Tokenize(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let vocabulary = self.vocabulary();
        if let Some(&found) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(TokenizerError::UnknownId { found, vocabulary });
        }
        self.inner.decode(ids, true).map_err(|e| TokenizerError::Tokenize(e.to_string()))
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The text that follows `prompt`, piece by piece.
    pub fn stream<'t>(&'t self, prompt: &[u32]) -> Result<TextStream<'t>, TokenizerError> {
        let mut stream = TextStream { decode: self.inner.decode_stream(true) };
        for &id in prompt {
            stream.push(id)?;
        }
        Ok(stream)
    }
}

/// Decodes tokens as they come; a character that needs several tokens comes whole, with the last of them.
pub struct TextStream<'t> {
    decode: tokenizers::tokenizer::DecodeStream<
        't,
        tokenizers::ModelWrapper,
        tokenizers::NormalizerWrapper,
        tokenizers::PreTokenizerWrapper,
        tokenizers::PostProcessorWrapper,
        tokenizers::DecoderWrapper,
    >,
}

impl TextStream<'_> {
    /// The text that this token completes, perhaps none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        let piece = self.decode.step(id).map_err(|e| TokenizerError::Tokenize(e.to_string()))?;
        Ok(piece.unwrap_or_default())
    }
}
