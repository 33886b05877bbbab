use crate::{Format, Level};

/// Why a matrix could not be encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// NaN and infinity have no code.
    #[error("weight [{row}, {col}] is {value}: only finite weights can be encoded")]
    NotFinite {
        /// Row of the first such weight, along `out`.
        row: usize,
        /// Column of the first such weight, along `in`.
        col: usize,
        /// The value found.
        value: f32,
    },
    /// The number is beyond what the format can hold.
    #[error("weight [{row}, {col}] is {value}: beyond the largest number of {format}")]
    OutOfRange {
        /// Row of the first such weight, along `out`.
        row: usize,
        /// Column of the first such weight, along `in`.
        col: usize,
        /// The value found.
        value: f32,
        /// The format.
        format: Format,
    },
    /// The constants given for the encoding are not a valid header.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

impl EncodeError {
    /// Names the first weight of a row that is NaN or infinite.
    pub(crate) fn check_finite(row: usize, weights: &[f32]) -> Result<(), Self> {
        match weights.iter().position(|weight| !weight.is_finite()) {
            Some(col) => Err(Self::NotFinite { row, col, value: weights[col] }),
            None => Ok(()),
        }
    }
}

/// Why a header describes no matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HeaderError {
    /// `rows * cols`, or a buffer size derived from it, is beyond the address space.
    #[error("a matrix of {rows} x {cols} weights is too large to address")]
    TooLarge {
        /// Rows, along `out`.
        rows: usize,
        /// Columns, along `in`.
        cols: usize,
    },
    /// The base scale must be finite and not negative.
    #[error("base scale {0} is not a finite number of at least 0")]
    Base(f32),
    /// The shape of the law must be finite and not negative.
    #[error("projective shape k = {0} is not a finite number of at least 0")]
    Shape(f64),
    /// Rows of the format always have bases of their own, or never.
    #[error("rows of {0} cannot be told to have bases of their own")]
    RowBases(Format),
}

/// Why buffers cannot hold the matrix that a header describes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{part} of a {rows} x {cols} {format} matrix: expected {expected} bytes, found {found}")]
pub struct LayoutError {
    /// `codes` or `scales`.
    pub part: &'static str,
    /// The matrix's format.
    pub format: Format,
    /// Rows, along `out`.
    pub rows: usize,
    /// Columns, along `in`.
    pub cols: usize,
    /// Bytes the header asks for.
    pub expected: usize,
    /// Bytes given.
    pub found: usize,
}

/// A name that is no format of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format `{found}`: expected one of {}", Format::names())]
pub struct UnknownFormat {
    /// The name given.
    pub found: String,
}

/// A name that is no level of this processor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no instruction set `{found}` on this processor: expected one of {}", Level::names())]
pub struct UnknownLevel {
    /// The name given.
    pub found: String,
}
