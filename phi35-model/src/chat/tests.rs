use super::*;
use crate::Tokenizer;
use serde_json::json;
use std::path::Path;

fn template(value: serde_json::Value) -> Result<ChatTemplate, ChatError> {
    ChatTemplate::from_json(value.to_string().as_bytes(), Path::new("tokenizer_config.json"))
}

const ROLES: &str = "{% for m in messages %}\n[{{ m['role'] }}] {{ m.content.strip() }}\n{% endfor %}\n\
    {% if add_generation_prompt %}[assistant]{% else %}{{ eos_token }}{% endif %}";

fn hello() -> Vec<Message> {
    vec![Message::new("user", " hello ")]
}

#[test]
fn templates_render_as_hugging_face_renders_them() {
    let rendered = template(json!({"chat_template": ROLES, "eos_token": "</s>"})).unwrap();
    assert_eq!(rendered.render(&hello(), true).unwrap(), "[user] hello\n[assistant]");
    assert_eq!(rendered.render(&hello(), false).unwrap(), "[user] hello\n</s>");
    let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": ROLES}]);
    let rendered = template(json!({"chat_template": named, "eos_token": {"content": "<e>"}})).unwrap();
    assert_eq!(rendered.render(&[], false).unwrap(), "<e>");
}

#[test]
fn a_template_can_refuse_and_cannot_hang() {
    let refusing = template(json!({"chat_template": "{{ raise_exception('roles must alternate') }}"})).unwrap();
    assert!(refusing.render(&hello(), true).unwrap_err().to_string().contains("roles must alternate"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x\
        {% endfor %}{% endfor %}{% endfor %}";
    let error = template(json!({"chat_template": endless})).unwrap().render(&hello(), true).unwrap_err();
    assert!(matches!(error, ChatError::Template { .. }), "{error}");
    assert!(matches!(template(json!({"chat_template": "{% if %}"})), Err(ChatError::Template { .. })));
    assert!(matches!(template(json!({})), Err(ChatError::NoTemplate { .. })));
}

/// Every letter is a token.
fn letters() -> Tokenizer {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        ('a'..='z').enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "z"}});
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap()
}

#[test]
fn the_oldest_exchanges_are_left_out_first_and_the_system_message_never() {
    let plain = template(json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})).unwrap();
    let mut talk = Conversation::new(plain, letters());
    talk.system = Some("ss".to_owned());
    let turns = [("user", "aaa"), ("assistant", "bbb"), ("user", "cc"), ("assistant", "dd"), ("user", "e")];
    talk.messages = turns.iter().map(|&(role, text)| Message::new(role, text)).collect();
    let tokens = |limit| talk.prompt(limit).map(|prompt| (prompt.ids.len(), prompt.left_out));
    assert_eq!(talk.system_tokens().unwrap(), 2);
    assert_eq!(tokens(13).unwrap(), (13, 0));
    assert_eq!(tokens(12).unwrap(), (7, 2));
    assert_eq!(tokens(6).unwrap(), (3, 4));
    assert!(matches!(tokens(2), Err(ChatError::Prompt(PromptError::TooLong { found: 3, limit: 2 }))));
}

/// Leaves out one exchange after the other until the rest fits.
fn one_by_one(talk: &Conversation, limit: usize) -> Option<usize> {
    let mut shorter = talk.clone();
    loop {
        let whole = shorter.prompt(usize::MAX).unwrap();
        if whole.ids.len() <= limit {
            return Some(talk.messages.len() - shorter.messages.len());
        }
        let next = shorter.messages.iter().skip(1).position(|message| message.role == "user")?;
        shorter.messages.drain(..next + 1);
    }
}

#[test]
fn no_more_is_left_out_than_has_to_be() {
    let plain = template(json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})).unwrap();
    let mut talk = Conversation::new(plain, letters());
    for (system, exchanges) in [(false, 1), (true, 1), (false, 2), (true, 9), (false, 40)] {
        talk.system = system.then(|| "sss".to_owned());
        talk.messages.clear();
        for i in 0..exchanges {
            talk.messages.push(Message::new("user", "a".repeat(1 + i * 7 % 5)));
            // Some are not answered.
            if i % 4 != 3 {
                talk.messages.push(Message::new("assistant", "b".repeat(i * 5 % 11)));
            }
        }
        talk.messages.push(Message::new("user", "cc"));
        for limit in 0..40 {
            let found = talk.prompt(limit).ok().map(|prompt| prompt.left_out);
            assert_eq!(found, one_by_one(&talk, limit), "{exchanges} exchanges, {limit} tokens");
        }
    }
}

/// Rendering all that is left for each exchange that is left out took minutes for so many.
#[test]
fn a_very_long_conversation_is_cut_at_once() {
    let plain = template(json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})).unwrap();
    let mut talk = Conversation::new(plain, letters());
    for _ in 0..5000 {
        talk.messages.push(Message::new("user", "a".repeat(100)));
        talk.messages.push(Message::new("assistant", "b".repeat(100)));
    }
    talk.messages.push(Message::new("user", "c"));
    let start = std::time::Instant::now();
    let prompt = talk.prompt(4100).unwrap();
    assert_eq!((prompt.ids.len(), prompt.left_out), (4001, 10_000 - 40));
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

/// As transformers 5.24 with Jinja2 3.1.6 renders the same template.
#[track_caller]
fn renders(source: &str, expected: &str) {
    let rendered = template(json!({"chat_template": source, "bos_token": "<s>"})).unwrap();
    let messages = [Message::new("system", "Be brief."), Message::new("user", "a <b> \"é漢\"\n")];
    assert_eq!(rendered.render(&messages, true).unwrap(), expected, "{source}");
}

#[test]
fn variables_of_transformers_are_there() {
    renders(
        "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {{ foo is defined }}",
        "True True True False",
    );
    renders("{% if tools is iterable and tools | length > 0 %}x{% endif %}{{ bos_token }}", "<s>");
    renders(
        "{{ 'a' is sequence }} {{ {} is sequence }} {{ none is iterable }} {{ foo is iterable }}",
        "True True False True",
    );
    renders("{{ raise_exception is callable }} {{ 'a' is callable }}", "True False");
}

#[test]
fn json_is_that_of_python() {
    renders("{{ messages[1].content | tojson }}", r#""a <b> \"é漢\"\n""#);
    renders("{{ messages[1].content | tojson(ensure_ascii=True) }}", r#""a <b> \"\u00e9\u6f22\"\n""#);
    renders("{{ messages[0] | tojson }}", r#"{"role": "system", "content": "Be brief."}"#);
    renders(
        "{{ {'b': [1, 2.0, none], 'a': {}} | tojson(indent=2) }}",
        "{\n  \"b\": [\n    1,\n    2.0,\n    null\n  ],\n  \"a\": {}\n}",
    );
    renders("{{ {'b': true, 'a': []} | tojson(sort_keys=true, separators=(',', ':')) }}", r#"{"a":[],"b":true}"#);
    renders(
        "{{ [1e20, 1e-7, 1e16, 0.0001, 123456789012345.6] | tojson }}",
        "[1e+20, 1e-07, 1e+16, 0.0001, 123456789012345.6]",
    );
}

#[test]
fn strings_and_lists_have_pythons_methods() {
    renders(
        "{{ 'a/b/c'.rsplit('/', 1)[-1] }}{{ 'a b  c '.split(none, 1) }}{{ 'a,b'.split(sep=',') }}",
        "c['a', 'b  c ']['a', 'b']",
    );
    renders(
        "{{ 'xhi'.removeprefix('x') }}{{ 'hix'.removesuffix('x') }}{{ 'k=v'.partition('=') }}",
        "hihi('k', '=', 'v')",
    );
    renders(
        "{{ 'héllo'.index('o') }}{{ 'héllo'.find('l', 3) }}{{ 'abc'.rfind('z') }}{{ ['u', 'a'].index('a') }}",
        "43-11",
    );
    renders(
        "{{ 'abc'.startswith(('b', 'a')) }}{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith('b', 0, 2) }}",
        "TrueTrueTrue",
    );
    renders(
        "{{ \"it's\".title() }}|{{ 'ab'.center(5, '*') }}|{{ '-42'.zfill(6) }}|{{ 'ab'.ljust(4) }}|",
        "It'S|**ab*|-00042|ab  |",
    );
    renders(
        "{{ 'a\\nb\\r\\nc'.splitlines() }}{{ 'xxax'.strip('x') }}{{ 'a\\tb'.expandtabs(4) }}",
        "['a', 'b', 'c']aa   b",
    );
    renders("{{ 'abc'[::-1] }}{{ [1, 2, 3][::-2] }}{{ '{} {a}'.format(1, a=2) }}", "cba[3, 1]1 2");
    let missing = template(json!({"chat_template": "{{ 'abc'.index('z') }}"})).unwrap().render(&hello(), true);
    assert!(missing.unwrap_err().to_string().contains("substring not found"));
}

#[test]
fn percent_formats_strings() {
    renders("{{ '<%s>' % messages[0].role }}", "<system>");
    renders("{{ '%s-%d-%05.2f' % ('a', 3, 1.5) }} {{ 'x%s' % 'y' ~ 'z' }} {{ '%s' % none }}", "a-3-01.50 xyz None");
    renders("{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ 2 * 7 % 4 }} {{ 10 - 7 % 4 }}", "1 2 -2 1.5 2 7");
    renders("{% for m in messages %}{{ loop.index0 % 2 == 0 }}{% endfor %}", "TrueFalse");
}

#[test]
fn tags_and_line_ends_are_read_as_jinja2_reads_them() {
    renders(
        "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }},{% endfor %}",
        "system,user,",
    );
    renders("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "system");
    renders("{% for m in messages %}\r\n[{{ m.role }}]\r\n{% endfor %}\r\n@\r\n", "[system]\n[user]\n@");
}

#[test]
fn today_is_told_as_python_tells_it() {
    let rendered = template(json!({"chat_template": "{{ strftime_now('%Y-%m-%d|%d %b %Y|%z%Z|%%|%f') }}"})).unwrap();
    let text = rendered.render(&hello(), true).unwrap();
    let parts: Vec<&str> = text.split('|').collect();
    assert!(parts[0].len() == 10 && parts[0].starts_with("20"), "{text}");
    assert!(parts[1].len() == 11 && parts[1].ends_with(&parts[0][..4]), "{text}");
    assert_eq!((parts[2], parts[3], parts[4].len()), ("", "%", 6), "{text}");
}

#[test]
fn special_tokens_come_from_both_files() {
    let tokens = |config: serde_json::Value, map: serde_json::Value| {
        let object = |value: serde_json::Value| value.as_object().unwrap().clone();
        let tokens = SpecialTokens::new(object(config), object(map));
        ["bos_token", "eos_token"].map(|name| tokens.get(name).map(str::to_owned))
    };
    let some = |token: &str| Some(token.to_owned());
    assert_eq!(
        tokens(json!({}), json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}})),
        [some("<s>"), some("</s>")]
    );
    // Old tokenizers: the map counts more. Newer ones, which list their tokens: only where nothing else is said.
    let (config, map) = (json!({"eos_token": "a"}), json!({"eos_token": "b", "bos_token": "c"}));
    assert_eq!(tokens(config.clone(), map.clone()), [some("c"), some("b")]);
    let mut newer = config;
    newer["added_tokens_decoder"] = json!({});
    assert_eq!(tokens(newer, map), [some("c"), some("a")]);
    let class = json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": null});
    assert_eq!(tokens(class, json!({})), [None, some("</s>")], "what the class has");

    let config = json!({"chat_template": "{{ additional_special_tokens | join }}{{ image_token }}",
        "additional_special_tokens": ["<x>", {"content": "<y>"}], "extra_special_tokens": {"image_token": "<i>"}});
    assert_eq!(template(config).unwrap().render(&hello(), true).unwrap(), "<x><y><i>");
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let directory = std::env::temp_dir().join(format!("phi35-model-templates-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("additional_chat_templates")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    let rendered = || ChatTemplate::read(&directory).unwrap().render(&hello(), true).unwrap();
    write("tokenizer_config.json", "\u{feff}{\"chat_template\": \"config{{ eos_token }}\"}");
    write("special_tokens_map.json", "{\"eos_token\": \"</s>\"}");
    assert_eq!(rendered(), "config</s>");
    write("additional_chat_templates/tool_use.jinja", "tools");
    assert_eq!(rendered(), "config</s>");
    write("additional_chat_templates/default.jinja", "additional");
    assert_eq!(rendered(), "additional");
    write("chat_template.jinja", "\u{feff}file{{ eos_token }}");
    assert_eq!(rendered(), "file</s>");
    std::fs::remove_dir_all(&directory).unwrap();
    let other = template(json!({"chat_template": [{"name": "rag", "template": ""}]})).unwrap_err().to_string();
    assert!(other.contains("`default`") && other.contains("`rag`"), "{other}");
}

#[test]
fn a_dropped_system_message_is_noticed() {
    let drops = |source: &str| template(json!({"chat_template": source})).unwrap().drops_system("Be brief.");
    assert!(drops("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"));
    assert!(!drops("{% for m in messages %}{{ m.content }}{% endfor %}"));
    assert!(!drops("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"), "told otherwise");
}

#[test]
fn the_end_of_a_turn_is_the_special_token_after_an_answer() {
    let token = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let added =
        [token(1, "<|end|>", true), token(2, "<|user|>", true), token(3, "<|eos|>", true), token(4, "<plain>", false)];
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
    let tokenizer = Tokenizer::from_json(tokenizer.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap();
    let end = |message: &str, end: &str| {
        let source =
            format!("{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}{message}{{% endfor %}}{end}");
        template(json!({"chat_template": source})).unwrap().end_of_turn(&tokenizer)
    };
    assert_eq!(end("<|end|>\n", ""), Some(1));
    assert_eq!(end(" <|end|>", "<|eos|>"), Some(1));
    assert_eq!(end("", "<|eos|>"), None, "after the last message alone");
    assert_eq!(end("", ""), None, "the next message's beginning");
    assert_eq!(end("<plain>", ""), None, "no special token");
    assert_eq!(end("{{ raise_exception('no') }}", ""), None);
}
