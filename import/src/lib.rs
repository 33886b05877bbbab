//! Hugging Face checkpoints into Burn modules: in float, or encoded in QINS on the fly; and containers of encoded weights.
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn_flex::Flex;
//! use qins_backend::{Policy, Qins};
//! use qins_codec::Format;
//! use qins_import::{Container, load_container, save_container};
//!
//! let device = Default::default();
//! let net: Linear<Qins<Flex>> = Policy::linear(Format::Q8).encode(LinearConfig::new(64, 32).init(&device))?;
//! let place = tempfile::tempdir()?;
//! let directory = place.path().join("net");
//! save_container(&net, &directory, false)?;
//!
//! let container = Container::open(&directory)?;
//! let net: Linear<Qins<Flex>> = load_container(LinearConfig::new(64, 32).init(&device), &container, |_| ())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Checkpoint`] opens Hugging Face's files, [`load`] and [`load_encoded`] make modules of them, [`container::Converter`]
//! makes containers, and [`container::export`] undoes that.
//!
//! A module whose field names are the checkpoint's parameter names loads without a table of names:
//! [`load`] for any backend, [`load_encoded`] for `Qins<B>`. Linear weights are `[out, in]` in the file and `[in, out]` in
//! Burn; norms are `weight` there and `gamma` here. Everything is compared with the file's header before anything is
//! allocated, and tensors are then read one at a time from the mapped file.
//!
//! Linear layers must have `LinearLayout::Row`, Burn's default.

mod checkpoint;
mod choose;
mod compare;
pub mod container;
mod error;
mod file_bytes;
pub mod foreign;
mod identity;
mod load;
mod output;
mod save;
mod synthetic;
mod tensor;

pub use checkpoint::Checkpoint;
pub use choose::{Target, choose};
pub use container::Container;
pub use error::ImportError;
pub use file_bytes::{FileAccess, exit_on_unreadable_page};
pub use load::{Progress, load, load_container, load_encoded, passed_over, plan};
pub use save::save_container;
pub use synthetic::synthetic;
pub use tensor::CheckpointTensor;
