use super::{ERROR, not_finite, stop_name};
use crate::{
    kv::KvArgs,
    model::{Loaded, Run},
    output,
    stops::Stops,
};
use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use phi35_model::{Batch, Generation, Phi3, Prefix, TextStream, check_prompt};
use serde::Serialize;
use std::{mem::take, time::Instant};

/// What a text goes on from.
pub struct Prompt<'t> {
    /// Printed before the generated text; empty if the prompt was given as ids.
    pub text: String,
    pub ids: Vec<u32>,
    pub stream: Option<TextStream<'t>>,
}

/// Texts that are written side by side.
pub struct Several<'t> {
    pub prompts: Vec<Prompt<'t>>,
    /// Of each text, but for the seed, to which its place is added.
    pub options: Generation,
    pub kv: KvArgs,
    pub stops: Stops,
    /// Texts that are written at once.
    pub at_once: usize,
    pub json: bool,
}

/// The JSON object of several prompts.
#[derive(Serialize)]
struct Report {
    texts: Vec<Written>,
    timings: Timings,
    peak_rss_bytes: Option<u64>,
}

/// As the object of one prompt says it.
#[derive(Serialize)]
struct Written {
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: Option<String>,
    stop: &'static str,
}

#[derive(Serialize)]
struct Timings {
    load_s: f64,
    /// All prompts and texts together.
    run_s: f64,
    prompt_tokens: usize,
    generate_tokens: usize,
}

/// A text as it is written.
struct Row<'t> {
    prompt: Prompt<'t>,
    ids: Vec<u32>,
    text: Option<String>,
    stops: Stops,
    /// A stop text came.
    stopped: bool,
}

impl<'t> Row<'t> {
    fn new(prompt: Prompt<'t>, stops: Stops) -> Self {
        let text = prompt.stream.as_ref().map(|_| String::new());
        Self { prompt, ids: Vec::new(), text, stops, stopped: false }
    }

    fn push(&mut self, id: u32) -> Result<()> {
        self.ids.push(id);
        if let (Some(stream), Some(text)) = (&mut self.prompt.stream, &mut self.text) {
            let (piece, ends) = self.stops.push(id, stream)?;
            text.push_str(&piece);
            self.stopped = ends;
        }
        Ok(())
    }

    /// Takes what was written.
    fn end(&mut self, stop: &'static str) -> Result<Written> {
        let held = match &mut self.prompt.stream {
            Some(stream) if !self.stopped => self.stops.finish(stream)?,
            _ => String::new(),
        };
        let text = self.text.take().map(|text| text + &held);
        Ok(Written { prompt_ids: take(&mut self.prompt.ids), ids: take(&mut self.ids), text, stop })
    }
}

impl Run for Several<'_> {
    type Output = ();

    fn run<B: Backend>(self, model: &Phi3<B>, loaded: Loaded) -> Result<()> {
        let start = Instant::now();
        // Before the first takes its time.
        for (i, prompt) in self.prompts.iter().enumerate() {
            check_prompt(model, &prompt.ids).with_context(|| format!("prompt {}", i + 1))?;
        }
        let (json, mut texts) = (self.json, Vec::new());
        let outcome = self.write(model, &mut texts);
        // What was written before a failure is printed, too.
        if json {
            let timings = Timings {
                load_s: loaded.load_s,
                run_s: start.elapsed().as_secs_f64(),
                prompt_tokens: texts.iter().map(|text| text.prompt_ids.len()).sum(),
                generate_tokens: texts.iter().map(|text| text.ids.len()).sum(),
            };
            output::json(&Report { texts, timings, peak_rss_bytes: output::peak_rss_bytes() })?;
        }
        outcome
    }
}

impl Several<'_> {
    /// Writes all texts and takes them as they end, in the order of the prompts.
    fn write<B: Backend>(self, model: &Phi3<B>, texts: &mut Vec<Written>) -> Result<()> {
        let of = self.prompts.len();
        let mut rows: Vec<_> = self.prompts.into_iter().map(|prompt| Row::new(prompt, self.stops.clone())).collect();
        let (mut batch, mut begun) = (Batch::new(model), 0);
        while texts.len() < of {
            while begun < of && batch.written() < self.at_once {
                let mut options = self.options.clone();
                options.sampling.seed = options.sampling.seed.wrapping_add(begun as u64);
                batch.add(Prefix::with(model, || self.kv.store()), &rows[begun].prompt.ids, options)?;
                begun += 1;
            }
            for (row, id) in batch.step().unwrap_or_default() {
                rows[row].push(id)?;
                if rows[row].stopped {
                    batch.end(row);
                }
            }
            // In the order of the prompts, each once those before it have ended.
            while let Some(row) = rows[..begun].get_mut(texts.len()) {
                let reason = batch.stop_reason(texts.len());
                if !row.stopped && reason.is_none() {
                    break;
                }
                let text = row.end(stop_name(row.stopped, reason))?;
                if !self.json {
                    let blank = if texts.is_empty() { "" } else { "\n" };
                    output::text(&(blank.to_owned() + &text.shown(texts.len() + 1, of, &row.prompt.text)))?;
                }
                texts.push(text);
            }
        }
        match texts.iter().position(|text| text.stop == ERROR) {
            Some(i) => bail!("prompt {}: {}", i + 1, not_finite(texts[i].ids.len())),
            None => Ok(()),
        }
    }
}

impl Written {
    /// As `head` shows several files.
    fn shown(&self, number: usize, of: usize, prompt: &str) -> String {
        let text = match &self.text {
            Some(text) => text.clone(),
            None => self.ids.iter().map(|id| format!("{id} ")).collect(),
        };
        format!("==> {number} of {of} <==\n{prompt}{text}\n")
    }
}
