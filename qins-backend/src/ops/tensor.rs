use super::{delegate::delegate, table::float_ops};
use crate::{Qins, QinsFloat, kernels};
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
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_select(tensor, dim, indices)),
            QinsFloat::Coded(tensor, dtype) => match tensor.select(dim, &indices) {
                Some(rows) => QinsFloat::Coded(rows, dtype),
                None => QinsFloat::Dense(B::float_select(tensor.decode(dtype), dim, indices)),
            },
        }
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
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_slice(tensor, slices)),
            QinsFloat::Coded(tensor, dtype) => match tensor.slice(slices) {
                Some(part) => QinsFloat::Coded(part, dtype),
                None => QinsFloat::Dense(B::float_slice(tensor.decode(dtype), slices)),
            },
        }
    }

    fn float_expand(tensor: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_expand(tensor, shape)),
            QinsFloat::Coded(tensor, dtype) => match tensor.view.expand(shape.as_slice()) {
                Some(view) => QinsFloat::Coded(tensor.with_view(view), dtype),
                None => QinsFloat::Dense(B::float_expand(tensor.decode(dtype), shape)),
            },
        }
    }

    fn float_transpose(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_transpose(tensor)),
            QinsFloat::Coded(tensor, dtype) => QinsFloat::Coded(tensor.transpose(), dtype),
        }
    }

    fn float_swap_dims(tensor: FloatTensor<Self>, dim1: usize, dim2: usize) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_swap_dims(tensor, dim1, dim2)),
            QinsFloat::Coded(tensor, dtype) => QinsFloat::Coded(Self::q_swap_dims(tensor, dim1, dim2), dtype),
        }
    }

    fn float_permute(tensor: FloatTensor<Self>, axes: &[usize]) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_permute(tensor, axes)),
            QinsFloat::Coded(tensor, dtype) => QinsFloat::Coded(Self::q_permute(tensor, axes), dtype),
        }
    }

    fn float_reshape(tensor: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_reshape(tensor, shape)),
            QinsFloat::Coded(tensor, dtype) => match tensor.view.reshape(shape.as_slice()) {
                Some(view) => QinsFloat::Coded(tensor.with_view(view), dtype),
                None => QinsFloat::Dense(B::float_reshape(tensor.decode(dtype), shape)),
            },
        }
    }

    fn float_detach(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_detach(tensor)),
            coded => coded,
        }
    }

    fn float_set_require_grad(tensor: FloatTensor<Self>, require_grad: bool) -> FloatTensor<Self> {
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_set_require_grad(tensor, require_grad)),
            coded => coded,
        }
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
        match tensor {
            QinsFloat::Dense(tensor) => QinsFloat::Dense(B::float_to_device(tensor, device)),
            QinsFloat::Coded(tensor, dtype) => QinsFloat::Coded(Self::q_to_device(tensor, device), dtype),
        }
    }
}
