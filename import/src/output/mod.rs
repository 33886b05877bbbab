//! Directories that this crate writes, such that nothing is lost.
//!
//! An output is made in `<output>.partial` and takes its name when it is whole, in one step. What it replaces must be
//! something that this crate wrote: every directory that it writes holds a list of its files with their SHA-256
//! ([`LIST_FILE`]), and a directory with any other file in it, or with one that was changed since, is refused before
//! anything is touched. So is one that is, or holds, something that the output is made of.

mod list;
mod place;
#[cfg(test)]
mod tests;

pub use list::LIST_FILE;
pub(crate) use list::{Known, examine, sha256_of};

use crate::ImportError;
use list::{List, is_passing, remove, set_passing, set_sticky};
use place::{exchange, give_name};
use std::{
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
};

/// Where the output is made.
const PARTIAL: &str = "partial";
/// Where the old one stands meanwhile, on file systems that cannot exchange two directories.
const ASIDE: &str = "old";

/// A directory that may be written: nothing but an old output of this crate would go.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    /// What stands there and will be replaced.
    old: Option<Known>,
}

impl Output {
    /// Checks that `path` may be written; it is made of `inputs`. Nothing is touched, except that an exchange that was
    /// interrupted is put right.
    ///
    /// # Errors
    /// [`ImportError::Exists`] without `force`, and [`ImportError::Refused`] for what must not be replaced.
    pub(crate) fn check(path: &Path, inputs: &[&Path], force: bool) -> Result<Self, ImportError> {
        let path = &plain(path)?;
        let [partial, aside] = [PARTIAL, ASIDE].map(|extension| with_extension(path, extension));
        for output in [path, &partial, &aside] {
            inputs.iter().try_for_each(|input| require_apart(output, input))?;
        }
        restore(path, &partial, &aside)?;
        match examine(&partial)? {
            Known::Absent | Known::Unfinished(_) => (),
            _ => {
                let reason = "it is no output that an interrupted run left: move it away, or give another output";
                return Err(refused(&partial, reason));
            }
        }
        let old = match examine(path)? {
            Known::Absent => None,
            _ if !force => return Err(ImportError::Exists { path: path.clone() }),
            Known::Foreign(reason) => return Err(refused(path, &reason)),
            _ if is_mount_point(path) => {
                return Err(refused(path, "something is mounted there: give a directory in it"));
            }
            _ if fs::metadata(path).is_ok_and(|found| found.permissions().readonly()) => {
                return Err(refused(path, "it is write-protected"));
            }
            _ if std::env::current_dir().is_ok_and(|current| is_same(&current, path)) => {
                return Err(refused(path, "it is the current directory: change to another first"));
            }
            known => Some(known),
        };
        Ok(Self { path: path.clone(), old })
    }

    /// The directory in which the output is made.
    pub(crate) fn partial(&self) -> PathBuf {
        with_extension(&self.path, PARTIAL)
    }

    /// Makes the directory in which the named files can be written, or takes over the one of an interrupted run. Of what
    /// that left, files of these names stay.
    pub(crate) fn begin(&self, files: &[&str]) -> Result<Partial<'_>, ImportError> {
        let path = self.partial();
        let failed = write_error(&path);
        let parent = parent(&path);
        fs::create_dir_all(parent).map_err(write_error(parent))?;
        let list = List::unfinished(files);
        let lock = loop {
            // Made under a name that nobody has and renamed, so that it has its list from the first moment on.
            if let Known::Absent = examine(&path)? {
                let fresh = fresh_directory(parent).map_err(&failed)?;
                list.write(fresh.path()).map_err(&failed)?;
                match give_name(fresh.path(), &path) {
                    Ok(()) => drop(fresh.keep()),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                    Err(error) => return Err(failed(error)),
                }
            }
            let lock = match Lock::of(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(ImportError::Busy { path }),
                lock => lock.map_err(&failed)?,
            };
            // Whoever held it may have given the directory another name.
            if lock.is_of(&path) {
                break lock;
            }
        };
        match examine(&path)? {
            Known::Unfinished(left) => left.remove_all_but(&path, files)?,
            _ => return Err(refused(&path, "another process changed it")),
        }
        list.write(&path).and_then(|()| set_sticky(&path, false)).map_err(&failed)?;
        let files = files.iter().map(|&name| name.to_owned()).collect();
        Ok(Partial { path, output: &self.path, old: self.old.as_ref(), files, _lock: lock })
    }
}

/// Keeps other processes out of a directory, where the system and the file system can.
#[derive(Debug)]
struct Lock(#[cfg_attr(not(unix), expect(dead_code, reason = "held, not used"))] Option<File>);

impl Lock {
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process has it.
    #[cfg(unix)]
    fn of(path: &Path) -> io::Result<Self> {
        let directory = File::open(path)?;
        match directory.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(_)) | Ok(()) => Ok(Self(Some(directory))),
        }
    }

    #[cfg(not(unix))]
    fn of(_path: &Path) -> io::Result<Self> {
        Ok(Self(None))
    }

    #[cfg(unix)]
    fn is_of(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let identity = |data: fs::Metadata| (data.dev(), data.ino());
        let held = self.0.as_ref().and_then(|directory| directory.metadata().ok()).map(identity);
        held.is_some() && held == fs::symlink_metadata(path).ok().map(identity)
    }

    #[cfg(not(unix))]
    fn is_of(&self, _path: &Path) -> bool {
        true
    }
}

/// The directory of an output that is being made, for this process alone.
#[derive(Debug)]
pub(crate) struct Partial<'a> {
    path: PathBuf,
    output: &'a Path,
    old: Option<&'a Known>,
    files: Vec<String>,
    _lock: Lock,
}

impl Partial<'_> {
    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory its name; what had it before is removed then. `scratch` is a file that the output is without.
    pub(crate) fn finish(self, scratch: Option<&str>) -> Result<(), ImportError> {
        let Self { path, output, old, files, _lock } = &self;
        let output = *output;
        let failed = write_error(path);
        let kept: Vec<&str> = files.iter().map(String::as_str).filter(|&name| Some(name) != scratch).collect();
        let mut list = List::of_files(path, &kept)?;
        if let Some(name) = scratch {
            remove_file(&path.join(name))?;
        }
        list.write_passing(path)
            .and_then(|()| sync(&path.join(LIST_FILE)))
            .and_then(|()| sync(path))
            .map_err(&failed)?;
        let placed = match old {
            None => give_name(path, output).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => ImportError::Exists { path: output.to_owned() },
                _ => write_error(output)(error),
            }),
            Some(old) => replace(path, output, old, &mut list),
        };
        set_passing(output, false);
        if placed.is_ok() {
            // Written anyhow; this only hastens it.
            let _ = sync(parent(output));
        } else if let Known::Listed(_) = examine(path)? {
            // Known to a later run as what an interrupted one left.
            List::unfinished(&list.names()).write(path).map_err(&failed)?;
        }
        placed
    }

    /// Removes what was written: the old output stands.
    pub(crate) fn discard(self) -> Result<(), ImportError> {
        remove(&self.path)
    }
}

/// Exchanges the new output and the old one, and removes that. From before the exchange until it is gone both are marked, so
/// that what an interruption leaves is known.
fn replace(partial: &Path, output: &Path, old: &Known, list: &mut List) -> Result<(), ImportError> {
    old.require_unchanged(output)?;
    let _old = Lock::of(output).map_err(write_error(output))?;
    set_passing(output, true);
    match exchange(partial, output) {
        Ok(()) => {
            set_passing(output, false);
            remove(partial)
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => replace_in_two_steps(partial, output, list),
        Err(error) => Err(write_error(output)(error)),
    }
}

/// Where directories cannot be exchanged: the old one is moved aside first. A run that is interrupted between the two
/// steps is put right by [`restore`], which knows it by the list of the new one.
fn replace_in_two_steps(partial: &Path, output: &Path, list: &mut List) -> Result<(), ImportError> {
    let aside = with_extension(output, ASIDE);
    if !matches!(examine(&aside)?, Known::Absent) {
        return Err(refused(&aside, "it is in the way of the old output: move it away"));
    }
    list.is_replacing = true;
    list.write(partial).map_err(write_error(partial))?;
    give_name(output, &aside).map_err(write_error(output))?;
    if let Err(error) = give_name(partial, output) {
        give_name(&aside, output).map_err(write_error(&aside))?;
        return Err(write_error(output)(error));
    }
    list.is_replacing = false;
    list.write(output).map_err(write_error(output))?;
    remove(&aside)
}

/// Puts right what [`replace`] left when it was interrupted.
fn restore(output: &Path, partial: &Path, aside: &Path) -> Result<(), ImportError> {
    if is_passing(partial)
        && let Known::Listed(_) | Known::Earlier(_) | Known::Empty = examine(partial)?
    {
        let _lock = match Lock::of(partial) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ImportError::Busy { path: partial.to_owned() });
            }
            lock => lock.map_err(write_error(partial))?,
        };
        remove(partial)?;
    }
    if is_passing(output) {
        set_passing(output, false);
    }
    let replacing = |path: &Path| List::read(path).ok().flatten().filter(|list| list.is_replacing);
    if let Some(mut list) = replacing(output) {
        list.is_replacing = false;
        list.write(output).map_err(write_error(output))?;
        if let Known::Listed(_) | Known::Earlier(_) = examine(aside)? {
            remove(aside)?;
        }
    } else if let Some(list) = replacing(partial) {
        if let (Known::Absent, Known::Listed(_) | Known::Earlier(_)) = (examine(output)?, examine(aside)?) {
            give_name(aside, output).map_err(write_error(output))?;
        }
        List::unfinished(&list.names()).write(partial).map_err(write_error(partial))?;
    }
    Ok(())
}

/// Fails if `output` is an input, or holds it or a file that it links to.
fn require_apart(output: &Path, input: &Path) -> Result<(), ImportError> {
    let Ok(output_is) = fs::canonicalize(output) else { return Ok(()) };
    let is_output = |path: &Path| path == output_is || is_same(path, &output_is);
    let Ok(input_is) = fs::canonicalize(input) else { return Ok(()) };
    if is_output(&input_is) {
        return Err(refused(output, "it is the input itself: give another output"));
    }
    let shown = input.display();
    if input_is.ancestors().any(is_output) {
        return Err(refused(output, &format!("it holds the input {shown}: give another output")));
    }
    let entries = fs::read_dir(&input_is).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    for link in links.filter_map(|entry| fs::canonicalize(entry.path()).ok()) {
        if link.ancestors().any(is_output) {
            return Err(refused(output, &format!("files of the input {shown} are links into it: give another output")));
        }
    }
    Ok(())
}

/// The path without what may hide its last name: slashes and dots at its end, and `..`, which only the system resolves.
fn plain(path: &Path) -> Result<PathBuf, ImportError> {
    let canonical = |path: &Path| fs::canonicalize(path).map_err(write_error(path));
    let Some(name) = path.file_name() else { return canonical(path) };
    let parent = parent(path);
    let is_hidden = parent.components().any(|component| component == Component::ParentDir);
    Ok(if is_hidden { canonical(parent)?.join(name) } else { path.with_file_name(name) })
}

/// Whether two paths lead to one file or directory, whatever they are called.
#[cfg(unix)]
fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(not(unix))]
fn is_same(a: &Path, b: &Path) -> bool {
    a == b
}

/// Whether a directory is the root of another file system: it cannot be renamed.
#[cfg(unix)]
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    fs::canonicalize(path).is_ok_and(|path| path.parent().is_none_or(|parent| device(&path) != device(parent)))
}

#[cfg(not(unix))]
fn is_mount_point(path: &Path) -> bool {
    path.parent().is_none()
}

/// A directory of a name that nobody has, for whoever may read what programs write.
fn fresh_directory(parent: &Path) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.prefix(".qins-").tempdir_in(parent)
}

pub(crate) fn with_extension(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until a file, or the names in a directory, are on the disk.
fn sync(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), ImportError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(path)(error)),
        _ => Ok(()),
    }
}

/// Fails where a file system tells that it has less.
pub(crate) fn require_space(directory: &Path, needed: u64) -> Result<(), ImportError> {
    match fs4::available_space(directory) {
        Ok(available) if available < needed => {
            Err(ImportError::NoSpace { directory: directory.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

fn refused(path: &Path, reason: &str) -> ImportError {
    ImportError::Refused { path: path.to_owned(), reason: reason.to_owned() }
}

pub(crate) fn write_error(path: &Path) -> impl Fn(io::Error) -> ImportError + use<> {
    let path = path.to_owned();
    move |source| ImportError::Write { path: path.clone(), source }
}
