//! The training text: stories, and conversations about stories.

use crate::grammar::{Bindings, Grammar};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// One text that the model learns from beginning to end.
pub enum Document {
    /// Begins with the token that begins a text.
    Stories(String),
    /// As the chat template writes it.
    Conversation(String),
}

impl Document {
    /// Special tokens included.
    pub fn text(&self) -> &str {
        match self {
            Self::Stories(text) | Self::Conversation(text) => text,
        }
    }
}

/// Ends every document.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// As in Phi-3.5's `tokenizer_config.json`.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if message['role'] == 'system' %}\
    {{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}\
    {{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}\
    {{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}";

/// Words that the model should not understand.
const STRANGE: &str = "the what is of capital France how many planets are there why sky can you write code in Python \
    please explain quantum physics who was president 42 plus 17 equals solve this equation for me my computer does not \
    work where do I buy shoes it rains today weather tomorrow price stock market football game music movie recipe \
    translate into German English summer holiday phone number email asdf qwerty hmm ok yes no maybe never always big \
    think about life death love money time water fire earth wind some any all none good bad best worst new old 1 2 3";

/// So many documents, always the same for one seed.
pub fn documents(grammar: &Grammar, n: usize, seed: u64) -> Vec<Document> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let random = &mut random;
    (0..n)
        .map(|_| match random.next_u32() % 2 {
            0 => Document::Stories(stories(grammar, random)),
            _ => Document::Conversation(conversation(grammar, random)),
        })
        .collect()
}

/// One to three stories, a paragraph each.
fn stories(grammar: &Grammar, random: &mut ChaCha8Rng) -> String {
    let n = 1 + random.next_u32() % 3;
    let stories: Vec<String> = (0..n).map(|_| grammar.write("story", &mut Bindings::new(), random)).collect();
    stories.join("\n\n") + END_OF_TEXT
}

fn one_in(n: u32, random: &mut ChaCha8Rng) -> bool {
    random.next_u32().is_multiple_of(n)
}

fn any<'a>(choices: &[&'a str], random: &mut ChaCha8Rng) -> &'a str {
    choices[random.next_u32() as usize % choices.len()]
}

/// One to four turns: requests for stories, questions about the last one, small talk.
fn conversation(grammar: &Grammar, random: &mut ChaCha8Rng) -> String {
    let mut text = String::new();
    let mut story = Bindings::new();
    let mut always = Bindings::new();
    if one_in(5, random) {
        let symbol = any(&["system.any", "system.animal"], random);
        text.push_str(&format!("<|system|>\n{}<|end|>\n", grammar.write(symbol, &mut always, random)));
    }
    for _ in 0..1 + random.next_u32() % 4 {
        let told = story.contains_key("hero");
        let kind = match random.next_u32() % 10 {
            0 => any(&["hello", "thanks", "self"], random),
            1 => "unknown",
            2..=5 if told => any(&["who", "where", "what", "friend"], random),
            _ => any(&["story", "story", "animal", "animal", "hero", "thing", "two", "place"], random),
        };
        let answer = format!("answer.{kind}");
        let asks_for_a_story = !grammar.has(&answer) && kind != "unknown";
        if asks_for_a_story {
            // An animal that the system message asks for is only put aside by one that the user asks for.
            story = if kind == "story" { always.clone() } else { Bindings::new() };
        }
        let user = match kind {
            "unknown" => strange(random),
            kind => as_typed(grammar.write(&format!("user.{kind}"), &mut story, random), random),
        };
        let answer = if asks_for_a_story {
            grammar.write("story", &mut story, random)
        } else {
            grammar.write(&answer, &mut story, random)
        };
        text.push_str(&format!("<|user|>\n{user}<|end|>\n<|assistant|>\n{answer}<|end|>\n"));
    }
    text + END_OF_TEXT
}

/// Not everyone types capitals and points.
fn as_typed(text: String, random: &mut ChaCha8Rng) -> String {
    let text = if one_in(4, random) { text.to_lowercase() } else { text };
    if one_in(4, random) { text.trim_end_matches(['.', '?', '!']).to_owned() } else { text }
}

fn strange(random: &mut ChaCha8Rng) -> String {
    let words: Vec<&str> = STRANGE.split_whitespace().collect();
    let n = 1 + random.next_u32() % 8;
    let text: Vec<&str> = (0..n).map(|_| any(&words, random)).collect();
    text.join(" ") + any(&["", "?", ".", "!"], random)
}
