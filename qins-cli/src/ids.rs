//! Token ids on the command line, in files and on standard input.

use crate::text_file;
use anyhow::{Context, Result};
use std::path::Path;

/// Ids separated by commas, blanks or both, perhaps in the brackets of a JSON array.
pub fn parse(text: &str) -> Result<Vec<u32>> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inner);
    inner
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().with_context(|| format!("`{word}` is no token id: expected a number from 0 to 4294967295"))
        })
        .collect()
}

/// A JSON array of ids.
pub fn read(file: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    let text = text_file::without_mark(&text);
    serde_json::from_slice(text).with_context(|| format!("{}: expected a JSON array of token ids", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_usual_separator_will_do() {
        for text in ["1,2,3", "1 2 3", "[1, 2, 3]", " 1\n2,\t3 \n"] {
            assert_eq!(parse(text).unwrap(), [1, 2, 3]);
        }
        assert!(parse("").unwrap().is_empty());
        assert!(parse("1,x").unwrap_err().to_string().contains("`x`"));
        assert!(parse("-1").is_err() && parse("4294967296").is_err());
    }
}
