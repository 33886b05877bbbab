//! How tokens are chosen, on the command line.

use crate::source::Source;
use anyhow::Result;
use phi35_model::Sampling;

/// How tokens are chosen, but for the temperature. What is not given is what the model's `generation_config.json` says.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability; 1 for all
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f32>,
    /// Only tokens at least this likely beside the most likely one; 0 for all
    #[arg(long, value_name = "P", value_parser = probability)]
    min_p: Option<f32>,
    /// Makes tokens already in the text less likely; 1 changes nothing
    #[arg(long, value_name = "R", value_parser = above_0)]
    repeat_penalty: Option<f32>,
    /// The same seed gives the same text on every machine
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// Of these and `defaults`.
    pub fn or(&self, temperature: Option<f32>, defaults: Sampling) -> Sampling {
        Sampling {
            temperature: temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repeat_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed,
        }
    }
}

/// What a model's `generation_config.json` asks for, or `otherwise` where it says nothing of sampling. What it asks for
/// and is not implemented is told on standard error.
pub fn of_model(source: &Source, otherwise: Sampling) -> Result<Sampling> {
    let Some(config) = source.generation_config()? else { return Ok(otherwise) };
    let passed_over = config.not_implemented();
    if !passed_over.is_empty() {
        eprintln!("(generation_config.json: {} not implemented, and passed over)", passed_over.join(", "));
    }
    let repetition_penalty = config.repetition_penalty.unwrap_or(otherwise.repetition_penalty);
    Ok(config.sampling().unwrap_or(Sampling { repetition_penalty, ..otherwise }))
}

fn number(value: &str, legal: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    value.parse().ok().filter(|&n: &f32| n.is_finite() && legal(n)).ok_or_else(|| format!("expected {expected}"))
}

pub fn at_least_0(value: &str) -> Result<f32, String> {
    number(value, |n| n >= 0.0, "a number of at least 0")
}

pub fn above_0(value: &str) -> Result<f32, String> {
    number(value, |n| n > 0.0, "a number above 0")
}

pub fn probability(value: &str) -> Result<f32, String> {
    number(value, |n| (0.0..=1.0).contains(&n), "a number from 0 to 1")
}
