//! Renaming directories such that none is ever overwritten.

use std::{fs, io, path::Path};

/// Gives `from` a name that nothing has.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if something has it.
pub(super) fn give_name(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    match rename(from, to, rustix::fs::RenameFlags::NOREPLACE) {
        Err(error) if is_unsupported(&error) => (),
        result => return result,
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Exchanges two directories in one step: at any moment both names lead to one of them.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] where the system or the file system cannot.
pub(super) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    match rename(a, b, rustix::fs::RenameFlags::EXCHANGE) {
        Err(error) if is_unsupported(&error) => (),
        result => return result,
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let _ = (a, b);
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
fn rename(from: &Path, to: &Path, flags: rustix::fs::RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
}

/// `EINVAL` is what file systems answer that do not know the flag.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput)
}
