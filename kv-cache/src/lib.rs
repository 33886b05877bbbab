//! An encoded key-value cache for [`phi35_model`]: [`QinsKvCache`] is a [`KvStore`](phi35_model::KvStore) whose keys and
//! values stay in codes, and [`KvChoice`] chooses it, or a float cache, at run time.
//!
//! ```
//! use burn_flex::Flex;
//! use phi35_model::{Config, Generation, Prefix, resume};
//! use qins_kv_cache::KvChoice;
//!
//! # let config: Config = serde_json::from_str(
//! #     r#"{"model_type": "phi3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
//! #         "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
//! # )?;
//! let model = config.init::<Flex>(&Default::default())?;
//! let kv: KvChoice = "q8".parse()?;
//! let prefix = Prefix::with(&model, || kv.store());
//! let tokens = resume(&model, prefix, &[1, 2, 3], Generation { max_new_tokens: 4, ..Default::default() })?;
//! assert_eq!(tokens.count(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod choice;
pub mod file;
mod store;

pub use choice::{ChosenKv, KvChoice, UnknownKv};
pub use store::QinsKvCache;
