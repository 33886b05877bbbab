use super::{delegate::delegate, table::bool_ops};
use crate::Qins;
use burn_backend::{
    Backend, BoolDType, ExecutionError, FloatDType, IntDType, Scalar, Shape, Slice, TensorData,
    ops::BoolTensorOps,
    tensor::{BoolTensor, Device, FloatTensor, IntTensor},
};

impl<B: Backend> BoolTensorOps<Self> for Qins<B> {
    bool_ops!(delegate);
}
