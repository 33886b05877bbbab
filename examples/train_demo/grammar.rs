//! A grammar that writes small stories, and tells whether a sentence is one of its own.

use rand_chacha::rand_core::RngCore;
use std::collections::BTreeMap;

/// The rules of `grammar.txt`, whose head explains the notation.
pub struct Grammar {
    symbols: BTreeMap<String, Symbol>,
    /// Variable to the symbol it stands for.
    variables: BTreeMap<String, String>,
}

#[derive(Default)]
struct Symbol {
    /// Names of the forms after the first.
    forms: Vec<String>,
    /// Alternatives; each in all forms.
    alternatives: Vec<Vec<Vec<Piece>>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Symbol(String),
    Variable { name: String, form: usize },
}

/// Which alternative each variable stands for.
pub type Bindings = BTreeMap<String, usize>;

impl Grammar {
    /// The grammar of the demo model.
    pub fn of_the_demo() -> Self {
        Self::parse(include_str!("grammar.txt")).expect("grammar.txt is well formed; a test reads it")
    }

    /// Reads rules.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules: Vec<String> = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            match rules.last_mut() {
                Some(rule) if line.starts_with(' ') => rule.push_str(&format!(" {}", line.trim())),
                _ => rules.push(line.to_owned()),
            }
        }
        let split = |rule: &String| match rule.split_once('=') {
            Some((head, body)) => Ok((head.trim().to_owned(), body.trim().to_owned())),
            None => Err(format!("`{rule}`: expected `name = ...`")),
        };
        let rules: Vec<(String, String)> = rules.iter().map(split).collect::<Result<_, _>>()?;

        let (variables, symbols): (Vec<_>, Vec<_>) = rules.into_iter().partition(|(head, _)| head.starts_with('$'));
        let variables = variables.into_iter().map(|(head, body)| (head[1..].to_owned(), body)).collect();
        let heads = |(head, body): (String, String)| match head.trim_end_matches(')').split_once('(') {
            Some((name, forms)) => (name.to_owned(), forms.split_whitespace().map(str::to_owned).collect(), body),
            None => (head, Vec::new(), body),
        };
        let symbols: Vec<(String, Vec<String>, String)> = symbols.into_iter().map(heads).collect();

        let mut grammar = Self { symbols: BTreeMap::new(), variables };
        for (name, forms, _) in &symbols {
            grammar.symbols.insert(name.clone(), Symbol { forms: forms.clone(), alternatives: Vec::new() });
        }
        for (name, forms, body) in symbols {
            let alternative = |text: &str| -> Result<Vec<Vec<Piece>>, String> {
                let each: Vec<&str> = if forms.is_empty() { vec![text] } else { text.split('/').collect() };
                if each.len() != forms.len() + 1 {
                    return Err(format!("`{name}`: `{text}` has {} forms: expected {}", each.len(), forms.len() + 1));
                }
                each.into_iter().map(|form| grammar.pieces(form)).collect()
            };
            let alternatives = body.split('|').map(|text| alternative(text.trim())).collect::<Result<_, _>>()?;
            grammar.symbols.get_mut(&name).expect("inserted above").alternatives = alternatives;
        }
        Ok(grammar)
    }

    fn pieces(&self, text: &str) -> Result<Vec<Piece>, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['<', '$']) {
            if at > 0 {
                pieces.push(Piece::Text(rest[..at].to_owned()));
            }
            let tail = &rest[at + 1..];
            if rest.as_bytes()[at] == b'<' {
                let (name, after) = tail.split_once('>').ok_or_else(|| format!("`{text}`: `<` without `>`"))?;
                if !self.symbols.contains_key(name) {
                    return Err(format!("`{text}`: no rule for `<{name}>`"));
                }
                pieces.push(Piece::Symbol(name.to_owned()));
                rest = after;
            } else {
                let word = |text: &str| text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
                let (name, after) = tail.split_at(word(tail));
                let symbol = self.variables.get(name).ok_or_else(|| format!("`{text}`: no variable `${name}`"))?;
                let forms = &self.symbols.get(symbol).ok_or_else(|| format!("`${name}`: no rule `{symbol}`"))?.forms;
                // `$hero.his` is a form; the point after `$hero.` ends a sentence.
                let form = after.strip_prefix('.').map(|form| &form[..word(form)]).unwrap_or_default();
                let found = forms.iter().position(|known| known == form);
                pieces.push(Piece::Variable { name: name.to_owned(), form: found.map_or(0, |i| i + 1) });
                rest = if found.is_some() { &after[1 + form.len()..] } else { after };
            }
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(pieces)
    }

    /// Whether there is a rule for the symbol.
    pub fn has(&self, symbol: &str) -> bool {
        self.symbols.contains_key(symbol)
    }

    /// What a variable can be, in its first form.
    pub fn words(&self, variable: &str) -> impl Iterator<Item = &str> {
        self.symbols[&self.variables[variable]].alternatives.iter().map(|forms| match &forms[0][..] {
            [Piece::Text(word)] => word.as_str(),
            pieces => panic!("expected a plain word for a variable, found {pieces:?}"),
        })
    }

    /// The word that a variable is bound to.
    pub fn word(&self, variable: &str, chosen: usize) -> &str {
        self.words(variable).nth(chosen).expect("variables are bound to alternatives")
    }

    /// A random text of the symbol. Variables already bound stay; others are bound, each to what no other one is.
    ///
    /// # Panics
    /// If there is no rule for the symbol.
    pub fn write(&self, symbol: &str, bindings: &mut Bindings, random: &mut impl RngCore) -> String {
        let mut text = String::new();
        self.write_into(symbol, bindings, random, &mut text);
        text
    }

    fn write_into(&self, symbol: &str, bindings: &mut Bindings, random: &mut impl RngCore, text: &mut String) {
        let alternatives = &self.symbols[symbol].alternatives;
        // `<trait> and <trait>` shall not be twice the same.
        let mut written: Vec<String> = Vec::new();
        for piece in &alternatives[random.next_u32() as usize % alternatives.len()][0] {
            match piece {
                Piece::Text(words) => text.push_str(words),
                Piece::Symbol(name) => {
                    let mut part = self.write(name, bindings, random);
                    while written.contains(&part) {
                        part = self.write(name, bindings, random);
                    }
                    text.push_str(&part);
                    written.push(part);
                }
                Piece::Variable { name, form } => {
                    let chosen = self.bind(name, bindings, random);
                    self.write_pieces(&self.symbols[&self.variables[name]].alternatives[chosen][*form], text);
                }
            }
        }
    }

    /// Alternatives that variables stand for are plain words.
    fn write_pieces(&self, pieces: &[Piece], text: &mut String) {
        for piece in pieces {
            if let Piece::Text(words) = piece {
                text.push_str(words);
            }
        }
    }

    fn bind(&self, variable: &str, bindings: &mut Bindings, random: &mut impl RngCore) -> usize {
        if let Some(&chosen) = bindings.get(variable) {
            return chosen;
        }
        let symbol = &self.variables[variable];
        let taken: Vec<usize> =
            bindings.iter().filter(|(v, _)| self.variables[*v] == *symbol).map(|(_, &i)| i).collect();
        let free: Vec<usize> = (0..self.symbols[symbol].alternatives.len()).filter(|i| !taken.contains(i)).collect();
        let chosen = free[random.next_u32() as usize % free.len()];
        bindings.insert(variable.to_owned(), chosen);
        chosen
    }

    /// Whether the symbol can expand to exactly this text, each variable to one alternative throughout.
    pub fn accepts(&self, symbol: &str, text: &str) -> bool {
        let start = [Piece::Symbol(symbol.to_owned())];
        self.matches(&Rest { pieces: &start, then: None }, text, &Bindings::new())
    }

    fn matches(&self, rest: &Rest<'_>, text: &str, bindings: &Bindings) -> bool {
        let Some((piece, pieces)) = rest.pieces.split_first() else {
            return rest.then.map_or(text.is_empty(), |then| self.matches(then, text, bindings));
        };
        let after = Rest { pieces, then: rest.then };
        match piece {
            Piece::Text(words) => text.strip_prefix(words).is_some_and(|text| self.matches(&after, text, bindings)),
            Piece::Symbol(name) => self.symbols[name]
                .alternatives
                .iter()
                .any(|forms| self.matches(&Rest { pieces: &forms[0], then: Some(&after) }, text, bindings)),
            Piece::Variable { name, form } => {
                let alternatives = &self.symbols[&self.variables[name]].alternatives;
                let possible = match bindings.get(name) {
                    Some(&bound) => bound..bound + 1,
                    None => 0..alternatives.len(),
                };
                possible.into_iter().any(|i| {
                    let mut bindings = bindings.clone();
                    bindings.insert(name.clone(), i);
                    self.matches(&Rest { pieces: &alternatives[i][*form], then: Some(&after) }, text, &bindings)
                })
            }
        }
    }
}

/// What must still match: these pieces, and then the rest of those around them.
struct Rest<'a> {
    pieces: &'a [Piece],
    then: Option<&'a Rest<'a>>,
}

/// The sentences of a text: each ends with `.`, `!` or `?`, perhaps in quotes, before a blank or the end. What follows
/// the last whole sentence is left out.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    for (at, c) in text.char_indices() {
        let mut end = at + c.len_utf8();
        if !matches!(c, '.' | '!' | '?') {
            continue;
        }
        if text[end..].starts_with('"') {
            end += 1;
        }
        if text[end..].chars().next().is_none_or(char::is_whitespace) {
            found.push(text[start..end].trim());
            start = end;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    #[test]
    fn every_sentence_written_is_accepted_and_none_with_a_word_changed() {
        let grammar = Grammar::of_the_demo();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..300 {
            let story = grammar.write("story", &mut Bindings::new(), &mut random);
            let parts = sentences(&story);
            assert!((7..=10).contains(&parts.len()), "{story}");
            assert_eq!(parts.join(" "), story);
            for sentence in parts {
                assert!(grammar.accepts("sentence", sentence), "{sentence}");
                let words: Vec<&str> = sentence.split(' ').collect();
                let wrong = random.next_u32() as usize % (words.len() - 1);
                let swapped = [&words[..wrong], &[words[wrong + 1], words[wrong]], &words[wrong + 2..]].concat();
                let missing = [&words[..wrong], &words[wrong + 1..]].concat();
                assert!(!grammar.accepts("sentence", &missing.join(" ")), "{missing:?}");
                assert!(swapped == words || !grammar.accepts("sentence", &swapped.join(" ")), "{swapped:?}");
            }
        }
    }

    #[test]
    fn variables_keep_their_value_and_differ() {
        let grammar =
            Grammar::parse("name(he) = A/x | B/y\n$one = name\n$two = name\npair = $one $two $one.he $one.").unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..20 {
            let text = grammar.write("pair", &mut Bindings::new(), &mut random);
            assert!(text == "A B x A." || text == "B A y B.", "{text}");
        }
        assert!(grammar.accepts("pair", "A B x A."));
        for wrong in ["A B y A.", "A B x B.", "A B x A", "A B x A.."] {
            assert!(!grammar.accepts("pair", wrong), "{wrong}");
        }
    }

    #[test]
    fn a_rule_that_names_nothing_is_refused() {
        assert!(Grammar::parse("a = <b>").is_err());
        assert!(Grammar::parse("a = $b").is_err());
        assert!(Grammar::parse("a(x) = b").is_err());
        assert!(Grammar::parse("a").is_err());
    }

    #[test]
    fn sentences_end_at_points_also_in_quotes() {
        assert_eq!(sentences("A b. C asked, \"D e?\" F! G"), ["A b.", "C asked, \"D e?\"", "F!"]);
    }
}
