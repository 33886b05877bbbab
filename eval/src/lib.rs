//! How good a language model is, and how far two are apart.
//!
//! Every function takes models as [`LanguageModel`], which a [`Phi3`](phi35_model::Phi3) of any backend is; two models
//! that are compared may be of different backends. Means carry standard errors over windows, prompts or tasks, which
//! are taken as independent (statistics.rs). Results serialize to JSON with units in the names.
//!
//! | | |
//! |---|---|
//! | [`perplexity`] | how well a model predicts a text |
//! | [`compare`] | how far it is from a reference that reads the same text |
//! | [`greedy`] | how long it writes the same as the reference, and how close the decision was where it does not |
//! | [`sample`] | how far what it draws tokens from is from what the reference draws from |
//! | [`answer`] | how many multiple-choice questions it answers |
//!
//! ```
//! use burn_flex::Flex;
//! use phi35_model::Config;
//! use qins_eval::{Corpus, Windows, compare};
//!
//! let config: Config = serde_json::from_str(
//!     r#"{"model_type": "phi3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
//!         "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
//! )?;
//! let model = config.init::<Flex>(&Default::default())?;
//! let text = Corpus::from_ids((0..200).map(|i| i * 7 % 32).collect());
//! let found = compare(&model, &model, &text, &Windows::new(64), |_| ())?;
//! assert_eq!((found.kl_nats.mean.value, found.same_top1.value), (0.0, 1.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod comparison;
mod corpus;
mod error;
mod greedy;
mod logits;
mod model;
mod perplexity;
mod prompts;
mod sampling;
mod statistics;
mod tasks;

pub use comparison::{Comparison, Divergence, Histogram, WindowComparison, compare};
pub use corpus::{Corpus, Window, Windows};
pub use error::EvalError;
pub use greedy::{FirstDifference, Greedy, NEAR_TIE_LOGITS, PromptResult, WINDOW, greedy};
pub use model::{LanguageModel, PART, Sequence, WithStore};
pub use perplexity::{Perplexity, ScoredText, WindowScore, perplexity};
pub use prompts::{drawn_prompts, random_prompts};
pub use sampling::{SampledWindow, SamplingDistance, sample};
pub use statistics::{ClusterMean, Estimate, mean, median, quantiles, rank_correlation, ranks};
pub use tasks::{AnswerError, Answers, Task, TaskResult, answer, read_tasks};
