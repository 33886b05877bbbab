//! Decoding in the inner backend's own operations: works on every backend, on the device where the codes lie.

use crate::{
    QinsTensor,
    parts::{FloatRows, Part},
};
use burn_backend::{
    Backend, DType, FloatDType, IntDType, Shape, Slice, TensorData, TensorMetadata, get_device_settings,
    tensor::{Device, FloatTensor, IntTensor},
};
use qins_codec::Header;

pub(super) fn decode<B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    let header = tensor.header();
    let &Header { format, rows, cols, .. } = header;
    if rows * cols == 0 {
        return B::float_empty(Shape::new([rows, cols]), &tensor.device(), dtype);
    }
    let decode = |part: &Part<B>| {
        let plane_rows = format.planes() * part.rows;
        let codes = unpack::<B>(part.codes.clone(), plane_rows, format.code_bytes(cols), format.code_bits());
        let scales =
            (!format.is_raw()).then(|| unpack::<B>(part.scales.clone(), part.rows, header.scale_bytes_of_row(), 8));
        look_up(tensor, codes, scales, dtype)
    };
    match tensor.parts.as_slice() {
        [part] => decode(part),
        parts => B::float_cat(parts.iter().map(decode).collect(), 0),
    }
}

pub(super) fn decode_rows<B: Backend>(
    tensor: &QinsTensor<B>,
    indices: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let header = tensor.header();
    let &Header { format, cols, .. } = header;
    let selected = indices.shape()[0];
    if selected * cols == 0 {
        return B::float_empty(Shape::new([selected, cols]), &tensor.device(), dtype);
    }
    // Rows of codes start at a word, so they are gathered packed; rows of scale codes do not.
    let (planes, code_bytes) = (format.planes(), format.code_bytes(cols));
    let FloatRows(rows) = Part::merge(&tensor.parts, &indices, |part, indices| {
        let plane = |i: usize| {
            let table = table_of::<B>(part.plane(planes, i), part.rows, code_bytes, 4);
            words_of::<B>(B::int_select(table, 0, indices.clone()), 4)
        };
        let words = if planes == 1 { plane(0) } else { B::int_cat((0..planes).map(plane).collect(), 0) };
        let codes = unpack::<B>(words, planes * selected, code_bytes, format.code_bits());
        let scales = (!format.is_raw()).then(|| {
            let all = unpack::<B>(part.scales.clone(), part.rows, header.scale_bytes_of_row(), 8);
            B::int_select(all, 0, indices)
        });
        FloatRows::<B>(look_up(tensor, codes, scales, dtype))
    });
    rows
}

/// Packed rows of `row_bytes` bytes as a table, whose columns have `column_bytes` bytes: 4, where rows are whole words, or 1.
pub(crate) fn table_of<B: Backend>(
    words: IntTensor<B>,
    rows: usize,
    row_bytes: usize,
    column_bytes: usize,
) -> IntTensor<B> {
    if column_bytes == 4 {
        let words = B::int_slice(words, &[Slice::from(0..rows * row_bytes / 4)]);
        return B::int_reshape(words, Shape::new([rows, row_bytes / 4]));
    }
    unpack::<B>(words, rows, row_bytes, 8)
}

/// The rows of such a table, packed.
pub(crate) fn words_of<B: Backend>(table: IntTensor<B>, column_bytes: usize) -> IntTensor<B> {
    if column_bytes == 4 {
        let n = table.shape().num_elements();
        return B::int_reshape(table, Shape::new([n]));
    }
    pack::<B>(table)
}

/// Packed rows through an operation on [their table](table_of), of which it may take rows and columns.
pub(crate) fn map_rows<B: Backend>(
    words: IntTensor<B>,
    rows: usize,
    row_bytes: usize,
    column_bytes: usize,
    op: impl FnOnce(IntTensor<B>) -> IntTensor<B>,
) -> IntTensor<B> {
    words_of::<B>(op(table_of::<B>(words, rows, row_bytes, column_bytes)), column_bytes)
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
pub(super) fn decode_elements<B: Backend>(
    tensor: &QinsTensor<B>,
    rows: IntTensor<B>,
    cols: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let FloatRows(elements) = Part::merge(&tensor.parts, &rows, |part, rows| {
        FloatRows::<B>(elements(tensor, part, rows, cols.clone(), dtype))
    });
    elements
}

/// As [`decode_elements`], of one part.
fn elements<B: Backend>(
    tensor: &QinsTensor<B>,
    part: &Part<B>,
    rows: IntTensor<B>,
    cols: IntTensor<B>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let header = tensor.header();
    let &Header { format, cols: row_length, .. } = header;
    let (device, all_rows) = (tensor.device(), part.rows);
    let int = get_device_settings::<B>(&device).int_dtype;
    let bits = format.code_bits();
    // A code from bit `bit` of a row of a plane on. What the next word adds is moved by no more than a code's width: there it is
    // masked, and nothing is shifted out, which not every backend allows.
    let code = |plane: usize| {
        let bit = B::int_mul_scalar(cols.clone(), (bits as i64).into());
        let row_words = (format.code_bytes(row_length) / 4) as i64;
        let last = part.codes.shape()[0] as i64 - 1;
        let word = B::int_div_scalar(bit.clone(), 32i64.into());
        let row = B::int_add_scalar(rows.clone(), ((plane * all_rows) as i64).into());
        let word_index = B::int_add(B::int_mul_scalar(row, row_words.into()), word);
        let next = B::int_clamp_max(B::int_add_scalar(word_index.clone(), 1i64.into()), last.into());
        let shift = B::int_remainder_scalar(bit, 32i64.into());
        let rest = B::int_clamp_max(B::int_add_scalar(B::int_neg(shift.clone()), 32i64.into()), (bits as i64).into());
        let word = |index| B::int_select(part.codes.clone(), 0, index);
        let low = B::bitwise_right_shift(word(word_index), B::int_cast(shift, IntDType::U32));
        let high = B::bitwise_and_scalar(word(next), mask(bits).into());
        let high = B::bitwise_left_shift(high, B::int_cast(rest, IntDType::U32));
        B::int_cast(B::bitwise_and_scalar(B::bitwise_or(low, high), mask(bits).into()), int)
    };
    let codes = (0..format.planes()).map(code).collect();
    if format.is_raw() {
        return B::float_cast(values::<B>(tensor, codes, None), dtype);
    }
    // A byte of a row of scales.
    let byte = |column: IntTensor<B>| {
        let row_bytes = header.scale_bytes_of_row() as i64;
        let index = B::int_add(B::int_mul_scalar(rows.clone(), row_bytes.into()), column);
        let word = B::int_select(part.scales.clone(), 0, B::int_div_scalar(index.clone(), 4i64.into()));
        let shift = B::int_mul_scalar(B::int_remainder_scalar(index, 4i64.into()), 8i64.into());
        let shifted = B::bitwise_right_shift(word, B::int_cast(shift, IntDType::U32));
        B::int_cast(B::bitwise_and_scalar(shifted, mask(8).into()), int)
    };
    let group = B::int_div_scalar(cols.clone(), (format.group() as i64).into());
    let scale_code = byte(B::int_add_scalar(group, (header.base_bytes() as i64).into()));
    let mut scales = entries::<B>(tensor.decoder.scales(), scale_code.clone(), &device);
    if header.base_bytes() > 0 {
        let column = |i: i64| byte(B::int_add_scalar(B::int_mul_scalar(cols.clone(), 0i64.into()), i.into()));
        scales = B::float_mul(float_of_bytes::<B>([0, 1, 2, 3].map(column)), scales);
    }
    scaled::<B>(scales, values::<B>(tensor, codes, Some(scale_code)), dtype)
}

/// The lowest `bits` bits.
fn mask(bits: usize) -> u32 {
    u32::MAX >> (32 - bits)
}

/// Words to one integer a code of `bits` bits: `[rows, codes a row]`.
fn unpack<B: Backend>(words: IntTensor<B>, rows: usize, row_bytes: usize, bits: usize) -> IntTensor<B> {
    // Codes start at a word again after so many words.
    let unit = if 32usize.is_multiple_of(bits) { 1 } else { 3 };
    let (units, unit_codes, row_codes) = (words.shape()[0] / unit, 32 * unit / bits, row_bytes * 8 / bits);
    let int = get_device_settings::<B>(&B::int_device(&words)).int_dtype;
    let words = B::int_reshape(words, Shape::new([units, unit]));
    let word = |i: usize| B::int_slice(words.clone(), &[Slice::from(0..units), Slice::from(i..i + 1)]);
    let code = |i: usize| {
        let (at, shift) = (i * bits / 32, i * bits % 32);
        let mut code = B::bitwise_right_shift_scalar(word(at), (shift as u32).into());
        if shift + bits > 32 {
            // Nothing is shifted out: not every backend allows that.
            let rest = B::bitwise_and_scalar(word(at + 1), mask(shift + bits - 32).into());
            code = B::bitwise_or(code, B::bitwise_left_shift_scalar(rest, (32 - shift as u32).into()));
        }
        B::int_cast(B::bitwise_and_scalar(code, mask(bits).into()), int)
    };
    let all = B::int_cat((0..unit_codes).map(code).collect(), 1);
    let all = B::int_reshape(all, Shape::new([units * unit_codes]));
    B::int_reshape(B::int_slice(all, &[Slice::from(0..rows * row_codes)]), Shape::new([rows, row_codes]))
}

/// `scale * value` for codes `[planes * n, codes a row]` and bytes of scales `[n, scale bytes a row]`, where there are any.
fn look_up<B: Backend>(
    tensor: &QinsTensor<B>,
    codes: IntTensor<B>,
    scales: Option<IntTensor<B>>,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let &Header { format, cols, .. } = tensor.header();
    let device = B::int_device(&codes);
    let (n, groups) = (codes.shape()[0] / format.planes(), format.groups(cols));

    let plane = |i: usize| B::int_slice(codes.clone(), &[Slice::from(i * n..(i + 1) * n), Slice::from(0..cols)]);
    let codes = (0..format.planes()).map(plane).collect();
    let Some(bytes) = scales else {
        return B::float_cast(values::<B>(tensor, codes, None), dtype);
    };
    let columns = |bytes: &IntTensor<B>, from: usize, to: usize| {
        B::int_slice(bytes.clone(), &[Slice::from(0..n), Slice::from(from..to)])
    };
    let base_bytes = tensor.header().base_bytes();
    let headers = columns(&bytes, base_bytes, base_bytes + groups);
    let mut scales = entries::<B>(tensor.decoder.scales(), headers.clone(), &device);
    if base_bytes > 0 {
        let base = float_of_bytes::<B>([0, 1, 2, 3].map(|i| columns(&bytes, i, i + 1)));
        scales = B::float_mul(base, scales);
    }
    // One of each group for each of its weights.
    let (group, wide) = (format.group(), Shape::new([n, groups * format.group()]));
    let scales = B::float_expand(B::float_reshape(scales, Shape::new([n, groups, 1])), Shape::new([n, groups, group]));
    let scales = B::float_reshape(scales, wide.clone());
    let scales = B::float_slice(scales, &[Slice::from(0..n), Slice::from(0..cols)]);
    let headers = (format.tables() > 1).then(|| {
        let headers =
            B::int_expand(B::int_reshape(headers, Shape::new([n, groups, 1])), Shape::new([n, groups, group]));
        B::int_slice(B::int_reshape(headers, wide), &[Slice::from(0..n), Slice::from(0..cols)])
    });
    scaled::<B>(scales, values::<B>(tensor, codes, headers), dtype)
}

/// `w/s` of codes, given plane by plane, whose groups have these scale codes; those matter only where they choose tables.
fn values<B: Backend>(
    tensor: &QinsTensor<B>,
    planes: Vec<IntTensor<B>>,
    scale_codes: Option<IntTensor<B>>,
) -> FloatTensor<B> {
    let format = tensor.header().format;
    let device = B::int_device(&planes[0]);
    if planes.len() > 1 {
        return of_cells::<B>(planes, tensor.header().k);
    }
    let [codes] = <[_; 1]>::try_from(planes).expect("one plane");
    let codes = match scale_codes.filter(|_| format.tables() > 1) {
        Some(headers) => {
            // The lowest two bits.
            let shape = B::int_remainder_scalar(headers, 4i64.into());
            B::int_add(B::int_mul_scalar(shape, (1i64 << format.code_bits()).into()), codes)
        }
        None => codes,
    };
    entries::<B>(&tensor.decoder.values(), codes, &device)
}

/// The centres of cells in the projective coordinate: `(1-u)/(1+ku)` at `u = (2 cell + 1)/2^(8 planes)`, over its value at
/// `1/256`. In f64, or in f32 within a few units in the last place on a device that has nothing wider.
fn of_cells<B: Backend>(planes: Vec<IntTensor<B>>, k: f64) -> FloatTensor<B> {
    let device = B::int_device(&planes[0]);
    let wide = if B::supports_dtype(&device, DType::F64) { FloatDType::F64 } else { FloatDType::F32 };
    let all = 1i64 << (8 * planes.len());
    let negative = B::int_div_scalar(planes[0].clone(), 128i64.into());
    let head = B::int_remainder_scalar(planes[0].clone(), 128i64.into());
    let further = planes.into_iter().skip(1);
    let cell = further.fold(head, |cell, plane| B::int_add(B::int_mul_scalar(cell, 256i64.into()), plane));
    // At most 24 bits, so that `u` and `1 - u` are exact even in f32.
    let odd = B::int_add_scalar(B::int_mul_scalar(cell, 2i64.into()), 1i64.into());
    let u = B::float_div_scalar(B::int_into_float(odd, wide), (all as f64).into());
    let below = B::float_add_scalar(B::float_mul_scalar(u.clone(), k.into()), 1f64.into());
    let above = B::float_add_scalar(B::float_neg(u), 1f64.into());
    let first = (1.0 - 1.0 / 256.0) / (1.0 + k / 256.0);
    let value = B::float_div_scalar(B::float_div(above, below), first.into());
    let sign = B::int_add_scalar(B::int_mul_scalar(negative, (-2i64).into()), 1i64.into());
    B::float_mul(value, B::int_into_float(sign, wide))
}

/// `scale * value`, rounded once where values are wider than f32.
fn scaled<B: Backend>(scales: FloatTensor<B>, values: FloatTensor<B>, dtype: FloatDType) -> FloatTensor<B> {
    let cast = |tensor: FloatTensor<B>, dtype: FloatDType| match tensor.dtype() == DType::from(dtype) {
        true => tensor,
        false => B::float_cast(tensor, dtype),
    };
    let scales = cast(scales, values.dtype().into());
    cast(cast(B::float_mul(scales, values), FloatDType::F32), dtype)
}

/// The positive f32 whose bytes these are, lowest first: `(2^23 + mantissa) 2^(exponent - 150)`.
fn float_of_bytes<B: Backend>([b0, b1, b2, b3]: [IntTensor<B>; 4]) -> FloatTensor<B> {
    let device = B::int_device(&b0);
    let times = |bytes: IntTensor<B>, factor: i64| B::int_mul_scalar(bytes, factor.into());
    let low = B::int_add(b0, times(b1, 1 << 8));
    let mantissa = B::int_add(low, times(B::int_remainder_scalar(b2.clone(), 128i64.into()), 1 << 16));
    let lowest = B::int_div_scalar(b2, 128i64.into());
    let exponent = B::int_add(times(B::int_remainder_scalar(b3, 128i64.into()), 2), lowest);
    // Numbers without a leading one have the exponent of the least with one.
    let leading: Vec<f32> = (0..256).map(|e| if e == 0 { 0.0 } else { (1 << 23) as f32 }).collect();
    let power: Vec<f32> = (0..256).map(|e: i32| 2f64.powi(e.max(1) - 150) as f32).collect();
    let mantissa = B::int_into_float(mantissa, FloatDType::F32);
    let mantissa = B::float_add(mantissa, entries::<B>(&leading, exponent.clone(), &device));
    B::float_mul(mantissa, entries::<B>(&power, exponent, &device))
}

/// `table[index]`, with the shape of `indices`.
fn entries<B: Backend>(table: &[f32], indices: IntTensor<B>, device: &Device<B>) -> FloatTensor<B> {
    let shape = indices.shape();
    // The tables' own type, whatever the device's default.
    let table = B::float_from_data(TensorData::new(table.to_vec(), [table.len()]), device);
    let flat = B::int_reshape(indices, Shape::new([shape.num_elements()]));
    B::float_reshape(B::float_select(table, 0, flat), shape)
}
