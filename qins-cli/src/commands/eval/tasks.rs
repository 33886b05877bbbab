use super::{
    report::{Report, estimate, progress, timed},
    with,
};
use crate::{model::ModelArgs, text_file};
use anyhow::{Context, Result};
use qins_kv_cache::KvChoice;
use serde::Serialize;
use std::path::PathBuf;

/// How many multiple-choice questions a model answers.
///
/// The file has a JSON object a line, as HellaSwag and MMLU are easily written: {"context": "...", "choices": ["...",
/// "..."], "answer": 1}, the answer counted from 0; other fields do not count. The model takes the choice whose tokens
/// are the most likely after the context; also told: by likelihood a byte and a token of the choice, and the
/// probability that the model gives to the right one among the choices. A blank is put between context and choice
/// unless there is white space. Contexts too long for the model lose their beginning.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The questions, in JSONL
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Only the first N questions [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const PROTOCOL: &str = "log-likelihood of each choice after the context, special tokens as the tokenizer adds them; the \
    likeliest choice counts, as a whole, a byte and a token; standard errors over questions";

#[derive(Serialize)]
struct Models {
    model: with::About,
}

#[derive(Serialize)]
struct Inputs {
    file: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    let name = || args.file.display().to_string();
    let mut tasks = qins_eval::read_tasks(&text_file::read(&args.file)?).with_context(name)?;
    tasks.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    let tokenizer = args.model.model.require_tokenizer()?;
    let (model, result) = with::one(&args.model, KvChoice::Dense, |model| {
        timed(|| {
            let bar = progress(tasks.len(), "questions");
            let found = qins_eval::answer(model, &tokenizer, &tasks, |_| bar.inc(1)).with_context(name)?;
            bar.finish_and_clear();
            Ok(found)
        })
    })?;
    let inputs = Inputs { file: args.file.clone() };
    Report::new(PROTOCOL, Models { model }, inputs, result).print(args.json, |models, inputs, found| {
        format!(
            "{}questions  {} of {}, {} cut\naccuracy   {}; a byte {}; a token {}; by chance {:.4}\n\
             right one  probability {}\n",
            models.model.line("model"),
            found.tasks,
            inputs.file.display(),
            found.truncated,
            estimate(found.accuracy),
            estimate(found.accuracy_per_byte),
            estimate(found.accuracy_per_token),
            found.chance,
            estimate(found.answer_probability)
        )
    })
}
