use super::{ChatError, ChatTemplate, Message};
use crate::{PromptError, Tokenizer};

/// A conversation that forgets its oldest exchanges where the model's context would not hold them.
#[derive(Debug, Clone)]
pub struct Conversation {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    /// What the model is told before the first message.
    pub system: Option<String>,
    /// Messages of the user and the assistant, in turn.
    pub messages: Vec<Message>,
}

/// A conversation as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// The model's answer follows these.
    pub ids: Vec<u32>,
    /// Of the oldest messages, so many were left out to make the others fit.
    pub left_out: usize,
}

impl Conversation {
    /// Nothing has been said.
    pub fn new(template: ChatTemplate, tokenizer: Tokenizer) -> Self {
        Self { template, tokenizer, system: None, messages: Vec::new() }
    }

    /// The system message, if there is one, and all others.
    pub fn all_messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text.as_str()));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Tokens that every prompt begins with: those of the system message and of what comes before a user's first word.
    pub fn system_tokens(&self) -> Result<usize, ChatError> {
        let system: Vec<Message> = self.system.iter().map(|text| Message::new("system", text.as_str())).collect();
        let ids = |word: &str| {
            let messages = [&system[..], &[Message::new("user", word)]].concat();
            Ok::<_, ChatError>(self.tokenizer.encode_chat(&self.template.render(&messages, true)?)?)
        };
        let (a, b) = (ids("yes")?, ids("no")?);
        Ok(a.iter().zip(&b).take_while(|(a, b)| a == b).count())
    }

    /// At most `limit` tokens: the system message and the latest exchanges, whole ones, up to the user's last message.
    ///
    /// # Errors
    /// [`PromptError::TooLong`] if that message and the system's do not fit by themselves.
    pub fn prompt(&self, limit: usize) -> Result<ChatPrompt, ChatError> {
        let messages = self.all_messages();
        let first = usize::from(self.system.is_some());
        // An exchange ends before the user's next message: the prompt may begin with any of these.
        let later = messages.iter().enumerate().skip(first + 1).filter(|(_, message)| message.role == "user");
        let starts: Vec<usize> = std::iter::once(first).chain(later.map(|(i, _)| i)).collect();
        let from = |start: usize| {
            let kept = [&messages[..first], &messages[starts[start].min(messages.len())..]].concat();
            let ids = self.tokenizer.encode_chat(&self.template.render(&kept, true)?)?;
            Ok::<_, ChatError>(ChatPrompt { ids, left_out: starts[start] - first })
        };
        let whole = from(0)?;
        if whole.ids.len() <= limit {
            return Ok(whole);
        }
        // From the end, twice as many exchanges at a time, so that no prompt is much longer than the limit; then the
        // longest one that fits between the last two.
        let last = starts.len() - 1;
        let (mut fits, mut too_long) = (None, 0);
        let mut kept = 1;
        while kept <= last {
            let prompt = from(last + 1 - kept)?;
            if prompt.ids.len() > limit {
                too_long = last + 1 - kept;
                break;
            }
            fits = Some((last + 1 - kept, prompt));
            kept *= 2;
        }
        let Some((mut start, mut longest)) = fits else {
            let found = if last == 0 { whole.ids.len() } else { from(last)?.ids.len() };
            return Err(PromptError::TooLong { found, limit }.into());
        };
        while too_long + 1 < start {
            let middle = too_long.midpoint(start);
            let prompt = from(middle)?;
            if prompt.ids.len() > limit {
                too_long = middle;
            } else {
                (start, longest) = (middle, prompt);
            }
        }
        Ok(longest)
    }
}
