use super::{
    report::{Report, estimate, number, perplexity_lines, progress, timed},
    text::{About, WindowArgs},
    with::PairArgs,
};
use anyhow::Result;
use qins_eval::Comparison;
use serde::Serialize;

/// How far a model is from a reference that reads the same text.
///
/// Both are loaded in one process and read the same windows of the text side by side, as `qins eval perplexity` reads
/// them; no logits are written, and no more held than those of a part of a window. Without --reference the model is
/// compared with its own files in float: qins eval compare HF-DIR --format q8 --text FILE.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: PairArgs,
    #[command(flatten)]
    windows: WindowArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const PROTOCOL: &str = "both read the same text: the text as one string, no special tokens added; each window alone from \
    position 0; compared at every predicted token; KL(reference || model) in nats; standard errors over windows, those \
    of quantiles by bootstrap";

#[derive(Serialize)]
struct Inputs {
    text: About,
}

pub fn run(args: Args) -> Result<()> {
    let (corpus, windows, text) = args.windows.read(&args.models.model.model)?;
    let (models, result) = args.models.run(|model, reference| {
        timed(|| {
            let bar = progress(text.windows(), "windows");
            let found = qins_eval::compare(model, reference, &corpus, &windows, |_| bar.inc(1))?;
            bar.finish_and_clear();
            Ok(found)
        })
    })?;
    Report::new(PROTOCOL, models, Inputs { text }, result)
        .print(args.json, |models, inputs, found| models.lines() + &inputs.text.line() + &lines(found))
}

fn lines(found: &Comparison) -> String {
    let kl = &found.kl_nats;
    let rows = [
        ("KL divergence, mean", estimate(kl.mean)),
        ("median", estimate(kl.median)),
        ("99 %", estimate(kl.quantile_99)),
        ("99.9 %", estimate(kl.quantile_99_9)),
        ("largest", number(kl.largest)),
        ("probability of the text's token, change", estimate(found.probability_change_mean)),
        ("root mean square", estimate(found.probability_change_rms)),
        ("same most likely token", estimate(found.same_top1)),
        ("overlap of the top 5", estimate(found.top5_overlap)),
        ("top 10", estimate(found.top10_overlap)),
        ("top 50", estimate(found.top50_overlap)),
        ("rank correlation of the reference's top 50", estimate(found.top50_rank_correlation)),
        ("logit error, root mean square", estimate(found.logit_error_rms)),
        ("largest", number(found.logit_error_largest)),
        ("perplexity, model / reference", estimate(found.perplexity_ratio)),
    ];
    let rows: String = rows.iter().map(|(name, value)| format!("{name:>43}  {value}\n")).collect();
    perplexity_lines("model", &found.model_perplexity)
        + &perplexity_lines("reference", &found.reference_perplexity)
        + &rows
}
