use qins_codec::EncodeError;
use safetensors::{Dtype, SafeTensorError};
use std::path::PathBuf;

/// Why a checkpoint cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A policy that does not fit the module.
    #[error(transparent)]
    Policy(#[from] qins_backend::PolicyError),
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
        found: String,
    },
    /// A file is something else than its name says, as a pointer of git-lfs.
    #[error("{}: {found}", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// What it is, and what to do.
        found: &'static str,
    },
    /// A file that the index of the shards names is not there.
    #[error("{}: {source}: `{index}` names it: the download is not complete", file.display())]
    MissingShard {
        /// The file.
        file: PathBuf,
        /// The index.
        index: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The weights are quantized by another program.
    #[error(
        "{}: the model is quantized already, by {method}, as `{tensor}` tells: take the float model that it was made of",
        file.display()
    )]
    Quantized {
        /// The file.
        file: PathBuf,
        /// A tensor by whose name it is told.
        tensor: String,
        /// Who names tensors so.
        method: &'static str,
    },
    /// A head that should be the embedding is another.
    #[error(
        "{}: `{head}` is not equal to `{embedding}`, whose copy it should be where `tie_word_embeddings` is true: set it to \
         false in config.json if the head was trained apart",
        file.display()
    )]
    TiedHead {
        /// The file.
        file: PathBuf,
        /// The tensor of the head.
        head: String,
        /// The tensor of the embedding.
        embedding: String,
    },
    /// The file is no safetensors file, or is cut off, or its header contradicts itself.
    #[error("{}: not a whole safetensors file: {source}: was it downloaded to its end?", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: SafeTensorError,
    },
    /// A file has two tensors of one name.
    #[error("{}: two tensors are called `{tensor}`", file.display())]
    Duplicate {
        /// The file.
        file: PathBuf,
        /// Their name.
        tensor: String,
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
    /// What stands at the output must not be replaced.
    #[error("{}: not replaced: {reason}", path.display())]
    Refused {
        /// The output, or what is in its way.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The output is there already.
    #[error("{} exists: force to replace it", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Another process writes the same output.
    #[error("{}: another process is writing here", path.display())]
    Busy {
        /// The directory in which it is made.
        path: PathBuf,
    },
    /// The disk is too full.
    #[error("{}: {needed} bytes needed, {available} free", directory.display())]
    NoSpace {
        /// Where the output would be.
        directory: PathBuf,
        /// Bytes to write.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A container's parts do not fit together.
    #[error("{}: {reason}", file.display())]
    Container {
        /// The file.
        file: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// No formats that keep to what was asked.
    #[error("{}: {reason}", file.display())]
    Target {
        /// The checkpoint.
        file: PathBuf,
        /// What was asked, and what comes nearest.
        reason: String,
    },
    /// More planes asked for than there are.
    #[error("{}: expected a depth of 1 to {expected}, found {found}", file.display())]
    Depth {
        /// The file.
        file: PathBuf,
        /// The planes of the tensor that has most.
        expected: usize,
        /// The depth asked for.
        found: usize,
    },
    /// A container of a version that this program does not read: a newer one, or the draft, version 0.
    #[error(
        "{}: container of version {found}: this program reads versions {} to {}",
        file.display(), supported.start(), supported.end()
    )]
    ContainerVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// Those that are read.
        supported: std::ops::RangeInclusive<u32>,
    },
    /// A file of a checkpoint changed during a conversion.
    #[error("{}: {tensor}: its weights changed while they were converted", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor's bytes are not those that were written.
    #[error("{}: {tensor}: expected SHA-256 {expected}, found {found}", file.display())]
    Checksum {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// As written.
        expected: String,
        /// As read.
        found: String,
    },
    /// A file is not the one that the container was made of.
    #[error("{}: expected SHA-256 {expected}, as the container was made of, found {found}", file.display())]
    Source {
        /// The file.
        file: PathBuf,
        /// When the container was made.
        expected: String,
        /// Now.
        found: String,
    },
    /// The device has no memory for a tensor.
    #[error(
        "{}: {tensor}: the device has no memory for its {}: it holds {} of the model's {}, and {} are missing: take a \
         format of fewer bits, or another device",
        file.display(), megabytes(*bytes), megabytes(*held), megabytes(*needed), megabytes(needed.saturating_sub(*held))
    )]
    DeviceMemory {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its bytes on the device.
        bytes: usize,
        /// Bytes that the device held of the tensors before.
        held: usize,
        /// Bytes of all tensors on the device.
        needed: usize,
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

fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
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
