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

fn pages(directory: &Path) -> Vec<String> {
    let page = |name| fs::read_to_string(directory.join(name)).unwrap();
    ["report.html", "report.md", "claims.md", "chart-1.svg"].map(page).into()
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
