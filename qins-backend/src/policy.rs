//! Which tensors of a module are encoded, and in which format.

use crate::{Qins, QinsTensor, tensor::read_f32};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::{Backend, TensorMetadata};
use qins_codec::{EncodeError, Format, Slice, encode};
use std::fmt;

/// Which weights get which format. Biases and norms stay in float.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    linear: Format,
    embedding: Option<Format>,
}

/// A weight that could not be encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PolicyError {
    /// The parameter, as field names joined by dots.
    pub path: String,
    /// What is wrong with it.
    pub source: EncodeError,
}

impl Policy {
    /// Encodes the weight of every linear layer.
    pub fn linear(format: Format) -> Self {
        Self { linear: format, embedding: None }
    }

    /// Encodes the table of every embedding as well, for example in the 16 bits it was trained in.
    pub fn with_embeddings(self, format: Format) -> Self {
        Self { embedding: Some(format), ..self }
    }

    /// The format of a parameter; `None` leaves it in float.
    pub fn format(&self, parameter: &ParamPath) -> Option<Format> {
        if parameter.is_linear_weight() {
            Some(self.linear)
        } else if parameter.is_embedding_weight() {
            self.embedding
        } else {
            None
        }
    }

    /// Encodes a module in place of its float weights, one tensor at a time. Weights already coded stay as they are.
    ///
    /// # Errors
    /// The first weight with NaN or infinity, by path, and by row and column of `[out, in]`.
    pub fn encode<B: Backend, M: Module<Qins<B>>>(&self, module: M) -> Result<M, PolicyError> {
        let mut encoder = ModuleEncoder { policy: self, path: ParamPath::default(), error: None };
        let module = module.map(&mut encoder);
        encoder.error.map_or(Ok(module), Err)
    }
}

/// As containers record it.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linear={}", self.linear)?;
        self.embedding.map_or(Ok(()), |format| write!(f, " embedding={format}"))
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
        self.fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }

    /// Whether this is the weight of a Burn `nn::Linear`, `[in, out]`.
    pub fn is_linear_weight(&self) -> bool {
        self.is("weight", "Struct:Linear")
    }

    /// Whether this is the table of a Burn `nn::Embedding`, `[rows, d]`.
    pub fn is_embedding_weight(&self) -> bool {
        self.is("weight", "Struct:Embedding")
    }

    /// Whether this is field `name` of a struct that Burn's derive calls `container`.
    pub fn is(&self, name: &str, container: &str) -> bool {
        self.fields.last().is_some_and(|(n, c)| n == name && c == container)
    }
}

struct ModuleEncoder<'a> {
    policy: &'a Policy,
    path: ParamPath,
    error: Option<PolicyError>,
}

impl ModuleEncoder<'_> {
    fn encode<B: Backend, const D: usize>(&mut self, tensor: Tensor<Qins<B>, D>) -> Tensor<Qins<B>, D> {
        let Some(format) = self.policy.format(&self.path).filter(|_| self.error.is_none()) else {
            return tensor;
        };
        let primitive = match tensor.into_primitive() {
            TensorPrimitive::Float(float) => float.dense(),
            coded => return Tensor::from_primitive(coded),
        };
        let ([rows, cols], device) = (primitive.shape().dims(), B::float_device(&primitive));
        let values = read_f32::<B>(primitive.clone());
        let stored = Slice::new(&values, rows, cols);
        // Burn's linear weight is [in, out]; groups run along `in`, so rows of the matrix are its columns.
        let is_transposed = self.path.is_linear_weight();
        match encode(format, &if is_transposed { stored.transposed() } else { stored }) {
            Ok(encoded) => {
                let weight = QinsTensor::from_encoded(encoded, &device);
                let weight = if is_transposed { weight.transpose() } else { weight };
                Tensor::from_primitive(weight.into_primitive())
            }
            Err(source) => {
                self.error = Some(PolicyError { path: self.path.dotted(), source });
                Tensor::from_primitive(TensorPrimitive::Float(crate::QinsFloat::Dense(primitive)))
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
