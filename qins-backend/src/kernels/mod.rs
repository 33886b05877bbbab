//! The one place where a faster way than `B`'s own operations is chosen, by the type of the backend's tensors.
//!
//! The choice is made at run time by `TypeId`, which the compiler folds to a constant, so that `Qins<B>` needs no bound
//! beyond `Backend` and works with every backend, including those it has never heard of.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
mod portable;

pub(crate) use portable::{decode_elements, map_rows, on_planes};

use crate::QinsTensor;
use burn_backend::{
    Backend, FloatDType, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};

/// `host::$function::<H, B>(..)` of the first backend of the host's memory, or `cube::$function::<R, B>(..)` of the first
/// runtime, whose tensors these are.
macro_rules! kernel {
    ($function:ident($($argument:expr),*)) => {{
        // All of them, also where no feature takes them.
        $(let _ = &$argument;)*
        let found = None;
        #[cfg(feature = "flex")]
        let found = found.or_else(|| host::$function::<burn_flex::Flex, B>($($argument),*));
        #[cfg(feature = "ndarray")]
        let found = found.or_else(|| host::$function::<burn_ndarray::NdArray, B>($($argument),*));
        #[cfg(feature = "wgpu")]
        let found = found.or_else(|| cube::$function::<burn_wgpu::WgpuRuntime, B>($($argument),*));
        #[cfg(feature = "cuda")]
        let found = found.or_else(|| cube::$function::<cubecl::cuda::CudaRuntime, B>($($argument),*));
        found
    }};
}

/// All weights of the encoded matrix, in storage order; the shape is the matrix's `[rows, cols]`.
pub(crate) fn decode<B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    kernel!(decode(tensor, dtype)).unwrap_or_else(|| portable::decode(tensor, dtype))
}

/// The given rows of the encoded matrix, `[indices, cols]`.
pub(crate) fn decode_rows<B: Backend>(
    tensor: &QinsTensor<B>,
    indices: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    kernel!(decode_rows(tensor, &indices, dtype)).unwrap_or_else(|| portable::decode_rows(tensor, indices, dtype))
}

/// `x W` for `x [.., in]` and an encoded `W`, seen as `[.., in, out]`, on the codes themselves: no float matrix is built.
/// `None` where no kernel fits; then decode and multiply.
pub(crate) fn matmul<B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    if weight.has_decoded() || !weight.view.is_transposed_matrix(weight.header().cols) {
        return None;
    }
    if weight.view.is_expanded() {
        // The one matrix serves every batch.
        let (mut shape, batches) = (x.shape(), weight.shape());
        for i in 0..shape.num_dims() - 2 {
            shape[i] = shape[i].max(batches[i]);
        }
        let x = B::float_expand(x.clone(), shape);
        return kernel!(matmul(&x, weight));
    }
    kernel!(matmul(x, weight))
}
