//! A tensor of a checkpoint, read where it lies.

use qins_codec::{EncodeError, Format, Weights, matrix_shape};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

/// A float tensor in its file; values become f32 as they are read.
///
/// As [`Weights`], a matrix `[out, in]`: the last dimension is `in`, all others together `out`.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointTensor<'a> {
    pub(crate) shape: &'a [usize],
    pub(crate) element: Element,
    pub(crate) bytes: &'a [u8],
}

impl CheckpointTensor<'_> {
    /// Dimensions, as in the file.
    pub fn shape(&self) -> &[usize] {
        self.shape
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// As they are in the file.
    pub(crate) fn raw_bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Safetensors' name of the type.
    pub fn dtype_name(&self) -> &'static str {
        match self.element {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
        }
    }

    /// The format that keeps its bits, if it has 16 of them.
    pub(crate) fn half_format(&self) -> Option<Format> {
        match self.element {
            Element::F32 => None,
            Element::F16 => Some(Format::F16),
            Element::Bf16 => Some(Format::Bf16),
        }
    }

    /// Fails at the first value that is NaN or infinite.
    pub(crate) fn require_finite(&self) -> Result<(), EncodeError> {
        let mut values = vec![0.0; self.cols()];
        for row in 0..self.rows() {
            self.read_row(row, &mut values);
            if let Some(col) = values.iter().position(|value| !value.is_finite()) {
                return Err(EncodeError::NotFinite { row, col, value: values[col] });
            }
        }
        Ok(())
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.read(0, &mut out);
        out
    }

    /// The matrix `[out, in]` as `[in, out]`, row-major.
    pub fn to_f32_transposed(&self) -> Vec<f32> {
        /// Rows read at a time: 16 values fill a cache line of the result.
        const BLOCK: usize = 16;
        let (rows, cols) = (self.rows(), self.cols());
        let mut out = vec![0.0; rows * cols];
        let mut block = vec![0.0; BLOCK * cols];
        for first in (0..rows).step_by(BLOCK) {
            let n = BLOCK.min(rows - first);
            self.read(first * cols, &mut block[..n * cols]);
            for col in 0..cols {
                for row in 0..n {
                    out[col * rows + first + row] = block[row * cols + col];
                }
            }
        }
        out
    }

    /// Reads values from the `first` on.
    fn read(&self, first: usize, out: &mut [f32]) {
        fn fill<const N: usize>(bytes: &[u8], first: usize, out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
            let (elements, _) = bytes.as_chunks::<N>();
            for (o, &element) in out.iter_mut().zip(&elements[first..]) {
                *o = value(element);
            }
        }
        match self.element {
            Element::F32 => fill(self.bytes, first, out, f32::from_le_bytes),
            Element::F16 => fill(self.bytes, first, out, |b| half::f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => fill(self.bytes, first, out, |b| half::bf16::from_le_bytes(b).to_f32()),
        }
    }
}

impl Weights for CheckpointTensor<'_> {
    fn rows(&self) -> usize {
        matrix_shape(self.shape).map_or(0, |(rows, _)| rows)
    }

    fn cols(&self) -> usize {
        matrix_shape(self.shape).map_or(0, |(_, cols)| cols)
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read(row * self.cols(), out);
    }
}
