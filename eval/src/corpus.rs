//! Text as token ids, and the windows that it is run in.

use crate::EvalError;
use phi35_model::{Tokenizer, TokenizerError};
use std::ops::Range;

/// A text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The byte of the text at which each token ends; `None` where only ids are known.
    pub ends: Option<Vec<usize>>,
}

impl Corpus {
    /// The whole of a text as one string: nothing is trimmed, no special tokens are added.
    pub fn new(text: &str, tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let (ids, ends) = tokenizer.encode_with_ends(text)?;
        Ok(Self { ids, ends: Some(ends) })
    }

    /// Token ids without a text.
    pub fn from_ids(ids: Vec<u32>) -> Self {
        Self { ids, ends: None }
    }

    /// Bytes of the text that a range of tokens stands for.
    pub fn bytes(&self, tokens: Range<usize>) -> Option<usize> {
        let end = |n: usize| self.ends.as_ref().map(|ends| n.checked_sub(1).map_or(0, |last| ends[last]));
        Some(end(tokens.end)? - end(tokens.start)?)
    }
}

/// How a text is cut into windows, each of which is run alone, from position 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window; the last may be shorter.
    pub context: usize,
    /// From one window's start to the next. Where it is less than `context`, windows overlap and the tokens that they
    /// share are context only, predicted once, in the window that they end first.
    pub stride: usize,
    /// Windows at most; `None` for all.
    pub limit: Option<usize>,
}

/// A window of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens that are run.
    pub tokens: Range<usize>,
    /// Those of them that are predicted. A window's first token never is.
    pub predicted: Range<usize>,
}

impl Windows {
    /// Windows of so many tokens that do not overlap.
    pub fn new(context: usize) -> Self {
        Self { context, stride: context, limit: None }
    }

    /// The windows of a text of `tokens` tokens.
    pub fn of(&self, tokens: usize) -> Result<Vec<Window>, EvalError> {
        let &Self { context, stride, limit } = self;
        if context < 2 || !(1..=context).contains(&stride) {
            return Err(EvalError::Windows { context, stride });
        }
        if tokens < 2 {
            return Err(EvalError::TextTooShort { found: tokens, expected: 2 });
        }
        let mut windows = Vec::new();
        let (mut start, mut done) = (0, 0);
        while done < tokens && windows.len() < limit.unwrap_or(usize::MAX) {
            let end = (start + context).min(tokens);
            let predicted = done.max(start + 1)..end;
            if !predicted.is_empty() {
                windows.push(Window { tokens: start..end, predicted });
            }
            (start, done) = (start + stride, end);
        }
        if windows.is_empty() { Err(EvalError::Nothing("window")) } else { Ok(windows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once_but_those_that_begin_a_window() {
        for (tokens, context, stride) in
            [(100, 10, 10), (101, 10, 10), (102, 10, 3), (7, 10, 10), (2, 2, 1), (50, 7, 6)]
        {
            let windows = Windows { context, stride, limit: None }.of(tokens).unwrap();
            let predicted: Vec<usize> = windows.iter().flat_map(|w| w.predicted.clone()).collect();
            let expected: Vec<usize> = (1..tokens).filter(|t| stride < context || !t.is_multiple_of(context)).collect();
            assert_eq!(predicted, expected, "{tokens} tokens, {context} by {stride}");
            for window in &windows {
                assert!(window.tokens.len() <= context && window.tokens.start < window.predicted.start);
                assert_eq!(window.tokens.end, window.predicted.end);
            }
        }
        let three = Windows { limit: Some(3), ..Windows::new(10) }.of(100).unwrap();
        assert_eq!(three.last().unwrap().tokens, 20..30);
    }

    #[test]
    fn lengths_that_make_no_window_are_refused() {
        for (context, stride) in [(1, 1), (0, 0), (10, 0), (10, 11)] {
            let error = Windows { context, stride, limit: None }.of(100).unwrap_err();
            assert!(matches!(error, EvalError::Windows { .. }), "{error}");
        }
        assert!(matches!(Windows::new(10).of(1), Err(EvalError::TextTooShort { found: 1, expected: 2 })));
        assert!(matches!(Windows { limit: Some(0), ..Windows::new(10) }.of(100), Err(EvalError::Nothing(_))));
    }

    #[test]
    fn bytes_of_neighbours_add_up() {
        let corpus = Corpus { ids: vec![1, 2, 3], ends: Some(vec![4, 4, 9]) };
        assert_eq!([0..1, 1..2, 2..3, 0..3].map(|range| corpus.bytes(range).unwrap()), [4, 0, 5, 9]);
        assert_eq!(Corpus::from_ids(vec![1]).bytes(0..1), None);
    }
}
