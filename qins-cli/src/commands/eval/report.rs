//! What all measurements print alike.

use super::with::{About, Pair};
use crate::output;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use qins_eval::{Estimate, Perplexity};
use serde::Serialize;
use std::time::Instant;

/// The JSON object: `result` is what `qins_eval` found, `models` and `inputs` say of what.
#[derive(Serialize)]
pub struct Report<M, I, R> {
    /// The line that was called.
    command: String,
    /// How it was measured, in words.
    protocol: &'static str,
    #[serde(flatten)]
    models: M,
    #[serde(flatten)]
    inputs: I,
    result: R,
    run_s: f64,
    peak_rss_bytes: Option<u64>,
}

impl<M: Serialize, I: Serialize, R: Serialize> Report<M, I, R> {
    pub fn new(protocol: &'static str, models: M, inputs: I, (result, run_s): (R, f64)) -> Self {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("qins {}", words.join(" "));
        Self { command, protocol, models, inputs, result, run_s, peak_rss_bytes: output::peak_rss_bytes() }
    }

    /// Prints the object, or the lines that `lines` writes between what is common to all.
    pub fn print(&self, json: bool, lines: impl FnOnce(&M, &I, &R) -> String) -> Result<()> {
        if json {
            return output::json(self);
        }
        let lines = lines(&self.models, &self.inputs, &self.result);
        output::text(&format!("{lines}time       {:.1} s\nprotocol   {}\n", self.run_s, self.protocol))
    }
}

/// Runs a measurement and tells how long it took.
pub fn timed<T>(task: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    let output = task()?;
    Ok((output, start.elapsed().as_secs_f64()))
}

/// On standard error, and only if that is a terminal.
pub fn progress(steps: usize, unit: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len}, {eta} left");
    ProgressBar::new(steps as u64).with_style(style.expect("the template is well formed")).with_prefix(unit)
}

/// Five significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e7).contains(&size) => {
            let decimals = (4 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        }
        _ => format!("{value:.4e}"),
    }
}

/// With its error.
pub fn estimate(estimate: Estimate) -> String {
    match estimate.standard_error {
        Some(error) => format!("{} ± {error:.1e}", number(estimate.value)),
        None => number(estimate.value),
    }
}

impl About {
    /// As the output says it.
    pub fn line(&self, role: &str) -> String {
        let Self { model, weights, weight_bytes, bits_per_weight, kv, .. } = self;
        format!(
            "{role:<10} {model}: {weights} weights in {weight_bytes} bytes, {bits_per_weight:.3} bits each; cache {kv}\n"
        )
    }
}

impl Pair {
    /// As the output says it.
    pub fn lines(&self) -> String {
        self.model.line("model") + &self.reference.line("reference")
    }
}

/// A line of a perplexity.
pub fn perplexity_lines(role: &str, perplexity: &Perplexity) -> String {
    let per_byte = perplexity.perplexity_per_byte.zip(perplexity.bits_per_byte);
    let per_byte = per_byte
        .map(|(per_byte, bits)| format!("; a byte {}, {} bits", estimate(per_byte), estimate(bits)))
        .unwrap_or_default();
    format!(
        "{role:<10} perplexity a token {}{per_byte}; top-1 accuracy {}\n",
        estimate(perplexity.perplexity_per_token),
        estimate(perplexity.top1_accuracy)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_five_digits() {
        for (value, text) in [
            (37.3049, "37.305"),
            (0.342412, "0.34241"),
            (1.0, "1.0000"),
            (1452822.0, "1452822"),
            (0.0, "0"),
            (-0.00123456, "-0.0012346"),
            (3.456789e-6, "3.4568e-6"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(estimate(Estimate { value: 2.0, standard_error: Some(0.0123) }), "2.0000 ± 1.2e-2");
    }
}
