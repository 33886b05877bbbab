//! `qins eval`: arguments and output around `qins_eval`.

mod compare;
mod greedy;
mod perplexity;
pub mod report;
mod sampling;
mod tasks;
pub mod text;
mod with;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    measure: Measure,
}

#[derive(Subcommand)]
enum Measure {
    /// How well a model predicts a text
    Perplexity(perplexity::Args),
    /// How far a model is from a reference that reads the same text
    Compare(compare::Args),
    /// How long a model writes the same as a reference, always taking the most likely token
    Greedy(greedy::Args),
    /// How far what a model draws tokens from is from what a reference draws from
    Sampling(sampling::Args),
    /// How many multiple-choice questions a model answers
    Tasks(tasks::Args),
}

pub fn run(args: Args) -> Result<()> {
    match args.measure {
        Measure::Perplexity(args) => perplexity::run(args),
        Measure::Compare(args) => compare::run(args),
        Measure::Greedy(args) => greedy::run(args),
        Measure::Sampling(args) => sampling::run(args),
        Measure::Tasks(args) => tasks::run(args),
    }
}
