use super::{delegate::delegate, table::activation_ops};
use crate::Qins;
use burn_backend::{Backend, Scalar, ops::ActivationOps, tensor::FloatTensor};

impl<B: Backend> ActivationOps<Self> for Qins<B> {
    activation_ops!(delegate);
}
