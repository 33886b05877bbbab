use super::{delegate::delegate, table::activation_ops};
use crate::{Qins, QinsFloat, kernels};
use burn_backend::{Backend, Scalar, ops::ActivationOps, tensor::FloatTensor};

impl<B: Backend> ActivationOps<Self> for Qins<B> {
    activation_ops!(delegate);

    /// On all threads, where `B` takes one for what between products takes longest in a prompt.
    fn sigmoid(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        QinsFloat::Dense(kernels::by_parts::<B>(tensor.dense(), B::sigmoid))
    }
}
