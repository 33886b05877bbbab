//! The container: a directory like a Hugging Face checkpoint, whose weights are encoded.
//!
//! Beside `config.json` and the tokenizer's files stands `qins.safetensors`, which any safetensors reader can list. A
//! coded tensor is two of its entries, `<name>.codes` and `<name>.scales`, bytes padded with zeros to a multiple of 64;
//! a plain one is an entry of its own name and type. Data starts at a multiple of 64. What decoding needs beyond that
//! stands in the metadata under `qins`, as JSON: see [`Manifest`].
//!
//! Nothing here knows Burn.

mod export;
pub(crate) mod files;
mod journal;
pub(crate) mod layout;
mod read;
mod write;

pub use crate::output::LIST_FILE;
pub use export::{Exported, export};
pub use read::{Container, Stored};
pub use write::{Converted, Converter, Planned, Step};

use qins_codec::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The file of a container's weights; a directory that has it is a container.
pub const CONTAINER_FILE: &str = "qins.safetensors";

/// The newest version that this crate reads and writes: a tensor of it has rows with bases of their own
/// ([`CodeConstants::row_bases`]).
pub const CONTAINER_VERSION: u32 = 2;

/// The oldest version that this crate reads. It is written where no tensor needs a newer one.
pub const FIRST_CONTAINER_VERSION: u32 = 1;

/// The entry of the file's metadata that holds the [`Manifest`].
const MANIFEST: &str = "qins";

/// Every coded tensor starts at a multiple of this, and so does the data.
const ALIGNMENT: usize = 64;

/// As manifests name it.
pub(crate) const PRODUCER: &str = concat!("qins-import ", env!("CARGO_PKG_VERSION"));

/// The end of the entry that holds a tensor's codes, and of that which holds its scale codes.
const PARTS: [&str; 2] = [".codes", ".scales"];

/// What a container knows about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The oldest version whose readers know everything that stands in it, from [`FIRST_CONTAINER_VERSION`] to
    /// [`CONTAINER_VERSION`].
    pub version: u32,
    /// The program that wrote it, with its version.
    pub producer: String,
    /// Which tensors got which format.
    pub policy: String,
    /// The files it was made of.
    pub sources: Vec<SourceFile>,
    /// The revision of the source, where its path tells it, as in Hugging Face's cache.
    pub revision: Option<String>,
    /// Every tensor by its name in the source.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// A file that a container was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Name in its directory.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// One tensor of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// The name of a [`Format`], or `f32`.
    pub format: String,
    /// `[out, in]`, or `[n]`.
    pub shape: Vec<usize>,
    /// Whether loading keeps it decoded, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Constants of the code; absent for floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<CodeConstants>,
    /// SHA-256 of its bytes, codes before scale codes, padding included; in hexadecimal.
    pub sha256: String,
}

/// What decoding a coded tensor needs besides its codes, and what encoding lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodeConstants {
    /// Scale of scale code 0; where rows have bases of their own, none is larger.
    pub base: f32,
    /// Whether every row has a base of its own before its scale codes, although the format does not ask for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub row_bases: bool,
    /// Shape of the projective law: a short decimal number.
    pub k: f64,
    /// Bits of a code in each plane: planes stand one after the other, and the first of several can be read alone.
    pub planes: Vec<u8>,
    /// Signal to noise; null where nothing was lost, or the weights were not at hand.
    pub sqnr_db: Option<f32>,
    /// Largest difference of a weight; null where the weights were not at hand.
    pub max_abs_error: Option<f32>,
}

/// The planes of a format, as manifests describe them.
fn planes(format: Format) -> Vec<u8> {
    vec![format.code_bits() as u8; format.planes()]
}

pub(crate) fn hexadecimal(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
