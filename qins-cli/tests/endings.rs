//! Where a text ends, and what it is drawn by: as the files of a model say.

mod running;

use running::{failure, json_of, model, run, run_with};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// A model of 50 ids whose tokens are `w0` to `w49`; `special` ones are special.
fn model_of_words(special: &[u64]) -> TempDir {
    let directory = model();
    let vocabulary: serde_json::Map<String, Value> = (0..50).map(|i| (format!("w{i}"), json!(i))).collect();
    let added: Vec<Value> = special
        .iter()
        .map(|id| {
            json!({"id": id, "content": format!("w{id}"), "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}});
    write(directory.path(), "tokenizer.json", tokenizer);
    directory
}

fn write(directory: &Path, name: &str, json: Value) {
    std::fs::write(directory.join(name), json.to_string()).unwrap();
}

fn generate(directory: &Path, more: &[&str]) -> Value {
    let arguments = [&["generate", "-p", "w1 w2", "-n", "20", "--json"], more].concat();
    json_of(run(&arguments, directory))
}

/// What the model writes if nothing ends it, and the place of a token that did not come before it.
fn free_text() -> (Vec<u64>, usize) {
    let ids = generate(model_of_words(&[]).path(), &["--ignore-eos"])["ids"].as_array().unwrap().clone();
    let ids: Vec<u64> = ids.iter().map(|id| id.as_u64().unwrap()).collect();
    let place = (2..ids.len()).find(|&i| !ids[..i].contains(&ids[i])).expect("more than two different tokens");
    (ids, place)
}

#[test]
fn a_text_ends_at_any_end_that_the_files_name() {
    let (ids, place) = free_text();
    let end = ids[place];
    let other = (0..50).find(|id| !ids.contains(id)).unwrap();
    let token = format!("w{end}");
    let turns = format!("{{% for m in messages %}}w3 {{{{ m.content }}}} {token} {{% endfor %}}");
    for (what, files) in [
        ("config.json", vec![("config.json", json!({"eos_token_id": [other, end]}))]),
        ("generation_config.json", vec![("generation_config.json", json!({"eos_token_id": end}))]),
        (
            "both name one",
            vec![
                ("config.json", json!({"eos_token_id": end})),
                ("generation_config.json", json!({"eos_token_id": [other]})),
            ],
        ),
        (
            "the tokenizer's",
            vec![
                ("generation_config.json", json!({"eos_token_id": other})),
                ("tokenizer_config.json", json!({"eos_token": token})),
            ],
        ),
        ("as an object", vec![("tokenizer_config.json", json!({"eos_token": {"content": token, "lstrip": false}}))]),
        ("special_tokens_map.json", vec![("special_tokens_map.json", json!({"eos_token": token}))]),
        (
            "the end of turn",
            vec![
                ("generation_config.json", json!({"eos_token_id": other})),
                ("tokenizer_config.json", json!({"chat_template": turns})),
            ],
        ),
    ] {
        let directory = model_of_words(&[end]);
        for (name, mut json) in files {
            if name == "config.json" {
                let mut config = qins_tests::read_json(&directory.path().join(name));
                config["eos_token_id"] = json["eos_token_id"].take();
                json = config;
            }
            write(directory.path(), name, json);
        }
        let found = generate(directory.path(), &[]);
        assert_eq!((&found["stop"], &found["ids"]), (&json!("eos"), &json!(ids[..place])), "{what}");
        let free = generate(directory.path(), &["--ignore-eos"]);
        assert_eq!((&free["stop"], &free["ids"]), (&json!("length"), &json!(ids)), "{what}");
    }
    // A token that is not special ends no turn.
    let directory = model_of_words(&[]);
    write(directory.path(), "tokenizer_config.json", json!({"chat_template": turns}));
    assert_eq!(generate(directory.path(), &[])["ids"], json!(ids));
}

#[test]
fn a_stop_may_be_a_special_token() {
    let (ids, place) = free_text();
    let end = ids[place];
    let (token, before) = (format!("w{end}"), format!("w{}", ids[place - 1]));
    let directory = model_of_words(&[end]);
    let expected: Vec<String> = ids[..place].iter().map(|id| format!("w{id}")).collect();
    for more in [&[][..], &["--ignore-eos"], &["-p", "w1 w2"]] {
        let found = generate(directory.path(), &[&["--stop", &token], more].concat());
        for text in found["texts"].as_array().unwrap_or(&vec![found.clone()]) {
            assert_eq!(text["stop"], "stop", "{found}");
            let words: Vec<&str> = text["text"].as_str().unwrap().split_whitespace().collect();
            assert_eq!(words, expected);
        }
    }
    // Though the model's files call it an end.
    write(directory.path(), "generation_config.json", json!({"eos_token_id": end}));
    assert_eq!(generate(directory.path(), &["--stop", &token])["stop"], "stop");
    let mixed = format!("{before} {token}");
    let message = failure(run(&["generate", "-p", "w1", "--stop", &mixed], directory.path()));
    assert!(message.contains("--stop") && message.contains(&token), "{message}");
}

/// A conversation of three messages through a pipe.
fn talk(directory: &Path, more: &[&str]) -> Value {
    let arguments = [&["-n", "6", "--json", "--seed", "5"], more].concat();
    json_of(run_with(b"w1 w2\nw3\nw4\n", "chat", &arguments, directory))["messages"].clone()
}

#[test]
fn a_model_says_how_its_answers_are_drawn() {
    let directory = model_of_words(&[]);
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    write(directory.path(), "tokenizer_config.json", template);
    let explicit = |temperature, top_k, top_p, min_p, penalty| {
        let options = ["--temperature", temperature, "--top-k", top_k, "--top-p", top_p, "--min-p", min_p];
        talk(directory.path(), &[&options[..], &["--repeat-penalty", penalty]].concat())
    };
    let asked = explicit("1.9", "7", "0.8", "0.01", "1.3");
    let greedy = explicit("0", "0", "1", "0", "1");
    let usual = explicit("0.7", "0", "0.95", "0.05", "1");
    let fifty = explicit("1", "50", "1", "0", "1");
    assert!(asked != greedy && asked != usual && greedy != usual && fifty != usual, "they can be told apart");

    assert_eq!(talk(directory.path(), &[]), usual, "without a file");
    let set = |json: Value| write(directory.path(), "generation_config.json", json);
    set(json!({"eos_token_id": 999, "pad_token_id": 0}));
    assert_eq!(talk(directory.path(), &[]), usual, "a file that says nothing of it");
    set(
        json!({"do_sample": true, "temperature": 1.9, "top_k": 7, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.3}),
    );
    assert_eq!(talk(directory.path(), &[]), asked);
    assert_eq!(
        talk(directory.path(), &["--temperature", "0", "--repeat-penalty", "1"]),
        greedy,
        "an option counts more"
    );
    set(json!({"do_sample": true}));
    assert_eq!(talk(directory.path(), &[]), fifty, "transformers' defaults");
    set(json!({"do_sample": false, "temperature": 1.9}));
    assert_eq!(talk(directory.path(), &[]), greedy);

    let ids =
        |more: &[&str]| generate(directory.path(), &[&["--ignore-eos", "--seed", "3"], more].concat())["ids"].clone();
    set(json!({"do_sample": true, "temperature": 0.5, "top_k": 3}));
    let drawn = ids(&["--temperature", "1.9"]);
    let most_likely = ids(&[]);
    std::fs::remove_file(directory.path().join("generation_config.json")).unwrap();
    assert_eq!(most_likely, ids(&[]), "without --temperature the most likely tokens, whatever the file says");
    assert_eq!(drawn, ids(&["--temperature", "1.9", "--top-k", "3"]));
    assert_ne!(drawn, ids(&["--temperature", "1.9"]));
}

#[test]
fn what_is_not_implemented_and_what_is_dropped_are_told() {
    let directory = model_of_words(&[]);
    let template = "{% for m in messages if m.role != 'system' %}{{ m.content }} {% endfor %}";
    write(directory.path(), "tokenizer_config.json", json!({"chat_template": template}));
    write(directory.path(), "generation_config.json", json!({"typical_p": 0.5, "do_sample": true}));
    let notes = |more: &[&str]| {
        let output = run_with(b"w1\n", "chat", &[&["-n", "1"], more].concat(), directory.path());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(notes(&[]).contains("typical_p") && !notes(&[]).contains("system"));
    assert!(notes(&["--system", "w2"]).contains("system message"));
    let kept = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    write(directory.path(), "tokenizer_config.json", kept);
    assert!(!notes(&["--system", "w2"]).contains("system message"));
}
