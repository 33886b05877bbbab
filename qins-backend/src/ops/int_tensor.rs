use super::{delegate::delegate, table::int_ops};
use crate::Qins;
use burn_backend::{
    Backend, BoolDType, Distribution, ExecutionError, FloatDType, IntDType, Scalar, Shape, Slice, TensorData,
    ops::IntTensorOps,
    tensor::{BoolTensor, Device, FloatTensor, IndexingUpdateOp, IntTensor},
};
use std::ops::Range;

impl<B: Backend> IntTensorOps<Self> for Qins<B> {
    int_ops!(delegate);
}
