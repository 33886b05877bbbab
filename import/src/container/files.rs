//! Files of a model directory beside its weights, which containers and exports take over as they are.

use crate::{ImportError, foreign, output::write_error};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What transformers, tokenizers, llama.cpp and others read beside the weights.
const NAMES: [&str; 17] = [
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Where transformers keeps templates that are not the default.
const TEMPLATES: &str = "additional_chat_templates";

/// The configuration: written last, without it nothing runs what does not have its name yet.
pub(crate) const CONFIG: &str = "config.json";

/// Terms of use, under the names that people give them, and code that `config.json` may name.
fn is_taken(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    NAMES.contains(&name)
        || ["LICENSE", "LICENCE", "NOTICE"].iter().any(|start| upper.starts_with(start))
        || name.ends_with(".py")
}

/// Names of the files that are taken over from a directory.
///
/// # Errors
/// [`ImportError::Foreign`] for one that is something else, as a pointer of git-lfs.
pub(crate) fn beside_weights(directory: &Path) -> Result<Vec<String>, ImportError> {
    let mut names = names_in(directory, is_taken)?;
    let templates = names_in(&directory.join(TEMPLATES), |name| name.ends_with(".jinja"))?;
    names.extend(templates.into_iter().map(|name| format!("{TEMPLATES}/{name}")));
    names.sort_by_key(|name| (name == CONFIG, name.clone()));
    names.iter().try_for_each(|name| foreign::require_own(&directory.join(name)))?;
    Ok(names)
}

/// Names of files, or of links to files.
fn names_in(directory: &Path, is_taken: impl Fn(&str) -> bool) -> Result<Vec<String>, ImportError> {
    let failed = |source| ImportError::Open { file: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(failed)?,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    let names = entries.into_iter().filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    Ok(names.filter(|(name, path)| is_taken(name) && path.is_file()).map(|(name, _)| name).collect())
}

/// Copies the named files; `change` may write others instead.
pub(crate) fn copy(
    names: &[String],
    from: &Path,
    to: &Path,
    change: impl Fn(&str, Vec<u8>) -> Vec<u8>,
) -> Result<(), ImportError> {
    for name in names {
        let (from, to): (PathBuf, PathBuf) = (from.join(name), to.join(name));
        let bytes = fs::read(&from).map_err(|source| ImportError::Open { file: from, source })?;
        let directory = to.parent().expect("a name in a directory");
        fs::create_dir_all(directory).map_err(write_error(directory))?;
        // Not its permissions: a copy that cannot be written could not be written again.
        fs::write(&to, change(name, bytes)).map_err(write_error(&to))?;
    }
    Ok(())
}
