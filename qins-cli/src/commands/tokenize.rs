use crate::{ids, output, source::Source, text_file};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Read;

#[derive(clap::Args)]
pub struct Args {
    /// A directory with a tokenizer.json, or `demo`
    model: Source,
    /// Read ids and print their text
    #[arg(long)]
    decode: bool,
    /// Print one JSON object: {"ids": [..]}, or {"text": ".."} with --decode
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let tokenizer = args.model.require_tokenizer()?;
    let mut input = Vec::new();
    std::io::stdin().lock().read_to_end(&mut input).context("standard input")?;
    let input = text_file::utf8(input, "standard input")?;
    if args.decode {
        let text = tokenizer.decode(&ids::parse(input.trim_start_matches('\u{feff}'))?)?;
        return if args.json { output::json(&json!({ "text": text })) } else { output::text(&text) };
    }
    let ids = tokenizer.encode(&input)?;
    if args.json {
        return output::json(&json!({ "ids": ids }));
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    output::text(&format!("{}\n", ids.join(" ")))
}
