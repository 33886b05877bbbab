//! The pages of a report, of which only those are replaced that are as this program wrote them.

use crate::files::{self, Replace, Target};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The list of pages, beside them.
const LIST: &str = "qins.files.json";

const OWN: &str = "as this program wrote it";

/// What this program wrote in a folder.
#[derive(Default, Serialize, Deserialize)]
struct List {
    /// The SHA-256 of each page; of several only where writing was interrupted.
    pages: BTreeMap<String, Vec<String>>,
}

pub struct Pages {
    folder: PathBuf,
    list: List,
}

impl Pages {
    /// Those in a folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(LIST);
        let list = match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json)
                .with_context(|| format!("{}: expected the list of a report's pages", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => List::default(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { folder: folder.to_owned(), list })
    }

    /// Fails if a page of one of these names is another's.
    pub fn check(&self, names: &[&str]) -> Result<()> {
        // In a folder that is not there yet, there are none.
        let names = if self.folder.is_dir() { names } else { &[] };
        names.iter().try_for_each(|name| self.target(name, None).map(drop))
    }

    fn target(&self, name: &str, new: Option<&String>) -> Result<Target> {
        let is_own = |path: &Path| {
            let hash = fs::read(path).map(|bytes| files::sha256(&bytes));
            hash.is_ok_and(|hash| {
                new == Some(&hash) || self.list.pages.get(name).is_some_and(|all| all.contains(&hash))
            })
        };
        Target::new(&self.folder.join(name), &Replace::Own { what: OWN, is_own: &is_own })
    }

    /// Writes all pages, or none if one of them would replace another's.
    pub fn write(mut self, pages: &[(String, String)]) -> Result<()> {
        let hashes: Vec<String> = pages.iter().map(|(_, text)| files::sha256(text.as_bytes())).collect();
        let target = |((name, _), hash): (&(String, String), &String)| self.target(name, Some(hash));
        let targets = pages.iter().zip(&hashes).map(target).collect::<Result<Vec<_>>>()?;
        // The new ones first, so that an interrupted run knows what it wrote.
        for ((name, _), hash) in pages.iter().zip(&hashes) {
            self.list.pages.entry(name.clone()).or_default().push(hash.clone());
        }
        self.write_list()?;
        for (target, (_, text)) in targets.iter().zip(pages) {
            target.write(|file| Ok(std::io::Write::write_all(file, text.as_bytes())?))?;
        }
        self.list.pages.extend(pages.iter().zip(hashes).map(|((name, _), hash)| (name.clone(), vec![hash])));
        self.write_list()
    }

    fn write_list(&self) -> Result<()> {
        let is_own = |path: &Path| fs::read(path).is_ok_and(|json| serde_json::from_slice::<List>(&json).is_ok());
        let replace = Replace::Own { what: OWN, is_own: &is_own };
        files::write(&self.folder.join(LIST), (serde_json::to_string(&self.list)? + "\n").as_bytes(), &replace)
    }
}
