//! The list of what this crate wrote in a directory, and what a directory is by it.

use super::{parent, refused, sync, with_extension, write_error};
use crate::{
    Container, ImportError,
    container::{CONTAINER_FILE, PRODUCER, hexadecimal},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::{self, Read},
    path::Path,
    time::{Duration, SystemTime},
};

/// The file of each directory that this crate writes which lists the others, with their SHA-256. By it `force` knows what
/// it may replace.
pub const LIST_FILE: &str = "qins.files.json";

/// What containers of versions before [`LIST_FILE`] held beside their weights.
const BEFORE_LISTS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "config.json",
];

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct List {
    producer: String,
    /// Whether it is still being written, or removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_unfinished: bool,
    /// Whether the old output is moved aside for this one, or about to be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_replacing: bool,
    /// The SHA-256 of each file; null for one that is not finished. `/` in names, whatever the system.
    files: BTreeMap<String, Option<String>>,
}

impl List {
    pub(super) fn unfinished(names: &[&str]) -> Self {
        let files = names.iter().map(|&name| (name.to_owned(), None)).collect();
        Self { producer: PRODUCER.to_owned(), is_unfinished: true, is_replacing: false, files }
    }

    /// The files in `directory` of these that there are, as they are, now on the disk.
    pub(super) fn of_files(directory: &Path, names: &[&str]) -> Result<Self, ImportError> {
        let mut files = BTreeMap::new();
        for &name in names {
            let path = directory.join(name);
            match File::open(&path) {
                Ok(file) => {
                    file.sync_all().map_err(write_error(&path))?;
                    files.insert(name.to_string(), Some(sha256_of(&path)?));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(write_error(&path)(error)),
            }
        }
        Ok(Self { producer: PRODUCER.to_owned(), is_unfinished: false, is_replacing: false, files })
    }

    /// The list in a directory, `None` if it has none.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, String> {
        match fs::read(directory.join(LIST_FILE)) {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|error| format!("its `{LIST_FILE}`: {error}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("its `{LIST_FILE}`: {error}")),
        }
    }

    /// Replaces the list in a directory, in one step.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        self.write_of_time(directory, None)
    }

    /// The same, and the directory [is passing](is_passing) from the same step on.
    pub(super) fn write_passing(&self, directory: &Path) -> io::Result<()> {
        self.write_of_time(directory, Some(passing_time()))
    }

    fn write_of_time(&self, directory: &Path, time: Option<SystemTime>) -> io::Result<()> {
        let path = directory.join(LIST_FILE);
        let new = with_extension(&path, "new");
        fs::write(&new, serde_json::to_string(self).expect("strings") + "\n")?;
        if let Some(time) = time {
            File::options().write(true).open(&new)?.set_modified(time)?;
        }
        fs::rename(&new, &path)
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }
}

/// The time of the list of an output that is about to get its name, or of an old one that is about to go. A mark in the
/// output's own bytes would be one that it is not to have; a directory without it in `<output>.partial` is somebody's who
/// called it so.
fn passing_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(981_173_106)
}

/// Whether a directory was about to get or to lose its name when a run was interrupted.
pub(super) fn is_passing(directory: &Path) -> bool {
    match fs::metadata(directory.join(LIST_FILE)) {
        Ok(list) => list.modified().is_ok_and(|time| time == passing_time()),
        Err(_) => is_sticky(directory),
    }
}

/// Marks a directory so, or takes the mark off. Where that fails, nothing is lost if the run is interrupted: a later one only
/// refuses to go on.
pub(super) fn set_passing(directory: &Path, is_passing: bool) {
    let time = if is_passing { passing_time() } else { SystemTime::now() };
    let _ = match File::open(directory.join(LIST_FILE)) {
        Ok(list) => list.set_modified(time),
        Err(_) => set_sticky(directory, is_passing),
    };
}

/// The mark of a directory that has no list yet, or no longer: this bit says nothing of a directory without files.
#[cfg(unix)]
const STICKY: u32 = 0o1000;

#[cfg(unix)]
fn is_sticky(directory: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::symlink_metadata(directory).is_ok_and(|data| data.is_dir() && data.permissions().mode() & STICKY != 0)
}

/// Sets the bit, or takes it off.
#[cfg(unix)]
pub(super) fn set_sticky(directory: &Path, is_sticky: bool) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(directory)?.permissions().mode() & !STICKY;
    fs::set_permissions(directory, fs::Permissions::from_mode(mode | if is_sticky { STICKY } else { 0 }))
}

#[cfg(not(unix))]
fn is_sticky(_directory: &Path) -> bool {
    false
}

#[cfg(not(unix))]
pub(super) fn set_sticky(_directory: &Path, _is_sticky: bool) -> io::Result<()> {
    Ok(())
}

/// What stands at a path.
#[derive(Debug)]
pub(crate) enum Known {
    Absent,
    /// A directory without an entry.
    Empty,
    /// An output of this crate, as it was written.
    Listed(Contents),
    /// A container of a version that wrote no lists.
    Earlier(Contents),
    /// What an interrupted run left.
    Unfinished(Contents),
    /// Anything else, and by what it is told.
    Foreign(String),
}

/// The entries of a directory, as they were found.
#[derive(Debug, PartialEq)]
pub(crate) struct Contents(BTreeMap<String, (u64, Option<SystemTime>)>);

impl Contents {
    /// Removes the files that are not among `names`.
    pub(super) fn remove_all_but(&self, directory: &Path, names: &[&str]) -> Result<(), ImportError> {
        let is_own = |name: &str| name == LIST_FILE;
        let others = self.0.keys().filter(|name| !is_own(name) && !names.contains(&name.as_str()));
        others.map(|name| directory.join(name)).try_for_each(|path| {
            super::remove_file(&path)?;
            remove_empty_parents(&path, directory);
            Ok(())
        })
    }
}

impl Known {
    fn contents(&self) -> Option<&Contents> {
        match self {
            Self::Listed(contents) | Self::Earlier(contents) | Self::Unfinished(contents) => Some(contents),
            Self::Absent | Self::Empty | Self::Foreign(_) => None,
        }
    }

    /// Fails if the directory is not what it was when it was examined.
    pub(super) fn require_unchanged(&self, path: &Path) -> Result<(), ImportError> {
        let found = match look(path)? {
            Ok(Some((_, contents))) => Some(contents),
            Ok(None) => None,
            Err(reason) => return Err(refused(path, &reason)),
        };
        let expected = self.contents();
        match found.as_ref() == expected || (expected.is_none() && found.is_some_and(|found| found.0.is_empty())) {
            true => Ok(()),
            false => Err(refused(path, "it was changed meanwhile")),
        }
    }
}

/// What stands at a path; every file of an output is read, to compare it with its list.
pub(crate) fn examine(path: &Path) -> Result<Known, ImportError> {
    let (list, contents) = match look(path)? {
        Ok(None) => return Ok(Known::Absent),
        Ok(Some((_, contents))) if contents.0.is_empty() => return Ok(Known::Empty),
        Ok(Some(found)) => found,
        Err(reason) => return Ok(Known::Foreign(reason)),
    };
    let Some(list) = list else { return Ok(Known::Earlier(contents)) };
    if list.is_unfinished {
        return Ok(Known::Unfinished(contents));
    }
    for (name, sha256) in &list.files {
        if contents.0.contains_key(name) && Some(sha256_of(&path.join(name))?) != *sha256 {
            return Ok(Known::Foreign(format!("its `{name}` was changed since: {MOVE}")));
        }
    }
    Ok(Known::Listed(contents))
}

const MOVE: &str = "move it away, or give another output";

/// The list and the entries of a directory that holds nothing else; `Ok(None)` if there is nothing at `path`. Contents of
/// files are not read.
#[expect(clippy::type_complexity, reason = "an error, a refusal, nothing, a directory with or without a list")]
fn look(path: &Path) -> Result<Result<Option<(Option<List>, Contents)>, String>, ImportError> {
    let data = match fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Err(write_error(path)(error)),
    };
    if data.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        return Ok(Err(format!("it is a link to {}: give the directory itself", target.display())));
    }
    if !data.is_dir() {
        return Ok(Err(format!("it is no directory: {MOVE}")));
    }
    let list = match List::read(path) {
        Ok(list) => list,
        Err(reason) => return Ok(Err(format!("{reason}: {MOVE}"))),
    };
    let (is_listed, unlisted): (&dyn Fn(&str) -> bool, _) = match &list {
        Some(list) => (&|name| name == LIST_FILE || name == NEW_LIST || list.files.contains_key(name), ""),
        None => (&|name| name == CONTAINER_FILE || BEFORE_LISTS.contains(&name), NO_LIST),
    };
    let holds = |prefix: &str| list.as_ref().is_some_and(|list| list.files.keys().any(|name| name.starts_with(prefix)));
    let mut found = BTreeMap::new();
    if let Some(other) = walk(path, "", &is_listed, &holds, &mut found).map_err(write_error(path))? {
        return Ok(Err(format!("it holds `{other}`, which this program did not write{unlisted}: {MOVE}")));
    }
    if list.is_none() && !found.is_empty() && Container::open(path).is_err() {
        return Ok(Err(format!("it is no container{NO_LIST}: {MOVE}")));
    }
    Ok(Ok(Some((list, Contents(found)))))
}

/// The new list before it has its name.
const NEW_LIST: &str = "qins.files.json.new";
const NO_LIST: &str = ", and no `qins.files.json`, by which outputs are known";

/// Collects the files of a directory; the first entry that is not known ends it.
fn walk(
    directory: &Path,
    prefix: &str,
    is_listed: &dyn Fn(&str) -> bool,
    holds: &dyn Fn(&str) -> bool,
    found: &mut BTreeMap<String, (u64, Option<SystemTime>)>,
) -> io::Result<Option<String>> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let data: Metadata = entry.metadata()?;
        let inner = format!("{name}/");
        if data.is_dir() && holds(&inner) {
            if let Some(other) = walk(&entry.path(), &inner, is_listed, holds, found)? {
                return Ok(Some(other));
            }
        } else if data.is_file() && is_listed(&name) {
            found.insert(name, (data.len(), data.modified().ok()));
        } else {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Removes an output: its files by their names, its list last. Told first in the list, so that an interrupted removal is
/// known as what it is.
pub(super) fn remove(directory: &Path) -> Result<(), ImportError> {
    let failed = write_error(directory);
    let contents = match look(directory)? {
        Ok(None) => return Ok(()),
        Ok(Some((_, contents))) => contents,
        Err(reason) => return Err(refused(directory, &reason)),
    };
    if !contents.0.is_empty() {
        let names: Vec<&str> = contents.0.keys().map(String::as_str).filter(|&name| name != LIST_FILE).collect();
        List::unfinished(&names).write(directory).map_err(&failed)?;
        contents.remove_all_but(directory, &[])?;
        // Between the next step and the last it is an empty directory, as anybody's.
        set_sticky(directory, true).map_err(&failed)?;
        super::remove_file(&directory.join(LIST_FILE))?;
    }
    fs::remove_dir(directory).map_err(&failed)?;
    // Gone anyhow; this only hastens it.
    let _ = sync(parent(directory));
    Ok(())
}

/// Directories between a file that is gone and `root`, if nothing else is in them.
fn remove_empty_parents(file: &Path, root: &Path) {
    let between = file.ancestors().skip(1).take_while(|&path| path != root);
    let _ = between.into_iter().try_for_each(fs::remove_dir);
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String, ImportError> {
    let open = |source| ImportError::Open { file: path.to_owned(), source };
    let mut file = File::open(path).map_err(open)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block).map_err(open)? {
            0 => return Ok(hexadecimal(hash.finalize())),
            n => hash.update(&block[..n]),
        }
    }
}
