//! Hugging Face checkpoints into Burn modules: in float, or encoded in QINS on the fly.
//!
//! A module whose field names are the checkpoint's parameter names loads without a table of names:
//! [`load`] for any backend, [`load_encoded`] for `Qins<B>`. Linear weights are `[out, in]` in the file and `[in, out]` in
//! Burn; norms are `weight` there and `gamma` here. Everything is compared with the file's header before anything is
//! allocated, and tensors are then read one at a time from the mapped file.
//!
//! Linear layers must have `LinearLayout::Row`, Burn's default.

mod checkpoint;
pub mod container;
mod error;
mod load;
mod save;

pub use checkpoint::{Checkpoint, CheckpointTensor};
pub use container::Container;
pub use error::ImportError;
pub use load::{Progress, load, load_container, load_encoded, plan};
pub use save::save_container;
