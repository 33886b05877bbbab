//! From `--format`, `--preset`, `--policy`, `--set`, `--budget` and `--max-loss` to a policy.

use crate::model::{AnyBackend, progress_bar};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use phi35_model::Config;
use qins_backend::{Policy, Rule};
use qins_codec::Format;
use qins_import::{Checkpoint, Target, choose};
use serde::Deserialize;
use std::{path::PathBuf, str::FromStr};

/// Which weights are encoded, and how.
#[derive(Args, Default)]
pub struct PolicyArgs {
    /// Format of linear weights: f32 (as they are), q8, q8h, q12, q6, q4, q3, q2, log8, lin8, fpins:1 to fpins:3, f16, bf16;
    /// embeddings keep 16 bits, norms are not changed
    #[arg(long)]
    format: Option<MainFormat>,
    /// What else than linear weights is encoded, or less
    #[arg(long)]
    preset: Option<Preset>,
    /// A TOML file, rules = ["linear=q4", "lm_head=q12", ...], each as after --set; the last that takes a weight decides
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Another format for what a pattern takes, as in lm_head=q12 or 'model.layers.*.mlp=q4'; `float` leaves it as it is,
    /// q4+cached keeps the decoded weights in memory, too
    #[arg(long, value_name = "GLOB=FORMAT")]
    set: Vec<Rule>,
    /// Choose the format of each tensor by what it loses, for so many bits a weight over all tensors
    #[arg(long, value_name = "BITS", value_parser = positive, conflicts_with_all = ["format", "preset", "max_loss"])]
    budget: Option<f64>,
    /// Choose for each tensor the smallest format that keeps noise DB below the weights
    #[arg(long, value_name = "DB", value_parser = positive, conflicts_with_all = ["format", "preset"])]
    max_loss: Option<f64>,
}

/// The TOML file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    rules: Policy,
}

/// Formats of linear weights.
#[derive(Clone, Copy)]
pub enum MainFormat {
    Float,
    Coded(Format),
}

impl FromStr for MainFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::Float),
            name => name.parse().map(Self::Coded).map_err(|error: qins_codec::UnknownFormat| format!("{error}, f32")),
        }
    }
}

/// What the original record advises where memory or computing is scarce.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Linear weights and embeddings are encoded: the least memory
    Memory,
    /// Linear weights are encoded, embeddings keep 16 bits
    Balanced,
    /// Only the feed-forward layers are encoded, and decoded when loaded: small files, the speed of floats
    Compute,
    /// As balanced, with the logit head in q12
    Hybrid,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}

impl PolicyArgs {
    /// As if only `--format` were given, or nothing.
    pub fn of(format: Option<MainFormat>) -> Self {
        Self { format, ..Self::default() }
    }

    /// Whether anything is asked for.
    pub fn is_given(&self) -> bool {
        let Self { format, preset, policy, set, budget, max_loss } = self;
        format.is_some()
            || preset.is_some()
            || policy.is_some()
            || !set.is_empty()
            || budget.is_some()
            || max_loss.is_some()
    }

    /// Whether formats are chosen by what they lose, which may take long.
    pub fn is_chosen_by_loss(&self) -> bool {
        self.budget.is_some() || self.max_loss.is_some()
    }

    /// The policy for a checkpoint, or for no weights in particular; `default` is the format of linear weights where none is
    /// given, `None` for floats.
    pub fn policy(&self, default: Option<Format>, config: &Config, checkpoint: Option<&Checkpoint>) -> Result<Policy> {
        let mut rules = match &self.policy {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                toml::from_str::<PolicyFile>(&text).with_context(|| path.display().to_string())?.rules
            }
            None => Policy::default(),
        };
        rules = self.set.iter().cloned().fold(rules, Policy::and);
        let target = self.budget.map(Target::Bits).or(self.max_loss.map(Target::Sqnr));
        if let Some(target) = target {
            let checkpoint = checkpoint.context("expected a model's weights to choose formats by")?;
            let bar = progress_bar(checkpoint.bytes());
            bar.set_prefix("choosing");
            let module = config.init::<AnyBackend>(&Default::default())?;
            let policy = choose(&module, checkpoint, rules, target, |progress| bar.inc(progress.bytes as u64))?;
            bar.finish_and_clear();
            eprintln!("chosen: {policy}");
            return Ok(policy);
        }
        let format = match self.format {
            Some(MainFormat::Float) if self.preset.is_some() => bail!("expected a format to encode in, found f32"),
            Some(MainFormat::Float) => None,
            Some(MainFormat::Coded(format)) => Some(format),
            None => default.or(self.preset.map(|_| Format::Q8)),
        };
        let Some(format) = format else { return Ok(rules) };
        let half = checkpoint.map_or(Format::Bf16, Checkpoint::half_format);
        let base = match self.preset {
            Some(Preset::Memory) => Policy::linear(format).with_embeddings(format),
            Some(Preset::Compute) => format!("**.mlp={format}+cached").parse::<Policy>()?.with_embeddings(half),
            Some(Preset::Hybrid) => Policy::linear(format).with_embeddings(half).set("lm_head", Format::Q12)?,
            Some(Preset::Balanced) | None => Policy::linear(format).with_embeddings(half),
        };
        Ok(base.then(rules))
    }
}
