//! The self-describing bytes of a QINS tensor outside a device: what `into_data` gives and records store.
//!
//! Little-endian: `"QINS"`, version (u8: 2 where rows have bases that their format does not ask for, else 1), rank (u8), format name (8 bytes, zero-padded), rows (u64), cols (u64),
//! base (f32), k (f64), stored dimensions (u64 each), axes (u8 each), repeats (u64 each), codes, scale codes, zeros up to
//! the length that Burn computes from the scheme and the shape (`scheme.rs`).

use crate::{QinsTensor, parts::Part, scheme, view::View};
use burn_backend::{Backend, DType, ExecutionError, QTensorPrimitive, TensorData, TensorMetadata, tensor::Device};
use qins_codec::{Decoder, Format, Header, HeaderError, LayoutError, UnknownFormat};
use std::sync::Arc;

const MAGIC: [u8; 4] = *b"QINS";
/// Tensors whose rows have bases as their format says.
const VERSION: u8 = 1;
/// Tensors whose rows have bases that their format does not ask for.
const ROW_BASES: u8 = 2;

/// Bytes before the dimensions.
const FIXED: usize = 4 + 1 + 1 + 8 + 8 + 8 + 4 + 8;
/// Bytes for each dimension.
const PER_DIMENSION: usize = 8 + 1 + 8;

/// Bytes of a tensor's data, without the zeros at the end.
pub(crate) fn length(header: &Header, view: &View) -> usize {
    FIXED + view.axes().len() * PER_DIMENSION + header.code_bytes() + header.scale_bytes()
}

/// Why bytes are no QINS tensor.
#[derive(Debug, thiserror::Error)]
pub enum BytesError {
    /// The data has another type, for example Burn's own quantized data.
    #[error("expected QINS data, found {found:?}: encode float data with a policy instead")]
    Type {
        /// The type found.
        found: DType,
    },
    /// The bytes do not start like a QINS tensor.
    #[error("expected a QINS header, found other bytes")]
    Magic,
    /// Written in another version.
    #[error("QINS data of version {found}: this program reads versions {VERSION} and {ROW_BASES}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The bytes end early, or go on after the scale codes.
    #[error("expected {expected} bytes of QINS data, found {found}")]
    Length {
        /// Bytes the header asks for.
        expected: usize,
        /// Bytes present.
        found: usize,
    },
    /// The dimensions are not those of the matrix or of the tensor.
    #[error("QINS data of {rows} x {cols} weights does not have the shape {shape:?}")]
    Shape {
        /// Rows of the encoded matrix.
        rows: usize,
        /// Columns of the encoded matrix.
        cols: usize,
        /// Shape claimed.
        shape: Vec<usize>,
    },
    /// Unknown number format.
    #[error(transparent)]
    Format(#[from] UnknownFormat),
    /// Illegal constants.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The codes do not fit the header.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

pub(crate) async fn to_data<B: Backend>(tensor: QinsTensor<B>) -> Result<TensorData, ExecutionError> {
    let shape = tensor.shape();
    let (header, scheme) = (*tensor.header(), *tensor.scheme());
    let length = length(&header, &tensor.view);
    let padded = length.max(scheme::length(scheme, shape.as_slice()));
    let (codes, scales) = Part::download(&tensor.parts, &header).await?;

    let mut bytes = Vec::with_capacity(padded);
    bytes.extend(MAGIC);
    bytes.extend([if header.row_bases { ROW_BASES } else { VERSION }, tensor.view.axes().len() as u8]);
    let mut name = [0; 8];
    name[..header.format.name().len()].copy_from_slice(header.format.name().as_bytes());
    bytes.extend(name);
    bytes.extend((header.rows as u64).to_le_bytes());
    bytes.extend((header.cols as u64).to_le_bytes());
    bytes.extend(header.base.to_le_bytes());
    bytes.extend(header.k.to_le_bytes());
    tensor.view.stored().iter().for_each(|&n| bytes.extend((n as u64).to_le_bytes()));
    bytes.extend(tensor.view.axes().iter().map(|&a| a as u8));
    tensor.view.repeats().iter().for_each(|&n| bytes.extend((n as u64).to_le_bytes()));
    bytes.extend(&codes);
    bytes.extend(&scales);
    debug_assert_eq!(bytes.len(), length);
    bytes.resize(padded, 0);
    Ok(TensorData::from_bytes_vec(bytes, shape, DType::QFloat(scheme)))
}

pub(crate) fn from_data<B: Backend>(data: &TensorData, device: &Device<B>) -> Result<QinsTensor<B>, BytesError> {
    let DType::QFloat(scheme) = data.dtype else { return Err(BytesError::Type { found: data.dtype }) };
    if !scheme::is_qins_type(data.dtype) {
        return Err(BytesError::Type { found: data.dtype });
    }
    let mut reader = Reader { rest: &data.bytes, total: data.bytes.len(), read: 0 };
    if reader.rest.get(..4) != Some(&MAGIC) {
        return Err(BytesError::Magic);
    }
    reader.take(4)?;
    let version = reader.array::<1>()?[0];
    if ![VERSION, ROW_BASES].contains(&version) {
        return Err(BytesError::Version { found: version });
    }
    let rank = reader.array::<1>()?[0] as usize;
    let name = reader.array::<8>()?;
    let format: Format = String::from_utf8_lossy(&name).trim_end_matches('\0').parse()?;
    let rows = reader.size()?;
    let cols = reader.size()?;
    let base = f32::from_le_bytes(reader.array()?);
    let k = f64::from_le_bytes(reader.array()?);
    let decoder = Decoder::new(Header { format, rows, cols, base, k, row_bases: version == ROW_BASES })?;

    let stored = (0..rank).map(|_| reader.size()).collect::<Result<Vec<_>, _>>()?;
    let axes = reader.take(rank)?.iter().map(|&a| a as usize).collect();
    let shape_error = || BytesError::Shape { rows, cols, shape: data.shape.to_vec() };
    let weights = stored.iter().try_fold(1usize, |product, &n| product.checked_mul(n)).ok_or_else(shape_error)?;
    let repeats = (0..rank).map(|_| reader.size()).collect::<Result<Vec<_>, _>>()?;
    let view = View::from_parts(stored, axes, repeats).ok_or_else(shape_error)?;
    if weights != rows * cols || view.shape() != data.shape {
        return Err(shape_error());
    }

    let codes = reader.take(decoder.header().code_bytes())?;
    let scales = reader.take(decoder.header().scale_bytes())?;
    let expected = reader.read.max(scheme::length(scheme, data.shape.as_slice()));
    if reader.total != expected {
        return Err(BytesError::Length { expected, found: reader.total });
    }
    Ok(QinsTensor::new(Arc::new(decoder), codes, scales, view, device))
}

struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
    read: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], BytesError> {
        self.read = self.read.saturating_add(n);
        let (head, rest) =
            self.rest.split_at_checked(n).ok_or(BytesError::Length { expected: self.read, found: self.total })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BytesError> {
        Ok(self.take(N)?.try_into().expect("took N bytes"))
    }

    fn size(&mut self) -> Result<usize, BytesError> {
        // Where an address has fewer than 64 bits, a size beyond it fails as too large.
        Ok(usize::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(usize::MAX))
    }
}
