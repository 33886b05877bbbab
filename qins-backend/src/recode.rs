//! Between quantized parameters and lazy floats, both of them codes in memory.

use crate::{Qins, QinsFloat};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorPrimitive},
};
use burn_backend::Backend;
use std::marker::PhantomData;

/// Makes quantized parameters of coded weights that have become lazy floats, bit for bit.
///
/// Burn's `fork` and `detach` turn a quantized parameter into a float. It is still coded in memory and computes as before,
/// but a recorder would store it decoded.
pub fn recode<B: Backend, M: Module<Qins<B>>>(module: M) -> M {
    module.map(&mut Mapper::<B> { to_float: false, backend: PhantomData })
}

/// Makes lazy floats of quantized parameters: the opposite of [`recode`], and what `Autodiff` can carry.
///
/// Burn 0.21 has no gradients through quantized tensors. A lazy float enters `Autodiff<Qins<B>>` like any other float
/// (`AutodiffModule::from_inner`); with `no_grad` it stays as it is, while gradients reach what it is multiplied with.
pub fn lazy_float<B: Backend, M: Module<Qins<B>>>(module: M) -> M {
    module.map(&mut Mapper::<B> { to_float: true, backend: PhantomData })
}

struct Mapper<B> {
    to_float: bool,
    backend: PhantomData<B>,
}

impl<B: Backend> ModuleMapper<Qins<B>> for Mapper<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Qins<B>, D>>) -> Param<Tensor<Qins<B>, D>> {
        if !param.is_initialized() {
            // Neither coded nor worth making now.
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let tensor = match (self.to_float, tensor.into_primitive()) {
            (true, TensorPrimitive::QFloat(tensor)) => {
                Tensor::from_primitive(TensorPrimitive::QFloat(tensor)).dequantize()
            }
            (false, TensorPrimitive::Float(QinsFloat::Coded(tensor, _))) => {
                Tensor::from_primitive(tensor.into_primitive())
            }
            (_, unchanged) => Tensor::from_primitive(unchanged),
        };
        Param::from_mapped_value(id, tensor, mapper)
    }
}
