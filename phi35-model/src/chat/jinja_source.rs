//! Jinja templates rewritten for `minijinja`, which lacks two things that Jinja2 with transformers' extensions has: the tag
//! `generation`, and the operator `%` on strings. Line ends become those of Unix, as Jinja2 reads them.

use std::ops::Range;

/// The filter that `%` becomes: it formats a string, and takes the remainder of numbers.
pub(super) const PERCENT: &str = "percent_operator";

/// The same template for `minijinja`.
pub(super) fn rewrite(template: &str) -> String {
    let template = template.strip_prefix('\u{feff}').unwrap_or(template);
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut rewritten = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(start) = ["{{", "{%", "{#"].iter().filter_map(|opening| rest.find(opening)).min() {
        let (opening, tail) = rest[start..].split_at(2);
        rewritten.push_str(&rest[..start + 2]);
        if opening == "{#" {
            let end = tail.find("#}").map_or(tail.len(), |end| end + 2);
            rewritten.push_str(&tail[..end]);
            rest = &tail[end..];
            continue;
        }
        let code = Code::read(tail, if opening == "{{" { "}}" } else { "%}" });
        let tag = if opening == "{%" { code.tag() } else { "" };
        match tag {
            // Marks an answer for training. What is set inside stays inside.
            "generation" | "endgeneration" => rewritten.push_str(&code.text.replacen("generation", "with", 1)),
            _ => rewritten.push_str(&code.with_percent_as_filter()),
        }
        rest = &tail[code.text.len()..];
        if tag == "raw" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            rewritten.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    rewritten + rest
}

/// What stands between `{{` or `{%` and its end, which is part of it.
struct Code<'t> {
    text: &'t str,
    /// Where tokens stand; white space and the end are none.
    tokens: Vec<Range<usize>>,
}

/// Whether an operand can end here.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// An operator that binds as tightly as `%`, or a sign: `%` is left as it is, for numbers.
    Tight,
    Other,
}

impl<'t> Code<'t> {
    fn read(text: &'t str, end: &str) -> Self {
        let mut tokens = Vec::new();
        let (mut at, mut depth) = (0, 0usize);
        while at < text.len() {
            let rest = &text[at..];
            if depth == 0 && rest.starts_with(end) {
                return Self { text: &text[..at + end.len()], tokens };
            }
            let length = token_length(rest);
            match &rest[..length] {
                token if is_opening(token) => depth += 1,
                token if is_closing(token) => depth = depth.saturating_sub(1),
                _ => (),
            }
            if !rest.starts_with(char::is_whitespace) {
                tokens.push(at..at + length);
            }
            at += length;
        }
        Self { text, tokens }
    }

    /// The word after `{%`, and after a sign that trims.
    fn tag(&self) -> &'t str {
        let mut tokens = self.tokens.iter().map(|token| &self.text[token.clone()]);
        tokens.find(|token| !["-", "+"].contains(token)).unwrap_or_default()
    }

    /// The code with `a|percent_operator(b)` for `a % b`: filters bind tighter, and are called with any values.
    fn with_percent_as_filter(&self) -> String {
        let mut written = String::new();
        let mut copied = 0;
        // What stands before the operand at hand: in each open bracket, and outside of all.
        let mut before = vec![Before::Other];
        // Depths of the brackets in which the right side of a `%` is open, and whether it has begun.
        let mut right_sides: Vec<(usize, bool)> = Vec::new();
        let mut last_end = 0;
        let mut after_operand = false;
        for range in &self.tokens {
            let token = &self.text[range.clone()];
            let is_operator = is_operator(token);
            let depth = before.len();
            while right_sides
                .last()
                .is_some_and(|&(d, begun)| d == depth && begun && (is_operator || is_closing(token)))
            {
                right_sides.pop();
                written.push_str(&self.text[copied..last_end]);
                written.push(')');
                copied = last_end;
            }
            let innermost = before.last_mut().expect("closing brackets leave one");
            if token == "%" && after_operand && *innermost == Before::Other {
                written.push_str(&self.text[copied..range.start]);
                written.push_str(&format!("|{PERCENT}("));
                copied = range.end;
                right_sides.push((depth, false));
                after_operand = false;
            } else if is_operator {
                // The first of a tag trims, or does not.
                let is_sign = ["-", "+"].contains(&token) && !after_operand && range.start > 0;
                let tight = is_sign || ["*", "/", "//", "%", "**"].contains(&token);
                // A sign of the right side is part of it.
                if right_sides.last() != Some(&(depth, false)) {
                    *innermost = if tight { Before::Tight } else { Before::Other };
                }
                after_operand = false;
            } else {
                if let Some((_, begun)) = right_sides.last_mut() {
                    *begun = true;
                }
                if is_opening(token) {
                    before.push(Before::Other);
                } else if is_closing(token) && before.len() > 1 {
                    before.pop();
                }
                after_operand = !is_opening(token);
            }
            last_end = range.end;
        }
        for _ in right_sides {
            written.push_str(&self.text[copied..last_end]);
            written.push(')');
            copied = last_end;
        }
        written + &self.text[copied..]
    }
}

fn is_opening(token: &str) -> bool {
    ["(", "[", "{"].contains(&token)
}

fn is_closing(token: &str) -> bool {
    [")", "]", "}"].contains(&token)
}

/// Whether an operand ends before this.
fn is_operator(token: &str) -> bool {
    const WORDS: [&str; 7] = ["and", "or", "not", "in", "is", "if", "else"];
    const SIGNS: [&str; 17] =
        ["+", "-", "*", "/", "//", "**", "%", "~", "=", "==", "!=", "<", ">", "<=", ">=", ",", ":"];
    WORDS.contains(&token) || SIGNS.contains(&token)
}

/// Bytes of the token, or of the white space, that a text begins with.
fn token_length(text: &str) -> usize {
    let first = text.chars().next().expect("not at the end");
    let run = |belongs: fn(char) -> bool| text.find(|c| !belongs(c)).unwrap_or(text.len());
    match first {
        '\'' | '"' => {
            let mut characters = text.char_indices().skip(1);
            while let Some((at, c)) = characters.next() {
                match c {
                    '\\' => _ = characters.next(),
                    c if c == first => return at + 1,
                    _ => (),
                }
            }
            text.len()
        }
        c if c.is_whitespace() => run(char::is_whitespace),
        c if c.is_alphanumeric() || c == '_' => run(|c| c.is_alphanumeric() || c == '_'),
        _ if ["//", "**", "==", "!=", "<=", ">="].iter().any(|operator| text.starts_with(operator)) => 2,
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn what_minijinja_reads_is_left_as_it_is() {
        for template in [
            "a % b {# a % b #} {% raw %}{{ a % b }}{% generation %}{% endraw %}",
            "{{ '%s' }} {{ 'a % b' }} {{ \"}} % {%\" }} {{ '\\'%' }}",
            "{%- for m in messages -%}{{- m['content'] | trim -}}{%- endfor -%}",
            "{{ 2 * 7 % 3 }} {{ -7 % 3 }}",
            "{{ unclosed",
            "{% %}",
        ] {
            assert_eq!(rewrite(template), template);
        }
    }

    #[test]
    fn percent_becomes_a_filter_of_its_left_side() {
        for (template, rewritten) in [
            ("{{ '%s' % a.b }}", "{{ '%s' |percent_operator( a.b) }}"),
            ("{{ ('%s') % f(a, b)[0] ~ c }}", "{{ ('%s') |percent_operator( f(a, b)[0]) ~ c }}"),
            ("{{- a % (b, c) -}}", "{{- a |percent_operator( (b, c)) -}}"),
            ("{{ a % b % c }}", "{{ a |percent_operator( b) |percent_operator( c) }}"),
            ("{{ [a % b, {'x': c % -d}] }}", "{{ [a |percent_operator( b), {'x': c |percent_operator( -d)}] }}"),
            (
                "{% if i%2 == 0 and (j % (k % 2)) %}",
                "{% if i|percent_operator(2) == 0 and (j |percent_operator( (k |percent_operator( 2)))) %}",
            ),
            ("{{ a + b % c|d }}", "{{ a + b |percent_operator( c|d) }}"),
        ] {
            assert_eq!(rewrite(template), rewritten);
        }
    }

    #[test]
    fn marks_of_answers_and_line_ends_of_windows_are_rewritten() {
        let template = "\u{feff}a\r\n{%- generation -%}\r{{ generation }}{% endgeneration %}";
        assert_eq!(rewrite(template), "a\n{%- with -%}\n{{ generation }}{% endwith %}");
    }
}
