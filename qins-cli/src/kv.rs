//! How keys and values are stored, and how long texts are run, on the command line.

use crate::files::{Replace, Target};
use anyhow::{Context, Result, ensure};
use burn::tensor::backend::Backend;
use clap::ValueEnum;
use phi35_model::{Config, Generation, Phi3, Prefix};
use qins_codec::kv::KvFormat;
use qins_kv_cache::{
    ChosenKv, KvChoice,
    file::{self, ModelHash},
};
use std::{
    any::TypeId,
    fs::File,
    io::{BufReader, BufWriter, ErrorKind, Read},
    path::{Path, PathBuf},
};

/// The key-value cache.
#[derive(clap::Args, Clone)]
pub struct KvArgs {
    /// How keys and values are stored: f32, f16, v8 (values in 8 bits), q8 (both), v4 (values in 4 bits), dense (f32 in
    /// tensors of the backend) [default: f32, and dense on graphics devices]
    #[arg(long, value_name = "FORMAT")]
    kv: Option<KvChoice>,
    /// Tokens of a prompt that are run at a time [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_chunk: Option<u32>,
}

/// Whether tensors lie where the kernels of the cache read.
fn computes_on_the_host<B: Backend>() -> bool {
    let device = TypeId::of::<B::Device>();
    let mut host = false;
    #[cfg(feature = "flex")]
    (host |= device == TypeId::of::<burn_flex::FlexDevice>());
    #[cfg(feature = "ndarray")]
    (host |= device == TypeId::of::<burn_ndarray::NdArrayDevice>());
    host
}

/// `PART` of the model, for what is not generation.
const DEFAULT_CHUNK: usize = 256;

impl KvArgs {
    /// The choice for a backend.
    pub fn choice<B: Backend>(&self) -> KvChoice {
        let default = || if computes_on_the_host::<B>() { KvChoice::Encoded(KvFormat::F32) } else { KvChoice::Dense };
        self.kv.unwrap_or_else(default)
    }

    /// An empty store.
    pub fn store<B: Backend>(&self) -> ChosenKv<B> {
        self.choice::<B>().store()
    }

    /// Tokens of a prompt that are run at a time.
    pub fn chunk(&self) -> usize {
        self.prompt_chunk.map_or(DEFAULT_CHUNK, |n| n as usize)
    }

    /// Sets what generation needs to know of these.
    pub fn set(&self, options: Generation) -> Generation {
        Generation { prompt_chunk: Some(self.chunk()), ..options }
    }
}

/// Texts longer than those that the model was first made for.
#[derive(clap::Args, Clone)]
pub struct LongArgs {
    /// Rotary factors that a text starts with. `auto` takes those of its length, and runs everything again where it passes
    /// the original length; `long` takes the long ones at once
    #[arg(long, value_enum, value_name = "FACTORS", default_value_t = RopeStart::Auto)]
    rope: RopeStart,
    /// Start from the keys and values in FILE, if it is there, and write them to it at the end: what the text begins with
    /// is then not run again. Not with --kv dense
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RopeStart {
    Auto,
    Long,
}

impl LongArgs {
    /// Sets what generation needs to know of these.
    pub fn set(&self, options: Generation, config: &Config) -> Generation {
        let expected_tokens = if self.rope == RopeStart::Long { config.original_length() + 1 } else { 0 };
        Generation { expected_tokens, ..options }
    }

    /// Fails if a file is given: it holds one text.
    pub fn require_no_cache(&self) -> Result<()> {
        ensure!(self.cache.is_none(), "--cache FILE holds one text: expected one prompt");
        Ok(())
    }

    /// Whether a file is given: the hash of the model is needed then.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// What an earlier run left, or nothing.
    pub fn prefix<B: Backend>(
        &self,
        model: &Phi3<B>,
        hash: Option<&ModelHash>,
        kv: &KvArgs,
    ) -> Result<Prefix<B, ChosenKv<B>>> {
        let Some(path) = &self.cache else { return Ok(Prefix::with(model, || kv.store())) };
        let hash = hash.expect("asked for with `has_cache`");
        if kv.choice::<B>() == KvChoice::Dense {
            return Err(file::CacheFileError::NotEncoded).context("--cache needs another --kv");
        }
        // Before anything is run.
        cache_target(path)?;
        let from = match File::open(path) {
            Ok(from) => from,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Prefix::with(model, || kv.store())),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        file::load(model, hash, kv.choice::<B>(), BufReader::with_capacity(1 << 20, from))
            .with_context(|| path.display().to_string())
    }

    /// Leaves what was run to a later run.
    pub fn keep<B: Backend>(&self, hash: Option<&ModelHash>, prefix: &Prefix<B, ChosenKv<B>>) -> Result<()> {
        let (Some(path), Some(hash)) = (&self.cache, hash) else { return Ok(()) };
        cache_target(path)?.write(|file| Ok(file::save(hash, prefix, BufWriter::with_capacity(1 << 20, file))?))
    }
}

fn cache_target(path: &Path) -> Result<Target> {
    Target::new(path, &Replace::Own { what: "a key-value cache", is_own: &is_cache })
}

/// Whether a file begins as caches of any version do.
fn is_cache(path: &Path) -> bool {
    const START: &[u8; 6] = b"QINSKV";
    let mut start = [0; START.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *START
}
