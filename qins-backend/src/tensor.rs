use crate::{
    Qins, bytes, kernels,
    parts::{IntRows, Part, largest_buffer},
    scheme,
    view::View,
};
use burn_backend::{
    Backend, Bytes, DType, FloatDType, QTensorPrimitive, Shape, Slice, TensorMetadata, TensorPrimitive,
    quantization::QuantScheme,
    tensor::{Device, FloatTensor, IntTensor},
};
use qins_codec::{
    Decoder, EncodeError, Encoded, Format, Header, LayoutError, Weights, encode, encode_with, matrix_shape,
};
use std::{
    ops::Range,
    sync::{Arc, OnceLock},
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

    /// An operation on the codes, if `codes` has one for them, and on decoded weights otherwise.
    pub(crate) fn on_codes(
        self,
        codes: impl FnOnce(&QinsTensor<B>) -> Option<QinsTensor<B>>,
        float: impl FnOnce(FloatTensor<B>) -> FloatTensor<B>,
    ) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(float(tensor)),
            Self::Coded(tensor, dtype) => match codes(&tensor) {
                Some(coded) => Self::Coded(coded, dtype),
                None => Self::Dense(float(tensor.decode(dtype))),
            },
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
/// Burn's `Linear`, `[in, out]`, is a transposed view over the encoded matrix `[out, in]`. Where a device holds no piece so
/// large, the matrix lies in parts of consecutive rows.
#[derive(Debug, Clone)]
pub struct QinsTensor<B: Backend> {
    /// At least one.
    pub(crate) parts: Vec<Part<B>>,
    pub(crate) decoder: Arc<Decoder>,
    pub(crate) view: View,
    /// As [`scheme::covering`] gives it for this tensor.
    scheme: QuantScheme,
    /// The floats that the codes stand for, in f32, where they are kept at hand.
    decoded: Option<FloatTensor<B>>,
    /// The decoder's tables on the device, as its kernels read them, from the first time on that one asks. Clones share
    /// them.
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code))]
    pub(crate) tables: Arc<OnceLock<FloatTensor<B>>>,
}

impl<B: Backend> QinsTensor<B> {
    pub(crate) fn from_parts(parts: Vec<Part<B>>, decoder: Arc<Decoder>, view: View) -> Self {
        let scheme = scheme::covering(view.shape().as_slice(), bytes::length(decoder.header(), &view));
        Self { parts, decoder, view, scheme, decoded: None, tables: Arc::default() }
    }

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
        let check = |part, bytes: &Bytes, expected: usize| {
            let (expected, found) = (expected.next_multiple_of(4), bytes.len());
            if found == expected { Ok(()) } else { Err(LayoutError { part, format, rows, cols, expected, found }) }
        };
        check("codes", &codes, header.code_bytes())?;
        if header.scale_bytes() > 0 {
            check("scales", &scales, header.scale_bytes())?;
        }
        let parts = Part::upload_words(&header, codes, scales, device);
        Ok(Self::from_parts(parts, Arc::new(decoder), View::new(vec![rows, cols])))
    }

    pub(crate) fn new(decoder: Arc<Decoder>, codes: &[u8], scales: &[u8], view: View, device: &Device<B>) -> Self {
        let parts = Part::upload(decoder.header(), codes, scales, device);
        Self::from_parts(parts, decoder, view)
    }

    /// Bytes of the largest device tensor that codes or scale codes lie in.
    pub fn largest_piece(&self) -> usize {
        let words = self.parts.iter().map(|part| part.codes.shape()[0].max(part.scales.shape()[0]));
        words.max().expect("at least one part") * size_of::<u32>()
    }

    pub(crate) fn device(&self) -> Device<B> {
        B::int_device(&self.parts[0].codes)
    }

    pub(crate) fn to_device(&self, device: &Device<B>) -> Self {
        let header = self.header();
        let (own, limit) = (largest_buffer::<B>(&self.device()), largest_buffer::<B>(device));
        if limit.unwrap_or(usize::MAX) < own.unwrap_or(usize::MAX) {
            // Parts of another size.
            let (codes, scales) =
                burn_backend::read_sync(Part::download(&self.parts, header)).expect("codes are readable");
            return Self::new(self.decoder.clone(), &codes, &scales, self.view.clone(), device);
        }
        let moved = |part: &Part<B>| Part {
            codes: B::int_to_device(part.codes.clone(), device),
            scales: B::int_to_device(part.scales.clone(), device),
            ..*part
        };
        Self::from_parts(self.parts.iter().map(moved).collect(), self.decoder.clone(), self.view.clone())
    }

    /// Encodes a tensor as the matrix whose rows are its leading dimension; groups run along all others.
    ///
    /// # Errors
    /// [`EncodeError::NotFinite`], by row and column of that matrix.
    pub fn encode(tensor: FloatTensor<B>, format: Format) -> Result<Self, EncodeError> {
        let shape = tensor.shape();
        let rows = rows_of(shape.as_slice());
        let cols = cols_of(shape.as_slice(), rows).expect("rows are leading dimensions");
        if let Some(encoded) = kernels::encode::<B>(&tensor, format, rows, cols) {
            return Ok(encoded.with_view(View::new(shape.to_vec())));
        }
        Self::encode_by(tensor, rows, |weights| encode(format, weights))
    }

    /// Encodes a tensor, whose leading dimensions are `rows` rows, with the constants of another, so that groups which
    /// were decoded from them stay as they were.
    pub(crate) fn encode_like(tensor: FloatTensor<B>, rows: usize, header: &Header) -> Result<Self, EncodeError> {
        Self::encode_by(tensor, rows, |weights| {
            encode_with(Header { rows: weights.rows(), cols: weights.cols(), ..*header }, weights)
        })
    }

    fn encode_by(
        tensor: FloatTensor<B>,
        rows: usize,
        encode: impl FnOnce(&qins_codec::Slice<'_>) -> Result<Encoded, EncodeError>,
    ) -> Result<Self, EncodeError> {
        let (shape, device) = (tensor.shape(), B::float_device(&tensor));
        let cols = cols_of(shape.as_slice(), rows).expect("rows are leading dimensions");
        let values = read_f32::<B>(tensor);
        let (decoder, codes, scales) = encode(&qins_codec::Slice::new(&values, rows, cols))?.into_parts();
        Ok(Self::new(Arc::new(decoder), &codes, &scales, View::new(shape.to_vec()), &device))
    }

    /// Format, shape and constants of the encoded matrix.
    pub fn header(&self) -> &Header {
        self.decoder.header()
    }

    /// The encoded matrix, read from its device, where the tensor shows it as [`matrix_shape`] cuts the tensor's shape:
    /// no transposed view, and no part whose rows are other dimensions.
    pub fn to_encoded(&self) -> Option<Encoded> {
        let &header = self.header();
        let in_order = self.view.axes().is_sorted() && !self.view.is_expanded();
        if !in_order || matrix_shape(self.view.stored()) != Some((header.rows, header.cols)) {
            return None;
        }
        let read = burn_backend::read_sync(Part::download(&self.parts, &header));
        let (codes, scales) = read.expect("codes can be read from their device");
        Some(Encoded::from_parts((*self.decoder).clone(), codes, scales).expect("lengths are the header's"))
    }

    /// The floats that the codes stand for.
    pub fn decode(self, dtype: FloatDType) -> FloatTensor<B> {
        if let Some(decoded) = self.decoded {
            return if dtype == FloatDType::F32 { decoded } else { B::float_cast(decoded, dtype) };
        }
        let matrix = kernels::decode(&self, dtype);
        Self::shaped(matrix, &self.view)
    }

    /// The tensor as encoded, with other dimensions over the same weights.
    ///
    /// # Panics
    /// If a weight would have to move: as many weights in another shape, or a permuted view beyond dimensions of size 1.
    pub fn reshape(self, shape: &[usize]) -> Self {
        let weights = self.header().rows * self.header().cols;
        assert_eq!(shape.iter().product::<usize>(), weights, "{shape:?} is no shape of {weights} weights");
        let view = self.view.reshape(shape).expect("a shape over the weights as they lie");
        self.with_view(view)
    }

    /// Keeps the decoded floats at hand: products then run on them, at `B`'s speed and rounding. Codes stay what is stored,
    /// moved to other devices and cut into parts; those carry no floats.
    pub fn cache_decoded(self) -> Self {
        let decoded = self.clone().decode(FloatDType::F32);
        // Where dimensions are exchanged, moved to their order: products with strided weights are many times slower.
        let decoded = match self.view.axes().is_sorted() {
            true => decoded,
            false => {
                let device = B::float_device(&decoded);
                let data = burn_backend::read_sync(B::float_into_data(decoded));
                B::float_from_data(data.expect("a tensor can be read from its device"), &device)
            }
        };
        let decoded = Some(decoded);
        Self { decoded, ..self }
    }

    /// Drops the floats of [`cache_decoded`](Self::cache_decoded).
    pub fn drop_decoded(self) -> Self {
        Self { decoded: None, ..self }
    }

    /// Whether the floats are at hand.
    pub fn has_decoded(&self) -> bool {
        self.decoded.is_some()
    }

    /// The tensor with its last two dimensions exchanged; no code moves.
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
            let unit_bits = 32 * format.unit_words();
            col == all_cols
                || (col.is_multiple_of(format.group()) && (col * format.code_bits()).is_multiple_of(unit_bits))
        };
        if !on_group(cols.start) || !on_group(cols.end) {
            return None;
        }
        // Part of some rows of a part. `shared` bytes at the start of every row belong to all of its columns.
        let cut = |words: IntTensor<B>, of: usize, rows: &Range<usize>, shared: usize, sizes: [usize; 3]| {
            let [skipped, kept, row] = sizes;
            let (start, end) = (rows.start * row, rows.end * row);
            if kept == row && start.is_multiple_of(4) {
                // Whole rows follow each other. Bytes of the next row in the last word are never read.
                return B::int_slice(words, &[(start / 4..end.div_ceil(4)).into()]);
            }
            let unit = if [row, skipped, kept, shared].iter().all(|n| n.is_multiple_of(4)) { 4 } else { 1 };
            kernels::map_rows::<B>(words, of, row, unit, |table| {
                let take = |bytes: Range<usize>| {
                    let columns = bytes.start / unit..bytes.end / unit;
                    B::int_slice(table.clone(), &[rows.clone().into(), columns.into()])
                };
                let own = take(shared + skipped..skipped + kept);
                if shared == 0 { own } else { B::int_cat(vec![take(0..shared), own], 1) }
            })
        };
        let sizes = |bytes: &dyn Fn(usize) -> usize, shared: usize| {
            [bytes(cols.start) - shared, bytes(cols.len()), bytes(all_cols)]
        };
        let scale_bytes = |cols| Header { cols, ..header }.scale_bytes_of_row();
        let (planes, base) = (format.planes(), header.base_bytes());
        let mut parts = Vec::new();
        let mut first_row = 0;
        for part in &self.parts {
            let own = rows.start.max(part.first_row)..rows.end.min(part.first_row + part.rows);
            if own.is_empty() {
                continue;
            }
            let own = own.start - part.first_row..own.end - part.first_row;
            let codes = |i| cut(part.plane(planes, i), part.rows, &own, 0, sizes(&|cols| format.code_bytes(cols), 0));
            let codes = join::<B>((0..planes).map(codes).collect());
            let scales = match format.is_raw() {
                true => part.scales.clone(),
                false => cut(part.scales.clone(), part.rows, &own, base, sizes(&scale_bytes, base)),
            };
            parts.push(Part { codes, scales, first_row, rows: own.len() });
            first_row += own.len();
        }
        let decoder = Decoder::new(Header { rows: rows.len(), cols: cols.len(), ..header }).ok()?;
        Some(Self::from_parts(parts, Arc::new(decoder), view))
    }

    /// Rows of the encoded matrix, still coded: indices `[n]` along dimension `dim`. `None` unless that counts rows.
    pub(crate) fn select(&self, dim: usize, indices: &IntTensor<B>) -> Option<Self> {
        let &header = self.header();
        let Header { format, rows, cols, .. } = header;
        let selected = indices.shape()[0];
        if selected == 0 || rows * cols == 0 || !self.view.is_row_axis(dim, cols) {
            return None;
        }
        let chosen = Header { rows: selected, ..header };
        if chosen.code_bytes() > largest_buffer::<B>(&self.device()).unwrap_or(usize::MAX) {
            return None;
        }
        let gather = |words: &dyn Fn(&Part<B>) -> IntTensor<B>, row: usize| {
            let unit = if row.is_multiple_of(4) { 4 } else { 1 };
            let IntRows(table) = Part::merge(&self.parts, indices, |part, rows| {
                let table = kernels::table_of::<B>(words(part), part.rows, row, unit);
                IntRows::<B>(B::int_select(table, 0, rows))
            });
            kernels::words_of::<B>(table, unit)
        };
        let planes = format.planes();
        let codes = |i| gather(&|part| part.plane(planes, i), format.code_bytes(cols));
        let codes = join::<B>((0..planes).map(codes).collect());
        let scales = match format.is_raw() {
            true => self.parts[0].scales.clone(),
            false => gather(&|part| part.scales.clone(), header.scale_bytes_of_row()),
        };
        let parts = vec![Part::whole(&chosen, codes, scales)];
        let decoder = Decoder::new(chosen).ok()?;
        Some(Self::from_parts(parts, Arc::new(decoder), self.view.with_rows(dim, selected)))
    }

    /// Decodes, applies an operation that keeps the order of dimensions, and encodes with the same constants: groups that
    /// it leaves whole keep their codes. `op` gets the weights as they are stored, and the stored place of a dimension.
    pub(crate) fn through_float(self, op: impl FnOnce(FloatTensor<B>, &[usize]) -> FloatTensor<B>) -> Self {
        let (header, view) = (*self.header(), self.view.clone());
        let encoded =
            |float: FloatTensor<B>, rows| Self::encode_like(float, rows, &header).expect("decoded weights are finite");
        match view.rows_of_matrix(header.rows, header.cols) {
            Some(dims) => {
                let stored = B::float_reshape(kernels::decode(&self, FloatDType::F32), view.stored().to_vec().into());
                let float = op(stored, view.axes());
                let rows = float.shape().as_slice()[..dims].iter().product();
                let view = view.axes().to_vec();
                let result = encoded(float, rows);
                let view = result.view.permute(&view);
                result.with_view(view)
            }
            None => {
                let in_order: Vec<usize> = (0..view.axes().len()).collect();
                let float = op(self.decode(FloatDType::F32), &in_order);
                let rows = rows_of(float.shape().as_slice());
                encoded(float, rows)
            }
        }
    }

    /// The same codes in another view. `None` where there is none.
    pub(crate) fn viewed(&self, view: impl FnOnce(&View) -> Option<View>) -> Option<Self> {
        view(&self.view).map(|view| self.clone().with_view(view))
    }

    pub(crate) fn with_view(self, view: View) -> Self {
        let tables = self.tables;
        Self { tables, ..Self::from_parts(self.parts, self.decoder, view) }
    }

    /// Gives decoded weights the shape of a view.
    pub(crate) fn shaped(decoded: FloatTensor<B>, view: &View) -> FloatTensor<B> {
        let stored = B::float_reshape(decoded, view.stored().to_vec().into());
        let shown = if view.axes().is_sorted() { stored } else { B::float_permute(stored, view.axes()) };
        if view.is_expanded() { B::float_expand(shown, view.shape()) } else { shown }
    }

    /// As the primitive of a `Tensor<Qins<B>, D>`.
    pub fn into_primitive(self) -> TensorPrimitive<Qins<B>> {
        TensorPrimitive::QFloat(self)
    }
}

/// Planes one after the other.
fn join<B: Backend>(mut planes: Vec<IntTensor<B>>) -> IntTensor<B> {
    if planes.len() == 1 { planes.remove(0) } else { B::int_cat(planes, 0) }
}

/// The rows that a tensor of this shape is encoded as.
pub(crate) fn rows_of(shape: &[usize]) -> usize {
    matrix_shape(shape).expect("the size of a tensor in memory").0
}

/// The columns of the matrix whose `rows` rows are leading dimensions of a shape.
fn cols_of(shape: &[usize], rows: usize) -> Option<usize> {
    (0..=shape.len()).find(|&i| shape[..i].iter().product::<usize>() == rows).map(|i| shape[i..].iter().product())
}

/// Reads a float tensor of any type as f32, row-major.
pub(crate) fn read_f32<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = burn_backend::read_sync(B::float_into_data(tensor)).expect("a tensor can be read from its device");
    data.convert::<f32>().into_vec().expect("just converted to f32")
}

impl<B: Backend> TensorMetadata for QinsTensor<B> {
    fn dtype(&self) -> DType {
        DType::QFloat(self.scheme)
    }

    fn shape(&self) -> Shape {
        self.view.shape()
    }
}

impl<B: Backend> QTensorPrimitive for QinsTensor<B> {
    fn scheme(&self) -> &QuantScheme {
        &self.scheme
    }

    fn default_scheme() -> QuantScheme {
        scheme::BASE
    }
}
