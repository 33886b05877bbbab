//! The program from outside, on a model made here: what it prints, its exit status, its messages.

use qins_tests::write_model;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

fn qins() -> Command {
    Command::new(env!("CARGO_BIN_EXE_qins"))
}

fn model() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let sizes = json!({"vocab_size": 50, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 40});
    write_model(directory.path(), sizes);
    directory
}

fn run(arguments: &[&str], model: &Path) -> Output {
    let (command, rest) = arguments.split_first().unwrap();
    qins().arg(command).arg(model).args(rest).stdin(Stdio::null()).output().unwrap()
}

fn json_of(output: Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    assert_eq!(output.stdout.iter().filter(|&&b| b == b'\n').count(), 1, "one JSON object on one line");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The message of a failure that is the input's fault.
fn failure(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "nothing on standard output");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn generate_prints_the_documented_object() {
    let directory = model();
    let mut answers = Vec::new();
    for extra in [&[][..], &["--format", "q8"], &["--format", "f32", "--threads", "1", "--backend", "flex"]] {
        let arguments = [&["generate", "--ids", "1,2,3", "-n", "20", "--ignore-eos", "--json"], extra].concat();
        let answer = json_of(run(&arguments, directory.path()));
        assert_eq!(answer["prompt_ids"], json!([1, 2, 3]));
        assert_eq!(answer["ids"].as_array().unwrap().len(), 20);
        assert_eq!((&answer["text"], &answer["stop"]), (&Value::Null, &json!("length")));
        assert_eq!(answer["timings"]["prompt_tokens"], 3);
        assert_eq!(answer["timings"]["generate_tokens"], 20);
        for time in ["load_s", "prompt_s", "generate_s"] {
            assert!(answer["timings"][time].as_f64().unwrap() > 0.0, "{time}");
        }
        if cfg!(target_os = "linux") {
            assert!(answer["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
        }
        answers.push(answer["ids"].clone());
    }
    assert_eq!(answers[0], answers[2], "threads change nothing");
}

#[test]
fn generation_ends_at_a_stop_id_and_at_the_context() {
    let directory = model();
    let all = json_of(run(&["generate", "--ids", "5", "-n", "100", "--ignore-eos", "--json"], directory.path()));
    let ids = all["ids"].as_array().unwrap();
    assert_eq!(ids.len(), 40, "39 more tokens fill the context of 40, and one follows it");
    let stop = json!({"eos_token_id": [49, ids[3]]});
    std::fs::write(directory.path().join("generation_config.json"), stop.to_string()).unwrap();
    let some = json_of(run(&["generate", "--ids", "5", "-n", "100", "--json"], directory.path()));
    let first = ids.iter().position(|id| *id == ids[3]).unwrap();
    assert_eq!(some["ids"].as_array().unwrap(), &ids[..first]);
    assert_eq!(some["stop"], "eos");
}

#[test]
fn logits_are_written_once_and_whole() {
    let directory = model();
    let (out, list) = (directory.path().join("out.safetensors"), directory.path().join("ids.json"));
    std::fs::write(&list, "[4, 8, 15]").unwrap();
    let arguments = ["logits", "--ids-file", list.to_str().unwrap(), "-o", out.to_str().unwrap()];
    let report = json_of(run(&[&arguments[..], &["--json"]].concat(), directory.path()));
    assert_eq!((&report["tokens"], &report["vocabulary"]), (&json!(3), &json!(50)));
    let first = qins_tests::read_tensor(&out, "logits");
    assert_eq!(first.len(), 150);
    // Refused, then replaced.
    assert!(failure(run(&arguments, directory.path())).contains("--force"));
    let again = run(&[&arguments[..], &["--force", "--format", "q8"]].concat(), directory.path());
    assert!(again.status.success() && again.stdout.is_empty());
    let second = qins_tests::read_tensor(&out, "logits");
    let difference = first.iter().zip(&second).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference > 0.0 && difference < 0.2, "q8 differs from float by {difference}");
}

#[test]
fn faults_of_the_input_are_told_with_file_and_expectation() {
    let directory = model();
    let path = |name: &str| directory.path().join(name);
    let generate = ["generate", "--ids", "1", "-n", "1"];
    let long: Vec<String> = (0..41).map(|_| "1".to_owned()).collect();
    let message = failure(run(&["generate", "--ids", &long.join(",")], directory.path()));
    assert!(message.contains("41 tokens") && message.contains("holds 40"), "{message}");
    assert!(failure(run(&["generate", "--ids", "50"], directory.path())).contains("token id 50"));
    assert!(failure(run(&["generate", "--ids", ""], directory.path())).contains("no tokens"));
    assert!(failure(run(&["generate", "--ids", "a"], directory.path())).contains("`a`"));
    assert!(failure(run(&["generate", "-p", "text"], directory.path())).contains("tokenizer.json"));
    assert!(failure(run(&generate, &path("absent"))).contains("no such directory"));

    let out = path("no/such/folder/out.safetensors");
    let message = failure(run(&["logits", "--ids", "1", "-o", out.to_str().unwrap()], directory.path()));
    assert!(message.contains("cannot write") && message.contains("folder"), "{message}");

    let whole = std::fs::read(path("model.safetensors")).unwrap();
    std::fs::write(path("model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    assert!(failure(run(&generate, directory.path())).contains("not a whole safetensors file"));
    std::fs::remove_file(path("model.safetensors")).unwrap();
    assert!(failure(run(&generate, directory.path())).contains("expected `model.safetensors`"));
    std::fs::write(path("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert!(failure(run(&generate, directory.path())).contains("config.json"));
}

#[test]
fn bad_usage_exits_with_2() {
    let directory = model();
    for arguments in [
        &["generate"][..],
        &["generate", "--ids", "1", "-p", "a"],
        &["generate", "--ids", "1", "--format", "q99"],
        &["generate", "--ids", "1", "--backend", "abacus"],
        &["generate", "--ids", "1", "--temperature", "-1"],
        &["generate", "--ids", "1", "--top-p", "1.5"],
        &["generate", "--ids", "1", "--repeat-penalty", "nan"],
        &["generate", "--ids", "1", "--threads", "0"],
        &["logits", "--ids", "1"],
    ] {
        let output = run(arguments, directory.path());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
    let message = run(&["generate", "--ids", "1", "--format", "q99"], directory.path()).stderr;
    assert!(String::from_utf8(message).unwrap().contains("expected one of q8, f32"));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let directory = model();
    let mut child = qins()
        .args(["generate", "--ids", "1", "-n", "30", "--ignore-eos"])
        .arg(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// A tokenizer of whole words, made here.
fn word_tokenizer(directory: &Path) -> PathBuf {
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

fn tokenize(arguments: &[&str], input: &[u8], model: &Path) -> Output {
    let mut child = qins()
        .arg("tokenize")
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

#[test]
fn tokenize_goes_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    assert!(failure(tokenize(&[], b"once", directory.path())).contains("tokenizer.json"));
    word_tokenizer(directory.path());
    assert_eq!(tokenize(&[], b"once upon a time", directory.path()).stdout, b"1 2 3 4\n");
    assert_eq!(json_of(tokenize(&["--json"], b"a time", directory.path())), json!({"ids": [3, 4]}));
    assert_eq!(tokenize(&["--decode"], b"[1, 2]", directory.path()).stdout, b"once upon");
    assert_eq!(json_of(tokenize(&["--decode", "--json"], b"4", directory.path())), json!({"text": "time"}));
    assert!(failure(tokenize(&["--decode"], b"5", directory.path())).contains("token id 5"));
    assert!(failure(tokenize(&[], b"\xff", directory.path())).contains("UTF-8"));
}

#[test]
fn a_seed_decides_the_sampled_text() {
    let directory = model();
    let sample = |seed| {
        let arguments =
            ["generate", "--ids", "1", "-n", "20", "--ignore-eos", "--json", "--temperature", "1.5", "--seed", seed];
        json_of(run(&arguments, directory.path()))["ids"].clone()
    };
    assert_eq!(sample("3"), sample("3"));
    assert_ne!(sample("3"), sample("4"));
}

#[test]
fn generation_ends_before_a_stop_text() {
    let directory = model();
    word_tokenizer(directory.path());
    let arguments = ["generate", "-p", "once upon", "-n", "30", "--ignore-eos", "--json", "--temperature", "2"];
    let whole = json_of(run(&arguments, directory.path()));
    let text = whole["text"].as_str().unwrap();
    let stop = text.split_whitespace().last().unwrap();
    let stopped = json_of(run(&[&arguments[..], &["--stop", stop]].concat(), directory.path()));
    assert_eq!(stopped["stop"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(stop).unwrap()]);
    let message = failure(run(&["generate", "--ids", "1", "--stop", "a"], model().path()));
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn text_prompts_never_yield_padding_ids() {
    let directory = model();
    word_tokenizer(directory.path());
    // The model has 50 ids, the tokenizer 5.
    let answer = json_of(run(&["generate", "-p", "once upon", "-n", "30", "--ignore-eos", "--json"], directory.path()));
    assert!(answer["ids"].as_array().unwrap().iter().all(|id| id.as_u64().unwrap() < 5), "{answer}");
    assert!(answer["text"].is_string());
    // Ids need no tokenizer: those it does not know are no fault.
    let raw = json_of(run(&["generate", "--ids", "1,2,49", "-n", "30", "--ignore-eos", "--json"], directory.path()));
    assert!(raw["ids"].as_array().unwrap().iter().any(|id| id.as_u64().unwrap() >= 5), "nothing is suppressed: {raw}");
}
