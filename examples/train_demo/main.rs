//! Trains the demo model from nothing: a grammar writes the text, a BPE tokenizer is learned from it, and a Phi-3 of
//! about a million parameters is trained with Burn's autodiff. Writes a Hugging Face directory.
//!
//!     cargo run --release --example train_demo -- --out my-demo            # trains, an hour or so on two cores
//!     cargo run --release --example train_demo -- --check qins-cli/demo    # samples sentences and parses them

mod check;
mod corpus;
mod grammar;
mod tokenizer;
mod training;
mod write;

use clap::Parser;
use grammar::Grammar;
use std::{
    error::Error,
    path::{Path, PathBuf},
};

/// Trains the demo model, or checks one.
#[derive(Parser)]
struct Args {
    /// Where to write the trained model
    #[arg(long, required_unless_present_any = ["check", "text"])]
    out: Option<PathBuf>,
    /// Prints the training text instead
    #[arg(long, conflicts_with = "out")]
    text: bool,
    /// Samples from the model in this directory instead
    #[arg(long, conflicts_with = "out")]
    check: Option<PathBuf>,
    /// Documents of the training text
    #[arg(long, default_value_t = DOCUMENTS)]
    documents: usize,
    /// Sentences to sample for the check
    #[arg(long, default_value_t = 1000)]
    sentences: usize,
    /// Decides the text, the first weights and their order
    #[arg(long, default_value_t = SEED)]
    seed: u64,
}

/// Documents and seed of the training text of the model in `qins-cli/demo`.
const DOCUMENTS: usize = 16_000;
const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let grammar = Grammar::of_the_demo();
    let documents = corpus::documents(&grammar, args.documents, args.seed);
    if args.text {
        documents.iter().for_each(|document| println!("{}", document.text()));
        return Ok(());
    }
    let check = |directory: &Path| -> Result<(), Box<dyn Error>> {
        println!("{}", check::check(directory, &grammar, &documents, args.sentences)?);
        Ok(())
    };
    let Some(out) = args.out else { return check(&args.check.expect("required without --out")) };

    std::fs::create_dir_all(&out)?;
    let tokenizer = tokenizer::train(&documents).map_err(|e| e as Box<dyn Error>)?;
    let sequences = tokenizer::encode(&tokenizer, &documents).map_err(|e| e as Box<dyn Error>)?;
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    eprintln!("{} documents, {tokens} tokens", documents.len());
    let config = training::config();
    let model = training::train(&serde_json::from_value(config.clone())?, sequences, args.seed)?;
    write::write(&out, &config, &tokenizer, &model)?;
    check(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_writes_new_sentences_of_its_grammar() {
        let grammar = Grammar::of_the_demo();
        let documents = corpus::documents(&grammar, DOCUMENTS, SEED);
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../qins-cli/demo"));
        let report = check::check(directory, &grammar, &documents, 1000).unwrap();
        assert_eq!(report.sentences, 1000);
        assert!(report.parsed >= 950, "{report}");
        assert!(report.new >= 500, "{report}");
    }
}
