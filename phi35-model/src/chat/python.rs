//! What templates use of Python's strings and lists and `minijinja` lacks.

use minijinja::{
    Error, ErrorKind, State, Value,
    formatting::{FormatStyle, format},
    value::{Kwargs, Tuple, ValueKind},
};

/// Methods of strings, lists and objects that `minijinja` itself does not have.
pub(super) fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), name, arguments),
        ValueKind::Seq if name == "index" => {
            let [item] = bind(name, arguments, ["item"], 1)?;
            let item = item.expect("required");
            let found = value.try_iter()?.position(|other| other == item);
            found.map(Value::from).map(Some).ok_or_else(|| wrong(format!("{item} is not in the list")))
        }
        ValueKind::Seq | ValueKind::Map if name == "copy" => Ok(Some(value.clone())),
        _ => Ok(None),
    };
    match own? {
        Some(found) => Ok(found),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// `left % right`: a formatted string, or the remainder of numbers, with the sign of the right one as in Python.
pub(super) fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let arguments = match right.downcast_object_ref::<Tuple>() {
            Some(_) => right.try_iter()?.collect(),
            None => vec![right.clone()],
        };
        return format(FormatStyle::Printf, text, &arguments).map(Value::from);
    }
    if let (Ok(left), Ok(right)) = (i64::try_from(left.clone()), i64::try_from(right.clone())) {
        let remainder = left.checked_rem(right).ok_or_else(|| wrong("% by zero".to_owned()))?;
        return Ok(Value::from(if remainder != 0 && (remainder < 0) != (right < 0) {
            remainder + right
        } else {
            remainder
        }));
    }
    match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
        (Ok(left), Ok(right)) if right != 0.0 => Ok(Value::from(left - right * (left / right).floor())),
        _ => Err(wrong(format!("no remainder of {} by {}", left.kind(), right.kind()))),
    }
}

fn wrong(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Arguments by position or by name; `None` where one was left out or is none.
fn bind<const N: usize>(
    method: &str,
    arguments: &[Value],
    names: [&str; N],
    required: usize,
) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = match arguments.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (arguments, None),
    };
    if positional.len() > N {
        return Err(Error::new(ErrorKind::TooManyArguments, format!("{method} takes {N} arguments")));
    }
    let mut bound = [const { None }; N];
    for (i, name) in names.into_iter().enumerate() {
        let value = match positional.get(i) {
            Some(value) => Some(value.clone()),
            None => named.as_ref().map(|named| named.get::<Option<Value>>(name)).transpose()?.flatten(),
        };
        bound[i] = value.filter(|value| !value.is_none() && !value.is_undefined());
        if i < required && bound[i].is_none() {
            return Err(Error::new(ErrorKind::MissingArgument, format!("{method} needs `{name}`")));
        }
    }
    if let Some(named) = named {
        named.assert_all_used()?;
    }
    Ok(bound)
}

fn text(value: &Value) -> Result<&str, Error> {
    value.as_str().ok_or_else(|| wrong(format!("expected a string, found {}", value.kind())))
}

fn integer(value: Option<&Value>, default: i64) -> Result<i64, Error> {
    value.map_or(Ok(default), |value| i64::try_from(value.clone()))
}

/// White space of Python's `str`: four separators more than Unicode's.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn string_method(s: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let value: Value = match name {
        "split" | "rsplit" => {
            let [separator, limit] = bind(name, arguments, ["sep", "maxsplit"], 0)?;
            let limit = usize::try_from(integer(limit.as_ref(), -1)?).unwrap_or(usize::MAX);
            let separator = separator.as_ref().map(text).transpose()?;
            if separator == Some("") {
                return Err(wrong("empty separator".to_owned()));
            }
            split(s, separator, limit, name == "rsplit").into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let [separator] = bind(name, arguments, ["sep"], 1)?;
            let separator = text(separator.as_ref().expect("required"))?;
            let parts = match (name, s.split_once(separator), s.rsplit_once(separator)) {
                ("partition", Some((head, tail)), _) | ("rpartition", _, Some((head, tail))) => [head, separator, tail],
                ("partition", ..) => [s, "", ""],
                _ => ["", "", s],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" | "removesuffix" => {
            let [part] = bind(name, arguments, ["part"], 1)?;
            let part = text(part.as_ref().expect("required"))?;
            let rest = if name == "removeprefix" { s.strip_prefix(part) } else { s.strip_suffix(part) };
            rest.unwrap_or(s).into()
        }
        "find" | "index" | "rfind" | "rindex" | "count" => {
            let [part, start, end] = bind(name, arguments, ["sub", "start", "end"], 1)?;
            let part = text(part.as_ref().expect("required"))?;
            let (before, s) = slice(s, start.as_ref(), end.as_ref())?;
            if name == "count" {
                return Ok(Some(s.map_or(0, |s| s.matches(part).count()).into()));
            }
            let found = s.and_then(|s| {
                let at = if name.starts_with('r') { s.rfind(part) } else { s.find(part) }?;
                Some(before + s[..at].chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if name.ends_with("find") => (-1).into(),
                None => return Err(wrong("substring not found".to_owned())),
            }
        }
        "startswith" | "endswith" => {
            let [parts, start, end] = bind(name, arguments, ["part", "start", "end"], 1)?;
            let parts = parts.expect("required");
            let parts = if parts.as_str().is_some() { vec![parts] } else { parts.try_iter()?.collect() };
            let (_, s) = slice(s, start.as_ref(), end.as_ref())?;
            let matches = |part: &str| {
                s.is_some_and(|s| if name == "startswith" { s.starts_with(part) } else { s.ends_with(part) })
            };
            let parts: Vec<&str> = parts.iter().map(text).collect::<Result<_, _>>()?;
            parts.into_iter().any(matches).into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let [characters] = bind(name, arguments, ["chars"], 0)?;
            let characters = characters.as_ref().map(text).transpose()?;
            let belongs = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
            match name {
                "strip" => s.trim_matches(belongs),
                "lstrip" => s.trim_start_matches(belongs),
                _ => s.trim_end_matches(belongs),
            }
            .into()
        }
        "splitlines" => {
            let [keep] = bind(name, arguments, ["keepends"], 0)?;
            lines(s, keep.is_some_and(|keep| keep.is_true())).into_iter().map(Value::from).collect()
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let [width, fill] = bind(name, arguments, ["width", "fillchar"], 1)?;
            let fill = fill.as_ref().map(text).transpose()?.unwrap_or(if name == "zfill" { "0" } else { " " });
            let width = usize::try_from(integer(width.as_ref(), 0)?).unwrap_or(0).min(1 << 20);
            let missing = width.saturating_sub(s.chars().count());
            let (sign, s) = match s.strip_prefix(['+', '-']) {
                Some(rest) if name == "zfill" => s.split_at(s.len() - rest.len()),
                _ => ("", s),
            };
            let left = match name {
                "ljust" => 0,
                // As CPython rounds.
                "center" => missing / 2 + (missing & width & 1),
                _ => missing,
            };
            format!("{sign}{}{s}{}", fill.repeat(left), fill.repeat(missing - left)).into()
        }
        "title" => {
            let mut in_word = false;
            let letter = |c: char| {
                let lower = std::mem::replace(&mut in_word, c.is_alphabetic());
                if lower { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() }
            };
            s.chars().map(letter).collect::<String>().into()
        }
        "swapcase" => {
            let letter = |c: char| {
                if c.is_uppercase() { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() }
            };
            s.chars().map(letter).collect::<String>().into()
        }
        "casefold" => s.to_lowercase().into(),
        "isdecimal" => (!s.is_empty() && s.chars().all(|c| c.is_ascii_digit())).into(),
        "isspace" => (!s.is_empty() && s.chars().all(is_space)).into(),
        "expandtabs" => {
            let [size] = bind(name, arguments, ["tabsize"], 0)?;
            let size = usize::try_from(integer(size.as_ref(), 8)?).unwrap_or(0).min(1 << 10);
            let (mut expanded, mut column) = (String::new(), 0);
            for c in s.chars() {
                if c == '\t' {
                    let blanks = if size == 0 { 0 } else { size - column % size };
                    expanded.extend(std::iter::repeat_n(' ', blanks));
                    column += blanks;
                } else {
                    expanded.push(c);
                    column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
                }
            }
            expanded.into()
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// Parts of a text; without a separator, words.
fn split(s: &str, separator: Option<&str>, limit: usize, from_right: bool) -> Vec<String> {
    let most = limit.saturating_add(1);
    let mut parts: Vec<&str> = match separator {
        Some(separator) if from_right => s.rsplitn(most, separator).collect(),
        Some(separator) => s.splitn(most, separator).collect(),
        None => {
            let trim =
                |s| if from_right { str::trim_end_matches(s, is_space) } else { str::trim_start_matches(s, is_space) };
            let (mut words, mut rest) = (Vec::new(), trim(s));
            while !rest.is_empty() && words.len() < limit {
                let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let (head, tail) = match cut {
                    // Both keep a blank at the cut: trimmed where more is split, or it ends the word.
                    Some(at) if from_right => {
                        let blank = rest[at..].chars().next().map_or(0, char::len_utf8);
                        (&rest[at + blank..], &rest[..at])
                    }
                    Some(at) => rest.split_at(at),
                    None => (rest, ""),
                };
                words.push(head);
                rest = trim(tail);
            }
            // What was not split any more keeps the blanks at its far end, as in CPython.
            words.extend(Some(rest).filter(|rest| !rest.is_empty()));
            words
        }
    };
    if from_right {
        parts.reverse();
    }
    parts.into_iter().map(str::to_owned).collect()
}

/// `s[start:end]`, and how many characters come before it; `None` where it begins beyond the end.
fn slice<'s>(s: &'s str, start: Option<&Value>, end: Option<&Value>) -> Result<(usize, Option<&'s str>), Error> {
    let length = s.chars().count();
    let place = |index: i64| match index < 0 {
        true => length.saturating_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX)),
        false => usize::try_from(index).unwrap_or(usize::MAX),
    };
    let (start, end) = (place(integer(start, 0)?), place(integer(end, i64::MAX)?).min(length));
    if start > end {
        return Ok((start, None));
    }
    let byte = |index: usize| s.char_indices().nth(index).map_or(s.len(), |(at, _)| at);
    Ok((start, Some(&s[byte(start)..byte(end)])))
}

/// Lines as Python's `splitlines` cuts them, with their ends or without.
fn lines(s: &str, keep_ends: bool) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (Vec::new(), s);
    while let Some(at) = rest.find(ENDS) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keep_ends { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    lines.extend(Some(rest).filter(|rest| !rest.is_empty()));
    lines
}
