//! Backends of the host's memory: codes are read where they lie, as bytes.

use crate::{QinsTensor, tensor::read_f32};
use burn_backend::{
    Backend, DType, FloatDType, Shape, TensorData, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use qins_codec::{Header, Matrix};
use rayon::prelude::*;
use std::{
    any::{Any, TypeId},
    borrow::Cow,
};

/// A backend whose tensors can be borrowed as slices. `None` where one has gaps or is of another type.
pub(super) trait Host: Backend {
    fn words(tensor: &IntTensor<Self>) -> Option<&[u32]>;
    fn floats(tensor: &FloatTensor<Self>) -> Option<&[f32]>;
}

#[cfg(feature = "flex")]
impl Host for burn_flex::Flex {
    fn words(tensor: &IntTensor<Self>) -> Option<&[u32]> {
        tensor.as_slice()
    }

    fn floats(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        tensor.as_slice()
    }
}

#[cfg(feature = "ndarray")]
impl Host for burn_ndarray::NdArray {
    fn words(tensor: &IntTensor<Self>) -> Option<&[u32]> {
        match tensor {
            burn_ndarray::NdArrayTensor::U32(words) => words.view().to_slice(),
            _ => None,
        }
    }

    fn floats(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        match tensor {
            burn_ndarray::NdArrayTensor::F32(values) => values.view().to_slice(),
            _ => None,
        }
    }
}

/// All functions are `None` unless `B`'s tensors are those of `H`.
pub(super) fn decode<H: Host, B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> Option<FloatTensor<B>> {
    let matrix = matrix::<H, B>(tensor)?;
    let &Header { rows, cols, .. } = matrix.header();
    result::<H, B>(matrix.decode(), Shape::new([rows, cols]), dtype)
}

pub(super) fn decode_rows<H: Host, B: Backend>(
    tensor: &QinsTensor<B>,
    indices: &IntTensor<B>,
    dtype: FloatDType,
) -> Option<FloatTensor<B>> {
    let matrix = matrix::<H, B>(tensor)?;
    let &Header { rows, cols, .. } = matrix.header();
    let indices = burn_backend::read_sync(B::int_into_data(indices.clone())).expect("the host's memory");
    let n = indices.num_elements();
    let mut out = vec![0.0; n * cols];
    if cols > 0 {
        for (out, index) in out.chunks_exact_mut(cols).zip(indices.iter::<i64>()) {
            let row = usize::try_from(index).ok().filter(|&row| row < rows);
            matrix.decode_row(row.unwrap_or_else(|| panic!("row {index} of a matrix of {rows} rows")), out);
        }
    }
    result::<H, B>(out, Shape::new([n, cols]), dtype)
}

pub(super) fn matmul<H: Host, B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    let matrix = matrix::<H, B>(weight)?;
    let (mut shape, dtype) = (x.shape(), x.dtype());
    if dtype == DType::F64 {
        // Codes are multiplied in f32.
        return None;
    }
    let rank = shape.num_dims();
    let &Header { rows, cols, .. } = matrix.header();
    assert_eq!(shape[rank - 1], cols, "the last dimension of the input is not the weight's `in`");
    shape[rank - 1] = rows;

    let m = shape.as_slice()[..rank - 1].iter().product();
    let values = match H::floats((x as &dyn Any).downcast_ref()?) {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(read_f32::<B>(x.clone())),
    };
    result::<H, B>(matrix.matmul(&values, m), shape, dtype.into())
}

/// Numbers of a part, which a cache holds.
const PART: usize = 16 << 10;

/// Besides, `None` for a tensor of one part or on one thread.
pub(super) fn by_parts<H: Host, B: Backend>(
    tensor: &FloatTensor<B>,
    operation: fn(FloatTensor<B>) -> FloatTensor<B>,
) -> Option<FloatTensor<B>> {
    let values = H::floats((tensor as &dyn Any).downcast_ref()?)?;
    if values.len() <= PART || rayon::current_num_threads() == 1 {
        return None;
    }
    let device = B::float_device(tensor);
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(PART).zip(values.par_chunks(PART)).try_for_each(|(out, values)| {
        let part = B::float_from_data(TensorData::new(values.to_vec(), [values.len()]), &device);
        out.copy_from_slice(H::floats((&operation(part) as &dyn Any).downcast_ref()?)?);
        Some(())
    })?;
    result::<H, B>(out, tensor.shape(), FloatDType::F32)
}

fn matrix<H: Host, B: Backend>(tensor: &QinsTensor<B>) -> Option<Matrix<'_>> {
    // Another backend may share `H`'s integers and have floats of its own.
    if TypeId::of::<FloatTensor<B>>() != TypeId::of::<FloatTensor<H>>() {
        return None;
    }
    let [part] = tensor.parts.as_slice() else { return None };
    let (codes, scales) = (bytes::<H>(&part.codes)?, bytes::<H>(&part.scales)?);
    let header = tensor.header();
    let matrix = tensor.decoder.matrix(&codes[..header.code_bytes()], &scales[..header.scale_bytes()]);
    Some(matrix.expect("lengths are the header's"))
}

fn bytes<H: Host>(words: &dyn Any) -> Option<&[u8]> {
    const { assert!(cfg!(target_endian = "little"), "words hold their bytes in the order of the file") };
    Some(bytemuck::cast_slice(H::words(words.downcast_ref()?)?))
}

fn result<H: Host, B: Backend>(values: Vec<f32>, shape: Shape, dtype: FloatDType) -> Option<FloatTensor<B>> {
    let tensor = H::float_from_data(TensorData::new(values, shape), &Default::default());
    let tensor = if tensor.dtype() == DType::from(dtype) { tensor } else { H::float_cast(tensor, dtype) };
    (&mut Some(tensor) as &mut dyn Any).downcast_mut::<Option<FloatTensor<B>>>()?.take()
}

#[cfg(all(test, feature = "flex", feature = "ndarray"))]
mod tests {
    use super::*;

    fn parts_make_the_whole<H: Host>() {
        let device = Default::default();
        for (rows, cols) in [(2, PART), (3, PART / 2 + 5), (5, 2 * PART + 1)] {
            // All of the range, and what is no number.
            let mut values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 211) as f32).collect();
            (values[7], values[PART + 7], values[PART + 8]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
            let tensor = H::float_from_data(TensorData::new(values, [rows, cols]), &device);
            let read = |tensor| read_f32::<H>(tensor).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let found = by_parts::<H, H>(&tensor, H::sigmoid).expect("parts");
            assert_eq!(found.shape(), Shape::new([rows, cols]));
            assert!(read(found) == read(H::sigmoid(tensor.clone())), "{rows} x {cols}");
            // One with gaps.
            assert!(by_parts::<H, H>(&H::float_swap_dims(tensor, 0, 1), H::sigmoid).is_none());
        }
    }

    #[test]
    fn parts_of_an_operation_make_the_whole() {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        threads.install(|| {
            parts_make_the_whole::<burn_flex::Flex>();
            parts_make_the_whole::<burn_ndarray::NdArray>();
        });
    }
}
