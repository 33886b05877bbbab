//! `qins report` from outside.

mod running;

use running::{failure, json_of, qins};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

fn report(output: &Path, arguments: &[&str]) -> Command {
    let mut command = qins();
    command.args(["report", "--json", "-o"]).arg(output).args(arguments).stdin(Stdio::null());
    command
}

const SMALL: [&str; 10] =
    ["demo", "--formats", "q8,q2,balanced", "--windows", "2", "--prompts", "2", "--tokens", "100", "--no-bench"];

const TASKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report/tasks.jsonl");

fn pages(directory: &Path) -> Vec<String> {
    let page = |name| fs::read_to_string(directory.join(name)).unwrap();
    ["report.html", "report.md", "claims.md", "demo-divergence.svg"].map(page).into()
}

fn results(directory: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory.join("results")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap()).collect()
}

#[test]
fn figures_are_those_of_the_commands_and_nothing_is_run_twice() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| json_of(report(directory.path(), arguments).output().unwrap());
    let first = run(&SMALL);
    assert_eq!(first["commands"], first["commands_run"]);
    let written = pages(directory.path());
    let again = run(&SMALL);
    assert_eq!((&again["commands"], &again["commands_run"]), (&first["commands"], &0.into()));
    assert!(pages(directory.path()) == written);
    run(&["--render"]);
    assert!(pages(directory.path()) == written);

    let [html, markdown, claims, _] = &written[..] else { unreachable!() };
    for result in results(directory.path()).iter().filter(|result| result["subject"] == "compare") {
        let command = result["command"].as_str().unwrap();
        let kl = result["output"]["result"]["kl_nats"]["mean"]["value"].as_f64().unwrap();
        let cell = format!("| {kl:.1e} |");
        assert!(markdown.contains(command) && markdown.contains(&cell), "{command}: {cell}");
        // As a stranger would run it.
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let alone = json_of(qins().args(words).arg("--json").output().unwrap());
        assert_eq!(alone["result"]["kl_nats"], result["output"]["result"]["kl_nats"], "{command}");
    }
    assert!(claims.contains("`q8` on `demo`, against float"));
    assert!(!claims.contains("q2"));
    // Nothing is fetched.
    let fetched = html.match_indices("src=\"").filter(|(at, _)| !html[*at..].starts_with("src=\"data:"));
    assert_eq!(fetched.count(), 0);
    assert!(!html.contains("href=") && !html.contains("url(") && !html.contains("<script"));
}

#[test]
fn every_measurement_has_its_table() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text.txt");
    let story = "Once upon a time, a kind pig named Jack lived near a wide lake. He carried a rusty lamp. ";
    fs::write(&text, story.repeat(30)).unwrap();
    let text = text.to_str().unwrap();
    // The demo model holds 512 tokens.
    let more = [
        "--text",
        text,
        "--perplexity",
        "--tasks",
        TASKS,
        "--questions",
        "12",
        "--long",
        "200,512,513",
        "--formats",
        "q2",
    ];
    let words = ["demo", "--windows", "5", "--prompts", "2", "--tokens", "100", "--no-bench"];
    json_of(report(directory.path(), &[&words[..], &more].concat()).output().unwrap());
    let markdown = fs::read_to_string(directory.path().join("report.md")).unwrap();
    let result = |words: &str| -> Value {
        let named = |result: &Value| result["command"].as_str().unwrap().contains(words);
        let found: Vec<Value> = results(directory.path()).into_iter().filter(named).collect();
        let [result] = &found[..] else { panic!("{words}: {} results", found.len()) };
        assert!(markdown.contains(result["command"].as_str().unwrap()), "{words}");
        result["output"].clone()
    };
    let number = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_f64).unwrap();
    let cell = |cell: String| assert!(markdown.contains(&cell), "{cell}\n{markdown}");

    let perplexity = result("eval perplexity demo --text");
    cell(format!("| {} | {:.3} ± ", perplexity["result"]["predicted_tokens"], {
        number(&perplexity, "/result/perplexity_per_token/value")
    }));
    // A quarter of five windows of 512 tokens are three of 200, or one.
    for (context, windows) in [(200, 3), (512, 1)] {
        let long = result(&format!("--context {context} --windows {windows}"));
        let tokens = &long["result"]["reference_perplexity"]["predicted_tokens"];
        assert_eq!(*tokens, windows * (context - 1));
        cell(format!("| `q2` | {context} | {tokens} |"));
    }
    assert!(!markdown.contains("--context 513"));
    let sampled = result("eval sampling demo --format q2");
    assert_eq!(sampled["text"]["windows"], 2);
    cell(format!("| `q2` | {:.2} ± ", 100.0 * number(&sampled, "/result/total_variation/value")));
    for (name, words) in [("f32", "eval tasks demo --file"), ("q2", "eval tasks demo --format q2 --file")] {
        let answered = result(words);
        cell(format!("| `{name}` | 12 | {:.1} ± ", 100.0 * number(&answered, "/result/accuracy/value")));
    }
    // Float in another format: the demo's files are in f16.
    let f16 = [&words[..], &more, &["--reference-format", "f16"]].concat();
    json_of(report(&directory.path().join("f16"), &f16).output().unwrap());
    let markdown = fs::read_to_string(directory.path().join("f16/report.md")).unwrap();
    for words in
        ["perplexity demo --format f16", "tasks demo --format f16", "compare demo --format q2 --reference-format f16"]
    {
        assert!(markdown.contains(words), "{words}");
    }
    let output = report(directory.path(), &["demo", "--perplexity"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("--text <FILE>"), "{message}");
}

#[test]
fn pages_that_were_changed_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| report(directory.path(), arguments).output().unwrap();
    json_of(run(&SMALL));
    let (page, text) = (directory.path().join("report.md"), directory.path().join("demo.txt"));
    for (path, arguments) in
        [(&page, &["--render"][..]), (&page, &SMALL), (&directory.path().join("demo-greedy.svg"), &["--render"])]
    {
        let before = fs::read(path).unwrap();
        fs::write(path, [&before[..], b"mine"].concat()).unwrap();
        let message = failure(run(arguments));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(name) && message.contains("not replaced"), "{message}");
        assert!(fs::read(path).unwrap().ends_with(b"mine"));
        fs::write(path, before).unwrap();
    }
    // What was drawn is not drawn over another's text.
    fs::write(&text, "mine").unwrap();
    fs::remove_file(directory.path().join("results/000.json")).unwrap();
    assert!(failure(run(&SMALL)).contains("demo.txt"));
    assert_eq!(fs::read(&text).unwrap(), b"mine");
    json_of(run(&["--render"]));
}

#[test]
fn a_text_that_is_gone_is_drawn_again() {
    let directory = tempfile::tempdir().unwrap();
    let run = || json_of(report(directory.path(), &SMALL).output().unwrap());
    run();
    let text = directory.path().join("demo.txt");
    let drawn = fs::read(&text).unwrap();
    fs::remove_file(&text).unwrap();
    assert_eq!(run()["commands_run"], 1);
    assert!(fs::read(&text).unwrap() == drawn);
}

#[test]
fn what_was_done_before_an_interruption_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = report(directory.path(), &SMALL).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let first = directory.path().join("results/000.json");
    while !first.exists() {
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let kept = results(directory.path()).len();
    let rest = json_of(report(directory.path(), &SMALL).output().unwrap());
    let count = |field: &str| rest[field].as_u64().unwrap() as usize;
    assert_eq!(count("commands_run"), count("commands") - kept);
}

#[test]
fn a_command_that_fails_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let output =
        report(directory.path(), &["demo", "--formats", "q9", "--windows", "1", "--no-bench"]).output().unwrap();
    let message = failure(output);
    assert!(message.contains("eval compare demo --format q9") && message.contains("unknown format `q9`"), "{message}");
    let message = failure(report(&directory.path().join("new"), &["--render"]).output().unwrap());
    assert!(message.contains("no results to write a report of"), "{message}");
    let results = directory.path().join("results");
    fs::write(results.join("900.json"), "{").unwrap();
    let message = failure(report(directory.path(), &["--render"]).output().unwrap());
    assert!(message.contains("900.json: no result of a report"), "{message}");
}

/// What README claims is what the results in `docs/report` say.
#[test]
fn the_readme_claims_what_was_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let directory = tempfile::tempdir().unwrap();
    let copies = directory.path().join("results");
    fs::create_dir(&copies).unwrap();
    for entry in fs::read_dir(root.join("docs/report/results")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copies.join(path.file_name().unwrap())).unwrap();
    }
    json_of(report(directory.path(), &["--render"]).output().unwrap());
    let claims = fs::read_to_string(directory.path().join("claims.md")).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.contains(&claims), "README.md lacks the table of `qins report -o docs/report --render`:\n{claims}");
    let markdown = |directory: &Path| fs::read_to_string(directory.join("report.md")).unwrap();
    assert!(
        markdown(&root.join("docs/report")) == markdown(directory.path()),
        "docs/report/report.md is of other results"
    );
}
