use crate::{
    kv::KvArgs,
    model::{Loaded, Run, RunArgs, Weights},
    output,
    source::Source,
};
use anyhow::{Context, Result};
use burn::tensor::{Distribution, Tensor, backend::Backend};
use phi35_model::{Config, Generation, KvStore, Phi3, Prefix, generate, resume};
use qins_kv_cache::ChosenKv;
use rayon::prelude::*;
use serde::Serialize;
use std::{fmt, hint::black_box, path::Path, str::FromStr, time::Instant};

#[derive(clap::Args)]
pub struct Args {
    /// A container, a Hugging Face model directory, or `demo`
    #[arg(required_unless_present = "shape")]
    model: Option<Source>,
    /// Random weights of a model's shapes in place of a model: phi35-mini, or phi35-mini:4 for so many layers
    #[arg(long, value_name = "NAME[:LAYERS]", conflicts_with = "model")]
    shape: Option<Shape>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    kv: KvArgs,
    /// Tokens that the cache is filled with first: random keys and values
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens generated after it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    generate: u32,
    /// Repetitions, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    reps: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The shapes of Phi-3.5-mini, without its long rope.
#[derive(Clone)]
pub struct Shape {
    layers: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, layers) = text.split_once(':').unwrap_or((text, "32"));
        match layers.parse() {
            Ok(layers) if name == "phi35-mini" && layers > 0 => Ok(Self { layers }),
            _ => Err("expected phi35-mini or phi35-mini:LAYERS".to_owned()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phi35-mini:{}", self.layers)
    }
}

impl Shape {
    fn config(&self) -> Result<Config> {
        let json = serde_json::json!({
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": self.layers,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "rope_scaling": null, "tie_word_embeddings": false, "eos_token_id": 32000,
        });
        Ok(Config::from_json(json.to_string().as_bytes(), Path::new("phi35-mini"))?)
    }
}

/// The JSON object. Rates are tokens a second, over the repetitions.
#[derive(Serialize)]
struct Report {
    /// How keys and values are stored.
    kv: &'static str,
    context_tokens: usize,
    /// Bytes of keys and values that are in the cache before the prompt.
    context_bytes: usize,
    prompt_tokens: u32,
    prompt_tokens_per_s: Spread,
    generate_tokens: u32,
    generate_tokens_per_s: Spread,
    /// Bytes of weights that a generated token reads.
    token_bytes: usize,
    /// Those, and the keys and values of the context.
    generate_bytes_per_s: f64,
    /// What a sum over memory reads with as many threads: the limit of generation.
    read_bytes_per_s: f64,
    load_s: f64,
    peak_rss_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values[i];
        let (middle, n) = (values.len() / 2, values.len());
        let median = if n % 2 == 1 { at(middle) } else { (at(middle - 1) + at(middle)) / 2.0 };
        Self { min: at(0), median, max: at(n - 1) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} tokens/s ({:.2} to {:.2})", self.median, self.min, self.max)
    }
}

pub fn run(args: Args) -> Result<()> {
    let Args { kv, context, prompt, generate, reps, .. } = args;
    let task = Measure { kv, context, prompt, generate, reps };
    let report = match (&args.model, &args.shape) {
        (Some(source), _) => args.run.run(Weights::Files(source), task)?,
        (None, shape) => {
            let shape = shape.as_ref().context("expected a model or --shape")?;
            args.run.run(Weights::Synthetic(&shape.config()?), task)?
        }
    };
    if args.json {
        return output::json(&report);
    }
    let gigabytes = |bytes: f64| bytes / 1e9;
    let peak = report.peak_rss_bytes.map_or("unknown".to_owned(), |b| format!("{:.2} GB", gigabytes(b as f64)));
    let context = match report.context_tokens {
        0 => String::new(),
        tokens => {
            format!("context   {tokens:>4} tokens: {:.3} GB in {}\n", gigabytes(report.context_bytes as f64), report.kv)
        }
    };
    output::text(&format!(
        "load      {:.2} s, peak resident {peak}, {:.3} GB of weights a token\n\
         {context}\
         prompt    {:>4} tokens: {}\n\
         generate  {:>4} tokens: {}, {:.2} GB/s, {:.0} % of the {:.2} GB/s that a sum over memory reads\n",
        report.load_s,
        gigabytes(report.token_bytes as f64),
        report.prompt_tokens,
        report.prompt_tokens_per_s,
        report.generate_tokens,
        report.generate_tokens_per_s,
        gigabytes(report.generate_bytes_per_s),
        100.0 * report.generate_bytes_per_s / report.read_bytes_per_s,
        gigabytes(report.read_bytes_per_s),
    ))
}

struct Measure {
    kv: KvArgs,
    context: usize,
    prompt: u32,
    generate: u32,
    reps: u32,
}

impl Run for Measure {
    type Output = Report;

    fn run<B: Backend>(self, model: &Phi3<B>, loaded: Loaded) -> Result<Report> {
        let vocabulary = model.config().vocab_size as u32;
        // Another token first each time, or the prompt would be found in the cache.
        let ids = |rep: u32| {
            let prompt = (0..self.prompt).map(move |i| (i.wrapping_mul(7919) + rep) % vocabulary);
            std::iter::repeat_n(0, self.context).chain(prompt).collect::<Vec<u32>>()
        };
        let options =
            |tokens: u32| self.kv.set(Generation { max_new_tokens: tokens as usize, ..Generation::default() });
        // Touches every weight, and whatever a backend prepares at its first run.
        generate(model, &ids(0)[self.context..][..1], options(2))?.for_each(drop);
        let mut prefix = self.filled(model);
        let config = model.config();
        let choice = self.kv.choice::<B>();
        let of_heads = config.num_hidden_layers * config.key_value_heads() * choice.token_bytes(config.head_size());
        let context_bytes = self.context.min(config.sliding_window.unwrap_or(usize::MAX)) * of_heads;
        let (mut prompt, mut generated) = (Vec::new(), Vec::new());
        for rep in 1..=self.reps {
            let ids = ids(rep);
            let start = Instant::now();
            let mut tokens = resume(model, prefix, &ids, options(self.generate + 1))?;
            tokens.next().context("the model's context ends at the prompt")?;
            prompt.push(f64::from(self.prompt) / start.elapsed().as_secs_f64());
            let start = Instant::now();
            let found = tokens.by_ref().count() as u32;
            prefix = tokens.into_prefix();
            generated.push(f64::from(found) / start.elapsed().as_secs_f64());
            anyhow::ensure!(found == self.generate, "the model's context ends after {found} tokens");
        }
        let peak_rss_bytes = output::peak_rss_bytes();
        let generate_tokens_per_s = Spread::of(generated);
        Ok(Report {
            kv: choice.name(),
            context_tokens: self.context,
            context_bytes,
            prompt_tokens: self.prompt,
            prompt_tokens_per_s: Spread::of(prompt),
            generate_tokens: self.generate,
            token_bytes: loaded.token_bytes,
            generate_bytes_per_s: generate_tokens_per_s.median * (loaded.token_bytes + context_bytes) as f64,
            generate_tokens_per_s,
            read_bytes_per_s: read_bytes_per_s(),
            load_s: loaded.load_s,
            peak_rss_bytes,
        })
    }
}

impl Measure {
    /// A text of which the cache holds random keys and values.
    fn filled<B: Backend>(&self, model: &Phi3<B>) -> Prefix<B, ChosenKv<B>> {
        const PART: usize = 256;
        let mut cache = model.cache_with(|| self.kv.store());
        let device = model.model.norm.gamma.device();
        let config = model.config();
        let [keys, values] = [(); 2].map(|()| {
            let shape = [1, config.key_value_heads(), PART.min(self.context).max(1), config.head_size()];
            Tensor::<B, 4>::random(shape, Distribution::Default, &device)
        });
        for layer in cache.layers_mut() {
            layer.reserve(self.context);
            while layer.len() < self.context {
                let tokens = PART.min(self.context - layer.len());
                let part = |tensor: &Tensor<B, 4>| tensor.clone().slice_dim(2, 0..tokens);
                layer.append(part(&keys), part(&values));
            }
        }
        Prefix::from_parts(cache, vec![0; self.context])
    }
}

/// The best of five sums over half a gigabyte, which no cache holds, with all threads.
fn read_bytes_per_s() -> f64 {
    let numbers = vec![1u64; 1 << 26];
    let once = || {
        let start = Instant::now();
        let sum: u64 = numbers.par_chunks(1 << 18).map(|part| part.iter().sum::<u64>()).sum();
        black_box(sum);
        (numbers.len() * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}
