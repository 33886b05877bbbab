//! Texts that go on from a prompt, one as it comes or several at once.

mod several;

use crate::{
    ids,
    kv::{KvArgs, LongArgs},
    model::{Loaded, ModelArgs, Run},
    output,
    sampling::{self, SamplingArgs},
    stops::Stops,
    text_file,
};
use anyhow::{Result, bail, ensure};
use burn::{module::Module, tensor::backend::Backend};
use phi35_model::{Generate, Generation, KvStore, Phi3, Sampling, StopReason, TextStream, Tokenizer, resume};
use qins_backend::device_memory;
use serde::Serialize;
use several::{Prompt, Several};
use std::{path::PathBuf, time::Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; given several times, all are continued side by side, the Nth with the seed S + N - 1
    #[arg(short, long, required_unless_present_any = ["ids", "prompts"], conflicts_with_all = ["ids", "prompts"])]
    prompt: Vec<String>,
    /// Token ids to continue, as 1,2,3; needs no tokenizer; may be given several times, as --prompt
    #[arg(long, conflicts_with = "prompts")]
    ids: Vec<String>,
    /// A file with a text to continue on every line; empty lines do not count
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Texts of several prompts that are written at once; as one ends, the next begins
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Tokens to generate at most
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    n: usize,
    /// Divides the logits; 0 takes the most likely token each time. Above 0, what else is not given here is as the model's
    /// generation_config.json has it [default: 0]
    #[arg(long, value_name = "T", value_parser = sampling::at_least_0)]
    temperature: Option<f32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    long: LongArgs,
    /// When the context is full, forget the older half of the text but for its first N tokens, and go on
    #[arg(long, value_name = "N")]
    shift: Option<usize>,
    /// End before this text, or at this special token; may be given several times
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
    /// Bytes taken from a graphics device.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_bytes: Option<u64>,
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
    let mut texts = args.prompt.clone();
    if let Some(file) = &args.prompts {
        texts = text_file::read(file)?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        ensure!(!texts.is_empty(), "{}: expected a prompt a line, found none", file.display());
    }
    // Ids need no tokenizer; a stop text does.
    let tokenizer = match texts.is_empty() && args.stop.is_empty() {
        true => source.tokenizer()?,
        false => Some(source.require_tokenizer()?),
    };
    let vocabulary = tokenizer.as_ref().filter(|_| !texts.is_empty()).map(Tokenizer::vocabulary);
    let prompt = |text: String, ids: Vec<u32>| Prompt {
        stream: tokenizer.as_ref().map(|tokenizer| tokenizer.stream(&ids)),
        text,
        ids,
    };
    let mut prompts = Vec::new();
    for text in texts {
        let ids = tokenizer.as_ref().expect("a text has one").encode(&text)?;
        prompts.push(prompt(text, ids));
    }
    for list in &args.ids {
        prompts.push(prompt(String::new(), ids::parse(list)?));
    }
    let config = source.config()?;
    let stops = Stops::new(&args.stop, tokenizer.as_ref())?;
    let stop_ids = if args.ignore_eos { Vec::new() } else { source.stop_ids(&config, tokenizer.as_ref())? };
    let stop_ids = stops.without_own(stop_ids);
    let samples = args.temperature.is_some_and(|temperature| temperature > 0.0);
    let defaults = if samples { sampling::of_model(source, Sampling::default())? } else { Sampling::default() };
    let sampling = args.sampling.or(args.temperature, defaults);
    let options = Generation {
        max_new_tokens: args.n,
        stop_ids,
        vocabulary,
        sampling,
        shift: args.shift,
        ..Generation::default()
    };
    let options = args.long.set(args.kv.set(options), &config);
    let kv = args.kv.clone();
    if args.prompts.is_some() || prompts.len() > 1 {
        args.long.require_no_cache()?;
        return args.model.run(Several { prompts, options, kv, stops, at_once: args.batch as usize, json: args.json });
    }
    let Prompt { text: prompt, ids: prompt_ids, stream } = prompts.remove(0);
    let long = args.long.clone();
    args.model.run(Task { text: stream, prompt, prompt_ids, options, kv, long, stops, json: args.json })
}

/// What `stop` says of a text that a failure ended.
const ERROR: &str = "error";

/// What `stop` says of a text; `by_text`: a `--stop` text came.
fn stop_name(by_text: bool, reason: Option<StopReason>) -> &'static str {
    match reason {
        _ if by_text => "stop",
        Some(StopReason::Eos) => "eos",
        Some(StopReason::NotFinite) => ERROR,
        Some(StopReason::Length) | None => "length",
    }
}

struct Task<'t> {
    /// Printed before the generated text; empty if the prompt was given as ids.
    prompt: String,
    prompt_ids: Vec<u32>,
    text: Option<TextStream<'t>>,
    options: Generation,
    kv: KvArgs,
    long: LongArgs,
    stops: Stops,
    json: bool,
}

impl Run for Task<'_> {
    type Output = ();

    fn needs_hash(&self) -> bool {
        self.long.has_cache()
    }

    fn run<B: Backend>(mut self, model: &Phi3<B>, loaded: Loaded) -> Result<()> {
        let start = Instant::now();
        let prefix = self.long.prefix(model, loaded.hash.as_ref(), &self.kv)?;
        let mut tokens = resume(model, prefix, &self.prompt_ids, self.options.clone())?;
        let mut written = Written { ids: Vec::new(), text: self.text.as_ref().map(|_| String::new()), prompt_s: None };
        let outcome = self.write(&mut tokens, &mut written, start);
        let total_s = start.elapsed().as_secs_f64();
        let prompt_s = written.prompt_s.unwrap_or(total_s);
        let timings = Timings {
            load_s: loaded.load_s,
            prompt_s,
            prompt_tokens: self.prompt_ids.len(),
            generate_s: total_s - prompt_s,
            generate_tokens: written.ids.len(),
            reused_tokens: tokens.reused_tokens(),
        };
        let stop = outcome.as_ref().copied().unwrap_or(ERROR);
        if outcome.is_ok() {
            self.long.keep(loaded.hash.as_ref(), &tokens.into_prefix())?;
        }
        if self.json {
            output::json(&Report {
                prompt_ids: self.prompt_ids,
                ids: written.ids,
                text: written.text,
                stop,
                timings,
                peak_rss_bytes: output::peak_rss_bytes(),
                device_bytes: model.devices().first().and_then(device_memory::<B>).map(|memory| memory.reserved),
            })?;
        }
        outcome.map(drop)
    }
}

/// What was generated, however it ended.
struct Written {
    ids: Vec<u32>,
    text: Option<String>,
    prompt_s: Option<f64>,
}

impl Task<'_> {
    /// Generates and shows. Returns what `stop` says.
    fn write<B: Backend, S: KvStore<B>>(
        &mut self,
        tokens: &mut Generate<'_, B, S>,
        written: &mut Written,
        start: Instant,
    ) -> Result<&'static str> {
        let show = |piece: &str| if self.json { Ok(()) } else { output::text(piece) };
        show(&self.prompt)?;
        let mut stopped = false;
        while !stopped && let Some(id) = tokens.next() {
            written.prompt_s.get_or_insert_with(|| start.elapsed().as_secs_f64());
            written.ids.push(id);
            match (&mut self.text, &mut written.text) {
                (Some(stream), Some(text)) => {
                    let piece;
                    (piece, stopped) = self.stops.push(id, stream)?;
                    text.push_str(&piece);
                    show(&piece)?;
                }
                _ => show(&format!("{id} "))?,
            }
        }
        if let (Some(stream), Some(text), false) = (&mut self.text, &mut written.text, stopped) {
            let held = self.stops.finish(stream)?;
            text.push_str(&held);
            show(&held)?;
        }
        show("\n")?;
        match stop_name(stopped, tokens.stop_reason()) {
            ERROR => bail!("{}", not_finite(written.ids.len())),
            stop => Ok(stop),
        }
    }
}

/// The error of logits that no token can be chosen by.
pub fn not_finite(tokens: usize) -> String {
    format!("the model's logits are not finite: no token {} can be chosen", tokens + 1)
}
