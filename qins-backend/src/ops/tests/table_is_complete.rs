//! No method of Burn's traits may be missing from the tables: a provided one would silently lose `B`'s own version.

use super::*;
use std::{collections::BTreeSet, path::PathBuf, process::Command};

/// The source of the burn-backend that this crate was built with.
fn burn_backend_source() -> PathBuf {
    // For this platform alone: packages of others may not have been downloaded.
    let version = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", host, "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|p| p["name"] == "burn-backend").unwrap();
    PathBuf::from(package["manifest_path"].as_str().unwrap()).with_file_name("src/backend/ops")
}

/// Method names of the trait in a file. Methods stand at the trait's own indentation of four blanks.
fn methods(file: &str, name: &str) -> BTreeSet<String> {
    let source = std::fs::read_to_string(burn_backend_source().join(file)).unwrap();
    let body = source.split(&format!("\npub trait {name}<B: Backend> {{\n")).nth(1).expect("the trait");
    let body = body.split("\n}\n").next().unwrap();
    let name = |line: &str| line.strip_prefix("    fn ").map(|rest| rest.split(['(', '<']).next().unwrap().to_owned());
    body.lines().filter_map(name).collect()
}

fn check(file: &str, name: &str, tables: &[&[&str]]) {
    let expected = methods(file, name);
    let listed: BTreeSet<String> = tables.concat().into_iter().map(str::to_owned).collect();
    assert!(expected.len() > 10, "found only {} methods of {name}", expected.len());
    let missing: Vec<_> = expected.difference(&listed).collect();
    assert!(missing.is_empty(), "{name} has methods that no table lists: {missing:?}");
}

#[test]
fn every_method_is_listed() {
    check("tensor.rs", "FloatTensorOps", &[float_ops!(names), by_hand_ops!(names)]);
    check("int_tensor.rs", "IntTensorOps", &[int_ops!(names)]);
    check("bool_tensor.rs", "BoolTensorOps", &[bool_ops!(names)]);
    check("modules/base.rs", "ModuleOps", &[module_ops!(names), by_hand_ops!(names)]);
    check("activation.rs", "ActivationOps", &[activation_ops!(names), by_hand_ops!(names)]);
}
