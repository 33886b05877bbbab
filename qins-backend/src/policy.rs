//! Which tensors of a module are encoded, and in which format.

use crate::{Qins, QinsFloat, QinsTensor, tensor::read_f32};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::{Backend, TensorMetadata};
use globset::{GlobBuilder, GlobMatcher};
use qins_codec::{EncodeError, Format, Slice, encode};
use std::fmt;

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
/// # Ok::<(), qins_backend::PatternError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

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

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    takes: Selector,
    /// `None` leaves the weight in float.
    format: Option<Format>,
}

#[derive(Debug, Clone)]
enum Selector {
    Kind(WeightKind),
    Pattern { text: String, glob: GlobMatcher },
}

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
        self.and(Rule { takes: Selector::Kind(kind), format: Some(format) })
    }

    /// Encodes what a pattern takes.
    ///
    /// Patterns are globs over the names of fields joined by dots, and match a parameter by its whole name or by any
    /// module that holds it: `*` stops at a dot, `**` does not. A pattern takes the weights of linear layers,
    /// convolutions and embeddings; a norm, a bias or a parameter of one's own only if it ends with its very name, as
    /// `**.bias` does.
    ///
    /// # Errors
    /// If the pattern is no glob.
    pub fn set(self, pattern: &str, format: Format) -> Result<Self, PatternError> {
        Ok(self.and(Rule { takes: Selector::pattern(pattern)?, format: Some(format) }))
    }

    /// Leaves in float what a pattern takes.
    ///
    /// # Errors
    /// If the pattern is no glob.
    pub fn keep(self, pattern: &str) -> Result<Self, PatternError> {
        Ok(self.and(Rule { takes: Selector::pattern(pattern)?, format: None }))
    }

    fn and(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The format of a parameter; `None` leaves it in float.
    pub fn format(&self, parameter: &ParamPath) -> Option<Format> {
        self.rules.iter().rev().find(|rule| rule.takes.matches(parameter)).and_then(|rule| rule.format)
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

impl Selector {
    fn pattern(text: &str) -> Result<Self, PatternError> {
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

/// As containers record it.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, rule) in self.rules.iter().enumerate() {
            let takes = match &rule.takes {
                Selector::Kind(WeightKind::Linear) => "linear",
                Selector::Kind(WeightKind::Convolution) => "convolution",
                Selector::Kind(WeightKind::Embedding) => "embedding",
                Selector::Pattern { text, .. } => text,
            };
            let separator = if i == 0 { "" } else { " " };
            write!(f, "{separator}{takes}={}", rule.format.map_or("float", Format::name))?;
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
        let Some(format) = self.policy.format(&self.path).filter(|_| self.error.is_none()) else {
            return tensor;
        };
        let primitive = match tensor.into_primitive() {
            TensorPrimitive::Float(QinsFloat::Coded(tensor, _)) => {
                return Tensor::from_primitive(tensor.into_primitive());
            }
            TensorPrimitive::Float(QinsFloat::Dense(float)) => float,
            coded => return Tensor::from_primitive(coded),
        };
        let encoded = if self.path.is_linear_weight() {
            // Rows of the matrix are the columns of Burn's weight.
            let ([rows, cols], device) = (primitive.shape().dims(), B::float_device(&primitive));
            let values = read_f32::<B>(primitive.clone());
            let weights = Slice::new(&values, rows, cols).transposed();
            encode(format, &weights).map(|encoded| QinsTensor::from_encoded(encoded, &device).transpose())
        } else {
            QinsTensor::encode(primitive.clone(), format)
        };
        match encoded {
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
