//! What `--stop` ends: a text, or the special token that is written so.

use anyhow::{Result, bail};
use phi35_model::{StopText, TextStream, Tokenizer};

/// Watches a text as it comes.
#[derive(Clone)]
pub struct Stops {
    text: StopText,
    /// Special tokens have no text that could be watched for.
    ids: Vec<u32>,
}

impl Stops {
    /// Fails for a text that a special token is part of: it could never come.
    pub fn new(stops: &[String], tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let special_tokens = tokenizer.map(Tokenizer::special_tokens).unwrap_or_default();
        let mut ids = Vec::new();
        for stop in stops {
            let is_whole = |(_, token): &&(u32, String)| token == stop;
            match special_tokens.iter().find(is_whole) {
                Some(&(id, _)) => ids.push(id),
                None => {
                    let part =
                        special_tokens.iter().find(|(_, token)| !token.is_empty() && stop.contains(token.as_str()));
                    if let Some((_, token)) = part {
                        bail!(
                            "--stop {stop:?}: `{token}` is a special token and no part of the text: expected it alone"
                        );
                    }
                }
            }
        }
        Ok(Self { text: StopText::new(stops.to_vec()), ids })
    }

    /// Ids that end a text, without those that are watched for here: they end it by `--stop`.
    pub fn without_own(&self, mut ends: Vec<u32>) -> Vec<u32> {
        ends.retain(|id| !self.ids.contains(id));
        ends
    }

    /// Takes the next token. Returns the text to show, and whether a stop followed it.
    pub fn push(&mut self, id: u32, stream: &mut TextStream<'_>) -> Result<(String, bool)> {
        if self.ids.contains(&id) {
            return Ok((self.finish(stream)?, true));
        }
        Ok(self.text.push(&stream.push(id)?))
    }

    /// What was held back when the text ended.
    pub fn finish(&mut self, stream: &mut TextStream<'_>) -> Result<String> {
        let (text, stopped) = self.text.push(&stream.finish()?);
        Ok(if stopped { text } else { text + &self.text.clone().finish() })
    }
}
