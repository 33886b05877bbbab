//! A conversation in the terminal, or through a pipe.

mod answer;
mod input;

use crate::{
    commands::generate::not_finite,
    files::{self, Replace},
    kv::{KvArgs, LongArgs},
    model::{Loaded, ModelArgs, Run},
    output,
    sampling::{self, SamplingArgs},
    stops::Stops,
    text_file,
};
use answer::Answer;
use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use input::{Command, Input, Line};
use phi35_model::{ChatTemplate, Conversation, Message, Phi3, Prefix, Sampling, Tokenizer};
use qins_kv_cache::{ChosenKv, file::ModelHash};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

/// Commands, a line each, in a terminal or through a pipe; everything else is said to the model.
const HELP: &str = "\
/system TEXT   tell the model how to behave; without TEXT, show it; `/system none` takes it back
/reset         forget the conversation
/save FILE     write the messages as JSON, for --resume
/stats         tokens, speed and memory
/help          this list
/quit          leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next; so does everything between two \"\"\".";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Go on with messages that /save wrote
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Tokens of an answer at most [default: what the context holds]
    #[arg(short, long, value_name = "N")]
    n: Option<usize>,
    /// Divides the logits; 0 takes the most likely token each time. What is not given here is as the model's
    /// generation_config.json has it, or else --temperature 0.7 --top-p 0.95 --min-p 0.05
    #[arg(long, value_name = "T", value_parser = sampling::at_least_0)]
    temperature: Option<f32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    long: LongArgs,
    /// When an answer fills the context, forget the older half of the text but for the system message, and go on
    #[arg(long)]
    shift: bool,
    /// End answers before this text, or at this special token; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print one JSON object at the end instead of the answers
    #[arg(long)]
    json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    messages: Vec<Message>,
    answers: Vec<Answer>,
    load_s: f64,
    peak_rss_bytes: Option<u64>,
}

/// How tokens are drawn where the model does not say it: small models talk nonsense if all tokens may come.
const DEFAULT: Sampling =
    Sampling { temperature: 0.7, top_k: 0, top_p: 0.95, min_p: 0.05, repetition_penalty: 1.0, seed: 0 };

pub fn run(args: Args) -> Result<()> {
    let source = &args.model.model;
    let config = source.config()?;
    let tokenizer = source.require_tokenizer()?;
    let template = source.chat_template()?;
    let mut conversation = Conversation::new(template.clone(), tokenizer.clone());
    if let Some(file) = &args.resume {
        (conversation.system, conversation.messages) = read_messages(file)?;
    }
    conversation.system = args.system.clone().or(conversation.system);
    let context = config.max_position_embeddings;
    let longest = args.n.unwrap_or(context);
    let stops = Stops::new(&args.stop, Some(&tokenizer))?;
    let chat = Chat {
        stop_ids: stops.without_own(source.stop_ids(&config, Some(&tokenizer))?),
        sampling: args.sampling.or(args.temperature, sampling::of_model(source, DEFAULT)?),
        stops,
        template,
        // At least a third of the context is left for the answer, if it may be that long.
        prompt_limit: context - longest.min(context / 3),
        longest,
        context,
        tokenizer,
        conversation,
        answers: Vec::new(),
        saved: None,
        not_answered: 0,
        hash: None,
        load_s: 0.0,
        args: &args,
    };
    chat.tell_of_dropped_system();
    args.model.run(chat)
}

struct Chat<'a> {
    args: &'a Args,
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    stop_ids: Vec<u32>,
    stops: Stops,
    sampling: Sampling,
    /// Tokens of an answer at most.
    longest: usize,
    /// Tokens of a prompt at most.
    prompt_limit: usize,
    /// Tokens that the model's context holds.
    context: usize,
    answers: Vec<Answer>,
    /// The file that `/save` wrote, which it may replace, and what it wrote.
    saved: Option<(PathBuf, String)>,
    /// Messages without an answer.
    not_answered: usize,
    /// What tells the model from every other, where `--cache` asks for it.
    hash: Option<ModelHash>,
    load_s: f64,
}

/// What Ctrl-C does: it ends the program, or, while the model answers, the answer.
static INTERRUPT: AtomicU8 = AtomicU8::new(ENDS_PROGRAM);
const ENDS_PROGRAM: u8 = 0;
const ENDS_ANSWER: u8 = 1;
const PRESSED: u8 = 2;

fn handle_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPT.compare_exchange(ENDS_ANSWER, PRESSED, Ordering::SeqCst, Ordering::SeqCst) == Err(ENDS_PROGRAM) {
            std::process::exit(output::INTERRUPTED);
        }
    })
    .context("cannot handle Ctrl-C")
}

fn interrupted() -> bool {
    INTERRUPT.load(Ordering::SeqCst) == PRESSED
}

impl Run for Chat<'_> {
    type Output = ();

    fn needs_hash(&self) -> bool {
        self.args.long.has_cache()
    }

    fn run<B: Backend>(mut self, model: &Phi3<B>, loaded: Loaded) -> Result<()> {
        (self.load_s, self.hash) = (loaded.load_s, loaded.hash);
        handle_interrupts()?;
        let mut input = Input::new()?;
        if input.is_terminal() {
            let source = &self.args.model.model;
            eprintln!("{source}, context {} tokens. /help lists commands, Ctrl-D leaves.", self.context);
        }
        let piped = !input.is_terminal();
        let outcome = self.talk(model, &mut input);
        // What was answered before a failure is printed, too.
        if self.args.json {
            output::json(&Report {
                messages: self.conversation.all_messages(),
                answers: self.answers,
                load_s: self.load_s,
                peak_rss_bytes: output::peak_rss_bytes(),
            })?;
        }
        outcome?;
        match self.not_answered {
            n if n == 0 || !piped => Ok(()),
            1 => bail!("1 message could not be answered"),
            n => bail!("{n} messages could not be answered"),
        }
    }
}

impl Chat<'_> {
    /// Answers until the input ends.
    fn talk<B: Backend>(&mut self, model: &Phi3<B>, input: &mut Input) -> Result<()> {
        let mut prefix = Some(self.args.long.prefix(model, self.hash.as_ref(), &self.args.kv)?);
        while let Some(line) = input.next()? {
            match line {
                Line::Say(text) => self.answer(model, &mut prefix, text)?,
                Line::Unreadable(line) => {
                    self.not_answered += 1;
                    eprintln!("standard input, line {line}: expected UTF-8, found other bytes");
                }
                Line::Command(Command::Quit) => break,
                Line::Command(command) => {
                    // A command that fails does not end the conversation.
                    if let Err(error) = self.command(command) {
                        eprintln!("{}", output::told(&error));
                    }
                }
            }
        }
        match &prefix {
            Some(prefix) => self.args.long.keep(self.hash.as_ref(), prefix),
            None => Ok(()),
        }
    }

    /// Answers a message, or tells why it cannot be answered.
    fn answer<B: Backend>(
        &mut self,
        model: &Phi3<B>,
        prefix: &mut Option<Prefix<B, ChosenKv<B>>>,
        text: String,
    ) -> Result<()> {
        self.conversation.messages.push(Message::new("user", text));
        let prompt = match self.conversation.prompt(self.prompt_limit) {
            Ok(prompt) => prompt,
            Err(error) => {
                self.conversation.messages.pop();
                self.not_answered += 1;
                eprintln!("{error}");
                return Ok(());
            }
        };
        if prompt.left_out > 0 {
            eprintln!("(the context is full: the first {} messages are forgotten)", prompt.left_out);
            self.conversation.messages.drain(..prompt.left_out);
        }
        INTERRUPT.store(ENDS_ANSWER, Ordering::SeqCst);
        let answered = self.stream(model, prefix.take().expect("put back after each answer"), &prompt.ids);
        INTERRUPT.store(ENDS_PROGRAM, Ordering::SeqCst);
        let (text, answer, run) = answered?;
        if answer.stop == "error" {
            // Its keys and values are not finite, either.
            *prefix = Some(self.args.long.prefix(model, self.hash.as_ref(), &self.args.kv)?);
            self.conversation.messages.pop();
            self.not_answered += 1;
            eprintln!("{}", not_finite(answer.generate_tokens));
            return Ok(());
        }
        *prefix = Some(run);
        match answer.stop {
            "cancelled" => eprintln!("(stopped)"),
            "length" if answer.generate_tokens < self.longest => eprintln!("(the context of {} is full)", self.context),
            _ => (),
        }
        if text.is_empty() && answer.stop == "cancelled" {
            self.conversation.messages.pop();
        } else {
            self.conversation.messages.push(Message::new("assistant", text));
        }
        self.answers.push(answer);
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => eprintln!("{HELP}"),
            Command::Reset => {
                self.conversation.messages.clear();
                eprintln!("(the conversation is forgotten)");
            }
            Command::System(None) => match &self.conversation.system {
                Some(text) => eprintln!("{text}"),
                None => eprintln!("(no system message)"),
            },
            Command::System(Some(text)) => {
                self.conversation.system = (text != "none").then_some(text);
                eprintln!("(told the model; /reset forgets what was said before)");
                self.tell_of_dropped_system();
            }
            Command::Save(file) => self.save(file)?,
            Command::Stats => self.stats(),
            Command::Quit => (),
            Command::Unknown(name) => bail!("no command {name}; /help lists them"),
        }
        Ok(())
    }

    /// A line on standard error if the model will not read its system message.
    fn tell_of_dropped_system(&self) {
        if let Some(system) = &self.conversation.system
            && self.template.drops_system(system)
        {
            eprintln!("(the model's chat template has no place for a system message: it is left out)");
        }
    }

    fn save(&mut self, file: Option<PathBuf>) -> Result<()> {
        let file = file
            .or_else(|| self.saved.as_ref().map(|(file, _)| file.clone()))
            .context("expected a file: /save FILE")?;
        let json = serde_json::to_string_pretty(&self.conversation.all_messages())? + "\n";
        // As it was saved last, and not changed since.
        let is_own = |path: &Path| {
            let saved = self.saved.as_ref().filter(|(file, _)| file == path);
            saved.is_some_and(|(_, json)| std::fs::read(path).is_ok_and(|found| found == json.as_bytes()))
        };
        let replace = if self.saved.as_ref().is_some_and(|(saved, _)| *saved == file) {
            Replace::Own { what: "as it was saved", is_own: &is_own }
        } else {
            Replace::Nothing { advice: "choose another name" }
        };
        files::write(&file, json.as_bytes(), &replace)?;
        eprintln!("(saved to {})", file.display());
        self.saved = Some((file, json));
        Ok(())
    }

    fn stats(&self) {
        let per_second = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        eprintln!("loaded in {:.2} s", self.load_s);
        eprintln!("messages  {}", self.conversation.messages.len());
        if let Some(last) = self.answers.last() {
            let run = last.prompt_tokens - last.reused_tokens;
            let used = last.prompt_tokens + last.generate_tokens;
            eprintln!("context   {used} of {} tokens", self.context);
            eprintln!(
                "prompt    {run} tokens run, {} kept from before, {:.1} a second",
                last.reused_tokens,
                per_second(run, last.prompt_s)
            );
            // The first token is chosen by the prompt's last.
            let after = last.generate_tokens.saturating_sub(1);
            eprintln!("answer    {} tokens, {:.1} a second", last.generate_tokens, per_second(after, last.generate_s));
        }
        if let Some(bytes) = output::peak_rss_bytes() {
            eprintln!("memory    {:.0} MB at most", bytes as f64 / 1e6);
        }
    }
}

/// The messages of a file that `/save` wrote, the system's apart.
fn read_messages(file: &Path) -> Result<(Option<String>, Vec<Message>)> {
    let json = std::fs::read(file).with_context(|| file.display().to_string())?;
    let mut messages: Vec<Message> = serde_json::from_slice(text_file::without_mark(&json))
        .with_context(|| format!("{}: expected a JSON array of messages with `role` and `content`", file.display()))?;
    let system = messages.first().is_some_and(|m| m.role == "system").then(|| messages.remove(0).content);
    Ok((system, messages))
}
