//! Texts of others: files and standard input, in UTF-8, perhaps with the byte order mark that Windows writes.

use anyhow::{Context, Result, anyhow};
use std::path::Path;

/// What the three bytes at the beginning of a text of Windows are, which are no part of it.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The bytes after the mark, if there is one.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(MARK).unwrap_or(bytes)
}

/// A text as it is; `name` is what errors call it, with the line.
pub fn utf8(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        anyhow!("{name}, line {line}: expected UTF-8, found other bytes")
    })
}

/// Reads a file that must be UTF-8, without its mark.
pub fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    utf8(without_mark(&bytes).to_vec(), &file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::{read, utf8};

    #[test]
    fn bytes_that_are_no_text_are_told_by_line() {
        assert_eq!(utf8("aé".into(), "f").unwrap(), "aé");
        let message = utf8(b"a\nb\n\xff\n".to_vec(), "f.txt").unwrap_err().to_string();
        assert_eq!(message, "f.txt, line 3: expected UTF-8, found other bytes");
    }

    #[test]
    fn one_mark_is_no_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("text");
        for (bytes, text) in
            [(&b"\xef\xbb\xbfa\n"[..], "a\n"), (b"\xef\xbb\xbf\xef\xbb\xbfa", "\u{feff}a"), (b"a", "a")]
        {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(read(&file).unwrap(), text);
        }
    }
}
