//! Text to tokens and back, by Hugging Face's `tokenizers`.

use std::path::{Path, PathBuf};

/// A model's `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
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
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| TokenizerError::Read { path: path.to_owned(), reason: e.to_string() })?;
        Ok(Self { inner, shows_special: false })
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
        let vocabulary = self.vocabulary();
        if let Some(&found) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(TokenizerError::UnknownId { found, vocabulary });
        }
        self.decode_known(ids)
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The text that follows `prompt`, piece by piece.
    pub fn stream(&self, prompt: &[u32]) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: prompt.to_vec(), context: 0, shown: prompt.len() }
    }

    /// Ids that the tokenizer does not know have no text.
    fn decode_known(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, !self.shows_special).map_err(|e| TokenizerError::Tokenize(e.to_string()))
    }
}

/// Decodes tokens as they come; a character that needs several tokens comes whole, with the last of them.
#[derive(Debug, Clone)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// A token's text depends on those before it (a leading blank, say): decoding starts here.
    context: usize,
    /// Tokens whose text has been given out.
    shown: usize,
}

/// Tokens that one character can take: the bytes of the longest.
const LONGEST_CHARACTER: usize = 4;

impl TextStream<'_> {
    /// The text that this token completes, perhaps none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let before = self.tokenizer.decode_known(&self.ids[self.context..self.shown])?;
        let now = self.tokenizer.decode_known(&self.ids[self.context..])?;
        let unfinished = now.ends_with(char::REPLACEMENT_CHARACTER);
        if unfinished && self.ids.len() - self.shown < LONGEST_CHARACTER {
            return Ok(String::new());
        }
        let piece = now.get(before.len()..).unwrap_or_default().to_owned();
        // A token without text, a special one, is no context for the next.
        if !piece.is_empty() {
            self.context = self.shown;
        }
        self.shown = self.ids.len();
        Ok(piece)
    }
}
