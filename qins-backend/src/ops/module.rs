use super::{delegate::delegate, table::module_ops};
use crate::{Qins, QinsFloat, kernels};
use burn_backend::{
    Backend, Shape, TensorMetadata,
    ops::{
        AttentionModuleOptions, ConvOptions, ConvTransposeOptions, DeformConv2dBackward, DeformConvOptions,
        InterpolateOptions, MaxPool1dBackward, MaxPool1dWithIndices, MaxPool2dBackward, MaxPool2dWithIndices,
        ModuleOps, UnfoldOptions,
    },
    tensor::{BoolTensor, FloatTensor, IntTensor},
};

/// By hand: the two layers that read a coded weight without decoding it whole.
impl<B: Backend> ModuleOps<Self> for Qins<B> {
    module_ops!(delegate);

    /// `weights [rows, d]`, `indices [batch, length]` to `[batch, length, d]`: only these rows are decoded.
    fn embedding(weights: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        let ([batch, length], [_, d]) = (indices.shape().dims(), weights.shape().dims());
        QinsFloat::Dense(match weights {
            QinsFloat::Coded(table, dtype) if table.view.is_row_axis(0, table.header().cols) => {
                let indices = B::int_reshape(indices, Shape::new([batch * length]));
                B::float_reshape(kernels::decode_rows(&table, indices, dtype), Shape::new([batch, length, d]))
            }
            weights => B::embedding(weights.dense(), indices),
        })
    }

    /// `x [.., in]`, `weight [in, out]`, `bias [out]`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        let (x, bias) = (x.dense(), bias.map(QinsFloat::dense));
        let weight = match weight {
            QinsFloat::Dense(weight) => weight,
            QinsFloat::Coded(weight, _) => match (kernels::matmul(&x, &weight), bias) {
                (Some(product), Some(bias)) => {
                    let mut shape = vec![1; product.rank()];
                    *shape.last_mut().expect("a linear layer's output has a dimension") = bias.shape()[0];
                    return QinsFloat::Dense(B::float_add(product, B::float_reshape(bias, shape.into())));
                }
                (Some(product), None) => return QinsFloat::Dense(product),
                (None, bias) => {
                    let dtype = x.dtype().into();
                    return QinsFloat::Dense(B::linear(x, weight.decode(dtype), bias));
                }
            },
        };
        QinsFloat::Dense(B::linear(x, weight, bias))
    }
}
