//! One answer: generated, printed as it comes, and measured.

use super::{Chat, interrupted};
use crate::output;
use anyhow::Result;
use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressStyle};
use phi35_model::{Generation, Phi3, Prefix, StopReason, resume};
use qins_kv_cache::ChosenKv;
use serde::Serialize;
use std::time::Instant;

/// One answer, measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Answer {
    pub(super) prompt_tokens: usize,
    /// Tokens of the prompt that were not run again.
    pub(super) reused_tokens: usize,
    pub(super) prompt_s: f64,
    pub(super) generate_tokens: usize,
    pub(super) generate_s: f64,
    /// `eos`, `length`, `stop`, `cancelled` or `error`.
    pub(super) stop: &'static str,
}

impl Chat<'_> {
    /// Prints an answer as it comes.
    pub(super) fn stream<B: Backend>(
        &self,
        model: &Phi3<B>,
        prefix: Prefix<B, ChosenKv<B>>,
        prompt: &[u32],
    ) -> Result<(String, Answer, Prefix<B, ChosenKv<B>>)> {
        let start = Instant::now();
        let mut sampling = self.sampling.clone();
        // The same seed would choose alike in every answer.
        sampling.seed = sampling.seed.wrapping_add(self.answers.len() as u64);
        let options = Generation {
            max_new_tokens: self.longest,
            stop_ids: self.stop_ids.clone(),
            vocabulary: Some(self.tokenizer.vocabulary()),
            sampling,
            shift: if self.args.shift { Some(self.conversation.system_tokens()?) } else { None },
            ..Generation::default()
        };
        let options = self.args.long.set(self.args.kv.set(options), model.config());
        let mut tokens = resume(model, prefix, prompt, options)?;
        let reused_tokens = tokens.reused_tokens();
        let bar = reading(prompt.len() as u64, reused_tokens as u64);
        while !interrupted() && tokens.run_prompt_part() {
            bar.set_position(tokens.tokens_run() as u64);
        }
        bar.finish_and_clear();

        let mut stream = self.tokenizer.stream(prompt);
        let mut stops = self.stops.clone();
        let mut answer = Text { text: String::new(), quiet: self.args.json };
        let (mut prompt_s, mut generate_tokens, mut stopped) = (None, 0, false);
        while !interrupted()
            && !stopped
            && let Some(id) = tokens.next()
        {
            prompt_s.get_or_insert_with(|| start.elapsed().as_secs_f64());
            generate_tokens += 1;
            let (piece, ends) = stops.push(id, &mut stream)?;
            answer.push(&piece)?;
            stopped = ends;
        }
        if !stopped {
            answer.push(&stops.finish(&mut stream)?)?;
        }
        answer.end()?;
        let stop = match tokens.stop_reason() {
            _ if stopped => "stop",
            Some(StopReason::Eos) => "eos",
            Some(StopReason::Length) => "length",
            Some(StopReason::NotFinite) => "error",
            None => "cancelled",
        };
        let total_s = start.elapsed().as_secs_f64();
        let prompt_s = prompt_s.unwrap_or(total_s);
        let generate_s = total_s - prompt_s;
        let measured =
            Answer { prompt_tokens: prompt.len(), reused_tokens, prompt_s, generate_tokens, generate_s, stop };
        Ok((answer.text, measured, tokens.into_prefix()))
    }
}

/// An answer as it is printed: without blanks around it.
struct Text {
    text: String,
    quiet: bool,
}

impl Text {
    fn push(&mut self, piece: &str) -> Result<()> {
        let piece = if self.text.is_empty() { piece.trim_start() } else { piece };
        self.text.push_str(piece);
        if self.quiet || piece.is_empty() { Ok(()) } else { output::text(piece) }
    }

    fn end(&self) -> Result<()> {
        if self.quiet { Ok(()) } else { output::text("\n") }
    }
}

/// On standard error, and only if that is a terminal.
fn reading(tokens: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("reading {bar:30} {pos}/{len} tokens, {eta} left");
    let bar = ProgressBar::new(tokens).with_style(style.expect("the template is well formed"));
    bar.set_position(done);
    bar
}
