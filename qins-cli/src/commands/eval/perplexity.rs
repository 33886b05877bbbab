use super::{
    report::{Report, perplexity_lines, progress, timed},
    text::{About, WindowArgs},
    with,
};
use crate::model::ModelArgs;
use anyhow::Result;
use qins_kv_cache::KvChoice;
use serde::Serialize;

/// How well a model predicts a text.
///
/// The whole text is encoded as one string, nothing trimmed and no special tokens added, and cut into windows. Each
/// window is run alone from position 0, without a token that begins a text; its tokens from the second on are
/// predicted from those before them. Perplexity a token is exp of the mean negative log-likelihood over all predicted
/// tokens; perplexity a byte divides by the bytes that they stand for. Standard errors are over windows.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// How keys and values are stored: dense (the backend's floats), f32, f16, v8, q8, v4
    #[arg(long, value_name = "FORMAT", default_value_t = KvChoice::Dense)]
    kv: KvChoice,
    #[command(flatten)]
    windows: WindowArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub const PROTOCOL: &str = "the text as one string, no special tokens added; each window alone from position 0; tokens from \
    the second of a window on are predicted, each once; exp of the mean negative log-likelihood in nats; standard \
    errors over windows";

#[derive(Serialize)]
struct Models {
    model: with::About,
}

#[derive(Serialize)]
struct Inputs {
    text: About,
}

pub fn run(args: Args) -> Result<()> {
    let (corpus, windows, text) = args.windows.read(&args.model.model)?;
    let (model, result) = with::one(&args.model, args.kv, |model| {
        timed(|| {
            let bar = progress(text.windows(), "windows");
            let found = qins_eval::perplexity(model, &corpus, &windows, |_| bar.inc(1))?;
            bar.finish_and_clear();
            Ok(found)
        })
    })?;
    Report::new(PROTOCOL, Models { model }, Inputs { text }, result).print(args.json, |models, inputs, found| {
        let found = &found.perplexity;
        let bytes = found.predicted_bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        format!(
            "{}{}predicted  {} tokens{bytes}\n{}",
            models.model.line("model"),
            inputs.text.line(),
            found.predicted_tokens,
            perplexity_lines("result", found)
        )
    })
}
