use crate::{
    FileAccess, ImportError,
    file_bytes::FileBytes,
    foreign,
    tensor::{CheckpointTensor, Element},
};
use bytes::Bytes;
use qins_codec::Format;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

/// An open checkpoint of one or several safetensors files: headers read and checked, tensors mapped or read into memory
/// ([`FileAccess`]).
#[derive(Debug)]
pub struct Checkpoint {
    /// What the checkpoint is called by: its file, or the index of its shards.
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

struct Shard {
    path: PathBuf,
    /// The whole file.
    file: FileBytes,
    metadata: HashMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the shard.
    bytes: Range<usize>,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("path", &self.path).field("bytes", &self.file.bytes.len()).finish_non_exhaustive()
    }
}

/// The first key of a JSON object that it has twice.
struct Names(Option<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let (mut seen, mut twice) = (HashSet::new(), None);
                while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if !seen.insert(name.clone()) {
                        twice.get_or_insert(name);
                    }
                }
                Ok(Names(twice))
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// The file of every tensor.
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the checkpoint of a Hugging Face model directory: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names. Files are mapped.
    pub fn open(directory: &Path) -> Result<Self, ImportError> {
        Self::open_with(directory, FileAccess::Map)
    }

    /// [`open`](Self::open) with files mapped or read into memory.
    pub fn open_with(directory: &Path, access: FileAccess) -> Result<Self, ImportError> {
        let (file, index) = (directory.join("model.safetensors"), directory.join("model.safetensors.index.json"));
        if file.is_file() {
            Self::open_file_with(&file, access)
        } else if index.is_file() {
            Self::open_shards(directory, index, access)
        } else {
            let found = match std::fs::metadata(directory) {
                Ok(_) => foreign::of_directory(directory).unwrap_or_else(|| "no such file".to_owned()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => "no such directory".to_owned(),
                Err(error) => error.to_string(),
            };
            Err(ImportError::NoCheckpoint { directory: directory.to_owned(), found })
        }
    }

    /// Opens one safetensors file, mapped.
    pub fn open_file(path: &Path) -> Result<Self, ImportError> {
        Self::open_file_with(path, FileAccess::Map)
    }

    /// Opens one safetensors file, mapped or read into memory.
    pub fn open_file_with(path: &Path, access: FileAccess) -> Result<Self, ImportError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(path.to_owned(), FileBytes::open(path, access)?)?;
        Ok(checkpoint)
    }

    /// A safetensors file in memory, for example a part of the program; `path` is what errors call it.
    pub fn from_bytes(bytes: impl Into<Bytes>, path: &Path) -> Result<Self, ImportError> {
        let mut checkpoint = Self { path: path.to_owned(), shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(path.to_owned(), FileBytes::in_memory(bytes.into()))?;
        Ok(checkpoint)
    }

    fn open_shards(directory: &Path, path: PathBuf, access: FileAccess) -> Result<Self, ImportError> {
        let index_error = |reason: String| ImportError::Index { file: path.clone(), reason };
        let text = std::fs::read(&path).map_err(|source| ImportError::Open { file: path.clone(), source })?;
        if let Some(found) = foreign::of_bytes(&text) {
            return Err(ImportError::Foreign { file: path, found });
        }
        let index: Index = serde_json::from_slice(&text).map_err(|error| index_error(error.to_string()))?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let mut checkpoint = Self { path: path.clone(), shards: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            // A name, and nothing that leads out of the directory.
            if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
                return Err(index_error(format!("expected names of files beside it, found `{file}`")));
            }
            let file = directory.join(file);
            let bytes = FileBytes::open(&file, access).map_err(|error| match error {
                ImportError::Open { file, source } if source.kind() == io::ErrorKind::NotFound => {
                    ImportError::MissingShard { file, index: "model.safetensors.index.json".to_owned(), source }
                }
                error => error,
            })?;
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

    fn add_shard(&mut self, path: PathBuf, file: FileBytes) -> Result<(), ImportError> {
        let bytes = &file.bytes;
        if let Some(found) = foreign::of_bytes(&bytes[..bytes.len().min(512)]) {
            return Err(ImportError::Foreign { file: path, found });
        }
        let (header, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|source| ImportError::Header { file: path.clone(), source })?;
        let data = size_of::<u64>() + header;
        // The safetensors crate keeps the last of several entries of one name.
        let names: Names = serde_json::from_slice(&bytes[size_of::<u64>()..data]).map_err(|error| {
            ImportError::Header { file: path.clone(), source: SafeTensorError::InvalidHeaderDeserialization(error) }
        })?;
        if let Some(tensor) = names.0 {
            return Err(ImportError::Duplicate { file: path, tensor });
        }
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
        let metadata = metadata.metadata().clone().unwrap_or_default();
        self.shards.push(Shard { path, file, metadata });
        Ok(())
    }

    /// Gives every tensor the name that the caller's module has for it.
    ///
    /// # Errors
    /// [`ImportError::Index`] if two tensors would have one name.
    pub fn renamed(mut self, name: impl Fn(&str) -> String) -> Result<Self, ImportError> {
        let mut renamed = BTreeMap::new();
        for (old, entry) in std::mem::take(&mut self.tensors) {
            let new = name(&old);
            if renamed.insert(new.clone(), entry).is_some() {
                let reason = format!("two tensors would be called `{new}`, one of them `{old}`");
                return Err(ImportError::Index { file: self.path, reason });
            }
        }
        Ok(Self { tensors: renamed, ..self })
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

    /// The 16-bit float that loses nothing of these weights, or, where they have more bits, the finer one, which holds
    /// numbers up to 65504: what to keep embeddings in.
    pub fn half_format(&self) -> Format {
        let has_bf16 = self.tensors.values().any(|entry| entry.dtype == Dtype::BF16);
        if has_bf16 { Format::Bf16 } else { Format::F16 }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.bytes.len()).sum()
    }

    /// Paths and bytes of the files.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards.iter().map(|shard| (shard.path.as_path(), &shard.file.bytes[..]))
    }

    /// An entry of the metadata of a file, the first that has it.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.shards.iter().find_map(|shard| shard.metadata.get(key)).map(String::as_str)
    }

    /// Type and bytes of a tensor of any type.
    pub(crate) fn raw(&self, name: &str) -> Option<(Dtype, &[u8])> {
        let entry = self.tensors.get(name)?;
        Some((entry.dtype, &self.shards[entry.shard].file.bytes[entry.bytes.clone()]))
    }

    /// Bytes of a tensor of any type, without a copy.
    pub(crate) fn shared(&self, name: &str) -> Option<Bytes> {
        let entry = self.tensors.get(name)?;
        Some(self.shards[entry.shard].file.bytes.slice(entry.bytes.clone()))
    }

    /// Has a thread read the first bytes of tensors, which will be used in this order: then the system reads far ahead, in
    /// large pages, while what is there is computed with.
    pub(crate) fn read_ahead(&self, tensors: impl Iterator<Item = (String, usize)>) {
        #[cfg(target_os = "linux")]
        {
            let reader = |(name, count): (String, usize)| {
                let Entry { shard, bytes, .. } = self.tensors.get(&name)?;
                self.shards[*shard].file.reader_ahead(bytes.start..bytes.start + count.min(bytes.len()))
            };
            let readers: Vec<_> = tensors.filter_map(reader).collect();
            let read = move || readers.into_iter().for_each(|read| read());
            // Without a thread, pages are read when they are touched.
            let _ = std::thread::Builder::new().name("read ahead".to_owned()).spawn(read);
        }
        #[cfg(not(target_os = "linux"))]
        drop(tensors);
    }

    /// Lets go of a tensor's pages, which are read from the file again if need be.
    pub(crate) fn forget(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.shards[entry.shard].file.forget(entry.bytes.clone());
        }
    }

    /// The same for a part of the file at `path`.
    pub(crate) fn forget_bytes(&self, path: &Path, part: &[u8]) {
        if let Some(shard) = self.shards.iter().find(|shard| shard.path == path) {
            let start = part.as_ptr() as usize - shard.file.bytes.as_ptr() as usize;
            shard.file.forget(start..start + part.len());
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape, safetensors' name of the type, and bytes of a tensor of any type.
    pub fn describe(&self, name: &str) -> Option<(&[usize], String, usize)> {
        let entry = self.tensors.get(name)?;
        Some((&entry.shape, format!("{:?}", entry.dtype), entry.bytes.len()))
    }

    /// Whether a tensor's type is one that [`Checkpoint::tensor`] reads.
    pub fn is_float(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|entry| matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16))
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
            bytes: &self.shards[entry.shard].file.bytes[entry.bytes.clone()],
        })
    }
}
