//! Decoding in the inner backend's own operations: works on every backend, on the device where the codes lie.

use crate::QinsTensor;
use burn_backend::{
    Backend, FloatDType, IntDType, Shape, Slice, TensorData, TensorMetadata, get_device_settings,
    tensor::{Device, FloatTensor, IntTensor},
};
use qins_codec::Header;

pub(super) fn decode<B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    let &Header { format, rows, cols, .. } = tensor.header();
    let device = B::int_device(&tensor.codes);
    if rows * cols == 0 {
        return B::float_empty(Shape::new([rows, cols]), &device, dtype);
    }
    let codes = unpack::<B>(tensor.codes.clone(), rows, format.code_bytes(cols));
    let scales = unpack::<B>(tensor.scales.clone(), rows, format.scale_bytes(cols));
    look_up(tensor, codes, scales, dtype)
}

pub(super) fn decode_rows<B: Backend>(
    tensor: &QinsTensor<B>,
    indices: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let &Header { format, rows, cols, .. } = tensor.header();
    let device = B::int_device(&tensor.codes);
    let selected = indices.shape()[0];
    if selected * cols == 0 {
        return B::float_empty(Shape::new([selected, cols]), &device, dtype);
    }
    // Rows of codes start at a word, so they are gathered packed; rows of scale codes do not.
    let code_bytes = format.code_bytes(cols);
    let words = B::int_reshape(tensor.codes.clone(), Shape::new([rows, code_bytes / 4]));
    let words = B::int_select(words, 0, indices.clone());
    let codes = unpack::<B>(B::int_reshape(words, Shape::new([selected * code_bytes / 4])), selected, code_bytes);
    let scales = unpack::<B>(tensor.scales.clone(), rows, format.scale_bytes(cols));
    look_up(tensor, codes, B::int_select(scales, 0, indices), dtype)
}

/// Single weights of the encoded matrix: `[n]` for `n` row and column indices.
pub(crate) fn decode_elements<B: Backend>(
    tensor: &QinsTensor<B>,
    rows: IntTensor<B>,
    cols: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let &Header { format, cols: row_length, .. } = tensor.header();
    let device = B::int_device(&tensor.codes);
    let byte = |words: &IntTensor<B>, row_bytes: usize, col: IntTensor<B>| {
        let index = B::int_add(B::int_mul_scalar(rows.clone(), (row_bytes as i64).into()), col);
        let word = B::int_select(words.clone(), 0, B::int_div_scalar(index.clone(), 4i64.into()));
        let shift = B::int_mul_scalar(B::int_remainder_scalar(index.clone(), 4i64.into()), 8i64.into());
        let shifted = B::bitwise_right_shift(word, B::int_cast(shift, IntDType::U32));
        let int = get_device_settings::<B>(&device).int_dtype;
        B::int_cast(B::bitwise_and_scalar(shifted, 0xFFu32.into()), int)
    };
    let group = B::int_div_scalar(cols.clone(), (format.group() as i64).into());
    let codes = byte(&tensor.codes, format.code_bytes(row_length), cols.clone());
    let scales = byte(&tensor.scales, format.scale_bytes(row_length), group);
    let values = entries::<B>(tensor.decoder.values(), codes, &device);
    B::float_cast(B::float_mul(entries::<B>(tensor.decoder.scales(), scales, &device), values), dtype)
}

/// Words of four bytes to one integer a byte: `[rows, bytes a row]`.
fn unpack<B: Backend>(words: IntTensor<B>, rows: usize, bytes: usize) -> IntTensor<B> {
    let n = words.shape()[0];
    let int = get_device_settings::<B>(&B::int_device(&words)).int_dtype;
    let words = B::int_reshape(words, Shape::new([n, 1]));
    let byte = |i: u32| {
        let shifted = B::bitwise_right_shift_scalar(words.clone(), (8 * i).into());
        B::int_cast(B::bitwise_and_scalar(shifted, 0xFFu32.into()), int)
    };
    let all = B::int_reshape(B::int_cat((0..4).map(byte).collect(), 1), Shape::new([n * 4]));
    B::int_reshape(B::int_slice(all, &[Slice::from(0..rows * bytes)]), Shape::new([rows, bytes]))
}

/// `scale * value` for codes `[n, code bytes]` and scale codes `[n, groups]`.
fn look_up<B: Backend>(
    tensor: &QinsTensor<B>,
    codes: IntTensor<B>,
    scales: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let &Header { format, cols, .. } = tensor.header();
    let device = B::int_device(&codes);
    let (n, groups) = (codes.shape()[0], format.groups(cols));

    let codes = B::int_slice(codes, &[Slice::from(0..n), Slice::from(0..cols)]);
    let values = entries::<B>(tensor.decoder.values(), codes, &device);
    let scales = B::float_reshape(entries::<B>(tensor.decoder.scales(), scales, &device), Shape::new([n, groups, 1]));
    let scales = B::float_expand(scales, Shape::new([n, groups, format.group()]));
    let scales = B::float_reshape(scales, Shape::new([n, groups * format.group()]));
    let scales = B::float_slice(scales, &[Slice::from(0..n), Slice::from(0..cols)]);
    B::float_cast(B::float_mul(scales, values), dtype)
}

/// `table[index]`, with the shape of `indices`.
fn entries<B: Backend>(table: &[f32; 256], indices: IntTensor<B>, device: &Device<B>) -> FloatTensor<B> {
    let shape = indices.shape();
    let table = B::float_from_data(TensorData::new(table.to_vec(), [256]), device);
    let flat = B::int_reshape(indices, Shape::new([shape.num_elements()]));
    B::float_reshape(B::float_select(table, 0, flat), shape)
}
