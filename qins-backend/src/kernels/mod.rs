//! The one place where a faster way than `B`'s own operations is chosen, by the type of the backend's tensors.
//!
//! The choice is made at run time by `TypeId`, which the compiler folds to a constant, so that `Qins<B>` needs no bound
//! beyond `Backend` and works with every backend, including those it has never heard of.

#[cfg(feature = "flex")]
mod flex;
mod portable;

pub(crate) use portable::decode_elements;

use crate::QinsTensor;
use burn_backend::{
    Backend, FloatDType,
    tensor::{FloatTensor, IntTensor},
};

/// All weights of the encoded matrix, in storage order; the shape is the matrix's `[rows, cols]`.
pub(crate) fn decode<B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    #[cfg(feature = "flex")]
    if let Some(decoded) = flex::decode(tensor, dtype) {
        return decoded;
    }
    portable::decode(tensor, dtype)
}

/// The given rows of the encoded matrix, `[indices, cols]`.
pub(crate) fn decode_rows<B: Backend>(
    tensor: &QinsTensor<B>,
    indices: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    #[cfg(feature = "flex")]
    if let Some(decoded) = flex::decode_rows(tensor, &indices, dtype) {
        return decoded;
    }
    portable::decode_rows(tensor, indices, dtype)
}

/// `x W` for `x [.., in]` and an encoded `W`, seen as `[in, out]`, on the codes themselves: no float matrix is built.
/// `None` where no kernel fits; then decode and multiply.
pub(crate) fn matmul<B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    if !weight.view.is_transposed_matrix(weight.header().cols) {
        return None;
    }
    #[cfg(feature = "flex")]
    if let Some(product) = flex::matmul::<B>(x, weight) {
        return Some(product);
    }
    let _ = x;
    None
}
