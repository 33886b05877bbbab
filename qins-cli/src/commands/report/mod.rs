//! `qins report`: runs the program's own measurements and writes what they found as one page.
//!
//! Every figure of the page is one that a command printed with `--json`; commands run as a user would run them, in
//! processes of their own, so that times and memory are theirs alone.

mod bars;
mod chart;
mod page;
mod plan;
mod render;
mod results;
mod tables;

use crate::{commands::eval::report::progress, output, source::Source};
use anyhow::{Context, Result, ensure};
use plan::Plan;
use results::Results;
use std::path::PathBuf;

/// Run all measurements on some models and formats and write one page of what they found.
///
/// Writes DIR/report.html, which needs no network, DIR/report.md, DIR/claims.md, a short table, and DIR/results, the
/// JSON of each command. What is there already is not run again: after Ctrl-C, or with more formats, the same line goes on.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to write, made if need be
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Hugging Face model directories, or `demo` [default: demo]
    models: Vec<Source>,
    #[command(flatten)]
    plan: Plan,
    /// Run nothing: only write the pages anew from the results there are
    #[arg(long, conflicts_with = "models")]
    render: bool,
    /// Print one JSON object: the files written and the commands run
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Written {
    report_html: PathBuf,
    report_md: PathBuf,
    claims_md: PathBuf,
    commands: usize,
    /// Those that had to be run now.
    commands_run: usize,
}

pub fn run(args: Args) -> Result<()> {
    let mut results = Results::open(&args.output)?;
    let mut commands_run = 0;
    if !args.render {
        let models = if args.models.is_empty() { vec!["demo".parse().expect("a model")] } else { args.models };
        let steps = args.plan.steps(&models, &args.output)?;
        let bar = progress(steps.len(), "commands");
        for step in steps {
            commands_run += usize::from(results.run(&step)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    ensure!(!results.all().is_empty(), "{}: no results to write a report of", args.output.display());

    let page = page::page(&results)?;
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = args.output.join(name);
        output::file(&path, text.as_bytes())?;
        Ok(path)
    };
    for (name, chart) in page.charts() {
        write(&format!("{name}.svg"), chart.to_owned()).context("a chart")?;
    }
    let written = Written {
        report_html: write("report.html", render::html(&page))?,
        report_md: write("report.md", render::markdown(&page))?,
        claims_md: write("claims.md", tables::claims(&results).markdown())?,
        commands: results.all().len(),
        commands_run,
    };
    if args.json {
        return output::json(&written);
    }
    output::text(&format!(
        "wrote {}, report.md and claims.md: {} commands, {commands_run} of them run now\n",
        written.report_html.display(),
        written.commands
    ))
}
