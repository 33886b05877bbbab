//! What commands printed, kept in a file each.

use super::plan::{Step, Subject};
use crate::files::{self, Replace};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A command that has been run.
#[derive(Serialize, Deserialize)]
pub struct Done {
    /// Its place in the report.
    order: usize,
    pub subject: Subject,
    pub model: String,
    pub format: Option<String>,
    /// As a user types it.
    pub command: String,
    /// Of the program that ran it.
    version: String,
    pub machine: Machine,
    /// The JSON object it printed.
    pub output: Value,
}

/// Where a command ran.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
pub struct Machine {
    /// As the system names it.
    pub processor: String,
    pub threads: usize,
    /// Of the kernels.
    pub instruction_set: String,
    pub memory_bytes: Option<u64>,
    pub system: String,
}

impl Machine {
    fn this() -> Self {
        let field = |file: &str, name: &str| -> Option<String> {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kilobytes = field("/proc/meminfo", "MemTotal").and_then(|size| size.split(' ').next()?.parse::<u64>().ok());
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            instruction_set: qins_codec::Level::current().name().to_owned(),
            memory_bytes: kilobytes.map(|kilobytes| kilobytes * 1024),
            system: std::env::consts::OS.to_owned(),
        }
    }
}

/// The folder of results, in the order of the report.
pub struct Results {
    folder: PathBuf,
    done: Vec<Done>,
}

impl Results {
    /// What is in a report's folder, which is made if there is none.
    pub fn open(report: &Path) -> Result<Self> {
        let folder = report.join("results");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut done = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let result: Done = serde_json::from_slice(&text)
                    .with_context(|| format!("{}: no result of a report", path.display()))?;
                done.push(result);
            }
        }
        done.sort_by_key(|done| done.order);
        Ok(Self { folder, done })
    }

    /// All of them.
    pub fn all(&self) -> &[Done] {
        &self.done
    }

    /// Those on a subject, of one model: those of the most bits a weight first, where they tell bits.
    pub fn of(&self, subject: &Subject, model: &str) -> impl Iterator<Item = &Done> {
        let mut found: Vec<&Done> =
            self.done.iter().filter(|done| done.subject == *subject && done.model == model).collect();
        let bits = |done: &Done| done.output.pointer("/model/bits_per_weight").and_then(Value::as_f64).unwrap_or(0.0);
        found.sort_by(|a, b| bits(b).total_cmp(&bits(a)));
        found.into_iter()
    }

    /// Those on long windows, of one model.
    pub fn long(&self, model: &str) -> impl Iterator<Item = &Done> {
        self.done.iter().filter(move |done| matches!(done.subject, Subject::Long { .. }) && done.model == model)
    }

    /// Runs a command unless this version of the program has run the same before and its file is still there; whether
    /// it had to.
    pub fn run(&mut self, step: &Step) -> Result<bool> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let command = format!("qins {}", step.words.join(" "));
        let here = match &step.subject {
            Subject::Text { file, .. } => Path::new(file).exists(),
            _ => true,
        };
        if here && self.done.iter().any(|done| done.command == command && done.version == version) {
            return Ok(false);
        }
        let output = match &step.subject {
            Subject::Text { file, seeds } => self.draw(&step.words, Path::new(file), *seeds)?,
            _ => call(&step.words)?,
        };
        self.done.retain(|done| done.command != command);
        let order = self.done.iter().map(|done| done.order + 1).max().unwrap_or(0);
        let Step { subject, model, format, .. } = step;
        let (subject, model, format) = (subject.clone(), model.clone(), format.clone());
        let done = Done { order, subject, model, format, command, version, machine: Machine::this(), output };
        let path = self.folder.join(format!("{order:03}.json"));
        let advice = "move it away";
        files::write(&path, serde_json::to_string(&done)?.as_bytes(), &Replace::Nothing { advice })?;
        self.done.push(done);
        Ok(true)
    }

    /// Texts drawn with some seeds, one after the other in a file.
    fn draw(&self, words: &[String], file: &Path, seeds: u32) -> Result<Value> {
        let mut text = String::new();
        for seed in 0..seeds {
            let seed = ["--ignore-eos", "--seed", &seed.to_string()].map(str::to_owned);
            let output = call(&[words, &seed].concat())?;
            let drawn = output["text"].as_str();
            ensure!(drawn.is_some(), "`qins {}` drew no text: give one after --text", words.join(" "));
            text.push_str(drawn.unwrap_or_default());
        }
        let sha256 = files::sha256(text.as_bytes());
        let is_own = |path: &Path| {
            let found = fs::read(path).map(|found| files::sha256(&found));
            let drawn =
                |found: &String| *found == sha256 || self.done.iter().any(|done| done.output["sha256"] == **found);
            found.as_ref().is_ok_and(drawn)
        };
        files::write(file, text.as_bytes(), &Replace::Own { what: "as it was drawn", is_own: &is_own })?;
        Ok(serde_json::json!({ "seeds": seeds, "bytes": text.len(), "sha256": sha256 }))
    }
}

/// What this program prints, run again in a process of its own.
fn call(words: &[String]) -> Result<Value> {
    let command = format!("qins {}", words.join(" "));
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let output = Command::new(program)
        .args(words)
        .arg("--json")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{command}`"))?;
    if !output.status.success() {
        bail!("`{command}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("`{command}` printed no JSON object"))
}
