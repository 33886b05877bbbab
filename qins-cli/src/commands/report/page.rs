//! What a report says, in order: headings, text, tables, charts and the commands behind them.

use super::{
    bars::Bars,
    chart::{Chart, Line},
    plan::Subject,
    results::{Done, Results},
    tables::{self, Table},
};
use anyhow::Result;

/// A piece of a report.
pub enum Part {
    Title(String),
    Heading(String),
    Text(String),
    Table(Table),
    /// An SVG, and what its file is called.
    Chart {
        name: String,
        svg: String,
    },
    Commands(Vec<String>),
}

/// All pieces.
pub struct Page(pub Vec<Part>);

impl Page {
    /// Names and SVGs.
    pub fn charts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|part| match part {
            Part::Chart { name, svg } => Some((name.as_str(), svg.as_str())),
            _ => None,
        })
    }
}

/// The report of all results.
pub fn page(results: &Results) -> Result<Page> {
    let mut parts = vec![Part::Title("What formats cost, and what they give".to_owned())];
    parts.push(Part::Text(
        "Every figure here was printed by the command named below its table. Errors are one standard error. A format is that \
         of the linear weights; embeddings keep 16 bits and norms 32."
            .to_owned(),
    ));
    let mut machines = Vec::new();
    for done in results.all() {
        if !machines.contains(&done.machine) {
            machines.push(done.machine.clone());
        }
    }
    for machine in machines {
        let memory = machine.memory_bytes.map_or(String::new(), |bytes| format!(", {:.0} GB", bytes as f64 / 1e9));
        let (processor, threads) = (machine.processor, machine.threads);
        let (level, system) = (machine.instruction_set, machine.system);
        parts.push(Part::Text(format!("Machine: {processor}, {threads} threads, {level}{memory}, {system}.")));
    }
    let mut models: Vec<&str> = Vec::new();
    for done in results.all().iter().filter(|done| done.subject != Subject::Speed && context(done).is_none()) {
        if !models.contains(&done.model.as_str()) {
            models.push(&done.model);
        }
    }
    if results.all().iter().any(|done| done.subject == Subject::Compare) {
        parts.push(Part::Heading("All models and formats".to_owned()));
        parts.push(Part::Text(
            "Against float: reading the same text, and writing on from the same prompts greedily until the first difference. \
             Details and commands follow, model by model."
                .to_owned(),
        ));
        parts.push(Part::Table(tables::overview(results, &models)));
    }
    for model in models {
        of_model(results, model, &mut parts);
    }
    if let Some(shape) = results.all().iter().find(|done| done.subject == Subject::Speed) {
        parts.push(Part::Heading(format!("Speed and memory: {}", shape.model)));
        parts.push(Part::Text(
            "Random weights of the shapes of Phi-3.5-mini, so many of its layers. Generation reads every weight once a token: its \
             limit is what memory gives, measured in the same run by a plain sum."
                .to_owned(),
        ));
        parts.push(Part::Table(tables::speed(results, &shape.model)));
        let speed: Vec<&Done> = results.of(&Subject::Speed, &shape.model).collect();
        parts.push(chart("speed", speed_bars(&speed)));
        parts.push(chart("memory", memory_bars(&speed)));
        parts.push(commands(results.of(&Subject::Speed, &shape.model)));
        let contexts: Vec<&Done> = results.all().iter().filter(|done| context(done).is_some()).collect();
        if !contexts.is_empty() {
            parts.push(Part::Heading("A token after a long text".to_owned()));
            parts.push(Part::Text(
                "Attention reads all that is stored of the text: time grows with it as a straight line, by the bytes of the \
                 key-value cache. Weights in q8, keys and values in the format named; the cache is filled with random numbers."
                    .to_owned(),
            ));
            parts.push(Part::Table(tables::contexts(&contexts)));
            parts.push(chart("context", by_context(&contexts)));
            parts.push(commands(contexts.into_iter()));
        }
    }
    Ok(Page(parts))
}

fn of_model(results: &Results, model: &str, parts: &mut Vec<Part>) {
    let compared = || results.of(&Subject::Compare, model);
    let wrote = || results.of(&Subject::Greedy, model);
    if let Some(first) = compared().next() {
        parts.push(Part::Heading(format!("{model}: the same text, read by float and by each format")));
        let perplexity = |field: &str| tables::number(first, &format!("/result/reference_perplexity/{field}"));
        if let (Some(value), Some(tokens)) = (perplexity("perplexity_per_token/value"), perplexity("predicted_tokens"))
        {
            parts.push(Part::Text(format!("Perplexity of float: {value:.3} a token, over {tokens:.0} tokens.")));
        }
        push_protocol(first, parts);
        parts.push(Part::Table(tables::compared(results, model)));
        parts.push(chart(&format!("{model}-divergence"), histogram(compared().collect(), model)));
        parts.push(commands(compared()));
    }
    if let Some(done) = results.of(&Subject::Perplexity, model).next() {
        parts.push(Part::Heading(format!("{model}: perplexity of the whole text, in float")));
        parts.push(Part::Table(tables::perplexity(done)));
        push_protocol(done, parts);
        parts.push(commands([done].into_iter()));
    }
    let long: Vec<&Done> = results.long(model).collect();
    if !long.is_empty() {
        parts.push(Part::Heading(format!("{model}: long texts, read by float and by each format")));
        parts.push(Part::Text("As above, in longer windows, each alone from position 0.".to_owned()));
        parts.push(Part::Table(tables::long(&long)));
        parts.push(commands(long.into_iter()));
    }
    if let Some(first) = wrote().next() {
        parts.push(Part::Heading(format!("{model}: written greedily")));
        push_protocol(first, parts);
        parts.push(Part::Table(tables::greedy(results, model)));
        parts.push(Part::Text(
            "Match in each window of 100 tokens, free-running, in percent. After the first difference the two read different \
             texts, and a match says little; the record from which this project comes judged by this table."
                .to_owned(),
        ));
        parts.push(Part::Table(tables::windows(results, model)));
        parts.push(chart(&format!("{model}-greedy"), over_time(wrote().collect(), model)));
        parts.push(commands(wrote()));
    }
    let sampled = || results.of(&Subject::Sampling, model);
    if let Some(first) = sampled().next() {
        let at = |field: &str| tables::plain(tables::number(first, field), 1);
        parts.push(Part::Heading(format!(
            "{model}: what is drawn from at temperature {} and top-p {}",
            at("/temperature"),
            at("/top_p")
        )));
        push_protocol(first, parts);
        parts.push(Part::Table(tables::sampling(results, model)));
        parts.push(Part::Text(
            "Total variation is the share of draws that must differ, however they are made. Never drawn: the reference's \
             probability of tokens that top-p keeps there and not here."
                .to_owned(),
        ));
        parts.push(commands(sampled()));
    }
    let answered = || results.of(&Subject::Tasks, model);
    if let Some(first) = answered().next() {
        parts.push(Part::Heading(format!("{model}: multiple-choice questions")));
        push_protocol(first, parts);
        parts.push(Part::Table(tables::tasks(results, model)));
        parts.push(commands(answered()));
    }
    let weights = || results.of(&Subject::Weights, model);
    if weights().next().is_some() {
        parts.push(Part::Heading(format!("{model}: what formats lose of the weights")));
        let table = tables::weights(results, model);
        parts.push(chart(&format!("{model}-weights"), error_against_bits(&table, model)));
        parts.push(Part::Table(table));
        parts.push(commands(weights()));
    }
}

fn push_protocol(done: &Done, parts: &mut Vec<Part>) {
    if let Some(protocol) = done.output["protocol"].as_str() {
        parts.push(Part::Text(format!("Protocol: {protocol}.")));
    }
}

fn chart(name: &str, svg: String) -> Part {
    Part::Chart { name: name.to_owned(), svg }
}

fn speed_bars(speed: &[&Done]) -> String {
    let rate = |done: &'_ Done| tables::number(done, "/generate_tokens_per_s/median");
    let rows = speed.iter().filter_map(|&done| Some((name(done), vec![rate(done)?]))).collect();
    Bars { title: "Generating", unit: "tokens a second", series: &[], rows }.svg()
}

fn memory_bars(speed: &[&Done]) -> String {
    let gigabytes = |done: &'_ Done, field: &str| tables::number(done, field).map(|bytes| bytes / 1e9);
    let of = |done: &'_ Done| Some(vec![gigabytes(done, "/token_bytes")?, gigabytes(done, "/peak_rss_bytes")?]);
    let rows = speed.iter().filter_map(|&done| Some((name(done), of(done)?))).collect();
    Bars { title: "Memory", unit: "GB", series: &["weights that a token reads", "resident at most, all counted"], rows }
        .svg()
}

fn commands<'a>(done: impl Iterator<Item = &'a Done>) -> Part {
    Part::Commands(done.map(|done| done.command.clone()).collect())
}

fn name(done: &Done) -> &str {
    done.format.as_deref().unwrap_or("f32")
}

/// Tokens stored before, where a result is about that.
fn context(done: &Done) -> Option<u32> {
    match done.subject {
        Subject::Context { tokens } => Some(tokens),
        _ => None,
    }
}

fn by_context(contexts: &[&Done]) -> String {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for &done in contexts {
        let milliseconds = tables::number(done, "/generate_tokens_per_s/median").map(|rate| 1e3 / rate);
        let Some((tokens, milliseconds)) = context(done).zip(milliseconds) else { continue };
        let point = [f64::from(tokens), milliseconds];
        match lines.iter_mut().find(|line| line.name == name(done)) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: name(done), points: vec![point] }),
        }
    }
    let most = lines.iter().flat_map(|line| &line.points).map(|[_, time]| *time).fold(1.0, f64::max);
    let chart = Chart {
        title: "Time of a token by what is stored before it",
        x_label: "tokens stored",
        y_label: "milliseconds a token",
        y_range: [0.0, most * 1.1],
        lines,
    };
    chart.svg()
}

fn histogram(compared: Vec<&Done>, model: &str) -> String {
    let line = |done: &'_ Done| -> Option<Vec<[f64; 2]>> {
        let histogram = &done.output["result"]["kl_histogram"];
        let (start, step) = (histogram["log10_start"].as_f64()?, histogram["log10_step"].as_f64()?);
        let counts: Vec<f64> = histogram["counts"].as_array()?.iter().filter_map(|count| count.as_f64()).collect();
        let all: f64 = counts.iter().sum();
        let place = |i: usize| start + (i as f64 + 0.5) * step;
        Some(counts.iter().enumerate().map(|(i, count)| [place(i), count / all.max(1.0)]).collect())
    };
    let lines: Vec<Line<'_>> =
        compared.iter().filter_map(|&done| Some(Line { name: name(done), points: line(done)? })).collect();
    let most = lines.iter().flat_map(|line| &line.points).map(|[_, share]| *share).fold(0.05, f64::max);
    let chart = Chart {
        title: &format!("{model}: divergence from float at each token"),
        x_label: "log10 of KL in nats, a fifth of a decade a step",
        y_label: "share of tokens",
        y_range: [0.0, (most * 20.0).ceil() / 20.0],
        lines,
    };
    chart.svg()
}

fn over_time(wrote: Vec<&Done>, model: &str) -> String {
    let line = |done: &Done| -> Option<Vec<[f64; 2]>> {
        let windows = done.output["result"]["free_running_match_per_window"].as_array()?;
        let share = |(i, window): (usize, &serde_json::Value)| {
            Some([100.0 * (i + 1) as f64, 100.0 * window["value"].as_f64()?])
        };
        windows.iter().enumerate().map(share).collect()
    };
    let lines = wrote.iter().filter_map(|&done| Some(Line { name: name(done), points: line(done)? })).collect();
    let chart = Chart {
        title: &format!("{model}: same token as float, free-running, by windows of 100"),
        x_label: "tokens written",
        y_label: "% of the window",
        y_range: [0.0, 100.0],
        lines,
    };
    chart.svg()
}

fn error_against_bits(table: &Table, model: &str) -> String {
    let dot = |row: &'_ Vec<String>| -> Option<[f64; 2]> { Some([row[1].parse().ok()?, row[2].parse().ok()?]) };
    let lines: Vec<Line<'_>> = table
        .rows
        .iter()
        .filter_map(|row| Some(Line { name: row[0].trim_matches('`'), points: vec![dot(row)?] }))
        .collect();
    let most = lines.iter().flat_map(|line| &line.points).map(|[_, db]| *db).fold(20.0, f64::max);
    let chart = Chart {
        title: &format!("{model}: signal to noise of all weights, by bits a weight"),
        x_label: "bits a weight",
        y_label: "dB",
        y_range: [0.0, (most / 20.0).ceil() * 20.0],
        lines,
    };
    chart.svg()
}
