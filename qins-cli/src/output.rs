//! What every command prints: one JSON object, or text that pipes.

use anyhow::{Context, Result};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

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

/// Writes beside the target and renames, so that a half-written file never has its name.
pub fn file(path: &Path, bytes: &[u8]) -> Result<()> {
    file_by(path, |file| Ok(file.write_all(bytes)?))
}

/// The same for what `write` writes.
pub fn file_by(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot write {}", path.display());
    let mut builder = tempfile::Builder::new();
    // As any program creates files, instead of readable by the owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(directory).with_context(cannot)?;
    write(temporary.as_file_mut()).with_context(cannot)?;
    temporary.persist(path).with_context(cannot)?;
    Ok(())
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
