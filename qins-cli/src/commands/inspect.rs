use crate::{output, source::Source};
use anyhow::Result;
use phi35_model::Config;
use qins_kv_cache::KvChoice;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(clap::Args)]
pub struct Args {
    /// A container, a Hugging Face model directory, or `demo`
    model: Source,
    /// Tokens of a conversation, for the size of the key-value cache [default: what the context holds]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    tensors: Vec<Tensor>,
    formats: BTreeMap<String, Total>,
    weights: usize,
    weight_bytes: usize,
    bits_per_weight: f64,
    context_tokens: usize,
    /// Keys and values of so many tokens, by the name of the cache.
    kv: BTreeMap<&'static str, Kv>,
    /// How the container came about; null for others.
    container: Option<About>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    format: String,
    bytes: usize,
    bits_per_weight: f64,
    sqnr_db: Option<f32>,
}

#[derive(Default, Serialize)]
struct Total {
    tensors: usize,
    weights: usize,
    bytes: usize,
}

#[derive(Serialize)]
struct Kv {
    bytes_per_token: usize,
    /// What is allocated: whole blocks, and only those that a sliding window can see.
    bytes: usize,
}

#[derive(Serialize)]
struct About {
    version: u32,
    producer: String,
    policy: String,
    revision: Option<String>,
    sources: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    let config = args.model.config()?;
    let (tensors, container) = tensors(&args.model)?;
    let mut formats: BTreeMap<String, Total> = BTreeMap::new();
    for tensor in &tensors {
        let total = formats.entry(tensor.format.clone()).or_default();
        total.tensors += 1;
        total.weights += tensor.shape.iter().product::<usize>();
        total.bytes += tensor.bytes;
    }
    let (weights, weight_bytes) = formats.values().fold((0, 0), |(w, b), total| (w + total.weights, b + total.bytes));
    let context_tokens = args.ctx.unwrap_or(config.max_position_embeddings);
    let kv = KvChoice::all().map(|choice| (choice.name(), kv(&config, choice, context_tokens))).collect();
    let report = Report {
        tensors,
        formats,
        weights,
        weight_bytes,
        bits_per_weight: bits(weight_bytes, weights),
        context_tokens,
        kv,
        container,
    };
    if args.json { output::json(&report) } else { output::text(&text(&report)) }
}

fn bits(bytes: usize, weights: usize) -> f64 {
    if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
}

fn kv(config: &Config, choice: KvChoice, tokens: usize) -> Kv {
    let heads = config.num_hidden_layers * config.key_value_heads();
    let bytes_per_token = heads * choice.token_bytes(config.head_size());
    Kv { bytes_per_token, bytes: bytes_per_token * choice.stored_tokens(tokens, config.sliding_window) }
}

fn tensors(model: &Source) -> Result<(Vec<Tensor>, Option<About>)> {
    let tensor = |name: &str, shape: &[usize], format: String, bytes: usize, sqnr_db: Option<f32>| {
        let bits_per_weight = bits(bytes, shape.iter().product());
        Tensor { name: name.to_owned(), shape: shape.to_vec(), format, bytes, bits_per_weight, sqnr_db }
    };
    if let Some(container) = model.container()? {
        let manifest = container.manifest();
        let about = About {
            version: manifest.version,
            producer: manifest.producer.clone(),
            policy: manifest.policy.clone(),
            revision: manifest.revision.clone(),
            sources: manifest.sources.iter().map(|source| source.file.clone()).collect(),
        };
        let all = manifest.tensors.iter().map(|(name, info)| {
            let sqnr_db = info.code.as_ref().and_then(|code| code.sqnr_db);
            tensor(name, &info.shape, info.format.clone(), container.tensor_bytes(name), sqnr_db)
        });
        return Ok((all.collect(), Some(about)));
    }
    let checkpoint = model.checkpoint()?;
    let all = checkpoint.names().filter_map(|name| {
        let (shape, kind, bytes) = checkpoint.describe(name)?;
        Some(tensor(name, shape, kind.to_lowercase(), bytes, None))
    });
    Ok((all.collect(), None))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for Tensor { name, shape, format, bytes, bits_per_weight, sqnr_db } in &report.tensors {
        let db = sqnr_db.map(|db| format!("{db:7.2} dB")).unwrap_or_default();
        let shape = format!("{shape:?}");
        text.push_str(&format!(
            "{name:<52} {shape:>14} {format:>5} {bits_per_weight:6.3} bits {bytes:>11} bytes {db}\n"
        ));
    }
    for (format, Total { tensors, weights, bytes }) in &report.formats {
        text.push_str(&format!("{format}: {tensors} tensors, {weights} weights, {bytes} bytes\n"));
    }
    text.push_str(&format!(
        "weights: {} in {} bytes, {:.3} bits each\n",
        report.weights, report.weight_bytes, report.bits_per_weight,
    ));
    for (name, Kv { bytes_per_token, bytes }) in &report.kv {
        text.push_str(&format!(
            "key-value cache in {name}: {bytes_per_token} bytes a token, {bytes} bytes for {} tokens\n",
            report.context_tokens
        ));
    }
    if let Some(About { version, producer, policy, revision, sources }) = &report.container {
        let revision = revision.as_deref().unwrap_or("unknown");
        text.push_str(&format!(
            "container version {version} by {producer}, policy {policy}, of {}, revision {revision}\n",
            sources.join(", ")
        ));
    }
    text
}
