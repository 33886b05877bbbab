use crate::{ParamPath, Qins, QinsFloat, QinsTensor};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::{Backend, TensorMetadata};

/// Bytes of a module's float parameters as computing reads them: codes and scale codes, or the decoded floats where those
/// are kept at hand. Parameters that are not initialised yet count as f32.
pub fn weight_bytes<B: Backend, M: Module<Qins<B>>>(module: &M) -> usize {
    sizes(module).iter().map(|(_, bytes)| bytes).sum()
}

/// The path of the largest float parameter, and its bytes as [`weight_bytes`] counts them: on a device that holds so much in
/// one piece, the module runs. `None` for a module without float parameters.
pub fn largest_weight<B: Backend, M: Module<Qins<B>>>(module: &M) -> Option<(String, usize)> {
    sizes(module).into_iter().max_by_key(|&(_, bytes)| bytes)
}

fn sizes<B: Backend, M: Module<Qins<B>>>(module: &M) -> Vec<(String, usize)> {
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    visitor.sizes
}

#[derive(Default)]
struct Visitor {
    path: ParamPath,
    sizes: Vec<(String, usize)>,
}

impl<B: Backend> ModuleVisitor<Qins<B>> for Visitor {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Qins<B>, D>>) {
        let coded = |tensor: QinsTensor<B>| match tensor.has_decoded() {
            true => tensor.shape().num_elements() * size_of::<f32>(),
            false => tensor.header().code_bytes() + tensor.header().scale_bytes(),
        };
        let bytes = match param.is_initialized().then(|| param.val().into_primitive()) {
            Some(TensorPrimitive::QFloat(tensor) | TensorPrimitive::Float(QinsFloat::Coded(tensor, _))) => {
                coded(tensor)
            }
            Some(TensorPrimitive::Float(QinsFloat::Dense(tensor))) => {
                tensor.shape().num_elements() * tensor.dtype().size()
            }
            None => param.lazy_shape().num_elements() * size_of::<f32>(),
        };
        self.sizes.push((self.path.dotted(), bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;
    use burn::nn::LinearConfig;
    use burn_flex::Flex;
    use qins_codec::Format;

    #[test]
    fn codes_and_floats_are_counted_as_they_lie() {
        let layer = || LinearConfig::new(64, 10).init::<Qins<Flex>>(&Default::default());
        assert_eq!(largest_weight(&layer()), Some(("weight".to_owned(), 64 * 10 * 4)));
        let coded = Policy::linear(Format::Q8).encode(layer()).unwrap();
        assert_eq!(largest_weight(&coded), Some(("weight".to_owned(), 10 * (64 + 2))));
        assert_eq!(weight_bytes(&coded), 10 * (64 + 2) + 10 * 4);
    }
}
