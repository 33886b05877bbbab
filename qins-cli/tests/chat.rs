//! `qins chat` from outside.

mod running;

use qins_tests::write_model;
use running::{DEMO, failure, json_of, longrope_model, model, qins, run_with, word_tokenizer};
use serde_json::{Value, json};
use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

/// A conversation through a pipe.
fn chat(arguments: &[&str], model: &Path, input: &str) -> Output {
    run_with(input.as_bytes(), "chat", arguments, model)
}

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
