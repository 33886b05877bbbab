//! Whatever stands at and around an output, and whenever the program is killed: nothing but its own old output is ever
//! gone or changed, and the output is the old one or the new one, whole.
#![cfg(unix)]

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A command that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Convert,
    Export,
    Logits,
    Plot,
    Cache,
    Save,
}

use Writer::{Cache, Convert, Export, Logits, Plot, Save};

const WRITERS: [Writer; 6] = [Convert, Export, Logits, Plot, Cache, Save];

impl Writer {
    /// The command, in a folder that has `model` and `box`, and what it reads on standard input.
    fn command(self, output: &str, force: bool) -> (Command, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qins"));
        let words: &[&str] = match self {
            Convert => &["convert", "model", "-o", output],
            Export => &["export", "box", "-o", output],
            Logits => &["logits", "model", "--ids", "1,2,3", "-o", output],
            Plot => &["measure", "model", "--formats", "q8", "--plot", output],
            Cache => &["generate", "model", "--ids", "1,2,3", "-n", "1", "--cache", output],
            Save => &["chat", "model"],
        };
        command.args(words);
        if force && self.has_force() {
            command.arg("--force");
        }
        let input = if self == Save { format!("/save {output}\n/quit\n") } else { String::new() };
        (command, input)
    }

    fn has_force(self) -> bool {
        !matches!(self, Cache | Save)
    }

    fn writes_a_directory(self) -> bool {
        matches!(self, Convert | Export)
    }

    /// Whether an old output of it, or of the other command that writes directories, may be replaced.
    fn may_replace(self, old: Writer, force: bool) -> bool {
        match self {
            Cache => old == Cache,
            Save => false,
            _ => force && (old == self || self.writes_a_directory() && old.writes_a_directory()),
        }
    }
}

/// Model, container and every output, made once.
struct Made {
    folder: TempDir,
    seconds: BTreeMap<&'static str, f64>,
}

impl Made {
    fn of(&self, writer: Writer) -> PathBuf {
        self.folder.path().join(format!("{writer:?}"))
    }
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let qins = |words: &[&str]| {
            let output =
                Command::new(env!("CARGO_BIN_EXE_qins")).args(words).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        qins(&["convert", "demo", "-o", "first"]);
        qins(&["export", "first", "-o", "model"]);
        // As somebody else made it.
        fs::remove_file(at("model/qins.files.json")).unwrap();
        qins(&["convert", "model", "-o", "box"]);
        let mut seconds = BTreeMap::new();
        for writer in WRITERS {
            let start = Instant::now();
            let name = format!("{writer:?}");
            run(writer, &name, false, None, folder.path());
            assert!(at(&name).exists(), "{name}");
            seconds.insert(&*name.leak(), start.elapsed().as_secs_f64());
        }
        Made { folder, seconds }
    })
}

/// Runs a command to its end, or kills it after so many seconds; whether it succeeded, and what it said.
fn run(writer: Writer, output: &str, force: bool, kill_s: Option<f64>, folder: &Path) -> (Option<bool>, String) {
    let (mut command, input) = writer.command(output, force);
    let said = folder.join("said by the program");
    command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap());
    let mut child = command.spawn().unwrap();
    // A child that fails at once reads nothing.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
    if let Some(seconds) = kill_s {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let text = fs::read_to_string(&said).unwrap();
    fs::remove_file(said).unwrap();
    (status.code().map(|code| code == 0), text)
}

/// What a tree holds: links as what they say, files as their bytes and whether they may be written.
type Tree = BTreeMap<PathBuf, (char, Vec<u8>, bool)>;

fn tree(folder: &Path) -> Tree {
    fn walk(folder: &Path, below: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name, kind) = (entry.path(), below.join(entry.file_name()), entry.file_type().unwrap());
            let is_read_only = !kind.is_symlink() && entry.metadata().unwrap().permissions().readonly();
            let found = if kind.is_symlink() {
                ('l', fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(), false)
            } else if kind.is_dir() {
                walk(&path, &name, tree);
                ('d', Vec::new(), is_read_only)
            } else {
                ('f', fs::read(&path).unwrap(), is_read_only)
            };
            tree.insert(name, found);
        }
    }
    let mut found = Tree::new();
    walk(folder, Path::new(""), &mut found);
    found
}

/// The part of a tree at a path.
fn part(tree: &Tree, at: &Path) -> Tree {
    let below = tree.iter().filter(|(path, _)| path.starts_with(at));
    below.map(|(path, found)| (path.strip_prefix(at).unwrap().into(), found.clone())).collect()
}

/// Something in the tree.
#[derive(Debug, Clone)]
enum Thing {
    File(u8),
    ReadOnly(u8),
    Folder,
    Link(&'static str),
    /// What a command wrote.
    Own(Writer),
    /// The same, and then a byte at the end of a file of it changed.
    Changed(Writer),
    /// What an interrupted command left.
    Unfinished,
}

const PLACES: [&str; 16] = [
    "out",
    "out.partial",
    "out.old",
    "out/notes.txt",
    "out/config.json",
    "out/sub",
    "out.partial/notes.txt",
    "out.partial/config.json",
    "out.partial/sub/deep",
    "out.old/notes.txt",
    "sub",
    "sub/out",
    "sub/out.partial",
    "notes.txt",
    ".out.partial",
    "link",
];

const OUTPUTS: [&str; 20] = [
    "out",
    "out",
    "out",
    "out",
    "out/",
    "./out",
    "sub/out",
    "sub/../out",
    "link",
    "link/out",
    "new/deep/out",
    ".",
    "..",
    "model",
    "model/",
    "box",
    "model/../box/.",
    "model/q8",
    "notes.txt",
    "out.old",
];

fn thing() -> impl Strategy<Value = Thing> {
    let own = prop::sample::select(WRITERS.to_vec());
    prop_oneof![
        2 => any::<u8>().prop_map(Thing::File),
        1 => any::<u8>().prop_map(Thing::ReadOnly),
        1 => Just(Thing::Folder),
        2 => prop::sample::select(vec!["out", "model", "box", ".", "..", "sub", "nowhere", "link"]).prop_map(Thing::Link),
        6 => own.clone().prop_map(Thing::Own),
        1 => own.prop_map(Thing::Changed),
        1 => Just(Thing::Unfinished),
    ]
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn change_a_file(path: &Path) {
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
}

/// Puts a thing at a place if nothing is there yet. The folders above it are made.
fn put(thing: &Thing, path: &Path) {
    if fs::symlink_metadata(path).is_ok() || fs::create_dir_all(path.parent().unwrap()).is_err() {
        return;
    }
    match thing {
        Thing::File(byte) => fs::write(path, [*byte; 9]).unwrap(),
        Thing::ReadOnly(byte) => {
            fs::write(path, [*byte; 9]).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
        }
        Thing::Folder => fs::create_dir(path).unwrap(),
        Thing::Link(to) => symlink(to, path).unwrap(),
        Thing::Own(writer) => copy(&made().of(*writer), path),
        Thing::Changed(writer) => {
            copy(&made().of(*writer), path);
            change_a_file(path);
        }
        Thing::Unfinished => {
            copy(&made().of(Convert), path);
            let list = r#"{"producer":"qins-import","is_unfinished":true,"files":{"config.json":null,"qins.safetensors":null,
                "generation_config.json":null,"tokenizer.json":null,"tokenizer_config.json":null}}"#;
            fs::write(path.join("qins.files.json"), list).unwrap();
        }
    }
}

/// The output below the folder, without `.`, `..` and links but at its end; `None` if it is elsewhere.
fn resolve(output: &str, folder: &Path) -> Option<PathBuf> {
    let folder = fs::canonicalize(folder).unwrap();
    let mut path = folder.clone();
    for component in Path::new(output).components() {
        path = fs::canonicalize(&path).unwrap_or(path);
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => (),
        }
    }
    path.strip_prefix(folder).ok().map(Path::to_owned)
}

/// The command whose output a part of a tree is, byte for byte.
fn own(tree: &Tree) -> Option<Writer> {
    let without_permissions =
        |tree: Tree| tree.into_iter().map(|(path, (kind, bytes, _))| (path, (kind, bytes))).collect::<Vec<_>>();
    let all = part(&self::tree(made().folder.path()), Path::new(""));
    let found = without_permissions(tree.clone());
    // A cache of the same text may hold a token more; its checksum stands at its end.
    if let [(_, ('f', bytes))] = &found[..]
        && bytes.starts_with(b"QINSKV")
    {
        let (whole, checksum) = bytes.split_at(bytes.len() - 32);
        return (Sha256::digest(whole)[..] == *checksum).then_some(Cache);
    }
    WRITERS.into_iter().find(|writer| found == without_permissions(part(&all, Path::new(&format!("{writer:?}")))))
}

/// Checks what a run did to a tree.
fn check(
    writer: Writer,
    at: Option<&Path>,
    force: bool,
    ended: Option<bool>,
    before: &Tree,
    after: &Tree,
) -> Result<(), String> {
    let partial = at.and_then(|at| Some(at.with_file_name(format!("{}.partial", at.file_name()?.to_str()?))));
    let old = at.and_then(|at| own(&part(before, at)));
    let inputs = ["model", "box"].map(Path::new);
    let is_apart = at.is_some_and(|at| !inputs.iter().any(|input| input.starts_with(at)));
    let may_replace = is_apart && old.is_some_and(|old| writer.may_replace(old, force));
    let is_left = |path: &Path| {
        let list = before.get(&path.join("qins.files.json"));
        let is_known = |name: &Path| name != Path::new("notes.txt") && !name.starts_with("sub");
        list.is_some_and(|(_, list, _)| String::from_utf8_lossy(list).contains("is_unfinished"))
            && part(before, path).iter().all(|(name, (kind, ..))| is_known(name) && *kind != 'l')
    };
    let may_go = |path: &Path| {
        let in_output = may_replace && at.is_some_and(|at| path.starts_with(at));
        let in_partial = writer.writes_a_directory()
            && partial.as_ref().is_some_and(|partial| path.starts_with(partial) && is_left(partial));
        in_output || in_partial
    };
    for (path, was) in before.iter().filter(|(path, _)| !may_go(path)) {
        if after.get(path) != Some(was) {
            return Err(format!("{} is gone or changed", path.display()));
        }
    }
    let new: Vec<&PathBuf> = after.keys().filter(|path| !before.contains_key(*path) && !may_go(path)).collect();
    let is_of_the_run = |path: &Path| {
        let in_output = at.is_some_and(|at| path.starts_with(at) || at.starts_with(path));
        // What a killed run leaves is known.
        let left = ended.is_none()
            && (partial.as_ref().is_some_and(|partial| path.starts_with(partial))
                || path.to_string_lossy().contains(".qins-"));
        // Folders of a deep output are made.
        let is_above = ["new", "new/deep", "sub"].contains(&&*path.to_string_lossy());
        in_output || left || is_above
    };
    if let Some(path) = new.iter().find(|path| !is_of_the_run(path)) {
        return Err(format!("{} was left", path.display()));
    }
    let Some(at) = at else { return Ok(()) };
    let (was, is) = (part(before, at), part(after, at));
    let is_new = own(&is) == Some(writer);
    match ended {
        Some(true) if writer != Save && !is_new => Err("success, and the output is not the new one".to_owned()),
        Some(false) if was != is => Err("a failure, and the output is changed".to_owned()),
        _ if was != is && !is_new => Err("the output is neither the old nor the new one".to_owned()),
        _ => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_but_an_old_output_of_the_program_is_ever_gone(
        things in prop::collection::vec((thing(), prop::sample::select(PLACES.to_vec())), 0..7),
        writer in prop::sample::select(WRITERS.to_vec()),
        output in prop::sample::select(OUTPUTS.to_vec()),
        force in prop::bool::weighted(0.8),
        kill in prop::option::weighted(0.5, 0.0..1.1f64),
    ) {
        let place = tempfile::tempdir().unwrap();
        // The folder above is watched, too.
        let folder = place.path().join("folder");
        fs::create_dir(&folder).unwrap();
        copy(&made().folder.path().join("model"), &folder.join("model"));
        copy(&made().folder.path().join("box"), &folder.join("box"));
        things.iter().for_each(|(thing, at)| put(thing, &folder.join(at)));
        let at = resolve(output, &folder);
        let mut kill_s = kill.map(|share| share * made().seconds[&*format!("{writer:?}")]);
        // After a kill, once more to the end.
        loop {
            let (before, above) = (tree(&folder), fs::read_dir(place.path()).unwrap().count());
            let (ended, said) = run(writer, output, force, kill_s, &folder);
            let after = tree(&folder);
            let checked = check(writer, at.as_deref(), force, ended, &before, &after);
            prop_assert!(checked.is_ok(), "{}\n{said}", checked.unwrap_err());
            prop_assert_eq!(above, fs::read_dir(place.path()).unwrap().count());
            if kill_s.take().is_none() {
                break;
            }
        }
    }
}
