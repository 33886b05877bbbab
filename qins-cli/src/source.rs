//! Where a model's files are: in a directory, or in the program itself.

use anyhow::{Context, Result, bail};
use phi35_model::{ChatTemplate, Config, GenerationConfig, SpecialTokens, Tokenizer};
use qins_import::{Checkpoint, Container, FileAccess, container::CONTAINER_FILE, foreign};
use std::{
    borrow::Cow,
    convert::Infallible,
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
};
use tempfile::TempDir;

/// What `<model>` on the command line means.
#[derive(Debug, Clone)]
pub enum Source {
    /// The model that is part of the program.
    Demo,
    /// A Hugging Face model directory, or a container.
    Directory(PathBuf),
}

/// The Hugging Face directory that `examples/train_demo` wrote.
const DEMO: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(model: &str) -> Result<Self, Infallible> {
        Ok(if model == "demo" { Self::Demo } else { Self::Directory(model.into()) })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("demo"),
            Self::Directory(directory) => directory.display().fmt(f),
        }
    }
}

/// Fails where there is no directory.
fn require_directory(path: &Path, expected: &str) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => {
            let found = foreign::of_directory(path);
            bail!("{}: expected {expected}, found {}", path.display(), found.as_deref().unwrap_or("no directory"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{}: expected {expected}, found no such directory", path.display())
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Opens a container, or tells what is there instead.
pub fn require_container(directory: &Path) -> Result<Container> {
    require_directory(directory, "a container")?;
    if !Container::is_at(directory) {
        let found = match Checkpoint::open(directory) {
            Ok(_) => "a model that is not encoded: `qins convert` makes one of it".to_owned(),
            Err(_) => foreign::of_directory(directory).unwrap_or_else(|| "no such file".to_owned()),
        };
        bail!("{}: expected a container, which holds `{CONTAINER_FILE}`, found {found}", directory.display());
    }
    Ok(Container::open(directory)?)
}

impl Source {
    /// What errors call a file of the model.
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Demo => Path::new("demo").join(name),
            Self::Directory(directory) => directory.join(name),
        }
    }

    /// A file, if the model has it.
    fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        let path = self.path(name);
        let bytes = match self {
            Self::Demo => {
                return Ok(DEMO.iter().find(|(known, _)| *known == name).map(|(_, bytes)| Cow::Borrowed(*bytes)));
            }
            Self::Directory(directory) => {
                require_directory(directory, "a model directory (or `demo`)")?;
                match std::fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error).with_context(|| path.display().to_string()),
                }
            }
        };
        match foreign::of_bytes(&bytes) {
            Some(found) => bail!("{}: {found}", path.display()),
            None => Ok(Some(bytes.into())),
        }
    }

    /// The directory, and for the model that is part of the program one that is there as long as the second value.
    pub fn in_a_directory(&self) -> Result<(PathBuf, Option<TempDir>)> {
        match self {
            Self::Directory(directory) => Ok((directory.clone(), None)),
            Self::Demo => {
                let unpacked = TempDir::with_prefix("qins-demo-")?;
                DEMO.iter().try_for_each(|(name, bytes)| std::fs::write(unpacked.path().join(name), bytes))?;
                Ok((unpacked.path().to_owned(), Some(unpacked)))
            }
        }
    }

    /// `config.json`.
    pub fn config(&self) -> Result<Config> {
        let json = self.config_bytes()?;
        // What is no JSON is told below.
        if let Some(other) = serde_json::from_slice(&json).ok().and_then(|config| foreign::of_config(&config)) {
            bail!("{}: {other}", self.path("config.json").display());
        }
        Ok(Config::from_json(&json, &self.path("config.json"))?)
    }

    /// `config.json` as it is.
    pub fn config_bytes(&self) -> Result<Cow<'static, [u8]>> {
        let Some(json) = self.read("config.json")? else {
            let found = match self {
                Self::Directory(directory) => foreign::of_directory(directory),
                Self::Demo => None,
            };
            let found = found.as_deref().unwrap_or("no such file");
            bail!("{}: expected a configuration, found {found}", self.path("config.json").display());
        };
        Ok(json)
    }

    /// `generation_config.json`, if the model has it.
    pub fn generation_config(&self) -> Result<Option<GenerationConfig>> {
        let name = "generation_config.json";
        Ok(self.read(name)?.map(|json| GenerationConfig::from_json(&json, &self.path(name))).transpose()?)
    }

    /// Ids that end a text: all that `config.json` and `generation_config.json` name, the tokenizer's `eos_token`, and the
    /// special token that the chat template writes after an answer.
    pub fn stop_ids(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let mut ids = config.eos_token_id.0.clone();
        ids.extend(self.generation_config()?.unwrap_or_default().eos_token_id.0);
        if let Some(tokenizer) = tokenizer {
            ids.extend(self.special_tokens()?.get("eos_token").and_then(|token| tokenizer.token_id(token)));
            // A model without a template, or with a broken one, has no turns.
            ids.extend(self.chat_template().ok().and_then(|template| template.end_of_turn(tokenizer)));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The special tokens that the tokenizer's files name.
    fn special_tokens(&self) -> Result<SpecialTokens> {
        match self {
            Self::Demo => {
                let name = "tokenizer_config.json";
                let json = self.read(name)?.expect("the demo model has one");
                Ok(SpecialTokens::from_json(&json, &self.path(name))?)
            }
            Self::Directory(directory) => Ok(SpecialTokens::read(directory)?),
        }
    }

    /// The tokenizer, if the model has one.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let name = "tokenizer.json";
        Ok(self.read(name)?.map(|json| Tokenizer::from_json(&json, &self.path(name))).transpose()?)
    }

    /// The tokenizer.
    pub fn require_tokenizer(&self) -> Result<Tokenizer> {
        if let Some(tokenizer) = self.tokenizer()? {
            return Ok(tokenizer);
        }
        // A directory of something else is told as such.
        if self.read("config.json")?.is_none()
            && matches!(self, Self::Directory(path) if foreign::of_directory(path).is_some())
        {
            self.config()?;
        }
        bail!("{}: expected a tokenizer, found no such file", self.path("tokenizer.json").display())
    }

    /// The chat template.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        match self {
            Self::Demo => {
                let name = "tokenizer_config.json";
                let json = self.read(name)?.expect("the demo model has one");
                Ok(ChatTemplate::from_json(&json, &self.path(name))?)
            }
            Self::Directory(directory) => Ok(ChatTemplate::read(directory)?),
        }
    }

    /// The weights, if they are encoded already.
    pub fn container(&self) -> Result<Option<Container>> {
        self.container_with(FileAccess::Map)
    }

    /// The same, mapped or read into memory.
    pub fn container_with(&self, access: FileAccess) -> Result<Option<Container>> {
        match self {
            Self::Directory(directory) if Container::is_at(directory) => {
                Ok(Some(Container::open_with(directory, access)?))
            }
            Self::Directory(_) | Self::Demo => Ok(None),
        }
    }

    /// The weights in float.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        self.checkpoint_with(FileAccess::Map)
    }

    /// The same, mapped or read into memory.
    pub fn checkpoint_with(&self, access: FileAccess) -> Result<Checkpoint> {
        match self {
            Self::Demo => {
                let name = "model.safetensors";
                let (_, bytes) = DEMO.iter().find(|(known, _)| *known == name).expect("the demo model has one");
                Ok(Checkpoint::from_bytes(*bytes, &self.path(name))?)
            }
            Self::Directory(directory) => Ok(Checkpoint::open_with(directory, access)?),
        }
    }
}
