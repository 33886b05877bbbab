use super::{Tokenizer, TokenizerError};

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

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Self {
        Self { tokenizer, ids: prompt.to_vec(), context: 0, shown: prompt.len() }
    }

    /// The tokenizer that decodes.
    pub fn tokenizer(&self) -> &'t Tokenizer {
        self.tokenizer
    }

    /// The text that this token completes, perhaps none.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        self.give_out(true)
    }

    /// The text that was held back for tokens that did not come, when no more come.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        self.give_out(false)
    }

    fn give_out(&mut self, goes_on: bool) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode_known(&self.ids[self.context..self.shown])?;
        let now = self.tokenizer.decode_known(&self.ids[self.context..])?;
        // A character like any other, or what stands for half of one.
        let unfinished = now.ends_with(char::REPLACEMENT_CHARACTER);
        if goes_on && unfinished && self.ids.len() - self.shown < LONGEST_CHARACTER {
            return Ok(String::new());
        }
        let piece = match now.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            // Bytes that are no text made those before them no text, too; they have been given out already.
            None => self.tokenizer.decode_known(&self.ids[self.shown..])?,
        };
        // A token without text, a special one, is no context for the next.
        if !piece.is_empty() {
            self.context = self.shown;
        }
        self.shown = self.ids.len();
        Ok(piece)
    }
}
