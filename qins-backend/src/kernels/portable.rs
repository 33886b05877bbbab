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
    let codes = unpack::<B>(tensor.codes.clone(), rows, format.code_bytes(cols), format.code_bits());
    let scales = (!format.is_raw()).then(|| unpack::<B>(tensor.scales.clone(), rows, format.scale_bytes(cols), 8));
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
    let words =
        map_rows::<B>(tensor.codes.clone(), rows, code_bytes, 4, |table| B::int_select(table, 0, indices.clone()));
    let codes = unpack::<B>(words, selected, code_bytes, format.code_bits());
    let scales = (!format.is_raw()).then(|| {
        let all = unpack::<B>(tensor.scales.clone(), rows, format.scale_bytes(cols), 8);
        B::int_select(all, 0, indices)
    });
    look_up(tensor, codes, scales, dtype)
}

/// Packed rows of `row_bytes` bytes through an operation on the table of rows, whose columns have `column_bytes` bytes: 4,
/// where rows and what `op` takes of them are whole words, or 1.
pub(crate) fn map_rows<B: Backend>(
    words: IntTensor<B>,
    rows: usize,
    row_bytes: usize,
    column_bytes: usize,
    op: impl FnOnce(IntTensor<B>) -> IntTensor<B>,
) -> IntTensor<B> {
    if column_bytes == 4 {
        let words = B::int_slice(words, &[Slice::from(0..rows * row_bytes / 4)]);
        let mapped = op(B::int_reshape(words, Shape::new([rows, row_bytes / 4])));
        let n = mapped.shape().num_elements();
        return B::int_reshape(mapped, Shape::new([n]));
    }
    pack::<B>(op(unpack::<B>(words, rows, row_bytes, 8)))
}

/// Integers below 256, one a byte, to words; zeros fill the last.
fn pack<B: Backend>(bytes: IntTensor<B>) -> IntTensor<B> {
    let (n, device) = (bytes.shape().num_elements(), B::int_device(&bytes));
    let words = n.div_ceil(4);
    let mut bytes = B::int_reshape(bytes, Shape::new([n]));
    if n < words * 4 {
        let zeros = B::int_zeros(Shape::new([words * 4 - n]), &device, bytes.dtype().into());
        bytes = B::int_cat(vec![bytes, zeros], 0);
    }
    let bytes = B::int_reshape(B::int_cast(bytes, IntDType::U32), Shape::new([words, 4]));
    let byte = |i: usize| {
        let column = B::int_slice(bytes.clone(), &[Slice::from(0..words), Slice::from(i..i + 1)]);
        B::bitwise_left_shift_scalar(column, (8 * i as u32).into())
    };
    let packed = (1..4).fold(byte(0), |word, i| B::bitwise_or(word, byte(i)));
    B::int_reshape(packed, Shape::new([words]))
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
    let code = |words: &IntTensor<B>, row_bytes: usize, bits: usize, col: IntTensor<B>| {
        let (row_codes, word_codes) = ((row_bytes * 8 / bits) as i64, (32 / bits) as i64);
        let index = B::int_add(B::int_mul_scalar(rows.clone(), row_codes.into()), col);
        let word = B::int_select(words.clone(), 0, B::int_div_scalar(index.clone(), word_codes.into()));
        let place = B::int_remainder_scalar(index.clone(), word_codes.into());
        let shift = B::int_mul_scalar(place, (bits as i64).into());
        let shifted = B::bitwise_right_shift(word, B::int_cast(shift, IntDType::U32));
        let int = get_device_settings::<B>(&device).int_dtype;
        B::int_cast(B::bitwise_and_scalar(shifted, mask(bits).into()), int)
    };
    let codes = code(&tensor.codes, format.code_bytes(row_length), format.code_bits(), cols.clone());
    let values = entries::<B>(&tensor.decoder.values(), codes, &device);
    if format.is_raw() {
        return B::float_cast(values, dtype);
    }
    let group = B::int_div_scalar(cols.clone(), (format.group() as i64).into());
    let scales = code(&tensor.scales, format.scale_bytes(row_length), 8, group);
    B::float_cast(B::float_mul(entries::<B>(tensor.decoder.scales(), scales, &device), values), dtype)
}

/// The lowest `bits` bits.
fn mask(bits: usize) -> u32 {
    u32::MAX >> (32 - bits)
}

/// Words to one integer a code of `bits` bits: `[rows, codes a row]`.
fn unpack<B: Backend>(words: IntTensor<B>, rows: usize, row_bytes: usize, bits: usize) -> IntTensor<B> {
    let (n, word_codes, row_codes) = (words.shape()[0], 32 / bits, row_bytes * 8 / bits);
    let int = get_device_settings::<B>(&B::int_device(&words)).int_dtype;
    let words = B::int_reshape(words, Shape::new([n, 1]));
    let code = |i: usize| {
        let shifted = B::bitwise_right_shift_scalar(words.clone(), ((bits * i) as u32).into());
        B::int_cast(B::bitwise_and_scalar(shifted, mask(bits).into()), int)
    };
    let all = B::int_reshape(B::int_cat((0..word_codes).map(code).collect(), 1), Shape::new([n * word_codes]));
    B::int_reshape(B::int_slice(all, &[Slice::from(0..rows * row_codes)]), Shape::new([rows, row_codes]))
}

/// `scale * value` for codes `[n, codes a row]` and scale codes `[n, groups]`, where there are any.
fn look_up<B: Backend>(
    tensor: &QinsTensor<B>,
    codes: IntTensor<B>,
    scales: Option<IntTensor<B>>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let &Header { format, cols, .. } = tensor.header();
    let device = B::int_device(&codes);
    let (n, groups) = (codes.shape()[0], format.groups(cols));

    let codes = B::int_slice(codes, &[Slice::from(0..n), Slice::from(0..cols)]);
    let values = entries::<B>(&tensor.decoder.values(), codes, &device);
    let Some(scales) = scales else { return B::float_cast(values, dtype) };
    let scales = B::float_reshape(entries::<B>(tensor.decoder.scales(), scales, &device), Shape::new([n, groups, 1]));
    let scales = B::float_expand(scales, Shape::new([n, groups, format.group()]));
    let scales = B::float_reshape(scales, Shape::new([n, groups * format.group()]));
    let scales = B::float_slice(scales, &[Slice::from(0..n), Slice::from(0..cols)]);
    B::float_cast(B::float_mul(scales, values), dtype)
}

/// `table[index]`, with the shape of `indices`.
fn entries<B: Backend>(table: &[f32], indices: IntTensor<B>, device: &Device<B>) -> FloatTensor<B> {
    let shape = indices.shape();
    let table = B::float_from_data(TensorData::new(table.to_vec(), [table.len()]), device);
    let flat = B::int_reshape(indices, Shape::new([shape.num_elements()]));
    B::float_reshape(B::float_select(table, 0, flat), shape)
}
