use crate::ImportError;
use memmap2::Mmap;
use qins_codec::Weights;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    ops::{Deref, Range},
    path::{Path, PathBuf},
};

/// An open checkpoint of one or several safetensors files: headers read and checked, tensors mapped.
///
/// The files must not be changed while it is open.
#[derive(Debug)]
pub struct Checkpoint {
    /// What the checkpoint is called by: its file, or the index of its shards.
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

/// A whole safetensors file.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the shard.
    bytes: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// The file of every tensor.
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the checkpoint of a Hugging Face model directory: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names.
    pub fn open(directory: &Path) -> Result<Self, ImportError> {
        let (file, index) = (directory.join("model.safetensors"), directory.join("model.safetensors.index.json"));
        if file.is_file() {
            Self::open_file(&file)
        } else if index.is_file() {
            Self::open_shards(directory, index)
        } else {
            let found = if directory.is_dir() { "no such file" } else { "no such directory" };
            Err(ImportError::NoCheckpoint { directory: directory.to_owned(), found })
        }
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self, ImportError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(path.to_owned(), map(path)?)?;
        Ok(checkpoint)
    }

    /// A safetensors file that is part of the program; `path` is what errors call it.
    pub fn from_static(bytes: &'static [u8], path: &Path) -> Result<Self, ImportError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(path.to_owned(), Bytes::Static(bytes))?;
        Ok(checkpoint)
    }

    fn open_shards(directory: &Path, path: PathBuf) -> Result<Self, ImportError> {
        let index_error = |reason: String| ImportError::Index { file: path.clone(), reason };
        let text = std::fs::read(&path).map_err(|source| ImportError::Open { file: path.clone(), source })?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| index_error(error.to_string()))?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let mut checkpoint = Self { path: path.clone(), shards: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            // A name, and nothing that leads out of the directory.
            if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(index_error(format!("expected names of files beside it, found `{file}`")));
            }
            let file = directory.join(file);
            let bytes = map(&file)?;
            checkpoint.add_shard(file, bytes)?;
        }
        for (name, file) in &index.weight_map {
            let found = checkpoint.tensors.get(name).map(|entry| &checkpoint.shards[entry.shard].path);
            if found != Some(&directory.join(file)) {
                return Err(index_error(format!(
                    "expected `{name}` in {file}, found it {}",
                    match found {
                        Some(other) => format!("in {}", other.display()),
                        None => "nowhere".to_owned(),
                    }
                )));
            }
        }
        if let Some(name) = checkpoint.names().find(|&name| !index.weight_map.contains_key(name)) {
            return Err(index_error(format!("the shards hold `{name}`, which it does not list")));
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: PathBuf, bytes: Bytes) -> Result<(), ImportError> {
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|source| ImportError::Header { file: path.clone(), source })?;
        let data = size_of::<u64>() + header;
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: data + info.data_offsets.0..data + info.data_offsets.1,
            };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let reason = format!("`{name}` is in {} as well", self.shards[other.shard].path.display());
                return Err(ImportError::Index { file: path, reason });
            }
        }
        self.shards.push(Shard { path, bytes });
        Ok(())
    }

    /// The file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds a tensor; the checkpoint's own path if none does.
    pub(crate) fn file_of(&self, name: &str) -> PathBuf {
        self.tensors.get(name).map_or(&self.path, |entry| &self.shards[entry.shard].path).clone()
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.bytes.len()).sum()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A float tensor.
    pub fn tensor(&self, name: &str) -> Result<CheckpointTensor<'_>, ImportError> {
        let file = || self.file_of(name);
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| ImportError::Missing { file: file(), names: vec![name.to_owned()] })?;
        let element = match entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            found => return Err(ImportError::Dtype { file: file(), tensor: name.to_owned(), found }),
        };
        Ok(CheckpointTensor {
            shape: &entry.shape,
            element,
            bytes: &self.shards[entry.shard].bytes[entry.bytes.clone()],
        })
    }
}

fn map(path: &Path) -> Result<Bytes, ImportError> {
    let open_error = |source| ImportError::Open { file: path.to_owned(), source };
    let file = File::open(path).map_err(open_error)?;
    // SAFETY: the map is read-only and private to this process. Another process that shortened the file would end this
    // one with SIGBUS, as the documentation of `Checkpoint` says; bytes that change under us are at worst wrong weights,
    // because every length comes from the header, which is read once.
    let map = unsafe { Mmap::map(&file) }.map_err(open_error)?;
    Ok(Bytes::Mapped(map))
}

#[derive(Debug, Clone, Copy)]
enum Element {
    F32,
    F16,
    Bf16,
}

/// A float tensor in its file; values become f32 as they are read.
///
/// As [`Weights`], a matrix `[out, in]`: the last dimension is `in`, all others together `out`.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointTensor<'a> {
    shape: &'a [usize],
    element: Element,
    bytes: &'a [u8],
}

impl CheckpointTensor<'_> {
    /// Dimensions, as in the file.
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.read(0, &mut out);
        out
    }

    /// The matrix `[out, in]` as `[in, out]`, row-major.
    pub fn to_f32_transposed(&self) -> Vec<f32> {
        /// Rows read at a time: 16 values fill a cache line of the result.
        const BLOCK: usize = 16;
        let (rows, cols) = (self.rows(), self.cols());
        let mut out = vec![0.0; rows * cols];
        let mut block = vec![0.0; BLOCK * cols];
        for first in (0..rows).step_by(BLOCK) {
            let n = BLOCK.min(rows - first);
            self.read(first * cols, &mut block[..n * cols]);
            for col in 0..cols {
                for row in 0..n {
                    out[col * rows + first + row] = block[row * cols + col];
                }
            }
        }
        out
    }

    /// Reads values from the `first` on.
    fn read(&self, first: usize, out: &mut [f32]) {
        fn fill<const N: usize>(bytes: &[u8], first: usize, out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            for (o, &element) in out.iter_mut().zip(&elements[first..]) {
                *o = value(element);
            }
        }
        match self.element {
            Element::F32 => fill(self.bytes, first, out, f32::from_le_bytes),
            Element::F16 => fill(self.bytes, first, out, |b| half::f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => fill(self.bytes, first, out, |b| half::bf16::from_le_bytes(b).to_f32()),
        }
    }
}

impl Weights for CheckpointTensor<'_> {
    fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read(row * self.cols(), out);
    }
}
