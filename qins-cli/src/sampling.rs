//! How tokens are chosen, on the command line.

use phi35_model::Sampling;

/// How tokens are chosen, but for the temperature.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// Only the K most likely tokens [default: all]
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    top_k: usize,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    top_p: f32,
    /// Only tokens at least this likely beside the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    min_p: f32,
    /// Makes tokens already in the text less likely; 1 changes nothing
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = above_0)]
    repeat_penalty: f32,
    /// The same seed gives the same text on every machine
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// Of these and the temperature, whose default is the command's.
    pub fn sampling(&self, temperature: f32) -> Sampling {
        let &Self { top_k, top_p, min_p, repeat_penalty: repetition_penalty, seed } = self;
        Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed }
    }
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
