//! Keys and values in a file, so that a long text is paid for once.
//!
//! Eight bytes of magic, the length of a JSON header as a 32-bit number, the header, the rows of each layer block by
//! block, and the SHA-256 of all that. Numbers are little-endian. The file is valid only for the weights and the
//! configuration that it was made with. The caller identifies both by a hash, for example that of a container
//! (`Container::sha256`) or of a checkpoint with the policy that encoded it, joined with that of `config.json`.

use crate::{ChosenKv, KvChoice, QinsKvCache};
use burn::tensor::backend::Backend;
use phi35_model::{KvStore, Phi3, Prefix};
use qins_codec::kv::{KvFormat, KvLayer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"QINSKV3\n";

/// More than the ids of any context take.
const MOST_HEADER_BYTES: u32 = 1 << 28;

/// Why a cache cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CacheFileError {
    /// The file cannot be read or written; one that ends early is among these.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another kind of file, or of a version that this program does not know.
    #[error("expected a key-value cache of version 3, found something else")]
    NotACache,
    /// The header is no JSON of the expected form.
    #[error("header: {0}")]
    Header(#[from] serde_json::Error),
    /// The file was changed after it was written.
    #[error("the checksum does not match the contents")]
    Checksum,
    /// It is of something else.
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// Of this program and model.
        expected: String,
        /// Of the file.
        found: String,
    },
    /// Floats of a backend are not written.
    #[error("a cache of floats cannot be saved: choose f16 or a smaller format")]
    NotEncoded,
}

#[derive(Serialize, Deserialize)]
struct Header {
    kv: String,
    model: String,
    first: usize,
    tokens: usize,
    rotated_for: usize,
    ids: Vec<u32>,
}

/// SHA-256 of what tells this model from every other: its weights and its configuration.
pub type ModelHash = [u8; 32];

fn hexadecimal(hash: &ModelHash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what passes.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(&bytes[..read]);
        Ok(read)
    }
}

/// Writes what a model has run of a text. `to` is best buffered.
pub fn save<B: Backend>(
    model: &ModelHash,
    prefix: &Prefix<B, ChosenKv<B>>,
    to: impl Write,
) -> Result<(), CacheFileError> {
    let stores = prefix.cache().layers().iter().map(|layer| match layer {
        ChosenKv::Encoded(store) => Ok(store),
        ChosenKv::Dense(_) => Err(CacheFileError::NotEncoded),
    });
    let stores: Vec<&QinsKvCache<B>> = stores.collect::<Result<_, _>>()?;
    let first = stores.first().filter(|store| !store.is_empty());
    let tokens = prefix.cache().tokens();
    let header = Header {
        kv: first.map_or(KvFormat::F16, |store| store.format()).to_string(),
        model: hexadecimal(model),
        first: first.map_or(0, |store| store.first()),
        tokens,
        rotated_for: prefix.cache().rotated_for(),
        ids: prefix.ids()[..tokens].to_vec(),
    };
    let header = serde_json::to_vec(&header)?;
    let mut to = Hashing { inner: to, hash: Sha256::new() };
    to.write_all(MAGIC)?;
    to.write_all(&(header.len() as u32).to_le_bytes())?;
    to.write_all(&header)?;
    // Read back one after the other, where they lie on a device.
    for layer in stores.into_iter().filter_map(QinsKvCache::layer) {
        layer.write(&mut to)?;
    }
    let Hashing { mut inner, hash } = to;
    inner.write_all(&hash.finalize())?;
    Ok(inner.flush()?)
}

/// Reads what [`save`] wrote for the model of the same hash, to go on in the same format. `from` is best buffered.
///
/// # Errors
/// [`CacheFileError::Mismatch`] if the file is of another model or format.
pub fn load<B: Backend>(
    model: &Phi3<B>,
    hash: &ModelHash,
    kv: KvChoice,
    from: impl Read,
) -> Result<Prefix<B, ChosenKv<B>>, CacheFileError> {
    let KvChoice::Encoded(format) = kv else { return Err(CacheFileError::NotEncoded) };
    let mut from = Hashing { inner: from, hash: Sha256::new() };
    let mut start = [0; 12];
    from.read_exact(&mut start)?;
    let (magic, length) = start.split_at(8);
    let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
    if magic != MAGIC || length > MOST_HEADER_BYTES {
        return Err(CacheFileError::NotACache);
    }
    let mut header = Vec::new();
    from.by_ref().take(length.into()).read_to_end(&mut header)?;
    let header: Header = serde_json::from_slice(&header)?;
    let same = |what, expected: String, found: String| {
        if expected == found { Ok(()) } else { Err(CacheFileError::Mismatch { what, expected, found }) }
    };
    let config = model.config();
    same("SHA-256 of weights and configuration", hexadecimal(hash), header.model)?;
    same("ids", header.tokens.to_string(), header.ids.len().to_string())?;
    let legal = header.tokens <= config.max_position_embeddings && header.first <= header.tokens;
    same("tokens", "legal".to_owned(), if legal { "legal" } else { "too many" }.to_owned())?;
    if header.tokens > 0 {
        same("format", format.to_string(), header.kv)?;
    }
    let device = model.model.norm.gamma.val().device();
    let mut layers = Vec::new();
    for _ in 0..config.num_hidden_layers {
        if header.tokens == 0 {
            layers.push(kv.store());
            continue;
        }
        let shape = [1, config.key_value_heads(), config.head_size()];
        let layer = KvLayer::read(format, shape, header.first, header.tokens, &mut from)?;
        layers.push(ChosenKv::Encoded(QinsKvCache::from_layer(layer, &device)));
    }
    let Hashing { mut inner, hash } = from;
    let mut checksum = [0; 32];
    inner.read_exact(&mut checksum)?;
    if hash.finalize()[..] != checksum {
        return Err(CacheFileError::Checksum);
    }
    debug_assert!(layers.iter().all(|layer| layer.len() == header.tokens));
    let cache = model.cache_from(layers, &header.ids, header.rotated_for);
    Ok(Prefix::from_parts(cache, header.ids))
}
