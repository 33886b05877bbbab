use super::{
    report::{Report, estimate, progress, timed},
    text::{About, WindowArgs},
    with::PairArgs,
};
use crate::sampling;
use anyhow::Result;
use phi35_model::Sampling;
use qins_eval::SamplingDistance;
use serde::Serialize;

/// How far what a model draws tokens from is from what a reference draws from.
///
/// Both read the same windows of a text. At every position the two distributions after temperature and filters are
/// compared exactly; then a token is drawn from each with the same random number, for every seed.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: PairArgs,
    #[command(flatten)]
    windows: WindowArgs,
    /// Divides the logits; above 0
    #[arg(long, value_name = "T", default_value_t = 0.7, value_parser = sampling::above_0)]
    temperature: f32,
    /// Only the most likely tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 0.9, value_parser = sampling::probability)]
    top_p: f32,
    /// Draws at each position
    #[arg(long, value_name = "N", default_value_t = 100)]
    seeds: usize,
    /// The first seed
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const PROTOCOL: &str = "both read the same text, as compare does; distributions after temperature and top-p, compared exactly: \
    total variation, Jensen-Shannon divergence, KL(reference || model) where it is finite; draws: one a seed and position, \
    both models with the same random number, most likely tokens first; standard errors over windows";

#[derive(Serialize)]
struct Inputs {
    text: About,
    temperature: f32,
    top_p: f32,
    first_seed: u64,
}

pub fn run(args: Args) -> Result<()> {
    let (corpus, windows, text) = args.windows.read(&args.models.model.model)?;
    let Args { temperature, top_p, seeds, seed, .. } = args;
    let sampling = Sampling { temperature, top_p, seed, ..Sampling::default() };
    let (models, result) = args.models.run(|model, reference| {
        timed(|| {
            let bar = progress(text.windows(), "windows");
            let found = qins_eval::sample(model, reference, &corpus, &windows, &sampling, seeds, |_| bar.inc(1))?;
            bar.finish_and_clear();
            Ok(found)
        })
    })?;
    let inputs = Inputs { text, temperature, top_p, first_seed: seed };
    Report::new(PROTOCOL, models, inputs, result).print(args.json, |models, inputs, found| {
        format!(
            "{}{}sampling   temperature {temperature}, top-p {top_p}, {seeds} seeds from {seed}\n{}",
            models.lines(),
            inputs.text.line(),
            lines(found)
        )
    })
}

fn lines(found: &SamplingDistance) -> String {
    let rows = [
        ("total variation", estimate(found.total_variation)),
        ("Jensen-Shannon divergence", estimate(found.js_nats)),
        ("KL divergence where finite", found.kl_nats.map_or("nowhere".to_owned(), estimate)),
        ("share of positions where infinite", estimate(found.kl_infinite)),
        ("probability of what the model never draws", estimate(found.never_drawn)),
        ("KL divergence before top-p", estimate(found.tempered_kl_nats)),
        ("tokens that the reference draws from", estimate(found.reference_kept_tokens)),
        ("tokens that the model draws from", estimate(found.model_kept_tokens)),
        ("same draws", estimate(found.same_draws)),
    ];
    rows.iter().map(|(name, value)| format!("{name:>43}  {value}\n")).collect()
}
