//! `qins`: run and encode Hugging Face models.

mod commands;
mod device;
#[cfg(all(feature = "wgpu", target_os = "linux"))]
mod display;
mod files;
mod ids;
mod kv;
mod memory;
mod model;
mod output;
mod policy;
mod sampling;
mod source;
mod stops;
mod text_file;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Run Phi-3 models from Hugging Face files, in float or encoded in QINS.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Encode a Hugging Face directory into a container
    Convert(commands::convert::Args),
    /// Decode a container into a Hugging Face directory
    Export(commands::export::Args),
    /// Show a model's tensors, formats and sizes
    Inspect(commands::inspect::Args),
    /// Check a container's structure and checksums
    Verify(commands::verify::Args),
    /// Show what formats would lose of any weights, without writing anything
    Measure(commands::measure::Args),
    /// Continue a text, or a sequence of token ids
    Generate(commands::generate::Args),
    /// Measure how good a model is, and how far it is from another
    Eval(commands::eval::Args),
    /// Run all measurements and write one page of what they found
    Report(commands::report::Args),
    /// Measure tokens a second, against what memory allows
    Bench(commands::bench::Args),
    /// List what can compute, as --backend names it
    Devices(commands::devices::Args),
    /// Talk with a model
    Chat(commands::chat::Args),
    /// Write the logits at every position of a sequence to a safetensors file, computed in f32 unless --level says otherwise
    Logits(commands::logits::Args),
    /// Turn text on standard input into token ids, or back
    Tokenize(commands::tokenize::Args),
}

/// The values of options may begin with a hyphen: a prompt that is a list, say.
fn with_any_values(command: clap::Command) -> clap::Command {
    let any_value = |arg: clap::Arg| {
        let one = arg.get_num_args().is_none_or(|n| n.max_values() == 1);
        let option = !arg.is_positional() && arg.get_action().takes_values();
        if option && one { arg.allow_hyphen_values(true) } else { arg }
    };
    command.mut_args(any_value).mut_subcommands(with_any_values)
}

fn main() -> ExitCode {
    #[cfg(all(feature = "wgpu", target_os = "linux"))]
    display::set_runtime_directory();
    qins_import::exit_on_unreadable_page(" (--no-mmap reads a model into memory first)");
    let matches = with_any_values(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Convert(args) => commands::convert::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Verify(args) => commands::verify::run(args),
        Command::Measure(args) => commands::measure::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Devices(args) => commands::devices::run(args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Logits(args) => commands::logits::run(args),
        Command::Tokenize(args) => commands::tokenize::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qins: {}", output::told(&error));
            ExitCode::FAILURE
        }
    }
}
