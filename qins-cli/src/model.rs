//! From `<model>`, `--backend` and `--format` to a loaded model of the right type.

use crate::{
    device::{BackendName, Device},
    memory,
    policy::{MainFormat, PolicyArgs},
    source::Source,
};
use anyhow::{Result, anyhow, bail};
use burn::{module::Module, tensor::backend::Backend};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use phi35_model::{Config, Phi3};
use qins_backend::{BufferError, Qins, check_buffers, largest_buffer, weight_bytes};
use qins_codec::Level;
use qins_import::{Checkpoint, FileAccess, Progress, load, load_container, load_encoded, passed_over, synthetic};
use qins_kv_cache::file::ModelHash;
use sha2::{Digest, Sha256};
use std::time::Instant;

#[cfg(not(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda")))]
compile_error!("qins needs a backend: enable the feature `flex`, `ndarray`, `wgpu` or `cuda`");

/// Arguments of every command that runs a model.
#[derive(Args)]
pub struct ModelArgs {
    /// A container, a Hugging Face model directory, or `demo`, the model that is part of the program
    pub model: Source,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How it is run.
#[derive(Args)]
pub struct RunArgs {
    /// What computes: a line of `qins devices`, or of several devices the first
    #[arg(long, value_name = "NAME[:DEVICE]", default_value_t = Device::default())]
    backend: Device,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Read only the first N byte planes of a container's `fpins` tensors: fewer bytes, less exact [default: all]
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    #[command(flatten)]
    threads: Threads,
    /// Instruction set of the processor's kernels: scalar, avx2, avx2-fixed, avx512, avx512-fixed or neon
    /// [default: the fastest there is]
    #[arg(long, value_name = "NAME")]
    level: Option<Level>,
    /// Read weights into memory instead of mapping their files: takes longer to start and as much memory as the files are
    /// large, and the files may change meanwhile
    #[arg(long)]
    no_mmap: bool,
}

/// `--threads`.
#[derive(Args)]
pub struct Threads {
    /// Threads [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Threads {
    /// Takes so many for all that follows.
    pub fn set(&self) -> Result<()> {
        match self.threads {
            Some(threads) => Ok(rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?),
            None => Ok(()),
        }
    }
}

/// A backend for what computes nothing.
#[cfg(feature = "flex")]
pub type AnyBackend = burn_flex::Flex;
#[cfg(all(not(feature = "flex"), feature = "ndarray"))]
pub type AnyBackend = burn_ndarray::NdArray;
#[cfg(all(not(any(feature = "flex", feature = "ndarray")), feature = "wgpu"))]
pub type AnyBackend = burn_wgpu::Wgpu;
#[cfg(all(not(any(feature = "flex", feature = "ndarray", feature = "wgpu")), feature = "cuda"))]
pub type AnyBackend = burn_cuda::Cuda;

/// A computation on a model of any backend.
pub trait Run {
    /// Its result.
    type Output;

    /// Whether it asks for [`Loaded::hash`], for which float weights are read once more.
    fn needs_hash(&self) -> bool {
        false
    }

    /// Runs it on the loaded model.
    fn run<B: Backend>(self, model: &Phi3<B>, loaded: Loaded) -> Result<Self::Output>;
}

/// What loading tells about a model.
#[derive(Clone, Copy)]
pub struct Loaded {
    pub load_s: f64,
    /// Bytes of the weights that every token reads: all but the embedding's table, unless it is the head, too.
    pub token_bytes: usize,
    /// Weights of the model, norms included.
    pub weights: usize,
    /// Bytes that they are held in.
    pub weight_bytes: usize,
    /// What tells the model from every other, if the task needs it and the model comes from files.
    pub hash: Option<ModelHash>,
}

impl ModelArgs {
    /// The same, with products in f32 where no instruction set was chosen: for what is compared number by number.
    pub fn in_float(mut self) -> Self {
        self.run.level = self.run.level.or(Some(Level::detected().in_float()));
        self
    }

    /// Loads the model and runs `task` on it.
    pub fn run<R: Run>(&self, task: R) -> Result<R::Output> {
        self.run.run(Weights::Files(&self.model), task)
    }
}

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    Files(&'a Source),
    /// Random ones.
    Synthetic(&'a Config),
}

impl RunArgs {
    /// For a second model beside one that is run with these: linear weights in another format, or as they are, and
    /// perhaps on another backend. Threads are set once.
    pub fn beside(&self, format: Option<MainFormat>, backend: Option<Device>) -> Self {
        Self {
            backend: backend.unwrap_or(self.backend),
            policy: PolicyArgs::of(format),
            depth: None,
            threads: Threads { threads: None },
            level: self.level,
            no_mmap: self.no_mmap,
        }
    }

    /// Loads a model and runs `task` on it.
    pub fn run<R: Run>(&self, weights: Weights<'_>, task: R) -> Result<R::Output> {
        self.threads.set()?;
        if let Some(level) = self.level {
            level.set_current();
        }
        match self.backend.name {
            #[cfg(feature = "flex")]
            BackendName::Flex => self.run_on::<burn_flex::Flex, R>(Default::default(), weights, task),
            #[cfg(feature = "ndarray")]
            BackendName::Ndarray => self.run_on::<burn_ndarray::NdArray, R>(Default::default(), weights, task),
            #[cfg(feature = "wgpu")]
            BackendName::Wgpu => self.run_on::<burn_wgpu::Wgpu, R>(self.backend.wgpu()?, weights, task),
            #[cfg(feature = "cuda")]
            BackendName::Cuda => self.run_on::<burn_cuda::Cuda, R>(self.backend.cuda(), weights, task),
        }
    }

    fn run_on<B: Backend, R: Run>(&self, device: B::Device, weights: Weights<'_>, task: R) -> Result<R::Output> {
        let start = Instant::now();
        // A weight beyond the limit is missing without an error of Burn's, and what is computed without it means nothing.
        let refused = |error: BufferError| anyhow!("{}: {error}: take a format of fewer bits", self.backend);
        let coded = |task: R, model: Phi3<Qins<B>>, hash: Option<ModelHash>| {
            check_buffers(&model, &device).map_err(refused)?;
            let load_s = start.elapsed().as_secs_f64();
            let table = model.lm_head.as_ref().map_or(0, |_| weight_bytes(&model.model.embed_tokens));
            let (weights, weight_bytes) = (model.num_params(), weight_bytes(&model));
            memory::loaded(weight_bytes);
            let loaded = Loaded { load_s, token_bytes: weight_bytes - table, weights, weight_bytes, hash };
            task.run(&model, loaded)
        };
        let float = |task: R, model: Phi3<B>, hash: Option<ModelHash>| {
            // The largest of a Phi-3 is one of these.
            let (config, width) = (model.config(), model.config().hidden_size * size_of::<f32>());
            let tables = [("embed_tokens", config.vocab_size), ("gate_up_proj", 2 * config.intermediate_size)];
            let (tensor, rows) = tables.into_iter().max_by_key(|&(_, rows)| rows).expect("two");
            let (tensor, bytes) = (tensor.to_owned(), rows * width);
            if let Some(limit) = largest_buffer::<B>(&device).filter(|&limit| bytes > limit) {
                return Err(refused(BufferError { tensor, bytes, limit }));
            }
            let load_s = start.elapsed().as_secs_f64();
            let table = model.lm_head.as_ref().map_or(0, |_| model.model.embed_tokens.num_params());
            let weights = model.num_params();
            let bytes = |weights: usize| weights * size_of::<f32>();
            memory::loaded(bytes(weights));
            let (token_bytes, weight_bytes) = (bytes(weights - table), bytes(weights));
            let loaded = Loaded { load_s, token_bytes, weights, weight_bytes, hash };
            task.run(&model, loaded)
        };
        let source = match weights {
            Weights::Files(source) => source,
            Weights::Synthetic(config) => {
                let policy = self.policy.policy(None, config, None)?;
                return match policy.is_float() {
                    true => float(task, config.init(&device)?, None),
                    false => {
                        let model = config.init(&device)?;
                        coded(task, memory::loading(|| Ok(synthetic(model, &policy)))?, None)
                    }
                };
            }
        };
        let config = source.config()?;
        let access = if self.no_mmap { FileAccess::Read } else { FileAccess::Map };
        let needs_hash = task.needs_hash();
        // Encoders may improve: weights encoded as they are read are those of this version of the program.
        let hash = |weights: [u8; 32], policy: &str| -> Result<ModelHash> {
            let parts =
                [&source.config_bytes()?[..], &weights, policy.as_bytes(), env!("CARGO_PKG_VERSION").as_bytes()];
            Ok(parts.iter().fold(Sha256::new(), |all, part| all.chain_update(Sha256::digest(part))).finalize().into())
        };
        if let Some(container) = source.container_with(access)? {
            if self.policy.is_given() {
                bail!("{source}: a container is encoded already: leave --format and its like out");
            }
            let container = match self.depth {
                Some(depth) => container.at_depth(depth)?,
                None => container,
            };
            let bar = progress_bar(container.bytes());
            let on_progress = |progress: Progress<'_>| bar.inc(progress.bytes as u64);
            let model = config.init(&device)?;
            let model = memory::loading(|| load_container::<B, _>(model, &container, on_progress))?;
            bar.finish_and_clear();
            let hash = needs_hash.then(|| hash(container.sha256(), "")).transpose()?;
            return coded(task, model, hash);
        }
        if self.depth.is_some() {
            bail!("{source}: expected a container for --depth, found float weights");
        }
        let checkpoint = source.checkpoint_with(access)?;
        let policy = self.policy.policy(None, &config, Some(&checkpoint))?;
        let hash = needs_hash.then(|| hash(checkpoint.sha256(), &policy.to_string())).transpose()?;
        tell_passed_over(&config.init::<AnyBackend>(&Default::default())?, &checkpoint)?;
        let bar = progress_bar(checkpoint.bytes());
        let on_progress = |progress: Progress<'_>| bar.inc(progress.bytes as u64);
        if policy.is_float() {
            let model = config.init(&device)?;
            let model = memory::loading(|| load(model, &checkpoint, on_progress))?;
            bar.finish_and_clear();
            return float(task, model, hash);
        }
        let model = config.init(&device)?;
        let model = memory::loading(|| load_encoded(model, &checkpoint, &policy, on_progress))?;
        bar.finish_and_clear();
        coded(task, model, hash)
    }
}

/// A line on standard error about tensors that the model does not need.
pub fn tell_passed_over(module: &Phi3<AnyBackend>, checkpoint: &Checkpoint) -> Result<()> {
    let names = passed_over(module, checkpoint)?;
    if let Some(first) = names.first() {
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        eprintln!("{}: passed over, for the model computes or shares it: {first}{more}", checkpoint.path().display());
    }
    Ok(())
}

/// On standard error, and only if that is a terminal.
pub fn progress_bar(bytes: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes}, {eta} left");
    ProgressBar::new(bytes as u64).with_style(style.expect("the template is well formed")).with_prefix("loading")
}
