//! Multiple-choice questions about stories of the grammar: which word a sentence must have, as those before it tell.

use crate::grammar::{Bindings, Grammar, sentences};
use rand_chacha::{ChaCha8Rng, rand_core::RngCore};
use serde_json::{Value, json};

/// Choices of a question.
const CHOICES: usize = 4;

/// A question in the form that `qins eval tasks` reads: a story up to a sentence, and that sentence with the name, animal,
/// thing, place or quality of the story, or with another that the story does not have.
pub fn question(grammar: &Grammar, random: &mut ChaCha8Rng) -> Value {
    loop {
        let mut bindings = Bindings::new();
        let story = grammar.write("story", &mut bindings, random);
        let sentences = sentences(&story);
        let mut asked = Vec::new();
        for variable in bindings.keys() {
            let word = grammar.word(variable, bindings[variable]);
            for at in 1..sentences.len() {
                if has(sentences[at], word) && sentences[..at].iter().any(|before| has(before, word)) {
                    asked.push((at, variable, word));
                }
            }
        }
        if asked.is_empty() {
            continue;
        }
        let (at, variable, word) = asked[random.next_u32() as usize % asked.len()];
        let mut others: Vec<&str> = grammar.words(variable).filter(|other| !has(&story, other)).collect();
        if others.len() < CHOICES - 1 {
            continue;
        }
        let answer = random.next_u32() as usize % CHOICES;
        let choices: Vec<String> = (0..CHOICES)
            .map(|i| match i {
                i if i == answer => sentences[at].to_owned(),
                _ => {
                    let other = others.swap_remove(random.next_u32() as usize % others.len());
                    replaced(sentences[at], word, other)
                }
            })
            .collect();
        return json!({ "context": sentences[..at].join(" "), "choices": choices, "answer": answer });
    }
}

/// Words of a text, and what lies between them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(|c: char| !c.is_alphabetic()).flat_map(|part| {
        let end = part.trim_end_matches(|c: char| !c.is_alphabetic()).len();
        [&part[..end], &part[end..]]
    })
}

fn has(text: &str, word: &str) -> bool {
    words(text).any(|found| found == word)
}

fn replaced(text: &str, word: &str, other: &str) -> String {
    words(text).map(|found| if found == word { other } else { found }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn choices_are_sentences_of_the_grammar_and_only_the_right_one_names_what_was_told() {
        let grammar = Grammar::of_the_demo();
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut answers = [0; CHOICES];
        for _ in 0..200 {
            let question = question(&grammar, &mut random);
            let context = question["context"].as_str().unwrap();
            let choices: Vec<&str> =
                question["choices"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
            let answer = question["answer"].as_u64().unwrap() as usize;
            answers[answer] += 1;
            assert_eq!(choices.len(), CHOICES);
            for (i, choice) in choices.iter().enumerate().filter(|(i, _)| *i != answer) {
                let changed = words(choice).zip(words(choices[answer])).find(|(a, b)| a != b).unwrap();
                assert!(has(context, changed.1) && !has(context, changed.0), "{i}: {question}");
            }
            assert!(grammar.accepts("sentence", choices[answer]), "{question}");
        }
        assert!(answers.iter().all(|&n| n > 20), "{answers:?}");
    }
}
