//! Graphics devices on a machine without a display.
//!
//! Mesa's Vulkan layer that sorts devices asks a Wayland display which one it uses, and libwayland prints an error of its
//! own where `XDG_RUNTIME_DIR` is not set, as in containers and over ssh. There is no display then: the answer is the same,
//! without the line, where the variable names a directory that does not exist.

use std::{env, ffi::OsStr, os::unix::process::CommandExt, path::Path, process::Command};

const VARIABLE: &str = "XDG_RUNTIME_DIR";

/// Starts the program once more, in this process, with the variable set if it is not: setting it for a process that has
/// threads would be unsafe. Where that fails, the line is printed.
pub fn set_runtime_directory() {
    if let (false, Ok(program)) = (is_set(env::var_os(VARIABLE).as_deref()), env::current_exe()) {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_else(|| program.clone().into());
        let _ = Command::new(program).arg0(name).args(arguments).env(VARIABLE, "/nonexistent").exec();
    }
}

/// As libwayland asks.
fn is_set(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| Path::new(value).is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_path_will_do() {
        assert!(is_set(Some(OsStr::new("/run/user/1000"))));
        assert!(!is_set(None) && !is_set(Some(OsStr::new(""))) && !is_set(Some(OsStr::new("run"))));
    }
}
