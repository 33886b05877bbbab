//! Where a model's files are: in a directory, or in the program itself.

use anyhow::{Context, Result, bail};
use phi35_model::{ChatTemplate, Config, GenerationConfig, Tokenizer};
use qins_import::{Checkpoint, Container, FileAccess};
use std::{
    borrow::Cow,
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

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
        match self {
            Self::Demo => Ok(DEMO.iter().find(|(known, _)| *known == name).map(|(_, bytes)| Cow::Borrowed(*bytes))),
            Self::Directory(directory) => match std::fs::read(directory.join(name)) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).with_context(|| self.path(name).display().to_string()),
            },
        }
    }

    /// `config.json`.
    pub fn config(&self) -> Result<Config> {
        if let Self::Directory(directory) = self
            && !directory.is_dir()
        {
            bail!("{}: expected a model directory (or `demo`), found no such directory", directory.display());
        }
        let json = self.config_bytes()?;
        Config::from_json(&json, &self.path("config.json")).with_context(|| format!("cannot run {self}"))
    }

    /// `config.json` as it is.
    pub fn config_bytes(&self) -> Result<Cow<'static, [u8]>> {
        let path = self.path("config.json");
        let json = self.read("config.json")?;
        json.with_context(|| format!("{}: expected a configuration, found no such file", path.display()))
    }

    /// Ids that end a text: those of `generation_config.json`, else those of `config.json`.
    pub fn stop_ids(&self, config: &Config) -> Result<Vec<u32>> {
        let name = "generation_config.json";
        let named = match self.read(name)? {
            Some(json) => GenerationConfig::from_json(&json, &self.path(name))?.eos_token_id.0,
            None => Vec::new(),
        };
        Ok(if named.is_empty() { config.eos_token_id.0.clone() } else { named })
    }

    /// The tokenizer, if the model has one.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let name = "tokenizer.json";
        Ok(self.read(name)?.map(|json| Tokenizer::from_json(&json, &self.path(name))).transpose()?)
    }

    /// The tokenizer.
    pub fn require_tokenizer(&self) -> Result<Tokenizer> {
        self.tokenizer()?.with_context(|| {
            format!("{}: expected a tokenizer, found no such file", self.path("tokenizer.json").display())
        })
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
            _ => Ok(None),
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
