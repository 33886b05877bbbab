use super::{delegate::delegate, table::float_ops};
use crate::{Qins, QinsFloat, QinsTensor, kernels};
use burn_backend::{
    Backend, BoolDType, Distribution, ExecutionError, FloatDType, IntDType, Scalar, Shape, Slice, TensorData,
    TensorMetadata,
    ops::{FloatTensorOps, GridSampleOptions, QTensorOps},
    tensor::{BoolTensor, Device, FloatTensor, IndexingUpdateOp, IntTensor},
};

/// By hand: what reads codes as codes, or leaves them as they are.
impl<B: Backend> FloatTensorOps<Self> for Qins<B> {
    float_ops!(delegate);

    fn float_matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        match (lhs, rhs) {
            (lhs, QinsFloat::Coded(weight, _)) => {
                let x = lhs.dense();
                QinsFloat::Dense(kernels::matmul(&x, &weight).unwrap_or_else(|| {
                    let dtype = x.dtype().into();
                    B::float_matmul(x, weight.decode(dtype))
                }))
            }
            // W x = (x^T W^T)^T, if that can be had from the codes.
            (QinsFloat::Coded(weight, dtype), QinsFloat::Dense(x)) => {
                let transposed = weight.clone().transpose();
                QinsFloat::Dense(match kernels::matmul(&B::float_transpose(x.clone()), &transposed) {
                    Some(product) => B::float_transpose(product),
                    None => B::float_matmul(weight.decode(dtype), x),
                })
            }
            (QinsFloat::Dense(lhs), QinsFloat::Dense(rhs)) => QinsFloat::Dense(B::float_matmul(lhs, rhs)),
        }
    }

    fn float_select(tensor: FloatTensor<Self>, dim: usize, indices: IntTensor<Self>) -> FloatTensor<Self> {
        let select = |float| B::float_select(float, dim, indices.clone());
        tensor.on_codes(|codes| codes.select(dim, &indices), select)
    }

    fn float_gather(dim: usize, tensor: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Coded(table, dtype) if table.view.is_matrix(table.header().rows, table.header().cols) => {
                let (shape, tensor_shape) = (indices.shape(), table.shape());
                let n = Shape::new([shape.num_elements()]);
                let (device, other) = (B::int_device(&indices), 1 - dim);
                let int = indices.dtype().into();
                // An index beyond the dimension fails as it does in `B`, and does not reach another row.
                let all = B::int_arange(0..tensor_shape[dim] as i64, &device, int);
                let indices = B::int_reshape(B::int_select(all, 0, B::int_reshape(indices, n.clone())), shape.clone());
                // Along the other axis every index stands for itself.
                let mut line = [1, 1];
                line[other] = shape[other];
                let own = B::int_arange(0..shape[other] as i64, &device, int);
                let own = B::int_expand(B::int_reshape(own, line.into()), shape.clone());
                let mut at = [B::int_reshape(indices, n.clone()), B::int_reshape(own, n)];
                // By dimension, then by the matrix's row and column.
                at.rotate_left(usize::from(dim == 1));
                at.rotate_left(usize::from(table.view.axes()[0] == 1));
                let [rows, cols] = at;
                QinsFloat::Dense(B::float_reshape(kernels::decode_elements(&table, rows, cols, dtype), shape))
            }
            tensor => QinsFloat::Dense(B::float_gather(dim, tensor.dense(), indices)),
        }
    }

    fn float_slice(tensor: FloatTensor<Self>, slices: &[Slice]) -> FloatTensor<Self> {
        tensor.on_codes(|codes| codes.slice(slices), |float| B::float_slice(float, slices))
    }

    fn float_expand(tensor: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self> {
        let expand = |float| B::float_expand(float, shape.clone());
        tensor.on_codes(|codes| codes.viewed(|view| view.expand(shape.as_slice())), expand)
    }

    fn float_transpose(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor.on_codes(|codes| Some(codes.clone().transpose()), B::float_transpose)
    }

    fn float_swap_dims(tensor: FloatTensor<Self>, dim1: usize, dim2: usize) -> FloatTensor<Self> {
        let swap = |float| B::float_swap_dims(float, dim1, dim2);
        tensor.on_codes(|codes| codes.viewed(|view| Some(view.swap_dims(dim1, dim2))), swap)
    }

    fn float_permute(tensor: FloatTensor<Self>, axes: &[usize]) -> FloatTensor<Self> {
        tensor.on_codes(|codes| codes.viewed(|view| Some(view.permute(axes))), |float| B::float_permute(float, axes))
    }

    fn float_reshape(tensor: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self> {
        let reshape = |float| B::float_reshape(float, shape.clone());
        tensor.on_codes(|codes| codes.viewed(|view| view.reshape(shape.as_slice())), reshape)
    }

    fn float_detach(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor.on_codes(|codes| Some(codes.clone()), B::float_detach)
    }

    fn float_set_require_grad(tensor: FloatTensor<Self>, require_grad: bool) -> FloatTensor<Self> {
        tensor.on_codes(|codes| Some(codes.clone()), |float| B::float_set_require_grad(float, require_grad))
    }

    fn float_is_require_grad(tensor: &FloatTensor<Self>) -> bool {
        match tensor {
            QinsFloat::Dense(tensor) => B::float_is_require_grad(tensor),
            QinsFloat::Coded(..) => false,
        }
    }

    fn float_device(tensor: &FloatTensor<Self>) -> Device<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => B::float_device(tensor),
            QinsFloat::Coded(tensor, _) => Self::q_device(tensor),
        }
    }

    fn float_to_device(tensor: FloatTensor<Self>, device: &Device<Self>) -> FloatTensor<Self> {
        let moved = |codes: &QinsTensor<B>| Some(Self::q_to_device(codes.clone(), device));
        tensor.on_codes(moved, |float| B::float_to_device(float, device))
    }
}
