//! `qins eval` from outside: what it finds about models that differ in a known way.

mod running;

use qins_tests::{Random, read_tensor, write_model};
use running::{failure, json_of, model, qins, run, word_tokenizer};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Output,
};

const DEMO: &str = "demo";

/// A few stories that the demo model can read.
const STORIES: &str = "Once upon a time, a kind pig named Jack lived near a wide lake. One windy night, Jack went to the \
    lake to sing. But a bright wind blew the hat over the well, and he began to cry. Then he met Sam, a shy fox from the \
    hidden field. \"Do not be worried, I will help you,\" said Sam bravely. Together they ran about near the barn and \
    ate soup until the moon came up.\n\nLong ago, a brave fox named Mia lived on a quiet hill. She loved to dance, and \
    she had a red boat. One day she lost it in the river. \u{e9}\u{4e16} A small owl found it, and they were happy.\n";

/// `qins eval WHAT MODEL ARGUMENTS`.
fn eval(what: &str, model: &Path, arguments: &[&str]) -> Output {
    qins().args(["eval", what]).arg(model).args(arguments).output().unwrap()
}

/// Its JSON.
fn found(what: &str, model: &Path, arguments: &[&str]) -> Value {
    json_of(eval(what, model, &[arguments, &["--json"]].concat()))
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {value}"))
}

fn write(directory: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn random_ids(n: usize, vocabulary: u32) -> Vec<u32> {
    let mut random = Random(5);
    (0..n).map(|_| ((random.draw() + 1.0) / 2.0 * vocabulary as f32) as u32 % vocabulary).collect()
}

fn ids_file(directory: &Path, ids: &[u32]) -> String {
    write(directory, "ids.json", json!(ids).to_string())
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let directory = model();
    let (ids, at) = (random_ids(31, 50), |name: &str| directory.path().join(name));
    let file = ids_file(directory.path(), &ids);
    // The same by `qins logits` and the formula, for windows of 12, 12 and 7 tokens.
    let mut nll = Vec::new();
    for (i, window) in ids.chunks(12).enumerate() {
        let (list, out) = (write(directory.path(), "window.json", json!(window).to_string()), at(&format!("{i}")));
        let logits = ["logits", "--ids-file", &list, "-o", out.to_str().unwrap()];
        assert!(run(&logits, directory.path()).status.success());
        let logits = read_tensor(&out, "logits");
        nll.extend(
            logits.chunks(50).zip(&window[1..]).map(|(row, &id)| {
                row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln() - f64::from(row[id as usize])
            }),
        );
    }
    let expected = nll.iter().sum::<f64>();
    let answer = found("perplexity", directory.path(), &["--ids-file", &file, "--context", "12"]);
    let of = |path: &str| number(&answer["result"], path);
    assert_eq!((of("/predicted_tokens"), nll.len()), (28.0, 28));
    assert!((of("/nll_nats") / expected - 1.0).abs() < 1e-5, "{} for {expected}", of("/nll_nats"));
    assert!((of("/perplexity_per_token/value") / (expected / 28.0).exp() - 1.0).abs() < 1e-5);
    assert!(of("/perplexity_per_token/standard_error") > 0.0);
    assert!(answer["result"]["perplexity_per_byte"].is_null(), "ids have no bytes");
    assert_eq!((&answer["text"]["windows"], &answer["text"]["context_tokens"]), (&json!(3), &json!(12)));
    assert!(answer["command"].as_str().unwrap().starts_with("qins eval perplexity "));
    // Overlapping windows predict all but the first token, with more context. The first window is the same.
    let overlapping = found("perplexity", directory.path(), &["--ids-file", &file, "--context", "12", "--stride", "5"]);
    assert_eq!(overlapping["result"]["predicted_tokens"], 30);
    assert_eq!(overlapping["result"]["per_window"][0], answer["result"]["per_window"][0]);
    let some = found("perplexity", directory.path(), &["--ids-file", &file, "--context", "12", "--windows", "1"]);
    assert!(some["result"]["nll_nats_per_token"]["standard_error"].is_null(), "one window tells no error");
}

#[test]
fn a_byte_and_a_token_tell_the_same_text() {
    let directory = tempfile::tempdir().unwrap();
    let text = write(directory.path(), "text", STORIES);
    for context in ["512", "32"] {
        let answer = found("perplexity", Path::new(DEMO), &["--text", &text, "--context", context]);
        let of = |path: &str| number(&answer["result"], path);
        let nll = of("/nll_nats");
        assert!((of("/nll_nats_per_token/value") * of("/predicted_tokens") / nll - 1.0).abs() < 1e-9);
        assert!((of("/nll_nats_per_byte/value") * of("/predicted_bytes") / nll - 1.0).abs() < 1e-9);
        assert!((of("/perplexity_per_byte/value").ln() * of("/predicted_bytes") / nll - 1.0).abs() < 1e-9);
        assert!((of("/bits_per_byte/value") * 2f64.ln() / of("/nll_nats_per_byte/value") - 1.0).abs() < 1e-9);
        let windows = answer["result"]["per_window"].as_array().unwrap();
        assert_eq!(windows.iter().map(|w| number(w, "/bytes")).sum::<f64>(), of("/predicted_bytes"));
        assert_eq!(windows.iter().map(|w| number(w, "/tokens")).sum::<f64>(), of("/predicted_tokens"));
        assert_eq!(number(&answer, "/text/bytes"), STORIES.len() as f64);
        // Every byte belongs to a token, and only the first of each window is not predicted: "Once".
        let first_tokens = STORIES.len() as f64 - of("/predicted_bytes");
        assert!(first_tokens >= windows.len() as f64 && first_tokens < 12.0 * windows.len() as f64);
        if windows.len() == 1 {
            assert!(STORIES.starts_with("Once upon") && [2.0, 4.0].contains(&first_tokens), "{first_tokens}");
        }
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let directory = tempfile::tempdir().unwrap();
    let text = write(directory.path(), "text", STORIES);
    for format in [&[][..], &["--format", "q4", "--reference-format", "q4"]] {
        let common = [&["--text", &text][..], format].concat();
        let windows = [&common[..], &["--context", "64"]].concat();
        let compared = &found("compare", Path::new(DEMO), &windows)["result"];
        for zero in [
            "/kl_nats/mean/value",
            "/kl_nats/median/value",
            "/kl_nats/quantile_99_9/value",
            "/kl_nats/largest",
            "/kl_nats/mean/standard_error",
            "/probability_change_rms/value",
            "/logit_error_largest",
        ] {
            assert_eq!(number(compared, zero), 0.0, "{zero}");
        }
        for one in [
            "same_top1",
            "top5_overlap",
            "top10_overlap",
            "top50_overlap",
            "top50_rank_correlation",
            "perplexity_ratio",
        ] {
            let off = (number(&compared[one], "/value") - 1.0).abs();
            assert!(off < 1e-12, "{one} is off by {off}");
        }
        assert_eq!(compared["model_perplexity"], compared["reference_perplexity"]);
        let wrote = &found("greedy", Path::new(DEMO), &[&common[..], &["--prompts", "3", "--tokens", "120"]].concat())
            ["result"];
        assert_eq!(wrote["identical_prefix_tokens_min"], 120);
        for one in ["identical_texts", "free_running_match", "teacher_forced_match"] {
            assert_eq!(number(&wrote[one], "/value"), 1.0, "{one}");
        }
        assert!(wrote["first_difference_near_ties"].is_null());
        let drawn = &found("sampling", Path::new(DEMO), &[&windows[..], &["--seeds", "3"]].concat())["result"];
        for zero in ["total_variation", "js_nats", "kl_nats", "kl_infinite", "never_drawn", "tempered_kl_nats"] {
            assert!(number(&drawn[zero], "/value").abs() < 1e-12, "{zero}");
        }
        assert_eq!(number(drawn, "/same_draws/value"), 1.0);
    }
}

#[test]
fn fewer_bits_are_further_off_in_every_measure() {
    let directory = tempfile::tempdir().unwrap();
    // What the model itself writes: where a text surprises it, losing certainty may even help.
    let story = |seed: &str| {
        let words = ["generate", DEMO, "-p", "Once upon a time", "-n", "400", "--temperature", "1", "--seed", seed];
        String::from_utf8(qins().args(words).output().unwrap().stdout).unwrap()
    };
    let text = write(directory.path(), "text", ["1", "2", "3", "4"].map(story).concat());
    let measure = |format: &str| {
        let common = ["--format", format, "--text", &text];
        let compared = found("compare", Path::new(DEMO), &[&common[..], &["--context", "64"]].concat());
        let drawn = found("sampling", Path::new(DEMO), &[&common[..], &["--context", "64", "--seeds", "8"]].concat());
        let wrote = found("greedy", Path::new(DEMO), &[&common[..], &["--prompts", "4", "--tokens", "150"]].concat());
        (compared, drawn, wrote)
    };
    let (fine, coarse) = (measure("q8"), measure("q2"));
    assert!(number(&coarse.0, "/model/bits_per_weight") < 5.0 && number(&fine.0, "/model/bits_per_weight") > 8.0);
    assert_eq!(number(&fine.0, "/reference/bits_per_weight"), 32.0);
    let larger = [
        "/kl_nats/mean/value",
        "/kl_nats/median/value",
        "/kl_nats/quantile_99_9/value",
        "/kl_nats/largest",
        "/probability_change_rms/value",
        "/logit_error_largest",
        "/logit_error_rms/value",
    ];
    for path in larger {
        let [fine, coarse] = [&fine.0, &coarse.0].map(|found| number(&found["result"], path));
        assert!(fine > 0.0 && coarse > 1.5 * fine, "{path}: {fine} in q8, {coarse} in q2");
    }
    let ratios = [&fine.0, &coarse.0].map(|found| number(&found["result"], "/perplexity_ratio/value"));
    assert!((ratios[0] - 1.0).abs() < 0.01 && ratios[1] > 1.03, "{ratios:?}");
    let smaller = ["same_top1", "top5_overlap", "top10_overlap", "top50_overlap", "top50_rank_correlation"];
    for name in smaller {
        let [fine, coarse] = [&fine.0, &coarse.0].map(|found| number(&found["result"][name], "/value"));
        assert!(fine > 0.9 && coarse < fine - 0.02, "{name}: {fine} in q8, {coarse} in q2");
    }
    for name in ["total_variation", "js_nats", "never_drawn", "tempered_kl_nats"] {
        let [fine, coarse] = [&fine.1, &coarse.1].map(|found| number(&found["result"][name], "/value"));
        assert!(fine > 0.0 && coarse > 2.0 * fine, "{name}: {fine} in q8, {coarse} in q2");
    }
    // What must differ however it is drawn, differs: 1 - total variation bounds the same draws, to chance.
    for drawn in [&fine.1["result"], &coarse.1["result"]] {
        let bound = 1.0 - number(drawn, "/total_variation/value");
        assert!(number(drawn, "/same_draws/value") < bound + 0.03, "{drawn}");
    }
    for name in ["identical_prefix_tokens_mean", "free_running_match", "teacher_forced_match"] {
        let [fine, coarse] = [&fine.2, &coarse.2].map(|found| number(&found["result"][name], "/value"));
        assert!(coarse < fine, "{name}: {fine} in q8, {coarse} in q2");
    }
    let (kl, histogram) = (&coarse.0["result"]["kl_nats"], &coarse.0["result"]["kl_histogram"]);
    let counts: f64 = histogram["counts"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).sum();
    assert_eq!(counts, number(&coarse.0["result"], "/model_perplexity/predicted_tokens"));
    assert!(number(kl, "/median/value") < number(kl, "/quantile_99/value"));
}

/// What a cache changes, on any model: nothing in f32, and more the fewer bits there are.
#[test]
fn a_cache_is_compared_with_floats() {
    let directory = tempfile::tempdir().unwrap();
    let text = write(directory.path(), "text", STORIES);
    let compared = |kv: &[&str]| {
        let report = found("compare", Path::new(DEMO), &[&["--text", &text, "--context", "100"][..], kv].concat());
        (report["model"]["kv"].clone(), report["reference"]["kv"].clone(), report["result"].clone())
    };
    let mut last = -1.0;
    for (kv, most) in [("dense", 0.0), ("f32", 1e-9), ("f16", 1e-5), ("q8", 1e-3), ("v4", 2e-2)] {
        let (model, reference, result) = compared(&["--kv", kv]);
        assert_eq!((model, reference), (kv.into(), "dense".into()));
        let kl = number(&result, "/kl_nats/mean/value");
        assert!(kl.abs() <= most && (kl > last || kv == "f32"), "{kv}: {kl}");
        last = kl.max(last);
        let alone = found("perplexity", Path::new(DEMO), &["--text", &text, "--context", "100", "--kv", kv]);
        assert_eq!(alone["model"]["kv"], kv);
        let of_both = ["/result/perplexity_per_token/value", "/model_perplexity/perplexity_per_token/value"];
        assert_eq!(number(&alone, of_both[0]), number(&result, of_both[1]), "{kv}");
    }
    let (_, reference, same) = compared(&["--kv", "q8", "--reference-kv", "q8"]);
    assert_eq!((reference, number(&same, "/kl_nats/mean/value")), ("q8".into(), 0.0));
}

#[test]
fn a_container_is_compared_as_what_it_holds() {
    let directory = model();
    let file = ids_file(directory.path(), &random_ids(100, 50));
    let container: PathBuf = directory.path().join("c");
    assert!(run(&["convert", "-o", container.to_str().unwrap(), "--format", "q4"], directory.path()).status.success());
    let source = directory.path().display().to_string();
    let stored = found("compare", &container, &["--reference", &source, "--ids-file", &file]);
    let on_the_fly = found("compare", directory.path(), &["--format", "q4", "--ids-file", &file]);
    assert_eq!(stored["result"], on_the_fly["result"]);
    assert!(number(&stored["result"], "/kl_nats/mean/value") > 0.0);
    assert_eq!(stored["model"]["weight_bytes"], on_the_fly["model"]["weight_bytes"]);
    let stored = found("perplexity", &container, &["--ids-file", &file]);
    assert_eq!(stored["result"]["nll_nats"], on_the_fly["result"]["model_perplexity"]["nll_nats"]);
    let message = failure(eval("compare", &container, &["--ids-file", &file]));
    assert!(message.contains("--reference"), "{message}");
    let message = failure(eval("compare", directory.path(), &["--reference", DEMO, "--ids-file", &file]));
    assert!(message.contains("50 token ids") && message.contains("1024"), "{message}");
}

#[test]
fn contexts_are_as_long_as_the_model_holds() {
    let directory = tempfile::tempdir().unwrap();
    let sizes = json!({"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 3000});
    write_model(directory.path(), sizes);
    let file = ids_file(directory.path(), &random_ids(3100, 40));
    let long = ["--ids-file", &file, "--context", "3000", "--format", "q8"];
    let answer = found("compare", directory.path(), &long);
    assert_eq!(answer["result"]["per_window"][0]["tokens"], 2999);
    assert_eq!(answer["result"]["model_perplexity"]["predicted_tokens"], 2999 + 99);
    for what in ["perplexity", "compare", "sampling"] {
        let message = failure(eval(what, directory.path(), &["--ids-file", &file, "--context", "3001"]));
        assert!(message.contains("windows of 3001 tokens") && message.contains("holds 3000"), "{message}");
    }
    // The default is what a short model holds.
    let short = model();
    let file = ids_file(short.path(), &random_ids(100, 50));
    assert_eq!(found("perplexity", short.path(), &["--ids-file", &file])["text"]["context_tokens"], 40);
}

#[test]
fn greedy_texts_go_on_where_the_context_is_full() {
    let directory = model();
    let answer = found(
        "greedy",
        directory.path(),
        &["--format", "q3", "--prompts", "3", "--tokens", "230", "--prompt-tokens", "5"],
    );
    let result = &answer["result"];
    assert_eq!(result["free_running_match_per_window"].as_array().unwrap().len(), 3);
    for prompt in result["per_prompt"].as_array().unwrap() {
        let prefix = number(prompt, "/identical_prefix_tokens") as usize;
        let matches: Vec<f64> =
            prompt["free_running_matches"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        assert!(
            matches.iter().sum::<f64>() >= prefix as f64 && matches.iter().all(|&n| n <= 100.0) && matches[2] <= 30.0
        );
        if prefix < 230 {
            let difference = &prompt["first_difference"];
            assert_ne!(difference["model_id"], difference["reference_id"]);
            let of = |name: &str| difference[name].as_f64().unwrap();
            assert!(of("margin_logits") >= 0.0 && of("reference_lead_logits") >= of("margin_logits"));
            assert!(of("model_lead_logits") >= 0.0);
        }
    }
    // Until the first difference what runs free is forced as well. Nothing else makes the tokens agree.
    assert!(number(result, "/identical_prefix_tokens_mean/value") < 230.0, "{result}");

    word_tokenizer(directory.path());
    let prompts = write(directory.path(), "prompts", "once upon\n\na time\nonce\n");
    let lines = found("greedy", directory.path(), &["--prompts", &prompts, "--tokens", "4", "--format", "q8"]);
    let tokens: Vec<f64> =
        lines["result"]["per_prompt"].as_array().unwrap().iter().map(|p| number(p, "/prompt_tokens")).collect();
    assert_eq!(tokens, [2.0, 2.0, 1.0]);
    let drawn =
        |seed| found("greedy", Path::new(DEMO), &["--prompts", "2", "--tokens", "9", "--seed", seed, "--format", "q2"]);
    assert_eq!(drawn("1")["result"], drawn("1")["result"]);
    let message = failure(eval("greedy", directory.path(), &["--prompts", "1", "--prompt-tokens", "41"]));
    assert!(message.contains("41 tokens") && message.contains("holds 40"), "{message}");
}

#[test]
fn questions_are_answered_by_the_likeliest_choice() {
    let directory = tempfile::tempdir().unwrap();
    let task = |context: &str, choices: [&str; 2], answer: usize| {
        json!({"context": context, "choices": choices, "answer": answer, "source": "made here"}).to_string() + "\n"
    };
    let start = "Once upon a time, a kind pig named Jack lived near a wide";
    let tasks = task("Once upon a", ["time", "quantum"], 0)
        + &task("Once upon a ", ["quantum", "time, a kind pig named Jack lived near a wide lake."], 1)
        + &task(start, ["lake.", "lake."], 0)
        + &task(&format!("{}{start}", STORIES.repeat(6)), ["xyzzy", "lake"], 1)
        + &task("Once upon a", ["time", "quantum"], 1);
    let file = write(directory.path(), "tasks.jsonl", &tasks);
    let answer = found("tasks", Path::new(DEMO), &["--file", &file]);
    let result = &answer["result"];
    assert_eq!((&result["tasks"], &result["truncated"], &result["chance"]), (&json!(5), &json!(1), &json!(0.5)));
    assert_eq!(number(result, "/accuracy_per_byte/value"), 0.8, "all but the last, whose answer is false: {result}");
    let error = (0.8f64 * 0.2 / 4.0).sqrt();
    assert!((number(result, "/accuracy_per_byte/standard_error") - error).abs() < 1e-9);
    let tasks = result["per_task"].as_array().unwrap();
    // The blank at the end of the context is the choice's.
    let likelihoods = |i: usize| [0, 1].map(|c| tasks[i]["log_likelihood_nats"][c].as_f64().unwrap());
    assert_eq!(likelihoods(0)[1], likelihoods(1)[0]);
    assert_eq!(likelihoods(2)[0], likelihoods(2)[1]);
    assert_eq!(tasks[0]["bytes"], json!([4, 7]));
    assert_eq!((&tasks[3]["truncated"], &tasks[0]["truncated"]), (&json!(true), &json!(false)));

    // By `qins logits`: the likelihood of the tokens that follow those of the context.
    let tokens = |text: &str| {
        let text = write(directory.path(), "text", text);
        let input = std::fs::File::open(text).unwrap();
        qins_tests::ids(&json_of(qins().args(["tokenize", DEMO, "--json"]).stdin(input).output().unwrap())["ids"])
    };
    let (context, whole) = (tokens("Once upon a"), tokens("Once upon a quantum"));
    assert_eq!(whole[..context.len()], context);
    let (list, out) = (ids_file(directory.path(), &whole), directory.path().join("logits.safetensors"));
    let logits = ["logits", "--ids-file", &list, "-o", out.to_str().unwrap()];
    assert!(run(&logits, Path::new(DEMO)).status.success());
    let logits = read_tensor(&out, "logits");
    let expected: f64 = (context.len()..whole.len())
        .map(|i| {
            let row = &logits[(i - 1) * 1024..i * 1024];
            f64::from(row[whole[i] as usize]) - row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln()
        })
        .sum();
    assert!((likelihoods(0)[1] / expected - 1.0).abs() < 1e-4, "{} for {expected}", likelihoods(0)[1]);

    let bad = write(directory.path(), "bad.jsonl", format!("{}nonsense\n", task("a", ["b", "c"], 0)));
    let message = failure(eval("tasks", Path::new(DEMO), &["--file", &bad]));
    assert!(message.contains("bad.jsonl: line 2: "), "{message}");
    assert_eq!(found("tasks", Path::new(DEMO), &["--file", &file, "--limit", "2"])["result"]["tasks"], 2);
}

#[test]
fn tables_are_readable_and_faults_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let text = write(directory.path(), "text", STORIES);
    let shown = |what: &str, arguments: &[&str]| {
        let output = eval(what, Path::new(DEMO), arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let pair = ["--text", &text, "--format", "q4"];
    for (what, arguments, line) in [
        ("perplexity", &["--text", &text][..], "perplexity a token "),
        ("compare", &pair, "KL divergence, mean  "),
        ("greedy", &[&pair[..], &["--prompts", "2", "--tokens", "10"]].concat(), "same token, teacher-forced  "),
        ("sampling", &pair, "total variation  "),
    ] {
        let table = shown(what, arguments);
        assert!(table.contains(line) && table.contains("protocol  ") && !table.contains("NaN"), "{table}");
    }
    for arguments in [
        &["perplexity", DEMO][..],
        &["perplexity", DEMO, "--text", &text, "--ids-file", &text],
        &["sampling", DEMO, "--text", &text, "--temperature", "0"],
        &["compare", DEMO, "--text", &text, "--reference-format", "q9"],
        &["tasks", DEMO],
        &["everything", DEMO],
    ] {
        assert_eq!(qins().arg("eval").args(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
    let empty = write(directory.path(), "empty", "");
    assert!(failure(eval("perplexity", Path::new(DEMO), &["--text", &empty])).contains("at least 2"));
    let absent = directory.path().join("absent").display().to_string();
    assert!(failure(eval("perplexity", Path::new(DEMO), &["--text", &absent])).contains("absent"));
    let ids = ids_file(directory.path(), &[1, 2, 1024]);
    assert!(failure(eval("perplexity", Path::new(DEMO), &["--ids-file", &ids])).contains("token id 1024"));
    let message = failure(eval("perplexity", Path::new(DEMO), &["--text", &text, "--context", "8", "--stride", "9"]));
    assert!(message.contains("windows of 8 tokens, 9 apart"), "{message}");
    assert!(failure(eval("perplexity", model().path(), &["--text", &text])).contains("tokenizer.json"));
}
