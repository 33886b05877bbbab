//! `Qins<B>`: a decorator for any Burn backend `B` that keeps weights encoded and decodes them where a float is needed.
//!
//! A model written for plain Burn runs unchanged on `Qins<B>`. [`Policy::encode`] turns the weights of its linear layers
//! into QINS codes; matrix products read the codes directly where a kernel exists and decode them otherwise. Every other
//! operation is `B`'s own.
//!
//! ```
//! use burn::{nn::LinearConfig, tensor::{Distribution, Tensor}};
//! use burn_flex::Flex;
//! use qins_backend::{Policy, Qins};
//! use qins_codec::Format;
//!
//! type B = Qins<Flex>;
//! let device = Default::default();
//! let linear = LinearConfig::new(64, 96).init::<B>(&device);
//! let x = Tensor::<B, 2>::random([3, 64], Distribution::Default, &device);
//!
//! let float = linear.forward(x.clone());
//! let coded = Policy::linear(Format::Q8).encode(linear)?.forward(x);
//!
//! let error: f32 = (float - coded).abs().max().into_scalar();
//! assert!(error < 0.05);
//! # Ok::<(), qins_backend::PolicyError>(())
//! ```

#![recursion_limit = "256"]

mod backend;
mod bytes;
mod kernels;
mod kv;
mod linear;
mod ops;
mod parts;
mod policy;
mod recode;
mod scheme;
mod size;
mod tensor;
mod transfer;
mod view;

pub use backend::Qins;
pub use bytes::BytesError;
pub use kernels::{Paths, paths};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use kernels::{Prompts, Traffic, allow_subgroups, prompts_by, traffic};
pub use kv::DeviceKv;
pub use linear::{QinsLinear, QinsLinearConfig, QinsLinearRecord};
pub use parts::{BufferError, NoDeviceMemory, largest_buffer, limit_buffers};
pub use policy::{ParamPath, PatternError, Policy, PolicyError, Rule, RuleError, Storage, WeightKind};
pub use recode::{lazy_float, recode};
pub use scheme::is_qins_type;
pub use size::{DeviceMemory, check_buffers, device_memory, largest_weight, weight_bytes};
pub use tensor::{QinsFloat, QinsTensor};
pub use transfer::TransferError;
