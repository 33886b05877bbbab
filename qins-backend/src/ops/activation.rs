use super::{delegate::delegate, table::activation_ops};
use crate::{Qins, QinsFloat, kernels};
use burn_backend::{Backend, Scalar, ops::ActivationOps, tensor::FloatTensor};

/// By hand: what stands between the products of a gated feed-forward layer, one value at a time on backends of the host's
/// memory.
impl<B: Backend> ActivationOps<Self> for Qins<B> {
    activation_ops!(delegate);

    fn sigmoid(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = tensor.dense();
        QinsFloat::Dense(kernels::sigmoid::<B>(&x).unwrap_or_else(|| B::sigmoid(x)))
    }
}
