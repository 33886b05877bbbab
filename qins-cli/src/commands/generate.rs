use crate::{
    ids,
    kv::{KvArgs, LongArgs},
    model::{Loaded, ModelArgs, Run},
    output,
    sampling::{self, SamplingArgs},
};
use anyhow::Result;
use burn::tensor::backend::Backend;
use phi35_model::{Generation, Phi3, StopReason, StopText, TextStream, resume};
use serde::Serialize;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue
    #[arg(short, long, required_unless_present = "ids", conflicts_with = "ids")]
    prompt: Option<String>,
    /// Token ids to continue, as 1,2,3; needs no tokenizer
    #[arg(long)]
    ids: Option<String>,
    /// Tokens to generate at most
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    n: usize,
    /// Divides the logits; 0 takes the most likely token each time
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = sampling::at_least_0)]
    temperature: f32,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    long: LongArgs,
    /// When the context is full, forget the older half of the text but for its first N tokens, and go on
    #[arg(long, value_name = "N")]
    shift: Option<usize>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after a token that ends the text
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

/// The JSON object. `text` is what follows the prompt; null where the model has no tokenizer.
#[derive(Serialize)]
struct Report {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: Option<String>,
    stop: &'static str,
    timings: Timings,
    peak_rss_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Timings {
    load_s: f64,
    prompt_s: f64,
    prompt_tokens: usize,
    generate_s: f64,
    generate_tokens: usize,
    /// Tokens of the prompt that --cache had.
    reused_tokens: usize,
}

pub fn run(args: Args) -> Result<()> {
    let source = &args.model.model;
    let (prompt_ids, tokenizer, vocabulary) = match (&args.prompt, &args.ids) {
        (Some(text), _) => {
            let tokenizer = source.require_tokenizer()?;
            let vocabulary = tokenizer.vocabulary();
            (tokenizer.encode(text)?, Some(tokenizer), Some(vocabulary))
        }
        (None, ids) => {
            // Ids need no tokenizer; a stop text does.
            let tokenizer = match args.stop.is_empty() {
                true => source.tokenizer()?,
                false => Some(source.require_tokenizer()?),
            };
            (ids::parse(ids.as_deref().unwrap_or_default())?, tokenizer, None)
        }
    };
    let config = source.config()?;
    let stop_ids = if args.ignore_eos { Vec::new() } else { source.stop_ids(&config)? };
    let sampling = args.sampling.sampling(args.temperature);
    let options = Generation {
        max_new_tokens: args.n,
        stop_ids,
        vocabulary,
        sampling,
        shift: args.shift,
        ..Generation::default()
    };
    let options = args.long.set(args.kv.set(options), &config);
    let task = Task {
        text: tokenizer.as_ref().map(|tokenizer| tokenizer.stream(&prompt_ids)),
        prompt: args.prompt.clone().unwrap_or_default(),
        prompt_ids,
        options,
        kv: args.kv.clone(),
        long: args.long.clone(),
        stops: StopText::new(args.stop.clone()),
        json: args.json,
    };
    args.model.run(task)
}

struct Task<'t> {
    /// Printed before the generated text; empty if the prompt was given as ids.
    prompt: String,
    prompt_ids: Vec<u32>,
    text: Option<TextStream<'t>>,
    options: Generation,
    kv: KvArgs,
    long: LongArgs,
    stops: StopText,
    json: bool,
}

impl Run for Task<'_> {
    type Output = ();

    fn run<B: Backend>(mut self, model: &Phi3<B>, loaded: Loaded) -> Result<()> {
        let start = Instant::now();
        let prefix = self.long.prefix(model, &self.kv)?;
        let mut tokens = resume(model, prefix, &self.prompt_ids, self.options.clone())?;
        let mut ids = Vec::new();
        let mut text = self.text.as_ref().map(|_| String::new());
        let mut prompt_s = None;
        let show = |piece: &str| if self.json { Ok(()) } else { output::text(piece) };
        show(&self.prompt)?;
        let mut stopped = false;
        for id in tokens.by_ref() {
            prompt_s.get_or_insert_with(|| start.elapsed().as_secs_f64());
            ids.push(id);
            match (&mut self.text, &mut text) {
                (Some(stream), Some(text)) => {
                    let (piece, ends) = self.stops.push(&stream.push(id)?);
                    show(&piece)?;
                    text.push_str(&piece);
                    if ends {
                        stopped = true;
                        break;
                    }
                }
                _ => show(&format!("{id} "))?,
            }
        }
        if let Some(text) = &mut text {
            let held = self.stops.finish();
            show(&held)?;
            text.push_str(&held);
        }
        show("\n")?;
        let total_s = start.elapsed().as_secs_f64();
        let prompt_s = prompt_s.unwrap_or(total_s);
        let timings = Timings {
            load_s: loaded.load_s,
            prompt_s,
            prompt_tokens: self.prompt_ids.len(),
            generate_s: total_s - prompt_s,
            generate_tokens: ids.len(),
            reused_tokens: tokens.reused_tokens(),
        };
        let stop = match tokens.stop_reason() {
            _ if stopped => "stop",
            Some(StopReason::Eos) => "eos",
            Some(StopReason::Length) | None => "length",
        };
        self.long.keep(model, &tokens.into_prefix())?;
        let report =
            Report { prompt_ids: self.prompt_ids, ids, text, stop, timings, peak_rss_bytes: output::peak_rss_bytes() };
        if self.json { output::json(&report) } else { Ok(()) }
    }
}
