use super::{
    report::{Report, estimate, number, progress, timed},
    text,
    with::PairArgs,
};
use crate::text_file;
use anyhow::{Context, Result, ensure};
use qins_eval::{Estimate, Greedy, NEAR_TIE_LOGITS, WINDOW, drawn_prompts, random_prompts};
use serde::Serialize;
use std::{path::PathBuf, str::FromStr};

/// How long a model writes the same as a reference, always taking the most likely token.
///
/// Both write on from each prompt, whatever ends a text. Free-running, each reads what it wrote itself: after the first
/// difference they read different texts, and a match there says little. Teacher-forced, both read what the reference
/// wrote. Where a text fills the context, both go on from its last half. At the first difference, the margin is the lead of the reference's best logit over
/// its second: where it is small, the reference was of two minds itself.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: PairArgs,
    /// Tokens written after each prompt
    #[arg(long, value_name = "N", default_value_t = 500)]
    tokens: usize,
    /// A text file with a prompt a line, or so many prompts drawn from --text, or of random ids without it
    #[arg(long, value_name = "FILE|N", default_value = "20")]
    prompts: Prompts,
    /// The text that prompts are drawn from
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a drawn prompt
    #[arg(long, value_name = "N", default_value_t = 8)]
    prompt_tokens: usize,
    /// Draws the prompts
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone)]
enum Prompts {
    File(PathBuf),
    Drawn(usize),
}

impl FromStr for Prompts {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::File(text.into()), Self::Drawn))
    }
}

const PROTOCOL: &str = "greedy, nothing ends a text; free-running: each model reads what it wrote, teacher-forced: both read \
    what the reference wrote; where a text fills the context both go on from its last half; windows of 100 tokens; \
    margin: the reference's best logit less its second; near-tie: less than 0.1; standard errors over prompts";

/// What is said in words above.
const _: () = assert!(WINDOW == 100 && NEAR_TIE_LOGITS == 0.1);

/// Where the prompts are from.
#[derive(Serialize)]
struct Inputs {
    prompts: usize,
    prompts_from: String,
}

pub fn run(args: Args) -> Result<()> {
    let (prompts, prompts_from) = prompts(&args)?;
    let (models, result) = args.models.run(|model, reference| {
        timed(|| {
            let bar = progress(prompts.len(), "prompts");
            let found = qins_eval::greedy(model, reference, &prompts, args.tokens, |_| bar.inc(1))?;
            bar.finish_and_clear();
            Ok(found)
        })
    })?;
    let inputs = Inputs { prompts: prompts.len(), prompts_from };
    Report::new(PROTOCOL, models, inputs, result).print(args.json, |models, inputs, found| {
        format!("{}prompts    {} from {}\n{}", models.lines(), inputs.prompts, inputs.prompts_from, lines(found))
    })
}

fn prompts(args: &Args) -> Result<(Vec<Vec<u32>>, String)> {
    let source = &args.models.model.model;
    let (tokens, seed) = (args.prompt_tokens, args.seed);
    match (&args.prompts, &args.text) {
        (Prompts::File(file), _) => {
            let lines = text_file::read(file)?;
            let tokenizer = source.require_tokenizer()?;
            let lines = lines.lines().filter(|line| !line.is_empty());
            let prompts: Vec<Vec<u32>> = lines.map(|line| tokenizer.encode(line)).collect::<Result<_, _>>()?;
            ensure!(!prompts.is_empty(), "{}: expected a prompt a line, found none", file.display());
            Ok((prompts, file.display().to_string()))
        }
        (&Prompts::Drawn(n), Some(file)) => {
            let corpus = text::read(file, source)?;
            let prompts = drawn_prompts(&corpus.ids, n, tokens, seed);
            let prompts = prompts.with_context(|| file.display().to_string())?;
            Ok((prompts, format!("{}, {tokens} tokens each, seed {seed}", file.display())))
        }
        (&Prompts::Drawn(n), None) => {
            let prompts = random_prompts(source.config()?.vocab_size, n, tokens, seed);
            Ok((prompts, format!("random ids, {tokens} tokens each, seed {seed}")))
        }
    }
}

fn lines(found: &Greedy) -> String {
    let percent = |share: &Estimate| format!("{:.1}", 100.0 * share.value);
    let per_window = |shares: &[Estimate]| format!("{} %", shares.iter().map(percent).collect::<Vec<_>>().join(" "));
    let n = found.per_prompt.iter().filter(|prompt| prompt.first_difference.is_some()).count();
    let margin = found.first_difference_margin_logits_median.map_or("none".to_owned(), number);
    let near_ties = found.first_difference_near_ties.map_or("none".to_owned(), estimate);
    let rows = [
        ("identical tokens before the first difference", estimate(found.identical_prefix_tokens_mean)),
        ("median", number(found.identical_prefix_tokens_median)),
        ("least", found.identical_prefix_tokens_min.to_string()),
        ("identical to the end, share of prompts", estimate(found.identical_texts)),
        ("same token, free-running", estimate(found.free_running_match)),
        ("in windows of 100", per_window(&found.free_running_match_per_window)),
        ("same token, teacher-forced", estimate(found.teacher_forced_match)),
        ("in windows of 100", per_window(&found.teacher_forced_match_per_window)),
        ("margin at first differences, median", margin),
        ("over all that the reference wrote", number(found.margin_logits_median)),
        ("near-ties, share of first differences", near_ties),
    ];
    let rows: String = rows.iter().map(|(name, value)| format!("{name:>45}  {value}\n")).collect();
    format!("tokens     {} after each prompt, {n} prompts with a difference\n{rows}", found.tokens)
}
