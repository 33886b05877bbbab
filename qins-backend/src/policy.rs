//! Which tensors of a module are encoded, and in which format.

use crate::{Qins, QinsFloat, QinsTensor};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::Backend;
use globset::{GlobBuilder, GlobMatcher};
use qins_codec::{EncodeError, Format, UnknownFormat};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{fmt, str::FromStr};

/// Which weights get which format: rules, of which the last that takes a weight decides. What no rule takes stays in
/// float.
///
/// ```
/// use qins_backend::Policy;
/// use qins_codec::Format;
///
/// let policy = Policy::linear(Format::Q8)
///     .with_embeddings(Format::Bf16)
///     .set("lm_head", Format::F16)?
///     .keep("model.layers.0.**")?;
/// assert_eq!(policy.to_string(), "linear=q8 embedding=bf16 lm_head=f16 model.layers.0.**=float");
/// assert_eq!("linear=q8 embedding=bf16 lm_head=f16 model.layers.0.**=float".parse(), Ok(policy));
/// # Ok::<(), qins_backend::PatternError>(())
/// ```
///
/// In files of settings it is a list of rules, such as this one in TOML:
///
/// ```toml
/// rules = ["linear=q4", "lm_head=q12", "model.layers.*.mlp=q8+cached"]
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// How a weight is kept: `float`, a format, or a format and `+cached`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As it is.
    Float,
    /// In codes, decoded where they are used.
    Coded(Format),
    /// In codes, with the decoded floats at hand ([`QinsTensor::cache_decoded`]): small in files, fast to compute with.
    Cached(Format),
}

impl Storage {
    /// The format of the codes, if there are any.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Float => None,
            Self::Coded(format) | Self::Cached(format) => Some(format),
        }
    }

    /// Whether decoded floats are kept at hand.
    pub fn is_cached(self) -> bool {
        matches!(self, Self::Cached(_))
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.write_str(FLOAT),
            Self::Coded(format) => format.fmt(f),
            Self::Cached(format) => write!(f, "{format}{CACHED}"),
        }
    }
}

impl FromStr for Storage {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match (text, text.strip_suffix(CACHED)) {
            (FLOAT, _) => Ok(Self::Float),
            (_, Some(format)) => Ok(Self::Cached(format.parse()?)),
            (format, None) => Ok(Self::Coded(format.parse()?)),
        }
    }
}

const FLOAT: &str = "float";
const CACHED: &str = "+cached";

/// A kind of layer that has a weight worth encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightKind {
    /// `nn::Linear` and `QinsLinear`, `[in, out]`, and with it whatever is made of linear layers: attention, recurrent
    /// cells.
    Linear,
    /// Convolutions of every dimension, transposed and deformable ones too, `[out, in, ..]`.
    Convolution,
    /// `nn::Embedding`, `[rows, d]`.
    Embedding,
}

/// What one rule of a [`Policy`] takes, and how it keeps that: `PATTERN=FORMAT` in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    takes: Selector,
    storage: Storage,
}

impl WeightKind {
    /// The word that stands for it in a policy, in place of a pattern.
    pub fn word(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).expect("every kind has a word").0
    }
}

#[derive(Debug, Clone)]
enum Selector {
    Kind(WeightKind),
    Pattern { text: String, glob: GlobMatcher },
}

/// The words that stand for a kind in place of a pattern. A field of such a name is meant by `name.**`.
const KINDS: [(&str, WeightKind); 3] =
    [("linear", WeightKind::Linear), ("convolution", WeightKind::Convolution), ("embedding", WeightKind::Embedding)];

/// Why a module was not encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// A weight that could not be encoded.
    #[error("{path}: {source}")]
    Weight {
        /// The parameter, as field names joined by dots.
        path: String,
        /// What is wrong with it.
        source: EncodeError,
    },
    /// A pattern that names no parameter of the module.
    #[error("the pattern `{pattern}` takes no parameter of the module")]
    NothingTaken {
        /// The pattern.
        pattern: String,
    },
}

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pattern `{pattern}`: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No pattern and format joined by `=`.
    #[error("expected PATTERN=FORMAT, found `{0}`")]
    Form(String),
    /// What it takes.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// How that is kept.
    #[error("{0}, {FLOAT}; any but the last with `{CACHED}`")]
    Format(#[from] UnknownFormat),
}

impl Policy {
    /// Encodes the weight of every linear layer.
    pub fn linear(format: Format) -> Self {
        Self::default().with(WeightKind::Linear, format)
    }

    /// Encodes the table of every embedding, for example in the 16 bits it was trained in.
    pub fn with_embeddings(self, format: Format) -> Self {
        self.with(WeightKind::Embedding, format)
    }

    /// Encodes the weight of every convolution.
    pub fn with_convolutions(self, format: Format) -> Self {
        self.with(WeightKind::Convolution, format)
    }

    fn with(self, kind: WeightKind, format: Format) -> Self {
        self.and(Rule { takes: Selector::Kind(kind), storage: Storage::Coded(format) })
    }

    /// Encodes what a pattern takes.
    ///
    /// Patterns are globs over the names of fields joined by dots, and match a parameter by its whole name or by any
    /// module that holds it: `*` stops at a dot, `**` does not. A pattern takes the weights of linear layers,
    /// convolutions and embeddings; a norm, a bias or a parameter of one's own only if it ends with its very name, as
    /// `**.bias` does. `linear`, `convolution` and `embedding` take all weights of the kind.
    ///
    /// # Errors
    /// If the pattern is no glob.
    pub fn set(self, pattern: &str, format: Format) -> Result<Self, PatternError> {
        self.store(pattern, Storage::Coded(format))
    }

    /// Leaves in float what a pattern takes.
    ///
    /// # Errors
    /// If the pattern is no glob.
    pub fn keep(self, pattern: &str) -> Result<Self, PatternError> {
        self.store(pattern, Storage::Float)
    }

    /// Keeps what a pattern takes in any way.
    ///
    /// # Errors
    /// If the pattern is no glob.
    pub fn store(self, pattern: &str, storage: Storage) -> Result<Self, PatternError> {
        Ok(self.and(Rule { takes: Selector::new(pattern)?, storage }))
    }

    /// One rule more, above those before it.
    pub fn and(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The rules of another policy above one's own.
    pub fn then(mut self, other: Policy) -> Self {
        self.rules.extend(other.rules);
        self
    }

    /// Whether no rule encodes anything.
    pub fn is_float(&self) -> bool {
        self.rules.iter().all(|rule| rule.storage == Storage::Float)
    }

    /// How a parameter is kept, if a rule takes it.
    pub fn rule(&self, parameter: &ParamPath) -> Option<Storage> {
        self.rules.iter().rev().find(|rule| rule.takes.matches(parameter)).map(|rule| rule.storage)
    }

    /// How a parameter is kept.
    pub fn storage(&self, parameter: &ParamPath) -> Storage {
        self.rule(parameter).unwrap_or(Storage::Float)
    }

    /// Encodes a module in place of its float weights, one tensor at a time. Weights already coded stay as they are.
    ///
    /// # Errors
    /// The first weight with NaN or infinity, by path, and by row and column of `[out, in]`; a pattern that takes
    /// nothing.
    pub fn encode<B: Backend, M: Module<Qins<B>>>(&self, module: M) -> Result<M, PolicyError> {
        let mut encoder = ModuleEncoder { policy: self, path: ParamPath::default(), seen: Vec::new(), error: None };
        let module = module.map(&mut encoder);
        if let Some(error) = encoder.error {
            return Err(error);
        }
        self.check(&encoder.seen)?;
        Ok(module)
    }

    /// Whether every pattern takes one of a module's parameters: one that takes none was hardly meant so.
    ///
    /// # Errors
    /// [`PolicyError::NothingTaken`] names the first that takes none.
    pub fn check(&self, parameters: &[ParamPath]) -> Result<(), PolicyError> {
        for Rule { takes, .. } in &self.rules {
            if let Selector::Pattern { text, .. } = takes
                && !parameters.iter().any(|parameter| takes.matches(parameter))
            {
                return Err(PolicyError::NothingTaken { pattern: text.clone() });
            }
        }
        Ok(())
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (pattern, storage) = text.split_once('=').ok_or_else(|| RuleError::Form(text.to_owned()))?;
        Ok(Self { takes: Selector::new(pattern)?, storage: storage.parse()? })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let takes = match &self.takes {
            Selector::Kind(kind) => kind.word(),
            Selector::Pattern { text, .. } => text,
        };
        write!(f, "{takes}={}", self.storage)
    }
}

impl FromStr for Policy {
    type Err = RuleError;

    /// Rules with spaces between them.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        Ok(Self { rules: text.split_whitespace().map(str::parse).collect::<Result<_, _>>()? })
    }
}

/// From a list of rules.
impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rules = Vec::<String>::deserialize(deserializer)?;
        let rules = rules.iter().map(|rule| rule.parse().map_err(D::Error::custom)).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }
}

impl Selector {
    fn new(text: &str) -> Result<Self, PatternError> {
        if let Some(&(_, kind)) = KINDS.iter().find(|(word, _)| *word == text) {
            return Ok(Self::Kind(kind));
        }
        let error = |reason: String| PatternError { pattern: text.to_owned(), reason };
        if text.split('.').any(str::is_empty) {
            return Err(error("expected names joined by single dots".to_owned()));
        }
        // Globs know `/` as the separator, which no field name holds.
        let glob = GlobBuilder::new(&text.replace('.', "/")).literal_separator(true).build();
        let glob = glob.map_err(|source| error(source.kind().to_string()))?.compile_matcher();
        Ok(Self::Pattern { text: text.to_owned(), glob })
    }

    fn matches(&self, parameter: &ParamPath) -> bool {
        let kind = parameter.weight_kind();
        match self {
            Self::Kind(own) => kind == Some(*own),
            Self::Pattern { text, glob } => {
                let names: Vec<&str> = parameter.names().collect();
                let matches = |depth: usize| glob.is_match(names[..depth].join("/"));
                match kind {
                    Some(_) => (1..=names.len()).any(matches),
                    None => text.rsplit('.').next() == names.last().copied() && matches(names.len()),
                }
            }
        }
    }
}

/// Globs are the same if they were written the same.
impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Kind(a), Self::Kind(b)) => a == b,
            (Self::Pattern { text: a, .. }, Self::Pattern { text: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl Eq for Selector {}

/// As containers record it: rules with spaces between them.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.rules.iter().enumerate() {
            write!(f, "{}{rule}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// Where a mapper or visitor stands in a module: call [`enter`](ParamPath::enter) and [`exit`](ParamPath::exit) from
/// `enter_module` and `exit_module`.
#[derive(Debug, Clone, Default)]
pub struct ParamPath {
    /// Field name and type of the struct it stands in, outermost first.
    fields: Vec<(String, String)>,
}

impl ParamPath {
    /// Steps into a field; `container` is the type of the struct that has it, as Burn's derive names it.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.fields.push((name.to_owned(), container.to_owned()));
    }

    /// Steps out again.
    pub fn exit(&mut self) {
        self.fields.pop();
    }

    /// Field names joined by dots, as in `layers.0.mlp.down_proj.weight`.
    pub fn dotted(&self) -> String {
        self.names().collect::<Vec<_>>().join(".")
    }

    /// The module that has the parameter: the path without its last field.
    pub fn module(&self) -> String {
        let names: Vec<&str> = self.names().collect();
        names[..names.len().saturating_sub(1)].join(".")
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    /// What the parameter is the weight of. Neither biases nor norms are.
    pub fn weight_kind(&self) -> Option<WeightKind> {
        let (name, container) = self.fields.last()?;
        match container.strip_prefix("Struct:")? {
            _ if name != "weight" => None,
            "Linear" | "QinsLinear" => Some(WeightKind::Linear),
            "Conv1d" | "Conv2d" | "Conv3d" | "ConvTranspose1d" | "ConvTranspose2d" | "ConvTranspose3d"
            | "DeformConv2d" => Some(WeightKind::Convolution),
            "Embedding" => Some(WeightKind::Embedding),
            _ => None,
        }
    }

    /// Whether this is the weight of a linear layer, `[in, out]`: its groups run along `in`, the columns of `[out, in]`.
    pub fn is_linear_weight(&self) -> bool {
        self.weight_kind() == Some(WeightKind::Linear)
    }

    /// Whether this is field `name` of a struct that Burn's derive calls `container`.
    pub fn is(&self, name: &str, container: &str) -> bool {
        self.fields.last().is_some_and(|(n, c)| n == name && c == container)
    }
}

struct ModuleEncoder<'a> {
    policy: &'a Policy,
    path: ParamPath,
    /// Every parameter so far.
    seen: Vec<ParamPath>,
    error: Option<PolicyError>,
}

impl ModuleEncoder<'_> {
    fn encode<B: Backend, const D: usize>(&mut self, tensor: Tensor<Qins<B>, D>) -> Tensor<Qins<B>, D> {
        self.seen.push(self.path.clone());
        let storage = self.policy.storage(&self.path);
        let Some(format) = storage.format().filter(|_| self.error.is_none()) else {
            return tensor;
        };
        let primitive = match tensor.into_primitive() {
            TensorPrimitive::Float(QinsFloat::Coded(tensor, _)) => {
                return Tensor::from_primitive(tensor.into_primitive());
            }
            TensorPrimitive::Float(QinsFloat::Dense(float)) => float,
            coded => return Tensor::from_primitive(coded),
        };
        let encoded = match self.path.is_linear_weight() {
            // Rows of the matrix are the columns of Burn's weight.
            true => QinsTensor::encode(B::float_transpose(primitive.clone()), format).map(QinsTensor::transpose),
            false => QinsTensor::encode(primitive.clone(), format),
        };
        match encoded {
            Ok(weight) if storage.is_cached() => Tensor::from_primitive(weight.cache_decoded().into_primitive()),
            Ok(weight) => Tensor::from_primitive(weight.into_primitive()),
            Err(source) => {
                self.error = Some(PolicyError::Weight { path: self.path.dotted(), source });
                Tensor::from_primitive(TensorPrimitive::Float(QinsFloat::Dense(primitive)))
            }
        }
    }
}

impl<B: Backend> ModuleMapper<Qins<B>> for ModuleEncoder<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Qins<B>, D>>) -> Param<Tensor<Qins<B>, D>> {
        let (id, tensor, mapper) = param.consume();
        Param::from_mapped_value(id, self.encode(tensor), mapper)
    }
}
