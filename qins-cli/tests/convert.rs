//! What the program makes of weights, from outside: containers, and what formats would lose.

mod running;

use qins_tests::write_model;
use running::{DEMO, failure, json_of, model, qins, run};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

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
        let rows = tensor["shape"][0].as_f64().unwrap();
        assert!(of("worst_row_sqnr_db") < of("sqnr_db") && of("worst_row") < rows, "{tensor}");
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
    assert!(csv.starts_with("name,shape,format,") && csv.lines().all(|line| line.split(',').count() == 10), "{csv}");
    assert_eq!(run(&["measure", "--formats", "q5"], &file).status.code(), Some(2));
    assert!(failure(run(&["measure"], &directory.path().join("absent"))).contains("absent"));
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
        "q8" => {
            let [all, worst] = ["sqnr_db", "worst_row_sqnr_db"].map(|name| t[name].as_f64().unwrap());
            all > 44.0 && worst < all && t["worst_row"].as_u64() < t["shape"][0].as_u64()
        }
        _ => t["sqnr_db"].is_null() && t["worst_row"].is_null(),
    }));
    assert!(failure(run(&["convert", "-o", &at("c")], source)).contains("exists: force"));
    let forced = run(&["convert", "-o", &at("c"), "--force"], source);
    assert!(forced.status.success() && String::from_utf8_lossy(&forced.stderr).contains("q8 4"), "{forced:?}");
    assert!(String::from_utf8_lossy(&forced.stderr).contains(" dB, worst row "), "{forced:?}");

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
                    // It lacks its name, and its list says so.
                    let of_model = |files: &[(PathBuf, Vec<u8>)]| {
                        let known =
                            |name: &Path| name != Path::new("qins.files.json") && name != Path::new("journal.jsonl");
                        files.iter().filter(|file| known(&file.0)).cloned().collect::<Vec<_>>()
                    };
                    let whole = of_model(&contents(&partial)) == of_model(&expected);
                    assert!(whole, "an unfinished container was read");
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
