use crate::{Qins, kernels, view::View};
use burn_backend::{
    Backend, Bytes, DType, FloatDType, QTensorPrimitive, Shape, Slice, TensorData, TensorMetadata, TensorPrimitive,
    quantization::{QuantLevel, QuantMode, QuantParam, QuantScheme, QuantStore, QuantValue},
    tensor::{Device, FloatTensor, IntTensor},
};
use qins_codec::{Decoder, EncodeError, Encoded, Format, Header, LayoutError, Weights, encode, encode_with};
use std::sync::Arc;

/// The scheme that QINS tensors report.
///
/// Burn's list of schemes is closed, so this is one that it can name and that NdArray, Flex and CubeCL all refuse to
/// read: codes that reach one of them without the decorator fail loudly. The true format is in the bytes' own header.
pub const QINS_SCHEME: QuantScheme = QuantScheme {
    value: QuantValue::Q8S,
    param: QuantParam::F32,
    store: QuantStore::PackedNative(0),
    level: QuantLevel::Tensor,
    mode: QuantMode::Symmetric,
};

/// The float primitive of [`Qins<B>`]: `B`'s own, or codes that stand for it until an operation needs floats.
#[derive(Debug, Clone)]
pub enum QinsFloat<B: Backend> {
    /// A float tensor of the inner backend.
    Dense(FloatTensor<B>),
    /// An encoded tensor, to be decoded to the given type.
    Coded(QinsTensor<B>, FloatDType),
}

impl<B: Backend> QinsFloat<B> {
    /// The inner backend's float tensor, decoded if need be.
    pub fn dense(self) -> FloatTensor<B> {
        match self {
            Self::Dense(tensor) => tensor,
            Self::Coded(tensor, dtype) => tensor.decode(dtype),
        }
    }
}

impl<B: Backend> TensorMetadata for QinsFloat<B> {
    fn dtype(&self) -> DType {
        match self {
            Self::Dense(tensor) => tensor.dtype(),
            Self::Coded(_, dtype) => (*dtype).into(),
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Dense(tensor) => tensor.shape(),
            Self::Coded(tensor, _) => tensor.shape(),
        }
    }
}

/// A tensor stored in QINS codes on a device of `B`.
///
/// Codes and scale codes are packed four to a 32-bit word, because some devices address nothing smaller. A weight of
/// Burn's `Linear`, `[in, out]`, is a transposed view over the encoded matrix `[out, in]`.
#[derive(Debug, Clone)]
pub struct QinsTensor<B: Backend> {
    /// `u32 [rows * code bytes a row / 4]`
    pub(crate) codes: IntTensor<B>,
    /// `u32 [rows * scale bytes a row / 4]`, rounded up
    pub(crate) scales: IntTensor<B>,
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) view: View,
}

impl<B: Backend> QinsTensor<B> {
    /// Moves an encoded matrix to a device, as a tensor `[out, in]`.
    pub fn from_encoded(encoded: Encoded, device: &Device<B>) -> Self {
        let &Header { rows, cols, .. } = encoded.header();
        let (decoder, codes, scales) = encoded.into_parts();
        Self::new(Arc::new(decoder), &codes, &scales, View::new(vec![rows, cols]), device)
    }

    /// A tensor `[out, in]` of codes and scale codes that lie elsewhere, for example in a mapped file: backends of the
    /// host's memory read them there, and nothing is copied.
    ///
    /// # Errors
    /// If the lengths are not the header's, rounded up to words of four bytes.
    pub fn from_bytes(decoder: Decoder, codes: Bytes, scales: Bytes, device: &Device<B>) -> Result<Self, LayoutError> {
        let &header = decoder.header();
        let Header { format, rows, cols, .. } = header;
        let words = |part, bytes: Bytes, expected: usize| {
            let expected = expected.next_multiple_of(4);
            if bytes.len() != expected {
                return Err(LayoutError { part, format, rows, cols, expected, found: bytes.len() });
            }
            let words = TensorData::from_bytes(bytes, [expected / 4], DType::U32);
            Ok(B::int_from_data(words, device))
        };
        let codes = words("codes", codes, header.code_bytes())?;
        let scales = match header.scale_bytes() {
            0 => B::int_from_data(TensorData::new(vec![0u32], [1]), device),
            bytes => words("scales", scales, bytes)?,
        };
        Ok(Self { codes, scales, decoder: Arc::new(decoder), view: View::new(vec![rows, cols]) })
    }

    pub(crate) fn new(decoder: Arc<Decoder>, codes: &[u8], scales: &[u8], view: View, device: &Device<B>) -> Self {
        let words = |bytes: &[u8]| {
            // Not every device has tensors without elements.
            let bytes = if bytes.is_empty() { &[0; 4] } else { bytes };
            let words: Vec<u32> = bytes
                .chunks(4)
                .map(|chunk| {
                    let mut word = [0; 4];
                    word[..chunk.len()].copy_from_slice(chunk);
                    u32::from_le_bytes(word)
                })
                .collect();
            let n = words.len();
            B::int_from_data(TensorData::new(words, [n]), device)
        };
        Self { codes: words(codes), scales: words(scales), decoder, view }
    }

    /// Encodes a tensor with groups along its last dimension.
    ///
    /// # Errors
    /// [`EncodeError::NotFinite`], with the row counted over all leading dimensions.
    pub fn encode(tensor: FloatTensor<B>, format: Format) -> Result<Self, EncodeError> {
        Self::encode_by(tensor, |weights| encode(format, weights))
    }

    /// Encodes a tensor with the constants of another, so that groups which were decoded from them stay as they were.
    pub(crate) fn encode_like(tensor: FloatTensor<B>, header: &Header) -> Result<Self, EncodeError> {
        Self::encode_by(tensor, |weights| {
            encode_with(Header { rows: weights.rows(), cols: weights.cols(), ..*header }, weights)
        })
    }

    fn encode_by(
        tensor: FloatTensor<B>,
        encode: impl FnOnce(&qins_codec::Slice<'_>) -> Result<Encoded, EncodeError>,
    ) -> Result<Self, EncodeError> {
        let (shape, device) = (tensor.shape(), B::float_device(&tensor));
        let values = read_f32::<B>(tensor);
        let cols = shape.as_slice().last().copied().unwrap_or(1);
        let rows = values.len().checked_div(cols).unwrap_or(0);
        let (decoder, codes, scales) = encode(&qins_codec::Slice::new(&values, rows, cols))?.into_parts();
        Ok(Self::new(Arc::new(decoder), &codes, &scales, View::new(shape.to_vec()), &device))
    }

    /// Format, shape and constants of the encoded matrix.
    pub fn header(&self) -> &Header {
        self.decoder.header()
    }

    /// The encoded matrix, read from its device, where the tensor is that matrix or its transposed view.
    pub fn to_encoded(&self) -> Option<Encoded> {
        let &header = self.header();
        if !self.view.is_matrix(header.rows, header.cols) {
            return None;
        }
        let read = |words: &IntTensor<B>, bytes: usize| {
            let data =
                burn_backend::read_sync(B::int_into_data(words.clone())).expect("codes can be read from their device");
            data.bytes[..bytes].to_vec()
        };
        let (codes, scales) = (read(&self.codes, header.code_bytes()), read(&self.scales, header.scale_bytes()));
        Some(Encoded::from_parts((*self.decoder).clone(), codes, scales).expect("lengths are the header's"))
    }

    /// The floats that the codes stand for.
    pub fn decode(self, dtype: FloatDType) -> FloatTensor<B> {
        let matrix = kernels::decode(&self, dtype);
        Self::shaped(matrix, &self.view)
    }

    /// The tensor with two dimensions exchanged; no code moves.
    pub fn transpose(self) -> Self {
        let rank = self.view.axes().len();
        let view = self.view.swap_dims(rank - 2, rank - 1);
        self.with_view(view)
    }

    /// Part of the tensor, still coded: whole rows and whole groups, where their codes and scale codes are whole words.
    pub(crate) fn slice(&self, slices: &[Slice]) -> Option<Self> {
        let &header = self.header();
        let Header { format, rows: all_rows, cols: all_cols, .. } = header;
        let (rows, cols, view) = self.view.slice(slices, all_rows, all_cols)?;
        let on_group = |col: usize| {
            col == all_cols || (col.is_multiple_of(format.group()) && (col * format.code_bits()).is_multiple_of(32))
        };
        if !on_group(cols.start) || !on_group(cols.end) {
            return None;
        }
        let part = |words: &IntTensor<B>, bytes: fn(Format, usize) -> usize| {
            let (skipped, kept, row) = (bytes(format, cols.start), bytes(format, cols.len()), bytes(format, all_cols));
            if kept == row {
                // Whole rows follow each other. Bytes of the next row in the last word are never read.
                let (start, end) = (rows.start * row, rows.end * row);
                let range = start / 4..end.div_ceil(4);
                return start.is_multiple_of(4).then(|| B::int_slice(words.clone(), &[range.into()]));
            }
            let whole_words = [row, skipped, kept].iter().all(|n| n.is_multiple_of(4));
            whole_words.then(|| {
                let table = B::int_reshape(words.clone(), Shape::new([all_rows, row / 4]));
                let columns = skipped / 4..(skipped + kept) / 4;
                let table = B::int_slice(table, &[rows.clone().into(), columns.into()]);
                B::int_reshape(table, Shape::new([rows.len() * kept / 4]))
            })
        };
        let codes = part(&self.codes, Format::code_bytes)?;
        let scales = if format.is_raw() { self.scales.clone() } else { part(&self.scales, Format::scale_bytes)? };
        let decoder = Decoder::new(Header { rows: rows.len(), cols: cols.len(), ..header }).ok()?;
        Some(Self { codes, scales, decoder: Arc::new(decoder), view })
    }

    pub(crate) fn with_view(self, view: View) -> Self {
        Self { view, ..self }
    }

    /// Gives decoded weights the shape of a view.
    pub(crate) fn shaped(decoded: FloatTensor<B>, view: &View) -> FloatTensor<B> {
        let stored = B::float_reshape(decoded, view.stored().to_vec().into());
        if view.axes().is_sorted() { stored } else { B::float_permute(stored, view.axes()) }
    }

    /// As the primitive of a `Tensor<Qins<B>, D>`.
    pub fn into_primitive(self) -> TensorPrimitive<Qins<B>> {
        TensorPrimitive::QFloat(self)
    }
}

/// Reads a float tensor of any type as f32, row-major.
pub(crate) fn read_f32<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = burn_backend::read_sync(B::float_into_data(tensor)).expect("a tensor can be read from its device");
    data.convert::<f32>().into_vec().expect("just converted to f32")
}

impl<B: Backend> TensorMetadata for QinsTensor<B> {
    fn dtype(&self) -> DType {
        DType::QFloat(QINS_SCHEME)
    }

    fn shape(&self) -> Shape {
        self.view.shape()
    }
}

impl<B: Backend> QTensorPrimitive for QinsTensor<B> {
    fn scheme(&self) -> &QuantScheme {
        &QINS_SCHEME
    }

    fn default_scheme() -> QuantScheme {
        QINS_SCHEME
    }
}
