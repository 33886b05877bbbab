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
