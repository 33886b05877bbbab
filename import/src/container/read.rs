//! The reader: everything checked against the header, nothing read before it is asked for.

use super::{
    CONTAINER_FILE, CONTAINER_VERSION, FIRST_CONTAINER_VERSION, MANIFEST, Manifest, PARTS, TensorInfo, hexadecimal,
    planes,
};
use crate::{FileAccess, ImportError, checkpoint::Checkpoint, output::sha256_of, tensor::CheckpointTensor};
use bytes::Bytes;
use qins_codec::{Format, Header, matrix_shape};
use safetensors::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// An open container: its header read and checked, its tensors mapped or read into memory ([`FileAccess`]).
#[derive(Debug)]
pub struct Container {
    file: Checkpoint,
    manifest: Manifest,
    /// Headers of the coded tensors.
    coded: BTreeMap<String, Header>,
}

/// A tensor of a container.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// Codes and scale codes, without their padding.
    Coded(Header, &'a [u8], &'a [u8]),
    /// Floats.
    Plain(CheckpointTensor<'a>),
}

impl Container {
    /// Whether the directory has a container's file.
    pub fn is_at(directory: &Path) -> bool {
        directory.join(CONTAINER_FILE).is_file()
    }

    /// Opens the container in a directory. Its file is mapped.
    ///
    /// # Errors
    /// If the file is not whole, was written in another version, or its parts do not fit together. The bytes of tensors
    /// are not read: see [`Container::verify`].
    pub fn open(directory: &Path) -> Result<Self, ImportError> {
        Self::open_with(directory, FileAccess::Map)
    }

    /// [`open`](Self::open) with the file mapped or read into memory.
    pub fn open_with(directory: &Path, access: FileAccess) -> Result<Self, ImportError> {
        Self::from_file(Checkpoint::open_file_with(&directory.join(CONTAINER_FILE), access)?)
    }

    /// A container that is part of the program, or of a test; `path` is what errors call it.
    pub fn from_bytes(bytes: Bytes, path: &Path) -> Result<Self, ImportError> {
        Self::from_file(Checkpoint::from_bytes(bytes, path)?)
    }

    fn from_file(file: Checkpoint) -> Result<Self, ImportError> {
        let error = |reason: String| ImportError::Container { file: file.path().to_owned(), reason };
        let text =
            file.metadata(MANIFEST).ok_or_else(|| error(format!("expected metadata `{MANIFEST}`, found none")))?;
        let value: Value = serde_json::from_str(text).map_err(|e| error(format!("metadata `{MANIFEST}`: {e}")))?;
        // The version first: another manifest may look otherwise.
        let version = value["version"].as_u64();
        let read = u64::from(FIRST_CONTAINER_VERSION)..=u64::from(CONTAINER_VERSION);
        if let Some(found) = version.filter(|version| !read.contains(version)) {
            return Err(ImportError::ContainerVersion {
                file: file.path().to_owned(),
                found,
                supported: FIRST_CONTAINER_VERSION..=CONTAINER_VERSION,
            });
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|e| error(format!("metadata `{MANIFEST}`: {e}")))?;

        let mut coded = BTreeMap::new();
        let mut known = BTreeSet::new();
        for (name, info) in &manifest.tensors {
            let wrong = |reason: String| error(format!("{name}: {reason}"));
            if info.code.is_none() {
                let tensor = file.tensor(name)?;
                if (tensor.shape(), tensor.dtype_name().to_lowercase()) != (&info.shape[..], info.format.clone()) {
                    return Err(wrong(format!(
                        "expected {} {:?}, found {} {:?}",
                        info.format,
                        info.shape,
                        tensor.dtype_name().to_lowercase(),
                        tensor.shape()
                    )));
                }
                known.insert(name.clone());
                continue;
            }
            let header = header(info, manifest.version).map_err(wrong)?;
            for (part, expected) in PARTS.into_iter().zip([header.code_bytes(), header.scale_bytes()]) {
                let entry = format!("{name}{part}");
                let expected = expected.next_multiple_of(super::ALIGNMENT);
                match file.raw(&entry) {
                    Some((Dtype::U8, bytes)) if bytes.len() == expected => (),
                    Some((dtype, bytes)) => {
                        let found = format!("{} bytes of {dtype:?}", bytes.len());
                        return Err(error(format!("{entry}: expected {expected} bytes of U8, found {found}")));
                    }
                    None => return Err(error(format!("{entry}: expected {expected} bytes, found no such tensor"))),
                }
                known.insert(entry);
            }
            coded.insert(name.clone(), header);
        }
        if let Some(name) = file.names().find(|&name| !known.contains(name)) {
            return Err(error(format!("it holds `{name}`, which its manifest does not list")));
        }
        Ok(Self { file, manifest, coded })
    }

    /// The same container, of whose tensors at most the first `depth` planes of codes are read
    /// ([`Format::at_depth`]).
    ///
    /// # Errors
    /// [`ImportError::Depth`] if `depth` is 0 or none of its tensors has so many planes.
    pub fn at_depth(mut self, depth: usize) -> Result<Self, ImportError> {
        let planes = self.coded.values().map(|header| header.format.planes()).max().unwrap_or(1);
        if !(1..=planes).contains(&depth) {
            return Err(ImportError::Depth { file: self.path().to_owned(), expected: planes, found: depth });
        }
        self.coded.values_mut().for_each(|header| header.format = header.format.at_depth(depth));
        Ok(self)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What the container knows about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.file.bytes()
    }

    /// Bytes of a tensor, codes and scale codes together, padding included; 0 if there is none of this name.
    pub fn tensor_bytes(&self, name: &str) -> usize {
        let entries = PARTS.map(|part| format!("{name}{part}"));
        let bytes = |entry: &str| self.file.raw(entry).map_or(0, |(_, bytes)| bytes.len());
        bytes(&entries[0]) + bytes(&entries[1]) + bytes(name)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.manifest.tensors.keys().map(String::as_str)
    }

    /// Formats in which the coded tensors are read, in the order of their names.
    pub(crate) fn formats(&self) -> impl Iterator<Item = Format> {
        self.coded.values().map(|header| header.format)
    }

    /// A tensor, `None` if there is none of this name.
    pub fn tensor(&self, name: &str) -> Option<Stored<'_>> {
        match self.coded.get(name) {
            Some(&header) => {
                let [codes, scales] = PARTS.map(|part| self.file.raw(&format!("{name}{part}")).expect("checked").1);
                Some(Stored::Coded(header, &codes[..header.code_bytes()], &scales[..header.scale_bytes()]))
            }
            None => self.file.tensor(name).ok().map(Stored::Plain),
        }
    }

    /// Codes and scale codes in the map, whole words each; nothing is copied.
    pub(crate) fn shared(&self, name: &str) -> Option<[Bytes; 2]> {
        self.coded.get(name)?;
        Some(PARTS.map(|part| self.file.shared(&format!("{name}{part}")).expect("checked")))
    }

    /// Begins to read the coded ones of some tensors, which will be used in this order.
    pub(crate) fn read_ahead<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let parts = |name: &'a str| {
            let header = self.coded.get(name)?;
            let counts = [header.code_bytes(), header.scale_bytes()];
            Some(PARTS.iter().zip(counts).map(move |(part, count)| (format!("{name}{part}"), count)))
        };
        self.file.read_ahead(names.filter_map(parts).flatten());
    }

    /// A plain tensor's bytes in the map.
    pub(crate) fn shared_plain(&self, name: &str) -> Option<Bytes> {
        self.file.shared(name)
    }

    /// Lets go of a tensor's pages.
    pub(crate) fn forget(&self, name: &str) {
        PARTS.iter().for_each(|part| self.file.forget(&format!("{name}{part}")));
        self.file.forget(name);
    }

    /// Reads every tensor and compares it with its checksum.
    ///
    /// # Errors
    /// [`ImportError::Checksum`] names the first tensor that differs.
    pub fn verify(&self, mut on_tensor: impl FnMut(&str, usize)) -> Result<(), ImportError> {
        for (name, info) in &self.manifest.tensors {
            let entries = match self.coded.contains_key(name) {
                true => PARTS.map(|part| format!("{name}{part}")).to_vec(),
                false => vec![name.clone()],
            };
            let mut hash = Sha256::new();
            let mut bytes = 0;
            for entry in &entries {
                let (_, part) = self.file.raw(entry).expect("checked when opened");
                hash.update(part);
                bytes += part.len();
            }
            self.forget(name);
            let found = hexadecimal(hash.finalize());
            if found != info.sha256 {
                let (file, tensor, expected) = (self.path().to_owned(), name.clone(), info.sha256.clone());
                return Err(ImportError::Checksum { file, tensor, expected, found });
            }
            on_tensor(name, bytes);
        }
        Ok(())
    }

    /// Compares the files that the container was made of with those of a directory.
    ///
    /// # Errors
    /// [`ImportError::Source`] names the first file that differs or is missing.
    pub fn verify_source(&self, directory: &Path) -> Result<(), ImportError> {
        for source in &self.manifest.sources {
            let path = directory.join(&source.file);
            let found = sha256_of(&path)?;
            if found != source.sha256 {
                return Err(ImportError::Source { file: path, expected: source.sha256.clone(), found });
            }
        }
        Ok(())
    }
}

/// The header of a coded tensor, if its description makes one.
fn header(info: &TensorInfo, version: u32) -> Result<Header, String> {
    let code = info.code.as_ref().expect("asked for coded tensors only");
    let format: Format = info.format.parse().map_err(|error: qins_codec::UnknownFormat| error.to_string())?;
    if format.is_raw() {
        return Err(format!("a {format} tensor has no codes"));
    }
    let planes = planes(format);
    if code.planes != planes {
        return Err(format!("expected planes {planes:?}, found {:?}", code.planes));
    }
    if info.shape.is_empty() {
        return Err("expected a shape of at least one dimension".to_owned());
    }
    let (rows, cols) =
        matrix_shape(&info.shape).ok_or_else(|| format!("shape {:?} is too large to address", info.shape))?;
    if code.row_bases && version < CONTAINER_VERSION {
        return Err(format!("expected no bases of rows in a container of version {version}, found them"));
    }
    let header = Header { format, rows, cols, base: code.base, k: code.k, row_bases: code.row_bases };
    header.validate().map_err(|error| error.to_string())?;
    Ok(header)
}
