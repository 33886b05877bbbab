//! Results as rows of text.

use super::{
    plan::Subject,
    results::{Done, Results},
};
use serde_json::Value;

/// A table: its head, and rows of as many cells.
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    /// In Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.head.len()));
        line(&self.head) + &rule + &self.rows.iter().map(|row| line(row)).collect::<String>()
    }
}

/// A number of a result, by its JSON pointer.
pub fn number(done: &Done, pointer: &str) -> Option<f64> {
    done.output.pointer(pointer).and_then(Value::as_f64)
}

/// A mean and its standard error, both in `unit`s, or `-` where it was not measured.
fn estimate(done: &Done, pointer: &str, unit: f64, decimals: usize) -> String {
    match (number(done, &format!("{pointer}/value")), number(done, &format!("{pointer}/standard_error"))) {
        (Some(value), Some(error)) => format!("{:.decimals$} ± {:.decimals$}", value / unit, error / unit),
        (Some(value), None) => format!("{:.decimals$}", value / unit),
        _ => "-".to_owned(),
    }
}

/// Some decimals, or `-` where it was not measured.
pub fn plain(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn scientific(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.1e}"))
}

const PERCENT: f64 = 0.01;

/// How much perplexity grows, in percent.
fn perplexity_change(done: &Done) -> String {
    // Rounded first, so that nothing is `-0.000`.
    let rounded = |percent: f64| (percent * 1e3).round() / 1e3 + 0.0;
    let ratio = number(done, "/result/perplexity_ratio/value").map(|ratio| rounded((ratio - 1.0) / PERCENT));
    let error = number(done, "/result/perplexity_ratio/standard_error").map(|error| error / PERCENT);
    match (ratio, error) {
        (Some(change), Some(error)) => format!("{change:+.3} ± {error:.3}"),
        (Some(change), None) => format!("{change:+.3}"),
        _ => "-".to_owned(),
    }
}

fn format(done: &Done) -> String {
    format!("`{}`", done.format.as_deref().unwrap_or("f32"))
}

/// Bits, size and distances from float, all models in one.
pub fn overview(results: &Results, models: &[&str]) -> Table {
    let mut table = Table::new(&[
        "model",
        "format",
        "bits a weight",
        "MB",
        "perplexity, change in %",
        "KL, mean in nats",
        "same top token, %",
        "identical tokens",
    ]);
    for model in models {
        for done in results.of(&Subject::Compare, model) {
            let wrote = results.of(&Subject::Greedy, model).find(|wrote| wrote.format == done.format);
            let prefix = wrote.map_or("-".to_owned(), |wrote| {
                let of = plain(number(wrote, "/result/tokens"), 0);
                format!("{}, of {of}", estimate(wrote, "/result/identical_prefix_tokens_mean", 1.0, 0))
            });
            table.rows.push(vec![
                (*model).to_owned(),
                format(done),
                plain(number(done, "/model/bits_per_weight"), 2),
                plain(number(done, "/model/weight_bytes").map(|bytes| bytes / 1e6), 2),
                perplexity_change(done),
                scientific(number(done, "/result/kl_nats/mean/value")),
                estimate(done, "/result/same_top1", PERCENT, 2),
                prefix,
            ]);
        }
    }
    table
}

/// What float makes of a whole text.
pub fn perplexity(done: &Done) -> Table {
    let mut table =
        Table::new(&["tokens predicted", "perplexity a token", "perplexity a byte", "most likely token right, %"]);
    table.rows.push(vec![
        plain(number(done, "/result/predicted_tokens"), 0),
        estimate(done, "/result/perplexity_per_token", 1.0, 3),
        estimate(done, "/result/perplexity_per_byte", 1.0, 4),
        estimate(done, "/result/top1_accuracy", PERCENT, 2),
    ]);
    table
}

/// How far formats are from float in windows of several lengths.
pub fn long(long: &[&Done]) -> Table {
    let mut table = Table::new(&[
        "format",
        "tokens of a window",
        "tokens predicted",
        "perplexity, change in %",
        "KL, mean in nats",
        "KL, 99.9 %",
        "same top token, %",
        "peak resident, GB",
    ]);
    for &done in long {
        table.rows.push(vec![
            format(done),
            plain(number(done, "/text/context_tokens"), 0),
            plain(number(done, "/result/reference_perplexity/predicted_tokens"), 0),
            perplexity_change(done),
            scientific(number(done, "/result/kl_nats/mean/value")),
            scientific(number(done, "/result/kl_nats/quantile_99_9/value")),
            estimate(done, "/result/same_top1", PERCENT, 2),
            plain(number(done, "/peak_rss_bytes").map(|bytes| bytes / 1e9), 2),
        ]);
    }
    table
}

/// How far what formats draw tokens from is from what float draws from.
pub fn sampling(results: &Results, model: &str) -> Table {
    let mut table = Table::new(&[
        "format",
        "total variation, %",
        "Jensen-Shannon, nats",
        "never drawn, %",
        "same draws, %",
        "tokens kept by float",
        "by the format",
    ]);
    for done in results.of(&Subject::Sampling, model) {
        table.rows.push(vec![
            format(done),
            estimate(done, "/result/total_variation", PERCENT, 2),
            scientific(number(done, "/result/js_nats/value")),
            estimate(done, "/result/never_drawn", PERCENT, 2),
            estimate(done, "/result/same_draws", PERCENT, 1),
            plain(number(done, "/result/reference_kept_tokens/value"), 2),
            plain(number(done, "/result/model_kept_tokens/value"), 2),
        ]);
    }
    table
}

/// How many questions float and formats answer.
pub fn tasks(results: &Results, model: &str) -> Table {
    let mut table = Table::new(&[
        "format",
        "questions",
        "right, %",
        "by likelihood a byte, %",
        "by likelihood a token, %",
        "probability of the right one, %",
        "by chance, %",
    ]);
    for done in results.of(&Subject::Tasks, model) {
        table.rows.push(vec![
            format(done),
            plain(number(done, "/result/tasks"), 0),
            estimate(done, "/result/accuracy", PERCENT, 1),
            estimate(done, "/result/accuracy_per_byte", PERCENT, 1),
            estimate(done, "/result/accuracy_per_token", PERCENT, 1),
            estimate(done, "/result/answer_probability", PERCENT, 1),
            plain(number(done, "/result/chance").map(|chance| chance / PERCENT), 1),
        ]);
    }
    table
}

/// How far formats are from float that reads the same text.
pub fn compared(results: &Results, model: &str) -> Table {
    let mut table = Table::new(&[
        "format",
        "bits a weight",
        "MB",
        "perplexity, change in %",
        "KL, mean in nats",
        "KL, 99.9 %",
        "same top token, %",
        "top 10 in common, %",
        "rank correlation, top 50",
    ]);
    for done in results.of(&Subject::Compare, model) {
        table.rows.push(vec![
            format(done),
            plain(number(done, "/model/bits_per_weight"), 2),
            plain(number(done, "/model/weight_bytes").map(|bytes| bytes / 1e6), 2),
            perplexity_change(done),
            scientific(number(done, "/result/kl_nats/mean/value")),
            scientific(number(done, "/result/kl_nats/quantile_99_9/value")),
            estimate(done, "/result/same_top1", PERCENT, 2),
            estimate(done, "/result/top10_overlap", PERCENT, 1),
            estimate(done, "/result/top50_rank_correlation", 1.0, 4),
        ]);
    }
    table
}

/// Texts written, and how long each is.
fn texts(done: &Done) -> String {
    let count = |pointer: &str| plain(number(done, pointer), 0);
    format!("{} of {}", count("/prompts"), count("/result/tokens"))
}

/// How long formats write what float writes.
pub fn greedy(results: &Results, model: &str) -> Table {
    let mut table = Table::new(&[
        "format",
        "texts",
        "identical tokens, mean",
        "least",
        "identical texts, %",
        "free-running match, %",
        "match on the reference's text, %",
        "near-ties among first differences, %",
    ]);
    for done in results.of(&Subject::Greedy, model) {
        table.rows.push(vec![
            format(done),
            texts(done),
            estimate(done, "/result/identical_prefix_tokens_mean", 1.0, 0),
            plain(number(done, "/result/identical_prefix_tokens_min"), 0),
            estimate(done, "/result/identical_texts", PERCENT, 0),
            estimate(done, "/result/free_running_match", PERCENT, 1),
            estimate(done, "/result/teacher_forced_match", PERCENT, 1),
            estimate(done, "/result/first_difference_near_ties", PERCENT, 0),
        ]);
    }
    table
}

/// The match in each window of 100 tokens, free-running.
pub fn windows(results: &Results, model: &str) -> Table {
    let matches = |done: &Done| done.output["result"]["free_running_match_per_window"].as_array().cloned();
    let count = results.of(&Subject::Greedy, model).filter_map(matches).map(|list| list.len()).max();
    let mut table = Table::new(&["format", "texts"]);
    table.head.extend((0..count.unwrap_or(0)).map(|i| format!("{} to {}", 100 * i + 1, 100 * (i + 1))));
    for done in results.of(&Subject::Greedy, model) {
        let cells = (0..count.unwrap_or(0))
            .map(|i| estimate(done, &format!("/result/free_running_match_per_window/{i}"), PERCENT, 1));
        table.rows.push([format(done), texts(done)].into_iter().chain(cells).collect());
    }
    table
}

/// What formats lose of all weights together.
pub fn weights(results: &Results, model: &str) -> Table {
    let mut table =
        Table::new(&["format", "bits a weight", "signal to noise, dB", "mean relative error, %", "largest error"]);
    for done in results.of(&Subject::Weights, model) {
        for (name, loss) in done.output["total"].as_object().into_iter().flatten() {
            let number = |field: &str| loss[field].as_f64();
            table.rows.push(vec![
                format!("`{name}`"),
                plain(number("bits_per_weight"), 2),
                number("sqnr_db").map_or("exact".to_owned(), |db| format!("{db:.2}")),
                plain(number("mean_relative_error").map(|error| error / PERCENT), 2),
                scientific(number("max_abs_error")),
            ]);
        }
    }
    table.rows.sort_by(|a, b| b[1].parse::<f64>().ok().partial_cmp(&a[1].parse::<f64>().ok()).expect("numbers"));
    table
}

/// Tokens a second, with random weights.
pub fn speed(results: &Results, shape: &str) -> Table {
    let mut table = Table::new(&[
        "format",
        "prompt, tokens/s",
        "generate, tokens/s",
        "least to most",
        "GB of weights a token",
        "GB/s",
        "of what a sum reads, %",
        "peak resident, GB",
    ]);
    for done in results.of(&Subject::Speed, shape) {
        let gigabytes = |pointer: &str| number(done, pointer).map(|bytes| bytes / 1e9);
        let share =
            gigabytes("/generate_bytes_per_s").zip(gigabytes("/read_bytes_per_s")).map(|(a, b)| a / b / PERCENT);
        let spread = |which: &str| plain(number(done, &format!("/generate_tokens_per_s/{which}")), 2);
        table.rows.push(vec![
            format(done),
            plain(number(done, "/prompt_tokens_per_s/median"), 1),
            spread("median"),
            format!("{} to {}", spread("min"), spread("max")),
            plain(gigabytes("/token_bytes"), 3),
            plain(gigabytes("/generate_bytes_per_s"), 2),
            plain(share, 0),
            plain(gigabytes("/peak_rss_bytes"), 2),
        ]);
    }
    table
}

/// A token's time after texts of several lengths.
pub fn contexts(contexts: &[&Done]) -> Table {
    let mut table = Table::new(&["cache", "tokens stored", "GB stored", "tokens/s", "ms a token"]);
    for &done in contexts {
        let rate = number(done, "/generate_tokens_per_s/median");
        table.rows.push(vec![
            format(done),
            plain(number(done, "/context_tokens"), 0),
            plain(number(done, "/context_bytes").map(|bytes| bytes / 1e9), 3),
            plain(rate, 2),
            plain(rate.map(|rate| 1e3 / rate), 1),
        ]);
    }
    table
}

/// The few figures that a reader asks for first, each with its command.
pub fn claims(results: &Results) -> Table {
    let mut table = Table::new(&["", "figure", "command"]);
    let mut row = |what: String, figure: String, done: &Done| {
        table.rows.push(vec![what, figure, format!("`{}`", done.command)]);
    };
    for done in results.all().iter().filter(|done| done.subject == Subject::Compare) {
        if ["q8", "q4"].contains(&done.format.as_deref().unwrap_or_default()) {
            let figure = format!(
                "perplexity {} %, KL {} nats, same top token {} %",
                perplexity_change(done),
                scientific(number(done, "/result/kl_nats/mean/value")),
                estimate(done, "/result/same_top1", PERCENT, 2)
            );
            row(format!("{} on `{}`, against float", format(done), done.model), figure, done);
        }
    }
    for done in results.all().iter().filter(|done| done.subject == Subject::Speed && done.format.is_some()) {
        let rate = |done: &Done| number(done, "/generate_tokens_per_s/median");
        let float = results.of(&Subject::Speed, &done.model).find(|done| done.format.is_none()).and_then(rate);
        if let Some((rate, float)) = rate(done).zip(float) {
            let figure = format!("{rate:.1} tokens/s, {:.1} times float's {float:.1}", rate / float);
            row(format!("{} generating, shape `{}`", format(done), done.model), figure, done);
        }
    }
    table
}
