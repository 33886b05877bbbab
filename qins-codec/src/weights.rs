use crate::Matrix;

/// A float weight matrix `[out, in]` read row by row, from wherever it lies: a slice, a transposed tensor, a file.
///
/// Encoding reads rows more than once and from several threads, and never asks for the whole matrix.
pub trait Weights: Sync {
    /// Rows, along `out`.
    fn rows(&self) -> usize;
    /// Columns, along `in`, the axis a matrix product sums over.
    fn cols(&self) -> usize;
    /// Writes row `row` into `out`, which holds [`cols`](Weights::cols) values.
    fn read_row(&self, row: usize, out: &mut [f32]);
}

/// Evenly spaced rows, of some `weights` weights together, one after the other: what constants and formats are chosen by.
pub fn sample_rows(of: &impl Weights, weights: usize) -> Vec<f32> {
    let (rows, cols) = (of.rows(), of.cols());
    let step = rows.saturating_mul(cols).div_ceil(weights).max(1);
    let mut sample = vec![0.0; rows.div_ceil(step) * cols];
    if cols > 0 {
        sample.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| of.read_row(i * step, row));
    }
    sample
}

/// The matrix `[rows, cols]` that an array is encoded as: its leading dimension counts the rows, all others are the
/// columns; one dimension is one row. `None` if they cannot be counted.
pub fn matrix_shape(shape: &[usize]) -> Option<(usize, usize)> {
    let (rows, others) = match shape {
        [] | [_] => (1, shape),
        [rows, others @ ..] => (*rows, others),
    };
    let cols = others.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
    rows.checked_mul(cols).map(|_| (rows, cols))
}

/// A matrix in a slice: row `r`, column `c` at `r * row_stride + c * col_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Slice<'a> {
    /// A row-major matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If `values` does not hold `rows * cols` weights.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(
            Some(values.len()),
            rows.checked_mul(cols),
            "{rows} x {cols} weights expected, {} found",
            values.len()
        );
        Self { values, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The same weights with rows and columns exchanged, nothing moved.
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

impl Weights for Slice<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let start = row * self.row_stride;
        if self.col_stride == 1 {
            out.copy_from_slice(&self.values[start..start + self.cols]);
        } else {
            for (col, o) in out.iter_mut().enumerate() {
                *o = self.values[start + col * self.col_stride];
            }
        }
    }
}

/// What the matrix decodes to: to compare it, or to encode it again.
impl Weights for Matrix<'_> {
    fn rows(&self) -> usize {
        self.header().rows
    }

    fn cols(&self) -> usize {
        self.header().cols
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.decode_row(row, out);
    }
}
