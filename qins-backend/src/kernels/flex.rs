//! burn-flex: codes are read where they lie, as bytes of the host's memory.

use crate::QinsTensor;
use burn_backend::{
    Backend, DType, FloatDType, Shape, TensorData,
    tensor::{FloatTensor, IntTensor},
};
use burn_flex::{Flex, FlexTensor};
use qins_codec::{Header, Matrix};
use std::any::Any;

pub(super) fn decode<B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> Option<FloatTensor<B>> {
    let matrix = matrix(tensor)?;
    let &Header { rows, cols, .. } = matrix.header();
    result::<B>(matrix.decode(), Shape::new([rows, cols]), dtype.into())
}

pub(super) fn decode_rows<B: Backend>(
    tensor: &QinsTensor<B>,
    indices: &IntTensor<B>,
    dtype: FloatDType,
) -> Option<FloatTensor<B>> {
    let matrix = matrix(tensor)?;
    let &Header { rows, cols, .. } = matrix.header();
    let indices = (indices as &dyn Any).downcast_ref::<FlexTensor>()?.to_contiguous().into_data();
    let mut out = vec![0.0; indices.num_elements() * cols];
    if cols > 0 {
        for (out, index) in out.chunks_exact_mut(cols).zip(indices.iter::<i64>()) {
            let row = usize::try_from(index).ok().filter(|&row| row < rows);
            matrix.decode_row(row.unwrap_or_else(|| panic!("row {index} of a matrix of {rows} rows")), out);
        }
    }
    result::<B>(out, Shape::new([indices.num_elements(), cols]), dtype.into())
}

pub(super) fn matmul<B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    let matrix = matrix(weight)?;
    let x = (x as &dyn Any).downcast_ref::<FlexTensor>()?;
    let dtype = x.dtype();
    let mut shape = x.layout().shape().clone();
    let rank = shape.num_dims();
    let &Header { rows, cols, .. } = matrix.header();
    assert_eq!(shape[rank - 1], cols, "the last dimension of the input is not the weight's `in`");
    shape[rank - 1] = rows;

    let x = as_type(x.to_contiguous(), DType::F32);
    let m =
        x.layout().num_elements().checked_div(cols).unwrap_or_else(|| shape.as_slice()[..rank - 1].iter().product());
    let product = matrix.matmul(x.as_slice().expect("contiguous f32"), m);
    result::<B>(product, shape, dtype)
}

/// The encoded matrix, if `B` is Flex.
fn matrix<B: Backend>(tensor: &QinsTensor<B>) -> Option<Matrix<'_>> {
    let (codes, scales) = (bytes::<B>(&tensor.codes)?, bytes::<B>(&tensor.scales)?);
    let header = tensor.header();
    let matrix = tensor.decoder.matrix(&codes[..header.code_bytes()], &scales[..header.scale_bytes()]);
    Some(matrix.expect("lengths are the header's"))
}

/// The bytes of a contiguous tensor of words.
fn bytes<B: Backend>(words: &IntTensor<B>) -> Option<&[u8]> {
    const { assert!(cfg!(target_endian = "little"), "words hold their bytes in the order of the file") };
    Some(bytemuck::cast_slice((words as &dyn Any).downcast_ref::<FlexTensor>()?.as_slice::<u32>()?))
}

/// `B`'s tensor of these values, if `B` is Flex.
fn result<B: Backend>(values: Vec<f32>, shape: Shape, dtype: DType) -> Option<FloatTensor<B>> {
    let tensor = as_type(FlexTensor::from_data(TensorData::new(values, shape)), dtype);
    (&mut Some(tensor) as &mut dyn Any).downcast_mut::<Option<FloatTensor<B>>>()?.take()
}

fn as_type(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    use burn_backend::ops::FloatTensorOps;
    if tensor.dtype() == dtype { tensor } else { <Flex as FloatTensorOps<Flex>>::float_cast(tensor, dtype.into()) }
}
