//! Files that commands write, such that nothing that the program did not write is ever replaced.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, Metadata},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// What may be replaced.
pub enum Replace<'a> {
    /// Nothing.
    Nothing {
        /// What to do where there is a file.
        advice: &'a str,
    },
    /// A file that this program wrote.
    Own {
        /// What it would be.
        what: &'a str,
        /// Whether a file is one.
        is_own: &'a dyn Fn(&Path) -> bool,
    },
}

impl<'a> Replace<'a> {
    /// `--force` replaces a file of this kind.
    pub fn by_force(force: bool, what: &'a str, is_own: &'a dyn Fn(&Path) -> bool) -> Self {
        if force { Self::Own { what, is_own } } else { Self::Nothing { advice: "give --force to replace it" } }
    }
}

/// A file that may be written: checked before there is anything to write.
pub struct Target {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    /// A pipe or a device.
    Stream,
    New,
    /// In place of one that is there.
    Old(Metadata),
}

impl Target {
    /// # Errors
    /// If something is there that must not be replaced.
    pub fn new(path: &Path, replace: &Replace<'_>) -> Result<Self> {
        let shown = path.display();
        let kind = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Kind::New,
            Err(error) => return Err(error).with_context(|| format!("cannot write {shown}")),
            Ok(_) if is_stream(path) => Kind::Stream,
            Ok(found) => match replace {
                Replace::Nothing { advice } => bail!("{shown} exists: {advice}"),
                _ if found.is_symlink() => {
                    let target = fs::read_link(path).unwrap_or_default();
                    bail!("{shown}: not replaced: it is a link to {}: give the file itself", target.display())
                }
                _ if !found.is_file() => bail!("{shown}: not replaced: it is no file"),
                Replace::Own { what, is_own } if !is_own(path) => {
                    bail!("{shown}: not replaced: it is not {what}: move it away, or give another name")
                }
                Replace::Own { .. } => Kind::Old(found),
            },
        };
        let directory = directory(path);
        if !directory.is_dir() {
            bail!("cannot write {shown}: {}: no such directory", directory.display());
        }
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Writes the file. It has its name when it is whole; what had it before stands until then.
    pub fn write(&self, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        self.write_whole(fill).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write_whole(&self, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
        if let Kind::Stream = self.kind {
            return fill(&mut File::options().write(true).open(&self.path)?);
        }
        let directory = directory(&self.path);
        #[cfg(target_os = "linux")]
        if let Some(mut file) = unnamed::file_in(directory) {
            fill(&mut file)?;
            self.keep_permissions(&file)?;
            file.sync_all()?;
            match self.kind {
                Kind::Old(_) => {
                    temporary().make_in(directory, |path| unnamed::name(&file, path))?.persist(&self.path)?
                }
                _ => unnamed::name(&file, &self.path)?,
            };
            return Ok(());
        }
        let mut file = temporary().tempfile_in(directory)?;
        fill(file.as_file_mut())?;
        self.keep_permissions(file.as_file())?;
        file.as_file().sync_all()?;
        match self.kind {
            Kind::Old(_) => file.persist(&self.path)?,
            _ => file.persist_noclobber(&self.path)?,
        };
        Ok(())
    }

    fn keep_permissions(&self, file: &File) -> Result<()> {
        match &self.kind {
            Kind::Old(old) => Ok(file.set_permissions(old.permissions())?),
            Kind::Stream | Kind::New => Ok(()),
        }
    }
}

/// A file that is written before it has a name: an interrupted program leaves nothing.
#[cfg(target_os = "linux")]
mod unnamed {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
    use std::{fs::File, io, os::fd::AsRawFd, path::Path};

    /// `None` where the file system has no such files.
    pub fn file_in(directory: &Path) -> Option<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        // As any program creates files; the system takes from it what the user does.
        let file = open(directory, flags, Mode::from_raw_mode(0o666)).ok().map(File::from)?;
        Path::new("/proc/self/fd").is_dir().then_some(file)
    }

    /// Gives it a name that nothing has.
    pub fn name(file: &File, path: &Path) -> io::Result<()> {
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    // As any program creates files, instead of readable by the owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.prefix(".qins-");
    builder
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether writing to a path replaces nothing: pipes and devices, and standard output by its name.
fn is_stream(path: &Path) -> bool {
    let is_of_the_system = path.starts_with("/dev") || path.starts_with("/proc");
    is_of_the_system || fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir())
}

/// A text with a comment of HTML before `end`, by which it is known as this program's, and unchanged.
pub fn signed(mut text: String, end: &str) -> String {
    let comment = format!("<!-- qins {} -->", sha256(text.as_bytes()));
    let at = text.strip_suffix(end).map_or(text.len(), str::len);
    text.insert_str(at, &comment);
    text
}

/// Whether a file is as [`signed`] made it.
pub fn is_signed(path: &Path) -> bool {
    const START: &str = "<!-- qins ";
    let Ok(mut text) = fs::read_to_string(path) else { return false };
    let Some(start) = text.rfind(START) else { return false };
    let Some(length) = text[start..].find(" -->") else { return false };
    let hash = text[start + START.len()..start + length].to_owned();
    text.replace_range(start..start + length + " -->".len(), "");
    hash == sha256(text.as_bytes())
}

/// In hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a whole file.
pub fn write(path: &Path, bytes: &[u8], replace: &Replace<'_>) -> Result<()> {
    Target::new(path, replace)?.write(|file| Ok(file.write_all(bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_text_is_known_until_a_byte_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (text, end) in [("<svg>x</svg>\n", "</svg>\n"), ("# Report\n\n", "\n"), ("no end", "</svg>"), ("", "")] {
            let signed = signed(text.to_owned(), end);
            assert!(signed.ends_with(if text.ends_with(end) { end } else { "-->" }));
            fs::write(&path, &signed).unwrap();
            assert!(is_signed(&path), "{signed}");
            for (at, _) in signed.char_indices() {
                let mut other = signed.clone().into_bytes();
                other[at] ^= 1;
                fs::write(&path, &other).unwrap();
                assert!(!is_signed(&path), "byte {at} of {signed}");
            }
            fs::write(&path, signed + " ").unwrap();
            assert!(!is_signed(&path));
        }
        assert!(!is_signed(directory.path()));
    }

    #[test]
    fn only_own_files_are_replaced_and_nothing_is_left_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let is_own = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"own"));
        let replace = |force| Replace::by_force(force, "own", &is_own);
        write(&path, b"own 1", &replace(false)).unwrap();
        assert!(write(&path, b"own 2", &replace(false)).unwrap_err().to_string().contains("exists: give --force"));
        write(&path, b"own 3", &replace(true)).unwrap();
        // A failure leaves what was there.
        assert!(Target::new(&path, &replace(true)).unwrap().write(|_| bail!("no")).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"own 3");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        // What came meanwhile stays.
        let target = Target::new(&directory.path().join("late"), &replace(true)).unwrap();
        fs::write(directory.path().join("late"), "theirs").unwrap();
        assert!(target.write(|file| Ok(file.write_all(b"own")?)).is_err());
        assert_eq!(fs::read(directory.path().join("late")).unwrap(), b"theirs");
        for bad in [directory.path(), &directory.path().join("late"), &directory.path().join("absent/file")] {
            assert!(write(bad, b"own", &replace(true)).is_err(), "{}", bad.display());
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused_and_devices_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "own").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let replace = Replace::by_force(true, "own", &|_| true);
        assert!(write(&link, b"new", &replace).unwrap_err().to_string().contains("it is a link to"));
        assert!(link.is_symlink() && fs::read(&file).unwrap() == b"own");
        write(Path::new("/dev/null"), b"new", &Replace::Nothing { advice: "" }).unwrap();
    }
}
