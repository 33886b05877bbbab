use qins_codec::EncodeError;
use safetensors::{Dtype, SafeTensorError};
use std::path::PathBuf;

/// Why a checkpoint cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be opened or mapped.
    #[error("{}: {source}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The directory holds no checkpoint that this version reads.
    #[error("{}: expected `model.safetensors` or `model.safetensors.index.json`, found {found}", directory.display())]
    NoCheckpoint {
        /// The directory.
        directory: PathBuf,
        /// What is there instead.
        found: &'static str,
    },
    /// The file is no safetensors file, or is cut off, or its header contradicts itself.
    #[error("{}: not a whole safetensors file: {source}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: SafeTensorError,
    },
    /// The index of the shards and the shards do not fit together.
    #[error("{}: {reason}", file.display())]
    Index {
        /// The index, or the shard that is at fault.
        file: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The module has parameters that the file lacks.
    #[error("{}: {} missing: {}", file.display(), tensors(.names.len()), list(names))]
    Missing {
        /// The file.
        file: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The file has tensors that the module lacks.
    #[error("{}: {} that the model does not have: {}", file.display(), tensors(.names.len()), list(names))]
    Extra {
        /// The file.
        file: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor has another shape than the parameter.
    #[error("{}: {tensor}: expected shape {expected:?}, found {found:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The parameter's shape, as the file should have it.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has a type that is no float type of checkpoints.
    #[error("{}: {tensor}: expected F32, F16 or BF16, found {found:?}", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: Dtype,
    },
    /// A tensor cannot be encoded.
    #[error("{}: {tensor}: {source}", file.display())]
    Encode {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        source: EncodeError,
    },
}

fn tensors(n: usize) -> String {
    if n == 1 { "1 tensor".to_owned() } else { format!("{n} tensors") }
}

/// The first few names.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
