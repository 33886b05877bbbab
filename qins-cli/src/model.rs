//! From `<model>`, `--backend` and `--format` to a loaded model of the right type.

use crate::{policy::PolicyArgs, source::Source};
use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use phi35_model::Phi3;
use qins_import::{Progress, load, load_container, load_encoded};
use std::time::Instant;

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
    #[command(flatten)]
    policy: PolicyArgs,
    /// Read only the first N byte planes of a container's `fpins` tensors: fewer bytes, less exact [default: all]
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    #[command(flatten)]
    threads: Threads,
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
        self.threads.set()?;
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
            if self.policy.is_given() {
                bail!("{}: a container is encoded already: leave --format and its like out", self.model);
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
        let policy = self.policy.policy(None, &config, &checkpoint)?;
        let bar = progress_bar(checkpoint.bytes());
        let on_progress = |progress: Progress<'_>| bar.inc(progress.bytes as u64);
        if policy.is_float() {
            let model: Phi3<B> = load(config.init(&device)?, &checkpoint, on_progress)?;
            bar.finish_and_clear();
            return task.run(&model, start.elapsed().as_secs_f64());
        }
        let model = load_encoded::<B, _>(config.init(&device)?, &checkpoint, &policy, on_progress)?;
        bar.finish_and_clear();
        task.run(&model, start.elapsed().as_secs_f64())
    }
}

/// On standard error, and only if that is a terminal.
pub fn progress_bar(bytes: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes}, {eta} left");
    ProgressBar::new(bytes as u64).with_style(style.expect("the template is well formed")).with_prefix("loading")
}
