use crate::{model::progress_bar, output, source};
use anyhow::Result;
use clap::ValueEnum;
use qins_import::container::{Exported, export};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A container
    container: PathBuf,
    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Type of the weights: f32 holds exactly what the codes stand for
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Replace an existing container or export that is as it was written; anything else is left alone
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

pub fn run(args: Args) -> Result<()> {
    let container = source::require_container(&args.container)?;
    let (dtype, size) = match args.dtype {
        Dtype::F32 => (Exported::F32, 4),
        Dtype::Bf16 => (Exported::Bf16, 2),
    };
    let weights: usize = container.manifest().tensors.values().map(|t| t.shape.iter().product::<usize>()).sum();
    let bar = progress_bar(weights * size);
    bar.set_prefix("exporting");
    let bytes = export(&container, &args.container, &args.output, dtype, args.force, |_, bytes| bar.inc(bytes as u64))?;
    bar.finish_and_clear();
    if args.json {
        let peak_rss_bytes = output::peak_rss_bytes();
        return output::json(&json!({"output": args.output, "bytes": bytes, "peak_rss_bytes": peak_rss_bytes}));
    }
    output::text(&format!("{}: {bytes} bytes\n", args.output.display()))
}
