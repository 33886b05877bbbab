//! Files of weights while the program uses them, and key-value caches of other weights.

mod running;

use running::{failure, json_of, model, qins, run, word_tokenizer};
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::Stdio,
};
use tempfile::TempDir;

/// A model that can chat, and its container in a format.
fn chat_model(format: &str) -> (TempDir, PathBuf) {
    let directory = model();
    word_tokenizer(directory.path());
    let template = r#"{"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}"#;
    std::fs::write(directory.path().join("tokenizer_config.json"), template).unwrap();
    let container = convert(directory.path(), format);
    (directory, container)
}

fn convert(source: &Path, format: &str) -> PathBuf {
    let output = source.join(format!("in-{}", format.replace(':', "-")));
    let converted = run(&["convert", "-o", output.to_str().unwrap(), "--format", format], source);
    assert!(converted.status.success(), "{converted:?}");
    output
}

/// Status, standard output and standard error of a conversation in which the file of weights is truncated after the first answer.
fn chat_while_truncated(container: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut child = qins()
        .arg("chat")
        .arg(container)
        .args(["-n", "3"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    input.write_all(b"once\n").unwrap();
    let mut text = String::new();
    output.read_line(&mut text).unwrap();

    let weights = std::fs::OpenOptions::new().write(true).open(container.join("qins.safetensors")).unwrap();
    weights.set_len(100).unwrap();
    let _ = input.write_all(b"upon\n");
    drop(input);
    output.read_to_string(&mut text).unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (child.wait().unwrap().code(), text, errors)
}

#[cfg(unix)]
#[test]
fn a_file_truncated_while_it_is_mapped_is_named_in_one_line() {
    let (_directory, container) = chat_model("q8");
    let (status, text, errors) = chat_while_truncated(&container, &[]);
    assert_eq!((status, text.lines().count()), (Some(1), 1), "{text}{errors}");
    let expected =
        format!("qins: {}: a part of this file can no longer be read", container.join("qins.safetensors").display());
    assert!(errors.starts_with(&expected) && errors.contains("--no-mmap"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn without_a_map_the_file_may_be_truncated() {
    let (_directory, container) = chat_model("q8");
    let (status, text, errors) = chat_while_truncated(&container, &["--no-mmap"]);
    assert_eq!((status, text.lines().count(), &errors[..]), (Some(0), 2, ""), "{text}");
}

#[test]
fn weights_read_into_memory_are_those_of_the_map() {
    let (directory, container) = chat_model("fpins:2");
    for model in [directory.path(), &container] {
        let generate = ["generate", "--ids", "1,2,3", "-n", "8", "--ignore-eos", "--json"];
        let ids = |more: &[&str]| json_of(run(&[&generate[..], more].concat(), model))["ids"].clone();
        assert_eq!(ids(&["--no-mmap"]), ids(&[]));
    }
}

/// The architecture is the same, and every float norm too.
#[test]
fn a_cache_is_refused_by_other_weights_of_the_same_architecture() {
    let directory = model();
    let source = directory.path();
    let file = source.join("text.kv");
    let cached = |model: &Path, more: &[&str]| {
        let arguments = ["generate", "--ids", "1,2,3,4,5,6", "-n", "2", "--ignore-eos", "--kv", "q8", "--cache"];
        run(&[&arguments[..], &[file.to_str().unwrap(), "--json"], more].concat(), model)
    };
    let reused = |output| json_of(output)["timings"]["reused_tokens"].as_u64().unwrap();
    let refused = |output| {
        let message = failure(output);
        assert!(message.contains("text.kv: SHA-256 of weights and configuration: expected"), "{message}");
    };
    let (fpins, q8) = (convert(source, "fpins:2"), convert(source, "q8"));

    assert_eq!(reused(cached(source, &["--format", "q8"])), 0);
    assert!(reused(cached(source, &["--format", "q8"])) > 0);
    refused(cached(source, &["--format", "q4"]));
    refused(cached(source, &[]));
    std::fs::remove_file(&file).unwrap();

    assert_eq!(reused(cached(&fpins, &[])), 0);
    assert!(reused(cached(&fpins, &["--depth", "2"])) > 0, "all there is");
    refused(cached(&fpins, &["--depth", "1"]));
    refused(cached(&q8, &[]));
    std::fs::remove_file(&file).unwrap();

    // One weight of the checkpoint changes, no norm.
    assert_eq!(reused(cached(source, &[])), 0);
    let weights = source.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    refused(cached(source, &[]));
}
