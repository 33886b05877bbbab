use crate::{model::progress_bar, output, source};
use anyhow::Result;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A container
    container: PathBuf,
    /// Also compare the files that it was made of with those of this Hugging Face directory
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let container = source::require_container(&args.container)?;
    let bar = progress_bar(container.bytes());
    bar.set_prefix("verifying");
    container.verify(|_, bytes| bar.inc(bytes as u64))?;
    bar.finish_and_clear();
    if let Some(source) = &args.source {
        container.verify_source(source)?;
    }
    let manifest = container.manifest();
    if args.json {
        return output::json(&json!({
            "container": args.container,
            "version": manifest.version,
            "tensors": manifest.tensors.len(),
            "bytes": container.bytes(),
            "source_compared": args.source.is_some(),
            "peak_rss_bytes": output::peak_rss_bytes(),
        }));
    }
    let source = if args.source.is_some() { ", and the source is the one it was made of" } else { "" };
    output::text(&format!("{}: {} tensors are whole{source}\n", args.container.display(), manifest.tensors.len()))
}
