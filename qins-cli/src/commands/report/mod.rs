//! `qins report`: runs the program's own measurements and writes what they found as one page.
//!
//! Every figure of the page is one that a command printed with `--json`; commands run as a user would run them, in
//! processes of their own, so that times and memory are theirs alone.

mod bars;
mod chart;
mod page;
mod pages;
mod plan;
mod render;
mod results;
mod tables;

use crate::{commands::eval::report::progress, output, source::Source};
use anyhow::{Result, ensure};
use pages::Pages;
use plan::Plan;
use results::Results;
use std::path::PathBuf;

/// Run all measurements on some models and formats and write one page of what they found.
///
/// Writes DIR/report.html, which needs no network, DIR/report.md, DIR/claims.md, a short table, and DIR/results, the
/// JSON of each command. What is there already is not run again: after Ctrl-C, or with more formats, the same line goes on.
/// Files of these names that this program did not write, or that were changed since, are left alone, and told.
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
    const PAGES: [&str; 3] = ["report.html", "report.md", "claims.md"];
    let pages = Pages::open(&args.output)?;
    if !args.render {
        // Before commands run for hours.
        pages.check(&PAGES)?;
    }
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
    let charts = page.charts().map(|(name, chart)| (format!("{name}.svg"), chart.to_owned()));
    let texts = [render::html(&page), render::markdown(&page), tables::claims(&results).markdown()];
    pages.write(&charts.chain(PAGES.map(str::to_owned).into_iter().zip(texts)).collect::<Vec<_>>())?;
    let [report_html, report_md, claims_md] = PAGES.map(|name| args.output.join(name));
    let written = Written { report_html, report_md, claims_md, commands: results.all().len(), commands_run };
    if args.json {
        return output::json(&written);
    }
    output::text(&format!(
        "wrote {}, report.md and claims.md: {} commands, {commands_run} of them run now\n",
        written.report_html.display(),
        written.commands
    ))
}
