//! How the words of an encoded matrix lie on a device: in one piece, or, where the device holds no piece so large, in parts
//! of consecutive rows.

use crate::kernels;
use burn_backend::{
    Backend, Bytes, DType, ExecutionError, Shape, Slice, TensorData, TensorMetadata, get_device_settings,
    tensor::{BoolTensor, Device, FloatTensor, IntTensor},
};
use qins_codec::Header;
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Rows that parts are made of where they have more: what kernels take together; and so many results, even in 16 bits, begin at
/// what WebGPU promises to bind, a multiple of 256 bytes.
const TOGETHER: usize = 128;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Takes every graphics device as one that holds no more than so many bytes in one piece, for drivers that promise more
/// than they hold; `usize::MAX` lifts that. It matters to tensors that are moved to a device, and to results, from then on.
pub fn limit_buffers(bytes: usize) {
    LIMIT.store(bytes, Relaxed);
}

/// Bytes that a device holds in one piece, where `B` has such a limit: less of what the device says and what
/// [`limit_buffers`] says.
pub fn largest_buffer<B: Backend>(device: &Device<B>) -> Option<usize> {
    kernels::largest_buffer::<B>(device).map(|bytes| bytes.min(LIMIT.load(Relaxed)))
}

/// A tensor that a device does not hold in one piece, and that cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{tensor} takes {bytes} bytes in one piece, of which the device holds {limit}")]
pub struct BufferError {
    /// What it is: the path of a parameter, or its shape and use.
    pub tensor: String,
    /// Its bytes, or those of its largest part.
    pub bytes: usize,
    /// Bytes that the device holds in one piece.
    pub limit: usize,
}

/// The payload of the panic where a device had no memory for a weight: Burn's constructors of tensors return no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoDeviceMemory;

/// Bytes from which on a device is waited for.
const LARGE: usize = 1 << 20;

/// Waits until a device has taken large words, so that no more than one tensor is staged in the host's memory at a time.
/// `first`: bytes that they start with.
///
/// # Panics
/// With [`NoDeviceMemory`] if the device could not take them.
fn wait_for<B: Backend>(words: &IntTensor<B>, first: &[u8], limit: Option<usize>) {
    if limit.is_some() && words.shape()[0] * size_of::<u32>() >= LARGE {
        // CubeCL lets writes wait for some other work; reading is that, and synchronizing is not.
        let word = B::int_slice(words.clone(), &[Slice::from(0..1)]);
        let word = burn_backend::read_sync(B::int_into_data(word));
        // Where there was no memory to stage them, nothing else tells.
        if !word.is_ok_and(|word| first.starts_with(&word.bytes)) {
            std::panic::panic_any(NoDeviceMemory);
        }
    }
}

/// Consecutive rows of an encoded matrix, as a matrix of their own.
#[derive(Debug, Clone)]
pub(crate) struct Part<B: Backend> {
    /// `u32 [planes * rows * code bytes a row / 4]`
    pub(crate) codes: IntTensor<B>,
    /// `u32 [rows * scale bytes a row / 4]`, rounded up
    pub(crate) scales: IntTensor<B>,
    /// Rows of the matrix before these.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
}

impl<B: Backend> Part<B> {
    /// A whole matrix.
    pub(crate) fn whole(header: &Header, codes: IntTensor<B>, scales: IntTensor<B>) -> Self {
        Self { codes, scales, first_row: 0, rows: header.rows }
    }

    /// Moves codes and scale codes of a matrix to a device, in as few parts as that allows.
    pub(crate) fn upload(header: &Header, codes: &[u8], scales: &[u8], device: &Device<B>) -> Vec<Self> {
        let Header { format, rows: all, cols, .. } = *header;
        let (code_row, scale_row) = (format.code_bytes(cols), header.scale_bytes_of_row());
        let limit = largest_buffer::<B>(device);
        let part = |rows: Range<usize>| {
            let plane = |i: usize| &codes[(i * all + rows.start) * code_row..(i * all + rows.end) * code_row];
            let scales = &scales[rows.start * scale_row..rows.end * scale_row];
            let codes = words::<B>((0..format.planes()).map(plane), device);
            wait_for::<B>(&codes, plane(0), limit);
            Self { codes, scales: words::<B>([scales], device), first_row: rows.start, rows: rows.len() }
        };
        ranges(header, limit).map(part).collect()
    }

    /// As [`upload`](Self::upload), of whole words, which backends of the host's memory may keep where they lie.
    pub(crate) fn upload_words(header: &Header, codes: Bytes, scales: Bytes, device: &Device<B>) -> Vec<Self> {
        let limit = largest_buffer::<B>(device);
        if ranges(header, limit).count() != 1 {
            return Self::upload(header, &codes, &scales, device);
        }
        let words = |bytes: Bytes, expected: usize| match expected.div_ceil(4) {
            0 => words::<B>([], device),
            n => B::int_from_data(TensorData::from_bytes(bytes, [n], DType::U32), device),
        };
        let first = codes[..codes.len().min(size_of::<u32>())].to_vec();
        let (codes, scales) = (words(codes, header.code_bytes()), words(scales, header.scale_bytes()));
        wait_for::<B>(&codes, &first, limit);
        vec![Self::whole(header, codes, scales)]
    }

    /// Codes and scale codes of a matrix, from its parts.
    pub(crate) async fn download(parts: &[Self], header: &Header) -> Result<(Vec<u8>, Vec<u8>), ExecutionError> {
        let Header { format, rows: all, cols, .. } = *header;
        let (code_row, scale_row) = (format.code_bytes(cols), header.scale_bytes_of_row());
        let (mut codes, mut scales) = (vec![0; header.code_bytes()], vec![0; header.scale_bytes()]);
        for part in parts {
            let (first, rows) = (part.first_row, part.rows);
            let read = B::int_into_data(part.codes.clone()).await?.bytes;
            for plane in 0..format.planes() {
                let own = &read[plane * rows * code_row..][..rows * code_row];
                codes[(plane * all + first) * code_row..][..own.len()].copy_from_slice(own);
            }
            let read = B::int_into_data(part.scales.clone()).await?.bytes;
            scales[first * scale_row..][..rows * scale_row].copy_from_slice(&read[..rows * scale_row]);
        }
        Ok((codes, scales))
    }

    /// Its codes of one plane, `u32 [rows * code bytes a row / 4]`.
    pub(crate) fn plane(&self, planes: usize, i: usize) -> IntTensor<B> {
        if planes == 1 {
            return self.codes.clone();
        }
        let words = self.codes.shape()[0] / planes;
        B::int_slice(self.codes.clone(), &[Slice::from(i * words..(i + 1) * words)])
    }

    /// What `take` makes of each part and of indices `[n]` into its rows, with the `n` rows of all parts in their order.
    pub(crate) fn merge<T: Rows<B>>(
        parts: &[Self],
        indices: &IntTensor<B>,
        take: impl Fn(&Self, IntTensor<B>) -> T,
    ) -> T {
        let [first, further @ ..] = parts else { unreachable!("a matrix has at least one part") };
        if further.is_empty() {
            return take(first, indices.clone());
        }
        let own = |part: &Self| {
            let from_first = B::int_sub_scalar(indices.clone(), (part.first_row as i64).into());
            take(part, B::int_clamp(from_first, 0i64.into(), (part.rows as i64 - 1).into()))
        };
        let bool_type = get_device_settings::<B>(&B::int_device(indices)).bool_dtype;
        further.iter().fold(own(first), |before, part| {
            let mask = B::int_greater_equal_elem(indices.clone(), (part.first_row as i64).into(), bool_type);
            before.replace_where(mask, own(part))
        })
    }
}

/// A tensor whose leading dimension is rows.
pub(crate) trait Rows<B: Backend> {
    /// With the rows of `other` where `mask [rows]` says so.
    fn replace_where(self, mask: BoolTensor<B>, other: Self) -> Self;
}

/// Floats and integers are one type on some backends.
pub(crate) struct FloatRows<B: Backend>(pub(crate) FloatTensor<B>);

pub(crate) struct IntRows<B: Backend>(pub(crate) IntTensor<B>);

impl<B: Backend> Rows<B> for FloatRows<B> {
    fn replace_where(self, mask: BoolTensor<B>, other: Self) -> Self {
        let mask = on_rows::<B>(mask, self.0.shape());
        Self(B::float_mask_where(self.0, mask, other.0))
    }
}

impl<B: Backend> Rows<B> for IntRows<B> {
    fn replace_where(self, mask: BoolTensor<B>, other: Self) -> Self {
        let mask = on_rows::<B>(mask, self.0.shape());
        Self(B::int_mask_where(self.0, mask, other.0))
    }
}

/// `mask [rows]` for every element of a tensor with these rows.
fn on_rows<B: Backend>(mask: BoolTensor<B>, shape: Shape) -> BoolTensor<B> {
    let mut column = vec![1; shape.num_dims()];
    column[0] = shape[0];
    B::bool_expand(B::bool_reshape(mask, column.into()), shape)
}

/// Rows of the parts of a matrix on a device that holds `limit` bytes in one piece. One row is never cut: where that is
/// beyond the limit, so are the parts.
pub(crate) fn ranges(header: &Header, limit: Option<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let Header { format, rows, cols, .. } = *header;
    // Words of scale codes are rounded up.
    let row_bytes = (format.planes() * format.code_bytes(cols)).max(header.scale_bytes_of_row().next_multiple_of(4));
    let fit = match limit {
        Some(limit) if row_bytes > 0 => limit / row_bytes,
        _ => rows,
    };
    // A matrix that fits is not cut, whatever its rows.
    let rows_a_part = if fit > TOGETHER && fit < rows { fit - fit % TOGETHER } else { fit }.clamp(1, rows.max(1));
    (0..rows.div_ceil(rows_a_part).max(1)).map(move |i| i * rows_a_part..((i + 1) * rows_a_part).min(rows))
}

/// Bytes one after the other, as words; zeros fill the last.
fn words<'a, B: Backend>(pieces: impl IntoIterator<Item = &'a [u8]>, device: &Device<B>) -> IntTensor<B> {
    let mut words: Vec<u32> = Vec::new();
    for bytes in pieces {
        // All pieces but the last are whole words.
        words.extend(bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        }));
    }
    if words.is_empty() {
        // Not every device has tensors without elements.
        words.push(0);
    }
    let n = words.len();
    B::int_from_data(TensorData::new(words, [n]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use qins_codec::Format;

    #[test]
    fn parts_follow_each_other_and_fit() {
        let header = |rows, cols| Header { format: Format::Fpins2, rows, cols, base: 1.0, k: 1.0, row_bases: false };
        let found = |rows, cols, limit| {
            ranges(&header(rows, cols), limit).map(|rows| [rows.start, rows.end]).collect::<Vec<_>>()
        };
        assert_eq!(found(7, 32, None), [[0, 7]]);
        assert_eq!(found(7, 32, Some(7 * 64)), [[0, 7]]);
        assert_eq!(found(7, 32, Some(7 * 64 - 1)), [[0, 6], [6, 7]]);
        assert_eq!(found(200, 32, Some(130 * 64)), [[0, 128], [128, 200]], "whole tiles");
        assert_eq!(found(3, 32, Some(10)), [[0, 1], [1, 2], [2, 3]], "a row is not cut");
        assert_eq!(found(0, 32, Some(10)), [[0, 0]]);
        assert_eq!(found(5, 0, Some(10)), [[0, 5]]);
    }

    #[test]
    fn a_matrix_that_fits_is_one_part() {
        for rows in [1, 63, 64, 65, 128, 1000, 32011, 32064] {
            let header = Header { format: Format::Q8, rows, cols: 32, base: 1.0, k: 0.5, row_bases: false };
            for limit in [None, Some(33 * rows), Some(usize::MAX)] {
                assert!(ranges(&header, limit).eq(std::iter::once(0..rows)), "{rows} rows, {limit:?}");
            }
            if rows > 1 {
                assert!(ranges(&header, Some(32 * (rows - 1))).count() > 1);
            }
        }
    }
}
