//! What people bring in place of a model is told in one line: what it is, and what to do.

mod running;

use running::{DEMO, failure, json_of, qins, run};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Output};
use tempfile::TempDir;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123456\n";

/// The model that is part of the program, in a directory.
fn model() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    for entry in fs::read_dir(demo).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// The message of a failure, which is one line and tells nothing twice.
fn line(output: Output) -> String {
    let message = failure(output);
    assert_eq!(message.lines().count(), 1, "{message}");
    let parts: Vec<&str> = message.trim().split(": ").collect();
    assert!(parts.windows(2).all(|pair| pair[0] != pair[1]), "{message}");
    message
}

const GENERATE: [&str; 5] = ["generate", "-p", "Once", "-n", "1"];

#[test]
fn a_file_that_is_not_itself_is_told_whatever_it_should_be() {
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        for (bytes, expected) in [
            (POINTER, "git-lfs"),
            ("", "empty"),
            ("<!DOCTYPE html><html></html>", "web site"),
            ("Entry not found", "server"),
        ] {
            let directory = model();
            fs::write(directory.path().join(name), bytes).unwrap();
            let message = line(run(&GENERATE, directory.path()));
            assert!(message.contains(name) && message.contains(expected), "{message}");
        }
    }
    // Copied, it would be of no use to anybody.
    let directory = model();
    fs::write(directory.path().join("tokenizer.model"), POINTER).unwrap();
    let output = directory.path().join("c");
    let message = line(run(&["convert", "-o", output.to_str().unwrap()], directory.path()));
    assert!(message.contains("tokenizer.model: a pointer of git-lfs") && !output.exists(), "{message}");
}

#[test]
fn a_model_of_another_kind_is_told_by_its_configuration() {
    for (field, value, expected) in [
        ("quantization_config", json!({"quant_method": "gptq"}), "quantized already, by gptq"),
        ("quantization_config", json!({"quant_method": "awq"}), "quantized already, by awq"),
        ("quantization_config", json!({"load_in_4bit": true}), "quantized already, by bitsandbytes"),
        ("model_type", json!("phi3_v"), "`phi3_v`, a multimodal model"),
        ("model_type", json!("llama"), "`model_type` is `llama`"),
    ] {
        let directory = model();
        change(&directory.path().join("config.json"), |config| config[field] = value);
        let output = directory.path().join("c");
        for command in [&GENERATE[..], &["convert", "-o", output.to_str().unwrap()]] {
            let message = line(run(command, directory.path()));
            assert!(message.contains(expected), "{message}");
        }
        assert!(!output.exists());
    }
}

#[test]
fn a_directory_without_a_model_is_told_by_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("adapter_config.json"), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
    fs::write(at("adapter_model.safetensors"), "").unwrap();
    for command in [&["inspect"][..], &GENERATE, &["chat"]] {
        let message = line(run(command, directory.path()));
        assert!(message.contains("a LoRA adapter: merge it into its base model, org/base"), "{message}");
    }

    let directory = model();
    fs::rename(directory.path().join("model.safetensors"), directory.path().join("pytorch_model.bin")).unwrap();
    let message = line(run(&GENERATE, directory.path()));
    assert!(message.contains("`pytorch_model.bin`") && message.contains("save_pretrained"), "{message}");

    let unused = directory.path().join("unused");
    for command in [
        &GENERATE[..],
        &["tokenize"],
        &["inspect"],
        &["chat"],
        &["verify"],
        &["measure"],
        &["convert", "-o", "/nonexistent/x"],
        &["export", "-o", "/nonexistent/x"],
        &["logits", "--ids", "1", "-o", unused.to_str().unwrap()],
    ] {
        let message = line(run(command, &directory.path().join("absent")));
        assert!(message.contains("absent: expected ") && message.ends_with("found no such directory\n"), "{message}");
    }
    let file = directory.path().join("tokenizer.json");
    let message = line(run(&GENERATE, &file));
    assert!(message.contains("found a file: give its directory"), "{message}");
    let message = line(run(&["verify"], directory.path()));
    assert!(message.contains("expected a container") && message.contains("found `pytorch_model.bin`"), "{message}");
}

#[test]
fn the_model_of_the_program_converts_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("c");
    let report = json_of(run(&["convert", "--json", "-o", output.to_str().unwrap()], Path::new(DEMO)));
    assert!(report["tensors"].as_array().unwrap().len() > 20);
    assert!(run(&GENERATE, &output).status.success());
    // Where there is no directory of that name.
    let export = qins().args(["export", DEMO, "-o", "x"]).current_dir(directory.path()).output().unwrap();
    let message = line(export);
    assert!(message.contains("demo: expected a container, found no such directory"), "{message}");
}
