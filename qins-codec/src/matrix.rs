use crate::{
    Format,
    error::{HeaderError, LayoutError},
    format::Law,
    fpins::Planes,
    pack::{EIGHT, unpack_eight},
    raw,
    scale::scale,
    shaped, signed,
};
use std::borrow::Cow;

/// What decoding needs besides the codes: the format, the shape and the constants found by the encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// The number format.
    pub format: Format,
    /// Rows, along `out`.
    pub rows: usize,
    /// Columns, along `in`.
    pub cols: usize,
    /// Scale of scale code 0: one step above the largest magnitude. Where rows have bases of their own, none is larger.
    pub base: f32,
    /// Shape of the projective law, or octaves of the logarithmic one.
    pub k: f64,
    /// Whether every row has a base of its own although the format does not ask for it: encoders choose that where some
    /// groups lie too far below `base` for a scale code. Rows of 6 bits and less always have one, and this is false.
    pub row_bases: bool,
}

impl Header {
    /// Checks that the constants are legal and that every size can be addressed.
    pub fn validate(&self) -> Result<(), HeaderError> {
        let Self { rows, cols, .. } = *self;
        let addressable = cols
            .checked_add(self.format.group())
            .and_then(|padded| padded.checked_mul(rows))
            .and_then(|weights| weights.checked_mul(size_of::<f32>()));
        if addressable.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(HeaderError::TooLarge { rows, cols });
        }
        if !(self.base.is_finite() && self.base >= 0.0) {
            return Err(HeaderError::Base(self.base));
        }
        if !(self.k.is_finite() && self.k >= 0.0) {
            return Err(HeaderError::Shape(self.k));
        }
        if self.row_bases && !self.format.allows_row_bases() {
            return Err(HeaderError::RowBases(self.format));
        }
        Ok(())
    }

    /// Bytes before the scale codes of a row: its base, an f32, where rows have one of their own.
    pub fn base_bytes(&self) -> usize {
        if self.row_bases || self.format.law() == Law::Shaped { size_of::<f32>() } else { 0 }
    }

    /// Bytes of the base and the scale codes of a row.
    pub fn scale_bytes_of_row(&self) -> usize {
        self.base_bytes() + self.format.groups(self.cols)
    }

    /// Bytes of all codes.
    pub fn code_bytes(&self) -> usize {
        self.format.planes() * self.rows * self.format.code_bytes(self.cols)
    }

    /// Bytes of all scale codes, and of the bases of rows.
    pub fn scale_bytes(&self) -> usize {
        self.rows * self.scale_bytes_of_row()
    }

    /// Stored bits a weight, padding and constants included; 0 for an empty matrix.
    pub fn bits_per_weight(&self) -> f64 {
        let weights = (self.rows * self.cols) as f64;
        let constants = size_of::<f32>() + size_of::<f64>();
        if weights == 0.0 { 0.0 } else { (self.code_bytes() + self.scale_bytes() + constants) as f64 * 8.0 / weights }
    }
}

/// An encoded matrix that owns its bytes, as [`encode`](crate::encode) returns it.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub(crate) decoder: Decoder,
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
}

impl Encoded {
    /// Joins a header with its bytes, whose lengths must be exactly those of the header.
    pub fn from_parts(decoder: Decoder, codes: Vec<u8>, scales: Vec<u8>) -> Result<Self, LayoutError> {
        decoder.matrix(&codes, &scales)?;
        Ok(Self { decoder, codes, scales })
    }

    /// Format, shape and constants.
    pub fn header(&self) -> &Header {
        self.decoder.header()
    }

    /// The codes, plane after plane, each row padded with zeros to [`Format::code_bytes`].
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Scale codes, row after row, after each row's base where it has one.
    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// A view for decoding and multiplying.
    pub fn matrix(&self) -> Matrix<'_> {
        Matrix { decoder: &self.decoder, codes: &self.codes, scales: &self.scales }
    }

    /// The decoder, the codes and the scale codes.
    pub fn into_parts(self) -> (Decoder, Vec<u8>, Vec<u8>) {
        (self.decoder, self.codes, self.scales)
    }
}

/// A header with its decoding tables: every code and every scale code as an f32.
#[derive(Clone)]
pub struct Decoder {
    header: Header,
    values: Box<[f32]>,
    scales: Box<[f32; 256]>,
}

impl Decoder {
    /// Builds the tables.
    pub fn new(header: Header) -> Result<Self, HeaderError> {
        header.validate()?;
        let values = match header.format.law() {
            Law::Projective | Law::Logarithmic | Law::Linear => signed::code_values(header.format, header.k).into(),
            Law::Shaped => shaped::tables(header.format).concat().into_iter().map(f32::from).collect(),
            // Sixteen bits and more are decoded by arithmetic.
            Law::Progressive | Law::Raw => Box::from([]),
        };
        let scales = Box::new(std::array::from_fn(|code| match header.format.law() {
            Law::Shaped => shaped::relative_scale(code as u8),
            _ => scale(if header.row_bases { 1.0 } else { header.base }, code as u8),
        }));
        Ok(Self { header, values, scales })
    }

    /// Format, shape and constants.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// `w/s` of every code; where groups choose among tables ([`Format::shape`]), one table after the other. None where
    /// codes have several planes: those are decoded by the law.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self.header.format.law() {
            Law::Raw => (0..=u16::MAX).map(|code| raw::value(self.header.format, code)).collect(),
            _ => Cow::Borrowed(&self.values),
        }
    }

    /// The f32 scale of every scale code, as a multiple of the row's base where rows have one
    /// ([`Header::base_bytes`]); without meaning where the format has no scales.
    pub fn scales(&self) -> &[f32; 256] {
        &self.scales
    }

    /// Joins the header with its bytes, whose lengths must be exactly those of the header.
    pub fn matrix<'a>(&'a self, codes: &'a [u8], scales: &'a [u8]) -> Result<Matrix<'a>, LayoutError> {
        let check = |part, expected, found| {
            let Header { format, rows, cols, .. } = self.header;
            if expected == found { Ok(()) } else { Err(LayoutError { part, format, rows, cols, expected, found }) }
        };
        check("codes", self.header.code_bytes(), codes.len())?;
        check("scales", self.header.scale_bytes(), scales.len())?;
        Ok(Matrix { decoder: self, codes, scales })
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Decoder").field(&self.header).finish()
    }
}

/// An encoded matrix `[out, in]` over borrowed bytes. Any bytes decode: no code reads out of bounds.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    decoder: &'a Decoder,
    codes: &'a [u8],
    scales: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Format, shape and constants.
    pub fn header(&self) -> &'a Header {
        &self.decoder.header
    }

    pub(crate) fn decoder(&self) -> &'a Decoder {
        self.decoder
    }

    pub(crate) fn codes(&self) -> &'a [u8] {
        self.codes
    }

    pub(crate) fn scales(&self) -> &'a [u8] {
        self.scales
    }

    /// The base that a row has of its own; else 1.
    pub(crate) fn base(&self, row: usize) -> f32 {
        let header = &self.decoder.header;
        let bytes = &self.scales[row * header.scale_bytes_of_row()..][..header.base_bytes()];
        bytes.try_into().map_or(1.0, f32::from_le_bytes)
    }

    /// Decodes row `row` into `out`.
    ///
    /// # Panics
    /// If there is no such row, or `out` does not hold exactly one row.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let Header { rows, cols, .. } = self.decoder.header;
        assert!(row < rows, "row {row} of a matrix of {rows} rows");
        assert_eq!(out.len(), cols, "a row holds {cols} weights");
        self.decode_columns(row, 0, out);
    }

    /// Decodes a part of a row: as many columns as `out` is long, from `first` on, which starts a group and a byte.
    #[inline(always)]
    pub(crate) fn decode_columns(&self, row: usize, first: usize, out: &mut [f32]) {
        let header = &self.decoder.header;
        let Header { format, rows, cols, k, .. } = *header;
        let (code_bytes, scale_bytes) = (format.code_bytes(cols), header.scale_bytes_of_row());
        let codes = |plane: usize| {
            let of_row = &self.codes[(plane * rows + row) * code_bytes..][..code_bytes];
            &of_row[first * format.code_bits() / 8..]
        };
        if format.is_raw() {
            return raw::decode(format, codes(0), out);
        }
        let base = self.base(row);
        let scales = &self.scales[row * scale_bytes..][..scale_bytes][header.base_bytes() + first / format.group()..];
        let of_scales = || scales.iter().map(|&code| base * self.decoder.scales[usize::from(code)]);
        match format.planes() {
            1 => {}
            2 => return Planes::new(format, k).decode([codes(0), codes(1)], of_scales(), out),
            _ => return Planes::new(format, k).decode([codes(0), codes(1), codes(2)], of_scales(), out),
        }
        let codes = codes(0);
        match format.code_bits() {
            2 => self.decode_groups::<2, 4>(base, scales, codes, out),
            3 => self.decode_groups::<3, 8>(base, scales, codes, out),
            4 => self.decode_groups::<4, 16>(base, scales, codes, out),
            6 => self.decode_groups::<6, 64>(base, scales, codes, out),
            8 => self.decode_groups::<8, 256>(base, scales, codes, out),
            12 => self.decode_groups::<12, 4096>(base, scales, codes, out),
            bits => unreachable!("{format} has {bits}-bit codes"),
        }
    }

    /// Decodes the groups of a row; `ENTRIES` is what `BITS` bits count.
    fn decode_groups<const BITS: usize, const ENTRIES: usize>(
        &self,
        base: f32,
        scales: &[u8],
        codes: &[u8],
        out: &mut [f32],
    ) {
        let format = self.decoder.header.format;
        let group = format.group();
        // Eight codes are whole bytes; a row's last may be fewer, and those after them zeros or none.
        let codes = codes.chunks(group / EIGHT * BITS);
        for ((out, codes), &scale_code) in out.chunks_mut(group).zip(codes).zip(scales) {
            let s = base * self.decoder.scales[scale_code as usize];
            let values = &self.decoder.values[format.shape(scale_code) << BITS..];
            let values: &[f32; ENTRIES] = values.first_chunk().expect("a whole table");
            let decode = |codes: &[u8; BITS]| unpack_eight(codes).map(|code| s * values[usize::from(code) % ENTRIES]);
            let (whole, rest) = out.as_chunks_mut::<EIGHT>();
            for (out, codes) in whole.iter_mut().zip(codes.as_chunks::<BITS>().0) {
                *out = decode(codes);
            }
            if !rest.is_empty() {
                let mut last = [0; BITS];
                last.iter_mut().zip(&codes[whole.len() * BITS..]).for_each(|(last, &byte)| *last = byte);
                rest.copy_from_slice(&decode(&last)[..rest.len()]);
            }
        }
    }

    /// Decodes the whole matrix, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let Header { rows, cols, .. } = self.decoder.header;
        let mut out = vec![0.0; rows * cols];
        if cols > 0 {
            out.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| self.decode_row(row, out));
        }
        out
    }
}
