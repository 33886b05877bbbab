//! The encoded key-value cache of one layer of a transformer, and attention over it.
//!
//! ```
//! use qins_codec::kv::{KvFormat, KvLayer, Seen};
//!
//! let (batch, heads, head) = (1, 2, 96);
//! let mut layer = KvLayer::new(KvFormat::Q8, batch, heads, head);
//! let (keys, values) = (vec![0.5; heads * head], vec![0.25; heads * head]);
//! layer.append(&keys, &values);
//! let attended = layer.attend(&[1.0; 2 * 96], heads, Seen::default());
//! assert!(attended.iter().all(|x| (x - 0.25).abs() < 1e-3));
//! assert_eq!(layer.bytes(), 64 * heads * 2 * 100);
//! ```
//!
//! A head's key or value of one token is a row with scales of its own: what was appended is never touched again. Rows lie
//! in blocks of 64 tokens, so that the cache grows without being copied, and blocks that a sliding window has
//! passed are freed.

mod attend;
mod encoding;
mod format;
mod layer;

pub(crate) use encoding::step;

pub use attend::Seen;
pub use encoding::{Encoding, HALF_STEP, LARGEST};
pub use format::{KvFormat, UnknownKvFormat};
pub use layer::KvLayer;
