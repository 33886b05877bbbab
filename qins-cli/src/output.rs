//! What every command prints: one JSON object, or text that pipes.

use anyhow::Result;
use serde::Serialize;
use std::io::{self, Write};

/// Exit status of a program that Ctrl-C ended.
pub const INTERRUPTED: i32 = 130;

/// Prints one JSON object and a newline.
pub fn json(value: &impl Serialize) -> Result<()> {
    text(&format!("{}\n", serde_json::to_string(value)?))
}

/// Prints text at once, as it is.
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// An error in one line: what it is, and what brought it about. A cause that a text before it holds already is left out:
/// errors of libraries tell their cause and hand it on as well.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the error is only that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// The most memory this process has had resident, mapped pages included; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Error, anyhow};
    use phi35_model::ConfigError;
    use qins_codec::EncodeError;
    use qins_import::ImportError;
    use qins_kv_cache::file::CacheFileError;
    use std::path::PathBuf;

    fn io_error() -> io::Error {
        io::Error::from_raw_os_error(2)
    }

    fn json_error() -> serde_json::Error {
        serde_json::from_str::<u8>("x").unwrap_err()
    }

    /// Every kind of error of the libraries that has a cause.
    fn errors() -> Vec<Error> {
        let path = || PathBuf::from("file");
        let encode = EncodeError::NotFinite { row: 1, col: 2, value: f32::NAN };
        vec![
            ImportError::Open { file: path(), source: io_error() }.into(),
            ImportError::Write { path: path(), source: io_error() }.into(),
            ImportError::MissingShard { file: path(), index: "index".to_owned(), source: io_error() }.into(),
            ImportError::Header { file: path(), source: safetensors::SafeTensorError::HeaderTooSmall }.into(),
            ImportError::Header {
                file: path(),
                source: safetensors::SafeTensorError::InvalidHeaderDeserialization(json_error()),
            }
            .into(),
            ImportError::Encode { file: path(), tensor: "tensor".to_owned(), source: encode }.into(),
            ConfigError::Read { path: path(), reason: io_error() }.into(),
            ConfigError::Parse { path: path(), reason: json_error() }.into(),
            CacheFileError::Io(io_error()).into(),
            CacheFileError::Header(json_error()).into(),
            io_error().into(),
        ]
    }

    #[test]
    fn a_cause_is_told_once() {
        for error in errors() {
            let cause = error.root_cause().to_string();
            let told = told(&error.context("cannot run model"));
            assert!(told.starts_with("cannot run model: "), "{told}");
            assert_eq!(told.matches(&cause).count(), 1, "{told}");
        }
        let plain = anyhow!("inner").context("middle").context("outer");
        assert_eq!(told(&plain), "outer: middle: inner");
    }
}
