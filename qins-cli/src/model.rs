//! From `<model>`, `--backend` and `--format` to a loaded model of the right type.

use crate::source::Source;
use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use phi35_model::Phi3;
use qins_backend::Policy;
use qins_codec::Format;
use qins_import::{Checkpoint, Progress, load, load_container, load_encoded};
use std::{str::FromStr, time::Instant};

#[cfg(not(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda")))]
compile_error!("qins needs a backend: enable the feature `flex`, `ndarray`, `wgpu` or `cuda`");

/// Arguments of every command that runs a model.
#[derive(Args)]
pub struct ModelArgs {
    /// A container, a Hugging Face model directory, or `demo`, the model that is part of the program
    pub model: Source,
    /// What computes
    #[arg(long, value_enum, default_value_t = BackendName::default())]
    backend: BackendName,
    /// How the weights of a Hugging Face directory are held in memory: f32, or encoded on the fly: q8, q8h, q12, q6, q4,
    /// q3, q2, log8, fpins:1 to fpins:3, f16, bf16 [default: f32]
    #[arg(long)]
    format: Option<Storage>,
    /// Another format, or `float`, for what a pattern takes, as in lm_head=q12 or 'model.layers.*.mlp.**=q4'
    #[arg(long, value_name = "GLOB=FORMAT", requires = "format")]
    set: Vec<Setting>,
    /// Read only the first N byte planes of a container's `fpins` tensors: fewer bytes, less exact [default: all]
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Threads [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
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

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    #[cfg(feature = "flex")]
    Flex,
    #[cfg(feature = "ndarray")]
    Ndarray,
    #[cfg(feature = "wgpu")]
    Wgpu,
    #[cfg(feature = "cuda")]
    Cuda,
}

/// The first that the program was built with.
impl Default for BackendName {
    fn default() -> Self {
        Self::value_variants()[0]
    }
}

#[derive(Clone, Copy)]
enum Storage {
    Float,
    Encoded(Format),
}

impl FromStr for Storage {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::Float),
            name => name.parse().map(Self::Encoded).map_err(|error: qins_codec::UnknownFormat| format!("{error}, f32")),
        }
    }
}

/// A computation on a model of any backend.
pub trait Run {
    /// Its result.
    type Output;

    /// Runs it on the loaded model.
    fn run<B: Backend>(self, model: &Phi3<B>, load_s: f64) -> Result<Self::Output>;
}

impl ModelArgs {
    /// Loads the model and runs `task` on it.
    pub fn run<R: Run>(&self, task: R) -> Result<R::Output> {
        use_threads(self.threads)?;
        match self.backend {
            #[cfg(feature = "flex")]
            BackendName::Flex => self.run_on::<burn_flex::Flex, R>(task),
            #[cfg(feature = "ndarray")]
            BackendName::Ndarray => self.run_on::<burn_ndarray::NdArray, R>(task),
            #[cfg(feature = "wgpu")]
            BackendName::Wgpu => self.run_on::<burn_wgpu::Wgpu, R>(task),
            #[cfg(feature = "cuda")]
            BackendName::Cuda => self.run_on::<burn_cuda::Cuda, R>(task),
        }
    }

    fn run_on<B: Backend, R: Run>(&self, task: R) -> Result<R::Output> {
        let start = Instant::now();
        let config = self.model.config()?;
        let device = Default::default();
        if let Some(container) = self.model.container()? {
            if self.format.is_some() {
                bail!("{}: a container is encoded already: leave --format out", self.model);
            }
            let container = match self.depth {
                Some(depth) => container.at_depth(depth)?,
                None => container,
            };
            let bar = progress_bar(container.bytes());
            let on_progress = |progress: Progress<'_>| bar.inc(progress.bytes as u64);
            let model = load_container::<B, _>(config.init(&device)?, &container, on_progress)?;
            bar.finish_and_clear();
            return task.run(&model, start.elapsed().as_secs_f64());
        }
        if self.depth.is_some() {
            bail!("{}: expected a container for --depth, found float weights", self.model);
        }
        let checkpoint = self.model.checkpoint()?;
        let bar = progress_bar(checkpoint.bytes());
        let on_progress = |progress: Progress<'_>| bar.inc(progress.bytes as u64);
        match self.format.unwrap_or(Storage::Float) {
            Storage::Float => {
                let model: Phi3<B> = load(config.init(&device)?, &checkpoint, on_progress)?;
                bar.finish_and_clear();
                task.run(&model, start.elapsed().as_secs_f64())
            }
            Storage::Encoded(format) => {
                let policy = policy(format, &checkpoint, &self.set)?;
                let model = load_encoded::<B, _>(config.init(&device)?, &checkpoint, &policy, on_progress)?;
                bar.finish_and_clear();
                task.run(&model, start.elapsed().as_secs_f64())
            }
        }
    }
}

/// So many threads, or one a core.
pub fn use_threads(threads: Option<u16>) -> Result<()> {
    match threads {
        Some(threads) => Ok(rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?),
        None => Ok(()),
    }
}

/// A rule of a policy on the command line.
#[derive(Clone)]
pub struct Setting {
    pattern: String,
    /// `None` leaves it in float.
    format: Option<Format>,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, format) = text.split_once('=').ok_or("expected GLOB=FORMAT")?;
        let format = match format {
            "float" => None,
            name => Some(name.parse().map_err(|error: qins_codec::UnknownFormat| format!("{error}, float"))?),
        };
        Ok(Self { pattern: pattern.to_owned(), format })
    }
}

/// Linear weights in a format, embeddings in 16 bits, and then what the settings say.
pub fn policy(format: Format, checkpoint: &Checkpoint, settings: &[Setting]) -> Result<Policy> {
    let policy = Policy::linear(format).with_embeddings(checkpoint.half_format());
    Ok(settings.iter().try_fold(policy, |policy, Setting { pattern, format }| match format {
        Some(format) => policy.set(pattern, *format),
        None => policy.keep(pattern),
    })?)
}

/// On standard error, and only if that is a terminal.
pub fn progress_bar(bytes: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes}, {eta} left");
    ProgressBar::new(bytes as u64).with_style(style.expect("the template is well formed")).with_prefix("loading")
}
