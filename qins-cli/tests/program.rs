//! The program from outside, on a model made here: what it prints, its exit status, its messages.

mod running;

use qins_tests::write_model;
use running::{failure, json_of, longrope_model, model, qins, run, run_with, word_tokenizer};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Output, Stdio},
};

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
fn bench_counts_what_a_token_reads() {
    let directory = model();
    let arguments = ["bench", "--prompt", "4", "--generate", "3", "--reps", "2", "--json"];
    let float = json_of(run(&arguments, directory.path()));
    let coded = json_of(run(&[&arguments[..], &["--format", "q8", "--set", "lm_head=q12"]].concat(), directory.path()));
    let container = directory.path().join("out");
    run(&["convert", "-o", container.to_str().unwrap(), "--set", "lm_head=q12"], directory.path());
    let stored = json_of(run(&arguments, &container));
    // In f32 all but the embedding, which is as large as the head.
    let weights = json_of(run(&["inspect", "--json"], directory.path()))["weights"].as_u64().unwrap();
    assert_eq!(float["token_bytes"].as_u64().unwrap(), (weights - 50 * 48) * 4);
    assert_eq!(stored["token_bytes"], coded["token_bytes"]);
    assert!(coded["token_bytes"].as_u64().unwrap() * 3 < float["token_bytes"].as_u64().unwrap());
    for report in [float, coded, stored] {
        for rate in ["prompt_tokens_per_s", "generate_tokens_per_s"] {
            let [min, median, max] = ["min", "median", "max"].map(|name| report[rate][name].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max, "{report}");
        }
        let bytes =
            report["generate_tokens_per_s"]["median"].as_f64().unwrap() * report["token_bytes"].as_f64().unwrap();
        assert!((report["generate_bytes_per_s"].as_f64().unwrap() / bytes - 1.0).abs() < 1e-9);
    }
    let text = run(&["bench", "--prompt", "2", "--generate", "2"], directory.path()).stdout;
    assert!(String::from_utf8(text).unwrap().lines().count() == 3);
    let long = failure(run(&["bench", "--prompt", "30", "--generate", "20"], directory.path()));
    assert!(long.contains("context ends after 10 tokens"), "{long}");
    for bad in [&["bench", "--shape", "phi35-mini:0"][..], &["bench"], &["bench", "--shape", "llama"]] {
        assert_eq!(qins().args(bad).output().unwrap().status.code(), Some(2), "{bad:?}");
    }
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
    assert!(String::from_utf8(message).unwrap().contains("expected one of q8, q8h, q12, q6, "));
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

fn tokenize(arguments: &[&str], input: &[u8], model: &Path) -> Output {
    run_with(input, "tokenize", arguments, model)
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
fn the_demo_model_needs_no_files() {
    let empty = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| qins().args(arguments).current_dir(empty.path()).output().unwrap();
    for format in ["f32", "q8"] {
        let prompt = ["generate", "demo", "-p", "Once upon a time", "-n", "60", "--json", "--format", format];
        let answer = json_of(run(&prompt));
        let text = answer["text"].as_str().unwrap();
        assert!(text.starts_with(',') && text.contains('.'), "{text}");
    }
    let answer = json_of(tokenize(&["--json"], b"Once upon a time", Path::new("demo")));
    assert_eq!(answer["ids"][0], 1, "the tokenizer begins a text");
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

#[test]
fn a_cache_is_left_to_the_next_run() {
    let directory = model();
    let file = directory.path().join("text.kv");
    let run_with = |more: &[&str]| {
        let arguments = ["generate", "--ids", "1,2,3,4,5,6,7,8", "-n", "6", "--ignore-eos", "--json"];
        json_of(run(&[&arguments[..], more].concat(), directory.path()))
    };
    let cached = ["--kv", "q8", "--cache", file.to_str().unwrap()];
    let alone = run_with(&["--kv", "q8"]);
    let [first, second] = [run_with(&cached), run_with(&cached)];
    assert_eq!((&first["ids"], &second["ids"]), (&alone["ids"], &alone["ids"]));
    assert_eq!((&first["timings"]["reused_tokens"], &second["timings"]["reused_tokens"]), (&0.into(), &7.into()));
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let generate = ["generate", "--ids", "1,2", "-n", "1"];
    let spoiled = failure(run(&[&generate[..], &cached].concat(), directory.path()));
    assert!(spoiled.contains("text.kv") && spoiled.contains("checksum"), "{spoiled}");
    let floats = failure(run(&[&generate[..], &["--kv", "dense", "--cache", "x"]].concat(), directory.path()));
    assert!(floats.contains("--kv"), "{floats}");
    assert_eq!(qins().args(["generate", "--kv", "q9", "--ids", "1", "demo"]).output().unwrap().status.code(), Some(2));
}

/// Each as it is alone with its own seed, whatever number is written at once.
#[test]
fn several_prompts_are_continued_as_each_alone() {
    let directory = model();
    word_tokenizer(directory.path());
    let prompts = ["once upon", "a", "time time upon a once", "upon", "a time"];
    let common = ["-n", "12", "--temperature", "1", "--kv", "q8", "--stop", "once", "--json"];
    let run_with = |more: &[&str]| json_of(run(&[&["generate"], more, &common].concat(), directory.path()));
    let alone = prompts.iter().enumerate().map(|(i, prompt)| run_with(&["-p", prompt, "--seed", &(7 + i).to_string()]));
    let alone: Vec<Value> = alone.collect();
    let all: Vec<&str> = prompts.iter().flat_map(|prompt| ["-p", prompt]).collect();
    let file = directory.path().join("prompts.txt");
    std::fs::write(&file, prompts.join("\n") + "\n\n").unwrap();
    for how in [&[&all[..], &["--batch", "2"]].concat()[..], &all, &["--prompts", file.to_str().unwrap()]] {
        let report = run_with(&[how, &["--seed", "7"]].concat());
        let texts = report["texts"].as_array().unwrap();
        assert_eq!(texts.len(), prompts.len());
        for (text, alone) in texts.iter().zip(&alone) {
            for field in ["prompt_ids", "ids", "text", "stop"] {
                assert_eq!(text[field], alone[field], "{field} of {text}, alone {alone}");
            }
        }
        let tokens: usize = texts.iter().map(|text| text["ids"].as_array().unwrap().len()).sum();
        assert_eq!(report["timings"]["generate_tokens"], tokens);
    }
    let stops: BTreeSet<&str> = alone.iter().map(|text| text["stop"].as_str().unwrap()).collect();
    assert!(stops.len() > 1, "texts end in several ways: {stops:?}");

    let shown = run(&["generate", "--ids", "1,2", "--ids", "3", "-n", "2", "--ignore-eos"], directory.path());
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.starts_with("==> 1 of 2 <==\n") && shown.contains("\n\n==> 2 of 2 <==\n"), "{shown}");
    let unknown = failure(run(&["generate", "--ids", "1", "--ids", "99", "-n", "2"], directory.path()));
    assert!(unknown.contains("prompt 2") && unknown.contains("99"), "{unknown}");
    let cached = failure(run(&["generate", "--ids", "1", "--ids", "2", "--cache", "x"], directory.path()));
    assert!(cached.contains("one prompt"), "{cached}");
}

/// The program ends and starts again within a text that crosses the long rope: the same tokens as in one run, and as
/// without what the file saves.
#[test]
fn a_restart_beside_the_long_rope_changes_no_token() {
    let directory = longrope_model();
    let list = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let found = |ids: &[u64], n: usize, more: &[&str]| -> (Vec<u64>, u64) {
        let (ids, n) = (list(ids), n.to_string());
        let arguments = ["generate", "--ids", &ids, "-n", &n, "--ignore-eos", "--json"];
        let report = json_of(run(&[&arguments[..], more].concat(), directory.path()));
        let ids = report["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        (ids, report["timings"]["reused_tokens"].as_u64().unwrap())
    };
    for kv in ["f16", "q8"] {
        let file = directory.path().join(kv);
        let cached = ["--kv", kv, "--cache", file.to_str().unwrap()];
        let prompt: Vec<u64> = (0..150).map(|i| (i * i + 7 * i) % 50).collect();
        let whole = found(&prompt, 300, &["--kv", kv]).0;
        let mut text = prompt;
        // Four restarts, of which one is past the crossing at 300 tokens and another before it.
        for part in whole.chunks(75) {
            let (ids, reused) = found(&text, part.len(), &cached);
            assert_eq!(ids, part, "{kv}, after {} tokens", text.len());
            assert_eq!(reused > 0, text.len() > 150, "{kv}");
            text.extend(ids);
        }
        assert_eq!(text.len(), 450);
        assert_eq!(found(&text, 20, &cached).0, found(&text, 20, &["--kv", kv]).0, "{kv}");
    }
}

/// What `inspect --ctx` foresees is what a filled cache takes, resident.
#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_a_cache_is_foreseen() {
    let directory = tempfile::tempdir().unwrap();
    write_model(
        directory.path(),
        json!({"vocab_size": 64, "hidden_size": 768, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 8, "max_position_embeddings": 70_000}),
    );
    let tokens = 65_536;
    let peak = |kv: &str, context: usize| {
        let context = context.to_string();
        let arguments = ["bench", "--prompt", "1", "--generate", "2", "--reps", "1", "--kv", kv, "--json", "--context"];
        let report = json_of(run(&[&arguments[..], &[context.as_str()]].concat(), directory.path()));
        report["peak_rss_bytes"].as_u64().unwrap() as f64
    };
    let shown = json_of(run(&["inspect", "--ctx", &(tokens + 3).to_string(), "--json"], directory.path()));
    let foreseen = |kv: &str| shown["kv"][kv]["bytes"].as_u64().unwrap() as f64;
    for kv in ["f16", "v8", "q8"] {
        let measured = peak(kv, tokens) - peak(kv, 0);
        let off = measured / foreseen(kv) - 1.0;
        println!("{kv}: {} bytes foreseen, {measured} measured, {:+.2} %", foreseen(kv), 100.0 * off);
        assert!(off.abs() < 0.03, "{kv}: {measured} bytes, {} foreseen", foreseen(kv));
    }
    assert!(foreseen("v8") <= 0.77 * foreseen("f16") && foreseen("q8") <= 0.53 * foreseen("f16"));
}

#[test]
fn every_cache_generates_and_a_filled_one_is_measured() {
    let directory = model();
    for kv in ["dense", "f32", "f16", "v8", "q8", "v4"] {
        let found = json_of(run(
            &["generate", "--ids", "1,2,3", "-n", "4", "--kv", kv, "--prompt-chunk", "2", "--json"],
            directory.path(),
        ));
        assert!(found["ids"].as_array().unwrap().len() <= 4);
        let arguments =
            ["bench", "--prompt", "2", "--generate", "2", "--reps", "1", "--context", "9", "--kv", kv, "--json"];
        let report = json_of(run(&arguments, directory.path()));
        let shown = json_of(run(&["inspect", "--json"], directory.path()));
        assert_eq!(report["kv"], kv);
        assert_eq!(report["context_bytes"].as_u64().unwrap(), 9 * shown["kv"][kv]["bytes_per_token"].as_u64().unwrap());
    }
}
