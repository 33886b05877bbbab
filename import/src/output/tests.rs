//! Replacing where directories cannot be exchanged, interrupted at each step. What the program does from outside is tested
//! in `qins-cli/tests/files.rs`.

use super::*;

const FILE: &str = "weights";

/// A finished output of one file.
fn write(path: &Path, text: &str, force: bool) -> Result<(), ImportError> {
    let output = Output::check(path, &[], force)?;
    let partial = output.begin(&[FILE])?;
    fs::write(partial.path().join(FILE), text).unwrap();
    partial.finish(None)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path.join(FILE)).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_output_replaces_its_own_kind_and_leaves_nothing_beside() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("out");
    write(&path, "1", false).unwrap();
    assert!(matches!(write(&path, "2", false), Err(ImportError::Exists { .. })));
    write(&path, "2", true).unwrap();
    assert_eq!((text(&path), names(place.path())), ("2".to_owned(), vec!["out".to_owned()]));
    assert_eq!(names(&path), [LIST_FILE, FILE]);
    fs::write(path.join(FILE), "mine").unwrap();
    assert!(matches!(write(&path, "3", true), Err(ImportError::Refused { .. })));
    fs::write(path.join(FILE), "2").unwrap();
    let output = Output::check(&path, &[], true).unwrap();
    let partial = output.begin(&[FILE]).unwrap();
    assert!(matches!(output.begin(&[FILE]), Err(ImportError::Busy { .. })), "one at a time");
    // A file that came meanwhile.
    fs::write(path.join("notes"), "mine").unwrap();
    assert!(matches!(partial.finish(None), Err(ImportError::Refused { .. })));
    assert_eq!(names(&path), ["notes", LIST_FILE, FILE]);
    fs::remove_file(path.join("notes")).unwrap();
    write(&path, "4", true).unwrap();
    assert_eq!((text(&path), names(place.path())), ("4".to_owned(), vec!["out".to_owned()]));
}

#[test]
fn replacing_in_two_steps_is_put_right_wherever_it_is_interrupted() {
    for steps in 0..=4 {
        let place = tempfile::tempdir().unwrap();
        let [path, partial, aside] = ["out", "out.partial", "out.old"].map(|name| place.path().join(name));
        write(&path, "old", false).unwrap();
        write(&partial, "new", false).unwrap();
        let mut list = List::of_files(&partial, &[FILE]).unwrap();
        if steps == 4 {
            replace_in_two_steps(&partial, &path, &mut list).unwrap();
        } else {
            list.is_replacing = true;
            list.write(&partial).unwrap();
        }
        if (1..4).contains(&steps) {
            fs::rename(&path, &aside).unwrap();
        }
        if (2..4).contains(&steps) {
            fs::rename(&partial, &path).unwrap();
        }
        if steps == 3 {
            fs::remove_file(aside.join(FILE)).unwrap();
        }
        assert!(Output::check(&path, &[], true).is_ok(), "after {steps} steps");
        assert_eq!(text(&path), if steps < 2 { "old" } else { "new" });
        assert!(!aside.exists());
        write(&path, "newer", true).unwrap();
        assert_eq!((text(&path), names(place.path())), ("newer".to_owned(), vec!["out".to_owned()]));
    }
    // What is in the way stays, and so does the old output.
    let place = tempfile::tempdir().unwrap();
    let [path, partial, aside] = ["out", "out.partial", "out.old"].map(|name| place.path().join(name));
    write(&path, "old", false).unwrap();
    write(&partial, "new", false).unwrap();
    fs::create_dir(&aside).unwrap();
    let mut list = List::of_files(&partial, &[FILE]).unwrap();
    assert!(matches!(replace_in_two_steps(&partial, &path, &mut list), Err(ImportError::Refused { .. })));
    assert!(text(&path) == "old" && aside.exists());
}
