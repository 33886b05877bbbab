//! Moving tensors and modules between a backend and its decorated self. No number moves: both share their tensors.

use crate::{ParamPath, Qins, QinsFloat};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Bool, Int, Tensor, TensorPrimitive},
};
use burn_backend::{
    Backend, TensorMetadata,
    tensor::{BoolTensor, FloatTensor, IntTensor},
};
use std::collections::HashMap;

/// A parameter that one module has and the other has not, or has in another shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected a parameter of shape {expected:?}, found {}", found_text(.found))]
pub struct TransferError {
    /// The parameter of the module that was to receive it, as field names joined by dots.
    pub path: String,
    /// Its shape there.
    pub expected: Vec<usize>,
    /// The shape in the module to take it from, if there is one.
    pub found: Option<Vec<usize>>,
}

fn found_text(found: &Option<Vec<usize>>) -> String {
    found.as_ref().map_or("none".to_owned(), |shape| format!("{shape:?}"))
}

impl<B: Backend> Qins<B> {
    /// A tensor of `B` as one of `Qins<B>`. Tensors of Burn's own quantization are decoded.
    pub fn from_inner<const D: usize>(tensor: Tensor<B, D>) -> Tensor<Self, D> {
        Tensor::from_primitive(TensorPrimitive::Float(QinsFloat::Dense(tensor.into_primitive().tensor())))
    }

    /// A tensor of `Qins<B>` as one of `B`: coded weights are decoded.
    pub fn into_inner<const D: usize>(tensor: Tensor<Self, D>) -> Tensor<B, D> {
        Tensor::from_primitive(TensorPrimitive::Float(tensor.into_primitive().tensor().dense()))
    }

    /// The parameters of a module on `B` in `module`, a fresh one of the same structure on `Qins<B>`.
    ///
    /// # Errors
    /// The first parameter of `module` that `source` lacks or has in another shape.
    pub fn module_from_inner<S: Module<B>, M: Module<Self>>(source: &S, module: M) -> Result<M, TransferError> {
        transfer::<B, B, Self, S, M>(source, module)
    }

    /// The parameters of a module on `Qins<B>`, decoded, in `module`, a fresh one of the same structure on `B`.
    ///
    /// # Errors
    /// The first parameter of `module` that `source` lacks or has in another shape.
    pub fn module_into_inner<S: Module<Self>, M: Module<B>>(source: &S, module: M) -> Result<M, TransferError> {
        transfer::<B, Self, B, S, M>(source, module)
    }
}

/// `From` and `To` are `B` and `Qins<B>`, or the other way round.
fn transfer<B, From, To, S, M>(source: &S, module: M) -> Result<M, TransferError>
where
    B: Backend,
    From: SharesTensors<B>,
    To: SharesTensors<B>,
    S: Module<From>,
    M: Module<To>,
{
    let mut taken = Take { path: ParamPath::default(), found: HashMap::new() };
    source.visit(&mut taken);
    let mut give = Give::<B> { path: ParamPath::default(), found: taken.found, error: None };
    let module = module.map(&mut give);
    give.error.map_or(Ok(module), Err)
}

/// A backend whose tensors are those of `B`, perhaps wrapped.
trait SharesTensors<B: Backend>:
    Backend<IntTensorPrimitive = IntTensor<B>, BoolTensorPrimitive = BoolTensor<B>, Device = B::Device>
{
    fn out(float: FloatTensor<Self>) -> FloatTensor<B>;
    fn into(float: FloatTensor<B>) -> FloatTensor<Self>;
}

impl<B: Backend> SharesTensors<B> for B {
    fn out(float: FloatTensor<B>) -> FloatTensor<B> {
        float
    }

    fn into(float: FloatTensor<B>) -> FloatTensor<B> {
        float
    }
}

impl<B: Backend> SharesTensors<B> for Qins<B> {
    fn out(float: FloatTensor<Self>) -> FloatTensor<B> {
        float.dense()
    }

    fn into(float: FloatTensor<B>) -> FloatTensor<Self> {
        QinsFloat::Dense(float)
    }
}

enum Parameter<B: Backend> {
    Float(FloatTensor<B>),
    Int(IntTensor<B>),
    Bool(BoolTensor<B>),
}

impl<B: Backend> Parameter<B> {
    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Float(tensor) => tensor.shape(),
            Self::Int(tensor) => tensor.shape(),
            Self::Bool(tensor) => tensor.shape(),
        }
        .to_vec()
    }
}

/// Collects the parameters of the source.
struct Take<B: Backend> {
    path: ParamPath,
    found: HashMap<String, Parameter<B>>,
}

impl<B: Backend, F: SharesTensors<B>> ModuleVisitor<F> for Take<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<F, D>>) {
        let float = F::out(param.val().into_primitive().tensor());
        self.found.insert(self.path.dotted(), Parameter::Float(float));
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<F, D, Int>>) {
        self.found.insert(self.path.dotted(), Parameter::Int(param.val().into_primitive()));
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<F, D, Bool>>) {
        self.found.insert(self.path.dotted(), Parameter::Bool(param.val().into_primitive()));
    }
}

/// Hands them to the parameters of the same names.
struct Give<B: Backend> {
    path: ParamPath,
    found: HashMap<String, Parameter<B>>,
    error: Option<TransferError>,
}

impl<B: Backend> Give<B> {
    /// The parameter for the current path, if it has that shape.
    fn take(&mut self, expected: Vec<usize>) -> Option<Parameter<B>> {
        let path = self.path.dotted();
        let parameter = self.found.remove(&path);
        let found = parameter.as_ref().map(Parameter::shape);
        if found.as_ref() == Some(&expected) {
            return parameter;
        }
        self.error.get_or_insert(TransferError { path, expected, found });
        None
    }
}

impl<B: Backend, T: SharesTensors<B>> ModuleMapper<T> for Give<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
        match self.take(param.lazy_shape().to_vec()) {
            Some(Parameter::Float(float)) => {
                let float = Tensor::from_primitive(TensorPrimitive::Float(T::into(float)));
                Param::initialized(param.id, float.set_require_grad(param.is_require_grad()))
            }
            _ => param,
        }
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<T, D, Int>>) -> Param<Tensor<T, D, Int>> {
        match self.take(param.lazy_shape().to_vec()) {
            Some(Parameter::Int(int)) => Param::initialized(param.id, Tensor::from_primitive(int)),
            _ => param,
        }
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<T, D, Bool>>) -> Param<Tensor<T, D, Bool>> {
        match self.take(param.lazy_shape().to_vec()) {
            Some(Parameter::Bool(bool)) => Param::initialized(param.id, Tensor::from_primitive(bool)),
            _ => param,
        }
    }
}
