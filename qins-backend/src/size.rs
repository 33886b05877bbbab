use crate::{Qins, QinsFloat, QinsTensor};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::{Backend, TensorMetadata};

/// Bytes of a module's float parameters as computing reads them: codes and scale codes, or the decoded floats where those
/// are kept at hand. Parameters that are not initialised yet count as f32.
pub fn weight_bytes<B: Backend, M: Module<Qins<B>>>(module: &M) -> usize {
    let mut visitor = Visitor { bytes: 0 };
    module.visit(&mut visitor);
    visitor.bytes
}

struct Visitor {
    bytes: usize,
}

impl<B: Backend> ModuleVisitor<Qins<B>> for Visitor {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Qins<B>, D>>) {
        let coded = |tensor: QinsTensor<B>| match tensor.has_decoded() {
            true => tensor.shape().num_elements() * size_of::<f32>(),
            false => tensor.header().code_bytes() + tensor.header().scale_bytes(),
        };
        self.bytes += match param.is_initialized().then(|| param.val().into_primitive()) {
            Some(TensorPrimitive::QFloat(tensor) | TensorPrimitive::Float(QinsFloat::Coded(tensor, _))) => {
                coded(tensor)
            }
            Some(TensorPrimitive::Float(QinsFloat::Dense(tensor))) => {
                tensor.shape().num_elements() * tensor.dtype().size()
            }
            None => param.lazy_shape().num_elements() * size_of::<f32>(),
        };
    }
}
