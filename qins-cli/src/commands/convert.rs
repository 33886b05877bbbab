use crate::{
    model::{AnyBackend, Threads, progress_bar, tell_passed_over},
    output,
    policy::PolicyArgs,
    source::Source,
};
use anyhow::{Context, Result, bail};
use qins_codec::{Format, WorstRow};
use qins_import::{
    container::{Converter, Step, TensorInfo},
    plan,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face model directory, or `demo`
    model: Source,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Replace an existing container or export that is as it was written; anything else is left alone
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Report<'a> {
    output: &'a Path,
    bytes: u64,
    weights: u64,
    bits_per_weight: f64,
    convert_s: f64,
    tensors: Vec<Tensor<'a>>,
    peak_rss_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    shape: &'a [usize],
    format: &'a str,
    /// Null where nothing was lost.
    sqnr_db: Option<f32>,
    max_abs_error: f32,
    /// Of least signal to noise; null where nothing was lost.
    worst_row: Option<usize>,
    worst_row_sqnr_db: Option<f64>,
}

pub fn run(args: Args) -> Result<()> {
    args.threads.set()?;
    let start = Instant::now();
    let (directory, _unpacked) = args.model.in_a_directory()?;
    let source = Source::Directory(directory.clone());
    if source.container()?.is_some() {
        bail!("{source}: expected a Hugging Face model directory, found a container");
    }
    let config = source.config()?;
    let checkpoint = source.checkpoint()?;
    let new = |planned, policy| Converter::new(&directory, &checkpoint, &args.output, planned, policy, args.force);
    if args.policy.is_chosen_by_loss() {
        // An output that is refused is told before.
        new(Vec::new(), String::new())?;
    }
    let policy = args.policy.policy(Some(Format::Q8), &config, Some(&checkpoint))?;
    let module = config.init::<AnyBackend>(&Default::default())?;
    tell_passed_over(&module, &checkpoint)?;
    let planned = plan(&module, &checkpoint, &policy)?;
    // Every byte is read once to plan, once for its hash and once to encode it.
    let bar = progress_bar(2 * checkpoint.bytes());
    bar.set_prefix("converting");
    bar.tick();
    let converter = new(planned, policy.to_string())?;

    let partial = converter.partial();
    ctrlc::set_handler(move || {
        if partial.exists() {
            eprintln!("\nqins: interrupted: the same command goes on from {}", partial.display());
        }
        std::process::exit(output::INTERRUPTED);
    })
    .context("cannot handle Ctrl-C")?;

    let read = |name: &str| checkpoint.tensor(name).map_or(0, |tensor| tensor.bytes() as u64);
    let converted = converter.run(|step| match step {
        Step::Hashed(bytes) => bar.inc(bytes),
        Step::Kept(name, info, worst) | Step::Wrote(name, info, worst) => {
            let kept = if matches!(step, Step::Kept(..)) { ", of an earlier run" } else { "" };
            bar.suspend(|| eprintln!("{name} {}{kept}", line(info, worst)));
            bar.inc(read(name));
        }
    })?;
    bar.finish_and_clear();
    let convert_s = start.elapsed().as_secs_f64();
    let weights = converted.manifest.tensors.values().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    let bits_per_weight = converted.bytes as f64 * 8.0 / weights as f64;
    let peak_rss_bytes = output::peak_rss_bytes();
    if args.json {
        let tensor = |(name, info): (&'_ String, &'_ TensorInfo)| (name.clone(), info.clone());
        let tensors: Vec<(String, TensorInfo)> = converted.manifest.tensors.iter().map(tensor).collect();
        return output::json(&Report {
            output: &args.output,
            bytes: converted.bytes,
            weights,
            bits_per_weight,
            convert_s,
            tensors: tensors
                .iter()
                .map(|(name, info)| Tensor {
                    name,
                    shape: &info.shape,
                    format: &info.format,
                    sqnr_db: info.code.as_ref().and_then(|code| code.sqnr_db),
                    max_abs_error: info.code.as_ref().map_or(0.0, |code| code.max_abs_error.unwrap_or_default()),
                    worst_row: converted.worst_rows.get(name).map(|worst| worst.row),
                    worst_row_sqnr_db: converted.worst_rows.get(name).map(|worst| worst.sqnr_db),
                })
                .collect(),
            peak_rss_bytes,
        });
    }
    output::text(&format!(
        "{}: {} bytes, {bits_per_weight:.3} bits a weight, in {convert_s:.1} s\n",
        args.output.display(),
        converted.bytes
    ))
}

/// One tensor in words.
fn line(info: &TensorInfo, worst: Option<WorstRow>) -> String {
    let TensorInfo { format, shape, code, .. } = info;
    let worst = worst.map_or(String::new(), |WorstRow { row, sqnr_db }| format!(", worst row {row}: {sqnr_db:.2} dB"));
    match code.as_ref().and_then(|code| code.sqnr_db) {
        Some(db) => format!("{shape:?} {format} {db:.2} dB{worst}"),
        None => format!("{shape:?} {format}"),
    }
}
