use crate::{BufferError, ParamPath, Qins, QinsFloat, QinsTensor, kernels, largest_buffer};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::{Backend, TensorMetadata};

/// Bytes of a module's float parameters as computing reads them: codes and scale codes, or the decoded floats where those
/// are kept at hand. Parameters that are not initialised yet count as f32.
pub fn weight_bytes<B: Backend, M: Module<Qins<B>>>(module: &M) -> usize {
    sizes(module).iter().map(|(_, bytes, _)| bytes).sum()
}

/// The path of the float parameter that needs the largest piece of memory, and the bytes of that piece: all that
/// [`weight_bytes`] counts, or the largest part, where codes lie in parts. On a device that holds so much in one piece,
/// the module runs. `None` for a module without float parameters.
pub fn largest_weight<B: Backend, M: Module<Qins<B>>>(module: &M) -> Option<(String, usize)> {
    sizes(module).into_iter().map(|(path, _, piece)| (path, piece)).max_by_key(|&(_, piece)| piece)
}

/// Whether a device holds every float parameter of a module. Codes are cut into parts and nearly always fit; floats are not.
///
/// Burn does not say so itself: a tensor beyond the limit is missing on the device, and what is computed means nothing.
///
/// # Errors
/// The parameter that needs the largest piece, if that is beyond what [`largest_buffer`](crate::largest_buffer) says.
pub fn check_buffers<B: Backend, M: Module<Qins<B>>>(module: &M, device: &B::Device) -> Result<(), BufferError> {
    match (largest_weight(module), largest_buffer::<B>(device)) {
        (Some((tensor, bytes)), Some(limit)) if bytes > limit => Err(BufferError { tensor, bytes, limit }),
        _ => Ok(()),
    }
}

/// What a graphics device holds for the thread that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes of tensors.
    pub in_use: u64,
    /// Bytes taken from the device, with room for further tensors.
    pub reserved: u64,
}

/// What a device of `B` or `Qins<B>` holds. `None` of backends whose tensors lie in the host's memory.
pub fn device_memory<B: Backend>(device: &B::Device) -> Option<DeviceMemory> {
    kernels::memory::<B>(device)
}

/// Path, bytes, and bytes of the largest piece.
fn sizes<B: Backend, M: Module<Qins<B>>>(module: &M) -> Vec<(String, usize, usize)> {
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    visitor.sizes
}

#[derive(Default)]
struct Visitor {
    path: ParamPath,
    sizes: Vec<(String, usize, usize)>,
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
            true => [tensor.shape().num_elements() * size_of::<f32>(); 2],
            false => [tensor.header().code_bytes() + tensor.header().scale_bytes(), tensor.largest_piece()],
        };
        let [bytes, piece] = match param.is_initialized().then(|| param.val().into_primitive()) {
            Some(TensorPrimitive::QFloat(tensor) | TensorPrimitive::Float(QinsFloat::Coded(tensor, _))) => {
                coded(tensor)
            }
            Some(TensorPrimitive::Float(QinsFloat::Dense(tensor))) => {
                [tensor.shape().num_elements() * tensor.dtype().size(); 2]
            }
            None => [param.lazy_shape().num_elements() * size_of::<f32>(); 2],
        };
        self.sizes.push((self.path.dotted(), bytes, piece));
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
        assert_eq!(largest_weight(&coded), Some(("weight".to_owned(), 10 * 64)));
        assert_eq!(weight_bytes(&coded), 10 * (64 + 2) + 10 * 4);
    }
}
