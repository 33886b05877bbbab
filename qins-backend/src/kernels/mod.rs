//! The one place where a faster way than `B`'s own operations is chosen, by the type of the backend's tensors.
//!
//! The choice is made at run time by `TypeId`, which the compiler folds to a constant, so that `Qins<B>` needs no bound
//! beyond `Backend` and works with every backend, including those it has never heard of.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
mod paths;
mod portable;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use cube::{Prompts, Traffic, allow_subgroups, prompts_by, traffic};
pub use paths::{Paths, paths};
pub(crate) use portable::{map_rows, table_of, words_of};

use crate::{
    DeviceMemory, QinsTensor,
    kv::{Append, Attend, KvLayout},
    parts::{BufferError, largest_buffer as buffer_limit},
};
use burn_backend::{
    Backend, DType, FloatDType, TensorMetadata,
    tensor::{Device, FloatTensor, IntTensor},
};
use qins_codec::{Format, Header};

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

/// Bytes that a device holds in one piece, by its own account. `None` where that is as large as its memory.
pub(crate) fn largest_buffer<B: Backend>(device: &Device<B>) -> Option<usize> {
    let found: Option<usize> = None;
    #[cfg(feature = "wgpu")]
    let found = found.or_else(|| cube::largest_buffer::<burn_wgpu::WgpuRuntime, B>(device));
    #[cfg(feature = "cuda")]
    let found = found.or_else(|| cube::largest_buffer::<cubecl::cuda::CudaRuntime, B>(device));
    let _ = device;
    found
}

/// What a device holds, by its own account.
pub(crate) fn memory<B: Backend>(device: &Device<B>) -> Option<DeviceMemory> {
    let found: Option<DeviceMemory> = None;
    #[cfg(feature = "wgpu")]
    let found = found.or_else(|| cube::memory::<burn_wgpu::WgpuRuntime, B>(device));
    #[cfg(feature = "cuda")]
    let found = found.or_else(|| cube::memory::<cubecl::cuda::CudaRuntime, B>(device));
    let _ = device;
    found
}

/// Where a result does not fit, Burn would compute on with what is not there.
///
/// # Panics
/// With the text of [`BufferError`]: operations of Burn leave no other way.
fn assert_fits<B: Backend>(tensor: &QinsTensor<B>, rows: usize, cols: usize, dtype: FloatDType) {
    let bytes = rows.saturating_mul(cols).saturating_mul(DType::from(dtype).size());
    if let Some(limit) = buffer_limit::<B>(&tensor.device()).filter(|&limit| bytes > limit) {
        let Header { format, rows: out, cols: input, .. } = tensor.header();
        let tensor = format!("a result {rows} x {cols} in {dtype:?} of a weight {out} x {input} in {format}");
        panic!("{}", BufferError { tensor, bytes, limit });
    }
}

/// A float tensor encoded on the device where it lies, as a tensor `[rows, cols]`. `None` where the host must do it.
pub(crate) fn encode<B: Backend>(
    tensor: &FloatTensor<B>,
    format: Format,
    rows: usize,
    cols: usize,
) -> Option<QinsTensor<B>> {
    let _ = (tensor, format, rows, cols);
    let found = None;
    #[cfg(feature = "wgpu")]
    let found = found.or_else(|| cube::encode::<burn_wgpu::WgpuRuntime, B>(tensor, format, rows, cols));
    #[cfg(feature = "cuda")]
    let found = found.or_else(|| cube::encode::<cubecl::cuda::CudaRuntime, B>(tensor, format, rows, cols));
    found
}

/// Runs `$call` on the first runtime whose tensors `B` has, or gives `$else`.
macro_rules! on_device {
    ($runtime:ident => $call:expr, $else:expr) => {{
        #[cfg(feature = "wgpu")]
        if cube::runs::<burn_wgpu::WgpuRuntime, B>() {
            type $runtime = burn_wgpu::WgpuRuntime;
            return $call;
        }
        #[cfg(feature = "cuda")]
        if cube::runs::<cubecl::cuda::CudaRuntime, B>() {
            type $runtime = cubecl::cuda::CudaRuntime;
            return $call;
        }
        $else
    }};
}

/// Whether keys and values can lie encoded on a device.
pub(crate) fn keeps_kv<B: Backend>(layout: &KvLayout, device: &Device<B>) -> bool {
    on_device!(R => cube::keeps::<R, B>(layout, device), {
        let _ = (layout, device);
        false
    })
}

/// The room with new keys and values, `[batch, kv heads, tokens, head]`, where a device [`keeps_kv`].
pub(crate) fn kv_append<B: Backend>(
    append: Append,
    room: Option<IntTensor<B>>,
    keys: FloatTensor<B>,
    values: FloatTensor<B>,
) -> IntTensor<B> {
    on_device!(R => cube::append::<R, B>(append, room, keys, values), {
        let _ = (append, room, keys, values);
        unreachable!("there is a room where there are kernels")
    })
}

/// Attention of queries `[batch, heads, tokens, head]`, where a device [`keeps_kv`]. `padding`: of each sequence, if any has some.
pub(crate) fn kv_attend<B: Backend>(
    attend: Attend,
    room: IntTensor<B>,
    queries: FloatTensor<B>,
    padding: Option<IntTensor<B>>,
) -> FloatTensor<B> {
    on_device!(R => cube::attend::<R, B>(attend, room, queries, padding), {
        let _ = (attend, room, queries, padding);
        unreachable!("there is a room where there are kernels")
    })
}

/// `operation`, which makes each number of its own alone, on parts of a large tensor in the host's memory, on all threads; the
/// bits are those of the whole.
pub(crate) fn by_parts<B: Backend>(
    tensor: FloatTensor<B>,
    operation: fn(FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let found: Option<FloatTensor<B>> = None;
    #[cfg(feature = "flex")]
    let found = found.or_else(|| host::by_parts::<burn_flex::Flex, B>(&tensor, operation));
    #[cfg(feature = "ndarray")]
    let found = found.or_else(|| host::by_parts::<burn_ndarray::NdArray, B>(&tensor, operation));
    found.unwrap_or_else(|| operation(tensor))
}

/// All weights of the encoded matrix, in storage order; the shape is the matrix's `[rows, cols]`.
pub(crate) fn decode<B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    assert_fits(tensor, tensor.header().rows, tensor.header().cols, dtype);
    paths::decoded(kernel!(decode(tensor, dtype)), || portable::decode(tensor, dtype))
}

/// The given rows of the encoded matrix, `[indices, cols]`.
pub(crate) fn decode_rows<B: Backend>(
    tensor: &QinsTensor<B>,
    indices: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    assert_fits(tensor, indices.shape()[0], tensor.header().cols, dtype);
    paths::decoded(kernel!(decode_rows(tensor, &indices, dtype)), || portable::decode_rows(tensor, indices, dtype))
}

/// Single weights of the encoded matrix: `[n]` for `n` row and column indices. There is no kernel for them.
pub(crate) fn decode_elements<B: Backend>(
    tensor: &QinsTensor<B>,
    rows: IntTensor<B>,
    cols: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    paths::decoded(None, || portable::decode_elements(tensor, rows, cols, dtype))
}

/// `x W` for `x [.., in]` and an encoded `W`, seen as `[.., in, out]`, on the codes themselves: no float matrix is built.
/// `None` where no kernel fits; then decode and multiply.
pub(crate) fn matmul<B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    if weight.has_decoded() || !weight.view.is_transposed_matrix(weight.header().cols) {
        return None;
    }
    let inputs = x.shape().num_elements() / weight.header().cols.max(1);
    assert_fits(weight, inputs, weight.header().rows, x.dtype().into());
    if weight.view.is_expanded() {
        // The one matrix serves every batch.
        let (mut shape, batches) = (x.shape(), weight.shape());
        for i in 0..shape.num_dims() - 2 {
            shape[i] = shape[i].max(batches[i]);
        }
        let x = B::float_expand(x.clone(), shape);
        return paths::product(kernel!(matmul(&x, weight)));
    }
    paths::product(kernel!(matmul(x, weight)))
}
