//! The program from outside, on a model made here: what it prints, its exit status, its messages.

mod running;

use qins_tests::write_model;
use running::{failure, json_of, model, qins, run, word_tokenizer};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
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
fn formats_are_set_by_pattern() {
    let directory = model();
    let output = directory.path().join("out");
    let output = output.to_str().unwrap();
    let set = ["--format", "q4", "--set", "lm_head=q12", "--set", "model.layers.1.**=q6", "--set", "**.o_proj=float"];
    let convert = [&["convert", "-o", output, "--json"][..], &set].concat();
    let report = json_of(run(&convert, directory.path()));
    let formats: BTreeMap<&str, &str> = report["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| (tensor["name"].as_str().unwrap(), tensor["format"].as_str().unwrap()))
        .collect();
    let expected = [
        ("lm_head.weight", "q12"),
        ("model.layers.0.mlp.down_proj.weight", "q4"),
        ("model.layers.1.mlp.down_proj.weight", "q6"),
        ("model.layers.1.self_attn.o_proj.weight", "f32"),
    ];
    for (name, format) in expected {
        assert_eq!(formats[name], format, "{name}");
    }
    let generate = ["generate", "--ids", "1,2,3", "-n", "8", "--ignore-eos", "--json"];
    let stored = json_of(run(&generate, Path::new(output)));
    let on_the_fly = json_of(run(&[&generate[..], &set].concat(), directory.path()));
    assert_eq!(stored["ids"], on_the_fly["ids"]);

    let nothing = ["generate", "--ids", "1", "--format", "q8", "--set", "lm_haed=q4"];
    assert!(failure(run(&nothing, directory.path())).contains("the pattern `lm_haed` takes no parameter"));
    for bad in ["lm_head", "lm_head=q5"] {
        let arguments = ["generate", "--ids", "1", "--format", "q8", "--set", bad];
        assert_eq!(run(&arguments, directory.path()).status.code(), Some(2), "{bad}");
    }
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
fn policies_come_from_files_presets_and_targets() {
    let directory = model();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let convert = |arguments: &[&str]| {
        let output = path("out");
        let arguments = [&["convert", "-o", &output, "--force", "--json"][..], arguments].concat();
        run(&arguments, directory.path())
    };
    let formats = |arguments: &[&str]| -> BTreeMap<String, String> {
        let report = json_of(convert(arguments));
        let entry = |t: &Value| (t["name"].as_str().unwrap().to_owned(), t["format"].as_str().unwrap().to_owned());
        report["tensors"].as_array().unwrap().iter().map(entry).collect()
    };
    let (head, mlp, attention) =
        ("lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.o_proj.weight");
    let embedding = "model.embed_tokens.weight";

    let file = path("policy.toml");
    std::fs::write(&file, "rules = [\"linear=q4\", \"lm_head=q12\", \"**.mlp=q6+cached\"]").unwrap();
    let of_file = formats(&["--policy", &file, "--set", "lm_head=q8h"]);
    assert_eq!([head, mlp, attention].map(|name| &of_file[name][..]), ["q8h", "q6", "q4"]);
    let container = json_of(run(&["inspect", "--json"], Path::new(&path("out"))));
    let policy = container["container"]["policy"].as_str().unwrap();
    assert!(policy.ends_with("linear=q4 lm_head=q12 **.mlp=q6+cached lm_head=q8h"), "{policy}");
    // Products run on the cached floats, with the same result to rounding.
    let generate = ["generate", "--ids", "1,2,3", "-n", "8", "--ignore-eos", "--json"];
    let cached = json_of(run(&generate, Path::new(&path("out"))));
    let uncached = formats(&["--policy", &file, "--set", "lm_head=q8h", "--set", "**.mlp=q6"]);
    assert_eq!(uncached, of_file);
    assert_eq!(json_of(run(&generate, Path::new(&path("out"))))["ids"], cached["ids"]);

    for (preset, expected) in [
        ("memory", ["q4", "q4", "q4", "q4"]),
        ("balanced", ["q4", "q4", "q4", "f16"]),
        ("compute", ["f32", "q4", "f32", "f16"]),
        ("hybrid", ["q12", "q4", "q4", "f16"]),
    ] {
        let found = formats(&["--preset", preset, "--format", "q4"]);
        assert_eq!([head, mlp, attention, embedding].map(|name| &found[name][..]), expected, "{preset}");
    }

    // Each larger budget loses less, and none is overdrawn.
    let mut last = f64::INFINITY;
    for bits in ["4", "6.7", "9"] {
        let report = json_of(convert(&["--budget", bits, "--set", "lm_head=q12"]));
        let tensors = report["tensors"].as_array().unwrap();
        let noise = |t: &Value| t["sqnr_db"].as_f64().map_or(0.0, |db| 10f64.powf(-db / 10.0));
        let noise: f64 = tensors.iter().filter(|t| t["name"] != head).map(noise).sum();
        assert!(noise < last, "{noise} at {bits} bits");
        last = noise;
        let container = json_of(run(&["inspect", "--json"], Path::new(&path("out"))));
        let bytes = container["weight_bytes"].as_f64().unwrap();
        // Tensors are padded to 64 bytes.
        let padding = 128.0 * tensors.len() as f64;
        let allowed = bits.parse::<f64>().unwrap() / 8.0 * container["weights"].as_f64().unwrap();
        assert!(bytes <= allowed + padding, "{bytes} bytes for {allowed}");
        assert!(tensors.iter().any(|t| t["name"] == head && t["format"] == "q12"));
    }
    for db in [15.0, 40.0, 80.0] {
        let report = json_of(convert(&["--max-loss", &db.to_string()]));
        for tensor in report["tensors"].as_array().unwrap() {
            assert!(tensor["sqnr_db"].as_f64().is_none_or(|found| found > db - 0.3), "{tensor}");
        }
    }
    let impossible = failure(convert(&["--budget", "1"]));
    assert!(impossible.contains("expected at most 1 bits a weight, found at least"), "{impossible}");

    std::fs::write(&file, "rules = [\"linear=q5\"]").unwrap();
    let wrong = failure(convert(&["--policy", &file]));
    assert!(wrong.contains("policy.toml") && wrong.contains("unknown format `q5`"), "{wrong}");
    for bad in [["--budget", "0"], ["--max-loss", "x"], ["--preset", "fast"]] {
        assert_eq!(convert(&bad).status.code(), Some(2), "{bad:?}");
    }
    assert_eq!(convert(&["--budget", "5", "--format", "q8"]).status.code(), Some(2));
}

#[test]
fn one_container_is_read_to_any_depth() {
    let directory = model();
    let output = directory.path().join("out");
    run(&["convert", "-o", output.to_str().unwrap(), "--format", "fpins:2"], directory.path());
    let logits = |depth: &[&str]| {
        let path = directory.path().join("logits.safetensors");
        let arguments = ["logits", "--ids", "1,2,3", "-o", path.to_str().unwrap(), "--force"];
        let output = run(&[&arguments[..], depth].concat(), &output);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(path).unwrap()
    };
    let (all, two, one) = (logits(&[]), logits(&["--depth", "2"]), logits(&["--depth", "1"]));
    assert!(all == two && all != one);
    let generate = ["generate", "--ids", "1", "-n", "2", "--depth"];
    for (depth, found) in [("0", "found 0"), ("3", "found 3")] {
        let error = failure(run(&[&generate[..], &[depth]].concat(), &output));
        assert!(error.contains("expected a depth of 1 to 2") && error.contains(found), "{error}");
    }
    let error = failure(run(&[&generate[..], &["1"]].concat(), directory.path()));
    assert!(error.contains("expected a container for --depth"), "{error}");
}

#[test]
fn measure_tells_what_formats_would_lose() {
    let directory = model();
    let file = directory.path().join("model.safetensors");
    let report = json_of(run(&["measure", "--formats", "q8,q4,bf16", "--json"], &file));
    let tensors = report["tensors"].as_array().unwrap();
    // Two of the vocabulary's size, four in each of two layers.
    assert_eq!(tensors.len(), 10 * 3);
    for tensor in tensors {
        assert_eq!(tensor["shape"].as_array().unwrap().len(), 2, "{tensor}");
        let of = |name: &str| tensor[name].as_f64().unwrap();
        let (bits, floor) = match tensor["format"].as_str().unwrap() {
            "q8" => (8.2, 45.0),
            "q4" => (4.5, 22.5),
            _ => (16.0, 54.0),
        };
        assert!(of("bits_per_weight") >= bits && of("bits_per_weight") < bits + 0.8, "{tensor}");
        assert!(of("sqnr_db") > floor && of("sqnr_db") < floor + 5.0, "{tensor}");
        assert!(of("rmse") < of("max_abs_error") && of("mean_relative_error") > 0.0, "{tensor}");
    }
    assert!(report["total"]["q8"]["sqnr_db"].as_f64().unwrap() > 45.5);
    // A directory is its weights; a table has a line for each tensor and format, and a total.
    let picture = directory.path().join("loss.svg");
    run(&["measure", "--formats", "q8,q4,bf16", "--plot", picture.to_str().unwrap()], &file);
    let picture = std::fs::read_to_string(picture).unwrap();
    // A tensor has a dot and a format another.
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    assert_eq!(picture.matches("class=\"tensor\"").count(), 10 * 3);
    assert_eq!(picture.matches("class=\"total\"").count(), 3);
    let table = run(&["measure", "--formats", "q8"], directory.path());
    assert_eq!(String::from_utf8(table.stdout).unwrap().lines().count(), 2 * 10 + 2);
    let csv = String::from_utf8(run(&["measure", "--csv"], &file).stdout).unwrap();
    assert!(csv.starts_with("name,shape,format,") && csv.lines().all(|line| line.split(',').count() == 8), "{csv}");
    assert_eq!(run(&["measure", "--formats", "q5"], &file).status.code(), Some(2));
    assert!(failure(run(&["measure"], &directory.path().join("absent"))).contains("absent"));
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

/// Runs a command with `input` on its standard input.
fn run_with(input: &[u8], command: &str, arguments: &[&str], model: &Path) -> Output {
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

/// The size of everything in a directory.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let path = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path();
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(path).collect();
    files.sort();
    files
        .into_iter()
        .map(|file| (file.strip_prefix(directory).unwrap().into(), std::fs::read(&file).unwrap()))
        .collect()
}

#[test]
fn a_container_is_made_checked_shown_run_and_undone() {
    let directory = model();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let source = directory.path();
    let report = json_of(run(&["convert", "-o", &at("c"), "--json"], source));
    assert_eq!(report["tensors"].as_array().unwrap().len(), 2 * 6 + 3);
    assert!(report["tensors"].as_array().unwrap().iter().all(|t| match t["format"].as_str().unwrap() {
        "q8" => t["sqnr_db"].as_f64().unwrap() > 44.0,
        _ => t["sqnr_db"].is_null(),
    }));
    assert!(failure(run(&["convert", "-o", &at("c")], source)).contains("exists: force"));
    let forced = run(&["convert", "-o", &at("c"), "--force"], source);
    assert!(forced.status.success() && String::from_utf8_lossy(&forced.stderr).contains("q8 4"), "{forced:?}");

    let container = Path::new(&at("c")).to_owned();
    let verified = json_of(run(&["verify", "--source", &source.display().to_string(), "--json"], &container));
    assert_eq!(verified["tensors"], 15);
    let shown = json_of(run(&["inspect", "--ctx", "10", "--json"], &container));
    let rows = 2 * 2 * 2;
    assert_eq!(shown["kv"]["dense"]["bytes"], 10 * rows * 12 * 4, "tokens, keys and values, layers, heads, size, f32");
    assert_eq!(shown["kv"]["f32"]["bytes"], 64 * rows * 12 * 4, "whole blocks");
    assert_eq!(shown["kv"]["f16"]["bytes_per_token"], rows * 12 * 2);
    // Keys of so short heads stay in half precision.
    let q8 = rows / 2 * (12 * 2 + 12 + 4);
    assert_eq!(shown["kv"]["q8"]["bytes"], 64 * q8, "whole blocks, and a scale for each head's values");
    assert_eq!(shown["formats"]["q8"]["tensors"], 9);
    let text = String::from_utf8(run(&["inspect"], &container).stdout).unwrap();
    assert!(text.contains("policy linear=q8 embedding=f16"), "{text}");
    assert!(run(&["inspect"], source).status.success() && run(&["inspect"], Path::new(DEMO)).status.success());

    let generate = ["generate", "--ids", "1,2,3", "-n", "20", "--ignore-eos", "--json"];
    let encoded = json_of(run(&[&generate[..], &["--format", "q8"]].concat(), source));
    assert_eq!(json_of(run(&generate, &container))["ids"], encoded["ids"]);
    assert!(failure(run(&[&generate[..], &["--format", "q8"]].concat(), &container)).contains("encoded already"));
    json_of(run(&["export", "-o", &at("e"), "--json"], &container));
    assert_eq!(json_of(run(&generate, Path::new(&at("e"))))["ids"], encoded["ids"]);
    assert!(failure(run(&["export", "-o", &at("e")], &container)).contains("exists"));
    assert!(failure(run(&["convert", "-o", &at("d")], &container)).contains("found a container"));
    assert!(failure(run(&["verify"], source)).contains("qins.safetensors"));
    assert!(failure(run(&["export", "-o", &at("d")], source)).contains("qins.safetensors"));
    assert!(!Path::new(&at("d")).exists() && !Path::new(&at("d.partial")).exists());

    // One byte of the source, one of the container.
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    flip(&source.join("model.safetensors"));
    let message = failure(run(&["verify", "--source", &source.display().to_string()], &container));
    assert!(message.contains("model.safetensors") && message.contains("SHA-256"), "{message}");
    flip(&container.join("qins.safetensors"));
    assert!(failure(run(&["verify"], &container)).contains("model.norm.weight: expected SHA-256"));
}

#[cfg(unix)]
#[test]
fn a_conversion_killed_at_any_moment_resumes_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("hf");
    std::fs::create_dir(&source).unwrap();
    let sizes = json!({"vocab_size": 300, "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 40});
    write_model(&source, sizes);
    let convert = |output: &Path| {
        let mut command = qins();
        command.arg("convert").arg(&source).arg("-o").arg(output).stderr(Stdio::null()).stdout(Stdio::null());
        command
    };
    let undisturbed = directory.path().join("undisturbed");
    let start = std::time::Instant::now();
    assert!(convert(&undisturbed).status().unwrap().success());
    let whole_s = start.elapsed().as_secs_f64();
    let expected = contents(&undisturbed);

    let output = directory.path().join("killed");
    let mut random = qins_tests::Random(3);
    let mut killed = 0;
    for _ in 0..20 {
        let mut child = convert(&output).spawn().unwrap();
        let moment = (f64::from(random.draw()) + 1.0) / 2.0 * whole_s;
        std::thread::sleep(std::time::Duration::from_secs_f64(moment));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            killed += 1;
            // Killed after the rename and before its end it leaves the output, and just before the rename a
            // partial one that lacks only its name. Whatever can be opened is whole.
            if output.exists() {
                assert!(contents(&output) == expected, "the output's name on something unfinished");
                std::fs::remove_dir_all(&output).unwrap();
                continue;
            }
            let partial = directory.path().join("killed.partial");
            if partial.exists() {
                let read = run(&["generate", "--ids", "1"], &partial);
                if read.status.success() {
                    assert!(contents(&partial) == expected, "an unfinished container was read");
                } else {
                    assert!(!failure(read).is_empty());
                }
            }
            if killed % 3 == 0 {
                continue;
            }
            assert!(convert(&output).status().unwrap().success());
        }
        assert!(contents(&output) == expected, "after {killed} kills");
        std::fs::remove_dir_all(&output).unwrap();
    }
    assert!(killed > 5, "only {killed} of 20 were killed in time");
}

/// A file system of one megabyte, where the system lets us mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_and_leaves_no_output() {
    let directory = tempfile::tempdir().unwrap();
    let (source, disk) = (directory.path().join("hf"), directory.path().join("disk"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return qins_tests::skip("cannot mount a small file system");
    }
    let sizes = json!({"vocab_size": 3000, "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 40});
    write_model(&source, sizes);
    let output = disk.join("c");
    let message = failure(run(&["convert", "-o", &output.display().to_string()], &source));
    let exists = output.exists();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    assert!(message.contains("bytes needed") && message.contains("free"), "{message}");
    assert!(!exists);
}

/// A conversation through a pipe.
fn chat(arguments: &[&str], model: &Path, input: &str) -> Output {
    run_with(input.as_bytes(), "chat", arguments, model)
}

const DEMO: &str = "demo";

#[test]
fn a_conversation_through_a_pipe_is_answered_line_by_line() {
    let input = "Hello!\n\nTell me a story\\\nabout a fox.\nWho was the story about?\n/stats\n";
    let output = chat(&["--format", "q8"], Path::new(DEMO), input);
    assert!(output.status.success());
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answers.lines().count(), 3, "an answer a line, and nothing else: {answers}");
    assert!(answers.lines().all(|line| !line.trim().is_empty() && !line.contains("<|")), "{answers}");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("kept from before"), "{notes}");

    let report = json_of(chat(&["--format", "q8", "--json"], Path::new(DEMO), input));
    let contents: Vec<&str> =
        report["messages"].as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(contents[2], "Tell me a story\nabout a fox.");
    assert_eq!([contents[1], contents[3], contents[5]].join("\n") + "\n", answers, "a seed decides the answers");
    let answers = report["answers"].as_array().unwrap();
    let tokens = |i: usize, name: &str| answers[i][name].as_u64().unwrap();
    assert_eq!(answers.len(), 3);
    assert!((0..3).all(|i| answers[i]["stop"] == "eos"), "{report}");
    let before = tokens(1, "prompt_tokens") + tokens(1, "generate_tokens");
    assert!(tokens(2, "reused_tokens") >= before - 2, "the conversation is not run again: {report}");
}

#[test]
fn a_conversation_obeys_commands_and_can_be_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("talk.json");
    let save = format!("/save {}\n", file.display());
    let input = format!("/system Be brave.\nHello!\n{save}Hi.\n{save}/reset\n/system\n/nonsense\n/quit\nHello!\n");
    let output = chat(&["-n", "5"], Path::new(DEMO), &input);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2, "nothing after /quit");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("Be brave.") && notes.contains("no command /nonsense"), "{notes}");
    let saved = qins_tests::read_json(&file);
    let roles: Vec<&str> = saved.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    // Another conversation does not replace it.
    let output = chat(&["--resume", file.to_str().unwrap(), "--json"], Path::new(DEMO), &save);
    assert!(String::from_utf8_lossy(&output.stderr).contains("exists"));
    let resumed = json_of(output);
    assert_eq!(resumed["messages"], saved);

    std::fs::write(&file, "{}").unwrap();
    let message = failure(chat(&["--resume", file.to_str().unwrap()], Path::new(DEMO), ""));
    assert!(message.contains("talk.json") && message.contains("array of messages"), "{message}");
    assert!(failure(chat(&[], model().path(), "Hello!\n")).contains("tokenizer.json"));
}

#[test]
fn a_conversation_longer_than_the_context_forgets_its_beginning() {
    let input = "Tell me a story about a fox.\n".repeat(6);
    let output = chat(&["--json"], Path::new(DEMO), &input);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("forgotten"), "{notes}");
    let report = json_of(output);
    assert_eq!(report["answers"].as_array().unwrap().len(), 6);
    assert!(report["messages"].as_array().unwrap().len() < 12);
    let long = "a fox ".repeat(600) + "\nHello!\n";
    let output = chat(&[], Path::new(DEMO), &long);
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds"));
    assert_eq!(output.stdout.iter().filter(|&&b| b == b'\n').count(), 1, "the second message is answered");
}

#[cfg(unix)]
#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    use std::io::{BufRead, BufReader, Read};
    // Random weights never end an answer by themselves, and this context takes seconds to fill.
    let directory = tempfile::tempdir().unwrap();
    let sizes = json!({"vocab_size": 50, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6,
        "num_attention_heads": 4, "max_position_embeddings": 20000, "eos_token_id": 49});
    write_model(directory.path(), sizes);
    word_tokenizer(directory.path());
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(directory.path().join("tokenizer_config.json"), template.to_string()).unwrap();

    let mut child = qins()
        .arg("chat")
        .arg(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"once\ntime\n/stats\n").unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..2 {
        // Interrupted once the answer has begun.
        answers.read_exact(&mut [0]).unwrap();
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(status.success());
        answers.read_line(&mut String::new()).unwrap();
    }
    let mut rest = String::new();
    answers.read_to_string(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest}");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(notes.matches("(stopped)").count(), 2, "{notes}");
    assert!(notes.contains("messages  4"), "what came before the interrupt is kept: {notes}");
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

/// Random weights, and rotary factors that change past 300 tokens.
fn longrope_model() -> tempfile::TempDir {
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

/// What is kept between turns, in memory or by a file, changes no answer: neither before nor past the crossing.
#[test]
fn turns_across_the_long_rope_are_answered_as_without_what_was_kept() {
    let directory = longrope_model();
    word_tokenizer(directory.path());
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(directory.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    let common = ["-n", "40", "--temperature", "0", "--kv", "q8", "--json"];
    let say = ["once upon a time ", "a time upon a ", "time time once "];
    let say: Vec<String> = (0..6).map(|turn| say[turn % 3].repeat(20 + turn) + "\n").collect();
    let whole = json_of(chat(&common, directory.path(), &say.concat()));
    let tokens = |report: &Value, field: &str| -> Vec<u64> {
        report["answers"].as_array().unwrap().iter().map(|answer| answer[field].as_u64().unwrap()).collect()
    };
    let lengths = tokens(&whole, "prompt_tokens");
    assert!(lengths[1] < 300 && lengths.last().unwrap() > &400, "the conversation crosses 300 tokens: {lengths:?}");
    assert!(tokens(&whole, "reused_tokens")[1..].iter().all(|&n| n > 0));

    let cache = directory.path().join("text.kv");
    for more in [&[][..], &["--cache", cache.to_str().unwrap()]] {
        let mut messages = directory.path().join("none");
        for (turn, line) in say.iter().enumerate() {
            let file = directory.path().join(format!("{}-{turn}.json", more.len()));
            let resume = ["--resume", messages.to_str().unwrap()];
            let resume = if turn == 0 { &[][..] } else { &resume };
            let report = json_of(chat(
                &[&common[..], more, resume].concat(),
                directory.path(),
                &format!("{line}/save {}\n", file.display()),
            ));
            assert_eq!(tokens(&report, "reused_tokens")[0] > 0, turn > 0 && !more.is_empty(), "turn {turn}");
            messages = file;
        }
        assert_eq!(qins_tests::read_json(&messages), whole["messages"], "{more:?}");
    }
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
