//! What people bring: values that begin with a hyphen, files of Windows, lines that are no text, weights that are no
//! numbers.

mod running;

use running::{DEMO, failure, json_of, longrope_model, model, qins, run, run_with, word_tokenizer};
use serde_json::{Value, json};
use std::path::Path;

fn chat(arguments: &[&str], model: &Path, input: &[u8]) -> std::process::Output {
    run_with(input, "chat", arguments, model)
}

fn notes(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn values_may_begin_with_a_hyphen() {
    let demo = Path::new(DEMO);
    for prompt in ["- milk", "-5 degrees", "--- title", "--json", "-p"] {
        let found = json_of(run(&["generate", "-p", prompt, "-n", "1", "--stop", "---", "--json"], demo));
        let plain = run_with(prompt.as_bytes(), "tokenize", &["--json"], demo);
        assert_eq!(found["prompt_ids"], json_of(plain)["ids"], "{prompt}");
    }
    let told = json_of(chat(&["--system", "-brief-", "-n", "1", "--json"], demo, b"Hello!\n"));
    assert_eq!(told["messages"][0], json!({"role": "system", "content": "-brief-"}));
    let ids = run(&["generate", "--ids", "-1", "-n", "1"], demo);
    assert!(failure(ids).contains("`-1` is no token id"));
    for (option, value) in [("--temperature", "-1"), ("--top-p", "-0.5"), ("-n", "-3"), ("--seed", "-1")] {
        let output = run(&["generate", "-p", "a", option, value], demo);
        assert_eq!(output.status.code(), Some(2));
        let message = notes(&output);
        assert!(message.contains("invalid value") && message.contains(value) && message.contains(option), "{message}");
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("-prompts"), "Once\n").unwrap();
    let output = qins().args(["generate", "demo", "-n", "1", "--prompts", "-prompts"]).current_dir(&directory).output();
    assert!(output.unwrap().status.success());
}

#[test]
fn byte_order_marks_are_no_text() {
    let directory = model();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    word_tokenizer(directory.path());
    let template = "\u{feff}{\"chat_template\": \"{% for m in messages %}{{ m.content }} {% endfor %}\"}";
    std::fs::write(at("tokenizer_config.json"), template).unwrap();
    let marked = |name: &str, text: &str| {
        std::fs::write(at(name), format!("\u{feff}{text}")).unwrap();
        std::fs::write(at("plain"), text).unwrap();
        (at(name), at("plain"))
    };
    for file in ["config.json", "tokenizer.json"] {
        let text = std::fs::read_to_string(at(file)).unwrap();
        marked(file, &text);
    }
    let (prompts, plain) = marked("prompts", "once upon\r\na time\r\n");
    let texts = |file: &str| {
        json_of(run(&["generate", "--prompts", file, "-n", "2", "--json"], directory.path()))["texts"].clone()
    };
    assert_eq!(texts(&prompts), texts(&plain));
    assert_eq!(texts(&prompts)[0]["prompt_ids"], json!([1, 2]));

    let (text, plain) = marked("text", &"once upon a time ".repeat(12));
    let tokens = |file: &str| {
        let arguments = ["perplexity", "--context", "8", "--json", "--text", file];
        json_of(qins().arg("eval").arg(arguments[0]).arg(directory.path()).args(&arguments[1..]).output().unwrap())["text"]["tokens"].clone()
    };
    assert_eq!((tokens(&text), tokens(&plain)), (json!(48), json!(48)));
    let (ids, _) = marked("ids", "[1, 2, 3, 4, 1, 2, 3, 4, 1, 2]");
    let output =
        qins().args(["eval", "perplexity", "--context", "4", "--ids-file", &ids]).arg(directory.path()).output();
    assert!(output.unwrap().status.success());

    // As python's tokenizers do, `tokenize` reads every byte as text.
    assert_eq!(run_with("\u{feff}once".as_bytes(), "tokenize", &[], directory.path()).stdout, b"0 1\n");
    let decoded = run_with("\u{feff}1 2".as_bytes(), "tokenize", &["--decode"], directory.path());
    assert_eq!(decoded.stdout, b"once upon");
    let report = json_of(chat(&["-n", "1", "--json"], directory.path(), "\u{feff}once upon\r\na\r\n".as_bytes()));
    assert_eq!(report["messages"][0]["content"], "once upon");
    let (messages, _) =
        marked("talk.json", r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "time"}]"#);
    let report = json_of(chat(&["-n", "1", "--json", "--resume", &messages], directory.path(), b"once\n"));
    assert_eq!(report["messages"].as_array().unwrap().len(), 4);
}

#[test]
fn a_line_that_is_no_text_is_an_error_of_that_line() {
    let directory = model();
    word_tokenizer(directory.path());
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(directory.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    let output = chat(&["-n", "1", "--json"], directory.path(), b"once\nup\xffon\na\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(notes(&output).contains("line 2") && notes(&output).contains("UTF-8"), "{}", notes(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let said: Vec<&str> =
        report["messages"].as_array().unwrap().iter().step_by(2).map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["once", "a"], "the others are answered");
    let prompts = directory.path().join("prompts");
    std::fs::write(&prompts, b"once\nupon\n\xe9\n").unwrap();
    let message = failure(run(&["generate", "--prompts", prompts.to_str().unwrap()], directory.path()));
    assert!(message.contains("prompts, line 3"), "{message}");
}

#[test]
fn a_message_without_an_answer_is_told_by_the_status() {
    let directory = model();
    word_tokenizer(directory.path());
    let set = |template: &str| {
        let json = json!({"chat_template": template});
        std::fs::write(directory.path().join("tokenizer_config.json"), json.to_string()).unwrap();
    };
    let talk = |input: &str| {
        let output = chat(&["-n", "2", "--json"], directory.path(), input.as_bytes());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), report["answers"].as_array().unwrap().len(), notes(&output))
    };
    set("{{ raise_exception('roles must alternate') }}");
    let (status, answers, message) = talk("once\n");
    assert_eq!((status, answers), (Some(1), 0));
    assert!(
        message.contains("roles must alternate") && message.contains("1 message could not be answered"),
        "{message}"
    );
    set("{% for m in messages %}{{ m.content }} {% endfor %}");
    let too_long = "once ".repeat(60);
    assert_eq!(talk(&format!("once\n{too_long}\nupon\n")).1, 2, "what comes after is answered");
    assert_eq!(talk(&format!("once\n{too_long}\n/nonsense\n")).0, Some(1));
    assert_eq!(talk("once\n/nonsense\n").0, Some(0), "a command is no message");
}

/// Writes NaN over all numbers of a tensor in f32.
fn spoil(directory: &Path, tensor: &str) {
    let file = directory.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(json[tensor]["dtype"], "F32");
    let [start, end] = [0, 1].map(|i| json[tensor]["data_offsets"][i].as_u64().unwrap() as usize + 8 + header);
    bytes[start..end].chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&f32::NAN.to_le_bytes()));
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn logits_that_are_no_numbers_are_never_tokens() {
    let directory = model();
    word_tokenizer(directory.path());
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(directory.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    spoil(directory.path(), "model.norm.weight");
    for temperature in ["0", "0.7"] {
        let generate = ["generate", "-p", "once", "-n", "3", "--temperature", temperature];
        for more in [&[][..], &["-p", "upon"], &["--ignore-eos"]] {
            let output = run(&[&generate[..], more].concat(), directory.path());
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(notes(&output).contains("not finite"), "{}", notes(&output));
            let output = run(&[&generate[..], more, &["--json"]].concat(), directory.path());
            assert_eq!(output.status.code(), Some(1));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let first = report["texts"].get(0).unwrap_or(&report);
            assert_eq!((&first["ids"], &first["stop"]), (&json!([]), &json!("error")), "{report}");
        }
        let output = chat(&["-n", "3", "--temperature", temperature, "--json"], directory.path(), b"once\nupon\n");
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["messages"], &report["answers"]), (&json!([]), &json!([])));
        assert!(notes(&output).contains("2 messages could not be answered"), "{}", notes(&output));
    }
}

/// Some texts become spoilt on their way: those before are printed, and so is what there was of them.
#[test]
fn what_was_written_before_a_failure_is_printed() {
    // The long factors of a rope: a text that passes 300 tokens has angles beyond all numbers.
    let directory = longrope_model();
    let mut config = qins_tests::read_json(&directory.path().join("config.json"));
    config["rope_scaling"]["long_factor"] = json!([1e-38, 1e-38, 1e-38, 1e-38, 1e-38, 1e-38]);
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let long: Vec<String> = (0..298).map(|i| (i % 50).to_string()).collect();
    let output = run(
        &["generate", "--ids", "1,2", "--ids", &long.join(","), "-n", "5", "--ignore-eos", "--json"],
        directory.path(),
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(notes(&output).contains("prompt 2"), "{}", notes(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let written = |i: usize| (report["texts"][i]["ids"].as_array().unwrap().len(), &report["texts"][i]["stop"]);
    assert_eq!(written(0), (5, &json!("length")));
    assert!(written(1).0 > 0 && written(1).1 == "error", "{report}");
}
