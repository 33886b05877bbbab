//! Trains the demo model from nothing: a grammar writes the text, a BPE tokenizer is learned from it, and a Phi-3 of
//! about a million parameters is trained with Burn's autodiff. Writes a Hugging Face directory.
//!
//!     cargo run --release --example train_demo -- --out my-demo            # trains, an hour or so on two cores
//!     cargo run --release --example train_demo -- --check qins-cli/demo    # samples sentences and parses them
//!     cargo run --release --example train_demo -- --tasks 200              # questions about stories, in JSONL

mod check;
mod corpus;
mod grammar;
mod tasks;
mod tokenizer;
mod training;
mod write;

use clap::Parser;
use grammar::Grammar;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use std::{
    error::Error,
    path::{Path, PathBuf},
};

/// Trains the demo model, or checks one.
#[derive(Parser)]
struct Args {
    /// Where to write the trained model
    #[arg(long, required_unless_present_any = ["check", "text", "tasks"])]
    out: Option<PathBuf>,
    /// Prints the training text instead
    #[arg(long, conflicts_with = "out")]
    text: bool,
    /// Prints so many multiple-choice questions about stories instead, for `qins eval tasks`
    #[arg(long, value_name = "N", conflicts_with = "out")]
    tasks: Option<usize>,
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
    if let Some(n) = args.tasks {
        print!("{}", questions(&grammar, n, args.seed));
        return Ok(());
    }
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

/// Lines of JSON, about other stories than those of the training text of the same seed.
fn questions(grammar: &Grammar, n: usize, seed: u64) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(1);
    (0..n).map(|_| format!("{}\n", tasks::question(grammar, &mut random))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_questions_of_the_report_are_these() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report/tasks.jsonl");
        assert_eq!(std::fs::read_to_string(file).unwrap(), questions(&Grammar::of_the_demo(), 200, SEED));
    }

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
