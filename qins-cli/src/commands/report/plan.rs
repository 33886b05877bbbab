//! Which commands a report is made of.

use crate::{commands::bench::Shape, policy::Preset, source::Source};
use anyhow::Result;
use clap::ValueEnum;
use std::path::Path;

/// What is measured, and how long.
#[derive(clap::Args)]
pub struct Plan {
    /// Text that the models read [default: what each of them draws itself at temperature 1, where it is as sure as it
    /// was trained to be]
    #[arg(long, value_name = "FILE")]
    text: Option<String>,
    /// Formats and presets to compare with float, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = FORMATS)]
    formats: Vec<String>,
    /// Format of float's linear weights [default: f32; bf16 takes half the memory, and is exact where files are in bf16]
    #[arg(long, value_name = "FORMAT")]
    reference_format: Option<String>,
    /// Windows of the text, of 512 tokens each or what a model holds, that are read; sampling reads a quarter of them
    #[arg(long, value_name = "N", default_value_t = 32)]
    windows: u32,
    /// Lengths of longer windows, of which each model reads those that it holds: a quarter of the tokens of --windows in
    /// each length, one window at least
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "2048,8192")]
    long: Vec<u32>,
    /// Let float read all of --text, for its perplexity
    #[arg(long, requires = "text")]
    perplexity: bool,
    /// Multiple-choice questions for float and each format: a JSON object a line, as `qins eval tasks` reads them
    #[arg(long, value_name = "FILE")]
    tasks: Option<String>,
    /// The first so many questions of --tasks
    #[arg(long, value_name = "N", default_value_t = 200)]
    questions: u32,
    /// Prompts that are written on from
    #[arg(long, value_name = "N", default_value_t = 10)]
    prompts: u32,
    /// Tokens written after each
    #[arg(long, value_name = "N", default_value_t = 500)]
    tokens: u32,
    /// Shape whose speed is measured with random weights
    #[arg(long, value_name = "NAME[:LAYERS]", default_value = "phi35-mini:4")]
    shape: Shape,
    /// Measure no speed
    #[arg(long)]
    no_bench: bool,
}

/// Tokens of a window of `qins eval` where nothing else is asked for.
const WINDOW: u32 = 512;

const FORMATS: &str = "bf16,fpins:2,q12,q8h,q8,lin8,log8,q6,q4,q3,q2,balanced";

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Texts that a model draws with so many seeds, for the commands that follow to read.
    Text {
        file: String,
        seeds: u32,
    },
    /// What formats lose of the weights.
    Weights,
    /// The whole text, read by float.
    Perplexity,
    Compare,
    /// As `Compare`, over windows of so many tokens.
    Long {
        tokens: u32,
    },
    Greedy,
    Sampling,
    Tasks,
    Speed,
    /// Speed after so many tokens; the format is that of the key-value cache.
    Context {
        tokens: u32,
    },
}

/// A command, and where its output is kept.
#[derive(Debug)]
pub struct Step {
    pub subject: Subject,
    /// The model as a reader knows it, or the shape.
    pub model: String,
    /// The format or preset; none for all of them, or for float.
    pub format: Option<String>,
    /// After `qins`.
    pub words: Vec<String>,
}

/// The words of a command, of anything that can be printed.
macro_rules! words {
    ($($word:expr),*) => { vec![$($word.to_string()),*] };
}

impl Plan {
    /// All commands; models' configurations are read, to know what they hold.
    pub fn steps(&self, models: &[Source], output: &Path) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for source in models {
            let holds = source.config()?.max_position_embeddings;
            let model = source.to_string();
            let name = Path::new(&model).file_name().map_or(model.clone(), |name| name.to_string_lossy().into_owned());
            let mut step = |subject, format: Option<&str>, words| {
                steps.push(Step { subject, model: name.clone(), format: format.map(str::to_owned), words });
            };
            let text = match &self.text {
                Some(text) => text.clone(),
                None => {
                    let text = output.join(format!("{name}.txt")).to_string_lossy().into_owned();
                    let words = words!["generate", model, "-p", "Once upon a time", "-n", 480, "--temperature", 1];
                    step(Subject::Text { file: text.clone(), seeds: self.windows }, None, words);
                    text
                }
            };
            step(Subject::Weights, None, words!["measure", model]);
            let named = |option: &str| self.reference_format.iter().flat_map(|f| words![option, f]).collect::<Vec<_>>();
            let float = [words![model], named("--format")].concat();
            if self.perplexity {
                let words = [words!["eval", "perplexity"], float.clone(), words!["--text", text]].concat();
                step(Subject::Perplexity, None, words);
            }
            let ask = |file: &str| words!["--file", file, "--limit", self.questions];
            if let Some(file) = &self.tasks {
                step(
                    Subject::Tasks,
                    self.reference_format.as_deref(),
                    [words!["eval", "tasks"], float, ask(file)].concat(),
                );
            }
            for format in &self.formats {
                let option = if Preset::from_str(format, false).is_ok() { "--preset" } else { "--format" };
                let coded = words![model, option, format];
                let words = [coded.clone(), named("--reference-format"), words!["--text", text]].concat();
                let mut eval = |subject, what: &str, words: &[String], counts: Vec<String>| {
                    step(subject, Some(format), [words!["eval", what], words.to_vec(), counts].concat());
                };
                eval(Subject::Compare, "compare", &words, words!["--windows", self.windows]);
                for &tokens in self.long.iter().filter(|&&tokens| tokens as usize <= holds) {
                    let windows = (self.windows * WINDOW / 4 / tokens).max(1);
                    let counts = words!["--context", tokens, "--windows", windows];
                    eval(Subject::Long { tokens }, "compare", &words, counts);
                }
                let counts = words!["--prompts", self.prompts, "--tokens", self.tokens];
                eval(Subject::Greedy, "greedy", &words, counts);
                eval(Subject::Sampling, "sampling", &words, words!["--windows", self.windows.div_ceil(4)]);
                if let Some(file) = &self.tasks {
                    eval(Subject::Tasks, "tasks", &coded, ask(file));
                }
            }
        }
        if !self.no_bench {
            let shape = self.shape.to_string();
            for format in [None, Some("bf16"), Some("q8"), Some("lin8"), Some("q6"), Some("q4")] {
                let mut words = words!["bench", "--shape", shape, "--prompt", 64, "--generate", 32, "--reps", 3];
                words.extend(format.iter().flat_map(|format| words!["--format", format]));
                let format = format.map(str::to_owned);
                steps.push(Step { subject: Subject::Speed, model: shape.clone(), format, words });
            }
            for kv in ["f32", "f16", "q8"] {
                for tokens in [0, 1024, 2048, 3072, 4000] {
                    let weights = words!["bench", "--shape", shape, "--format", "q8", "--prompt", 1, "--generate", 16];
                    let words = [weights, words!["--kv", kv, "--context", tokens]].concat();
                    let (subject, model) = (Subject::Context { tokens }, shape.clone());
                    steps.push(Step { subject, model, format: Some(kv.to_owned()), words });
                }
            }
        }
        Ok(steps)
    }
}
