//! The program as the tests run it, and models made for it.
#![allow(dead_code, reason = "each test takes what it needs")]

use qins_tests::write_model;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// The model inside the program.
pub const DEMO: &str = "demo";

/// The program.
pub fn qins() -> Command {
    Command::new(env!("CARGO_BIN_EXE_qins"))
}

/// A random model of 50 ids and a context of 40 tokens.
pub fn model() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let sizes = json!({"vocab_size": 50, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40});
    write_model(directory.path(), sizes);
    directory
}

/// A command on a model.
pub fn run(arguments: &[&str], model: &Path) -> Output {
    let (command, rest) = arguments.split_first().unwrap();
    qins().arg(command).arg(model).args(rest).stdin(Stdio::null()).output().unwrap()
}

/// What a command printed with `--json`.
pub fn json_of(output: Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    assert_eq!(output.stdout.iter().filter(|&&b| b == b'\n').count(), 1, "one JSON object on one line");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The message of a failure that is the input's fault.
pub fn failure(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "nothing on standard output");
    String::from_utf8(output.stderr).unwrap()
}

/// A tokenizer of whole words, made here.
pub fn word_tokenizer(directory: &Path) -> PathBuf {
    let words = ["[unk]", "once", "upon", "a", "time"];
    let vocabulary: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(i, w)| (w.to_string(), json!(i))).collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[unk]"}});
    let path = directory.join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    path
}

/// Runs a command with `input` on its standard input.
pub fn run_with(input: &[u8], command: &str, arguments: &[&str], model: &Path) -> Output {
    let mut child = qins()
        .arg(command)
        .arg(model)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A child that fails at once reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Random weights, and rotary factors that change past 300 tokens.
pub fn longrope_model() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let factors = |f: f32| (0..6).map(|i| 1.0 + f * i as f32).collect::<Vec<_>>();
    let scaling = json!({"type": "longrope", "short_factor": factors(0.1), "long_factor": factors(2.0)});
    write_model(
        directory.path(),
        json!({"vocab_size": 50, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 900,
            "original_max_position_embeddings": 300, "rope_scaling": scaling}),
    );
    directory
}
