//! Phi-3 and Phi-3.5 in plain Burn, generic over the backend.
//!
//! [`Phi3`] is a Burn module whose field names are Hugging Face's parameter names. Read top-down: [`Phi3`] (model.rs),
//! its decoder layers (block.rs), attention with rotary positions (attention.rs, rope.rs, mask.rs) over a key-value
//! cache (cache.rs), and the feed-forward layers (mlp.rs). [`generate`] turns it into tokens, [`Batch`] for
//! several texts at once, and [`Tokenizer`] tokens into text.
//!
//! ```
//! use burn_flex::Flex;
//! use phi35_model::{Config, Generation, generate};
//!
//! let config: Config = serde_json::from_str(
//!     r#"{"model_type": "phi3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
//!         "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
//! )?;
//! let model = config.init::<Flex>(&Default::default())?;
//! let ids: Vec<u32> = generate(&model, &[1, 2, 3], Generation { max_new_tokens: 4, ..Default::default() })?.collect();
//! assert_eq!(ids.len(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod batch;
mod block;
mod cache;
mod chat;
mod config;
mod generation;
mod mask;
mod mlp;
mod model;
mod rope;
mod sampling;
mod stop;
mod tokenizer;

pub use attention::Attention;
pub use batch::Batch;
pub use block::DecoderLayer;
pub use cache::{DenseKv, KvCache, KvStore, first_kept};
pub use chat::{ChatError, ChatPrompt, ChatTemplate, Conversation, Message, SpecialTokens};
pub use config::{Config, ConfigError, GenerationConfig, RopeScaling, TokenIds};
pub use generation::{Generate, Generation, Prefix, PromptError, StopReason, check_prompt, generate, resume};
pub use mask::{Mask, QueryMask};
pub use mlp::Mlp;
pub use model::{Decoder, Phi3};
pub use rope::{Positions, Rope};
pub use sampling::{NotFinite, Sampler, Sampling};
pub use stop::StopText;
pub use tokenizer::{TextStream, Tokenizer, TokenizerError};
