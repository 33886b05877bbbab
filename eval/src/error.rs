use phi35_model::PromptError;

/// Why something cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The model cannot run these tokens.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The model holds fewer tokens than the windows have.
    #[error("windows of {found} tokens: the model's context holds {limit}")]
    Context {
        /// Tokens asked for.
        found: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// No window can be made of these lengths.
    #[error(
        "windows of {context} tokens, {stride} apart: expected at least 2 tokens, and steps from 1 to the window's length"
    )]
    Windows {
        /// Tokens of a window.
        context: usize,
        /// From one window's start to the next.
        stride: usize,
    },
    /// There is nothing to predict, or to draw prompts from.
    #[error("the text has {found} tokens: expected at least {expected}")]
    TextTooShort {
        /// Tokens of the text.
        found: usize,
        /// So many are needed.
        expected: usize,
    },
    /// Nothing was asked for.
    #[error("expected at least one {0}, found none")]
    Nothing(&'static str),
    /// The two models do not speak of the same tokens.
    #[error("the model has {model} token ids and the reference {reference}: expected the same")]
    Vocabularies {
        /// Of the model.
        model: usize,
        /// Of the reference.
        reference: usize,
    },
    /// A logit is infinite or not a number.
    #[error("the {which}'s logits after token {position} are not finite")]
    NotFinite {
        /// `model` or `reference`.
        which: &'static str,
        /// Tokens of the text before it.
        position: usize,
    },
    /// A task cannot be read.
    #[error("line {line}: {reason}")]
    Task {
        /// Counted from 1.
        line: usize,
        /// What was expected, and found.
        reason: String,
    },
    /// A choice has nothing before it that could tell it.
    #[error("expected at least one token of context before the choices, within the model's {limit} tokens")]
    NoContext {
        /// `max_position_embeddings`.
        limit: usize,
    },
}
