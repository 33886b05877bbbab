//! The filter `tojson` as transformers has it: Python's `json.dumps`, without escapes for HTML.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub(super) fn to_json(
    value: &Value,
    ascii: Option<bool>,
    indent: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => named.get::<Option<Value>>("indent")?,
    };
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => usize::try_from(indent).map(|blanks| " ".repeat(blanks.min(64))),
    });
    let indent = indent.transpose()?;
    let separators = match named.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(wrong("`separators` are two".to_owned())),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let ascii = ascii.or(named.get("ensure_ascii")?).unwrap_or(false);
    let sort_keys = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    let mut writer = Writer { json: String::new(), ascii, indent, separators, sort_keys };
    writer.value(value, 0)?;
    Ok(writer.json)
}

fn wrong(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"))
}

struct Writer {
    json: String,
    ascii: bool,
    indent: Option<String>,
    /// Between items, and between a key and its value.
    separators: (String, String),
    sort_keys: bool,
}

/// Deeper values would not come from a conversation.
const DEEPEST: usize = 200;

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(wrong("too deep".to_owned()));
        }
        match value.kind() {
            ValueKind::None => self.json.push_str("null"),
            ValueKind::Bool => self.json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.json.push_str(&value.to_string()),
            ValueKind::Number => self.json.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', depth, items, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let of_key = value.get_item(&key)?;
                    let key = match key.kind() {
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                        _ => key.to_string(),
                    };
                    entries.push((key, of_key));
                }
                if self.sort_keys {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.items('{', '}', depth, entries, |writer, (key, of_key)| {
                    writer.string(&key);
                    writer.json.push_str(&writer.separators.1.clone());
                    writer.value(&of_key, depth + 1)
                })?;
            }
            kind => return Err(wrong(format!("no JSON for {kind}"))),
        }
        Ok(())
    }

    fn items<T>(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: Vec<T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let is_empty = items.is_empty();
        self.json.push(open);
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.json.push_str(&self.separators.0.clone());
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.new_line(depth);
        }
        self.json.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.json.push('\n');
            self.json.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for c in text.chars() {
            match c {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\u{8}' => self.json.push_str("\\b"),
                '\u{c}' => self.json.push_str("\\f"),
                c if c < ' ' || self.ascii && !c.is_ascii() => {
                    let units = c.encode_utf16(&mut [0; 2]).to_vec();
                    units.iter().for_each(|unit| self.json.push_str(&format!("\\u{unit:04x}")));
                }
                c => self.json.push(c),
            }
        }
        self.json.push('"');
    }
}

/// As Python's `repr` writes a float.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("a number in this format has an exponent");
    match exponent.parse::<i32>().expect("the exponent is a number") {
        exponent if (-4..16).contains(&exponent) || number == 0.0 => format!("{number:?}"),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}
