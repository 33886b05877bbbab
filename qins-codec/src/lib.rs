//! The QINS number formats: a storage codec for neural-network weights.
//!
//! A weight matrix is `[out, in]`. Groups of weights run along `in`, the axis a matrix product sums over, and restart
//! at each row; a row's last group may be shorter. Every group has a scale, itself a logarithmic code, and every weight
//! a code that indexes a nonlinear table: a large magnitude has a small code.
//!
//! ```
//! use qins_codec::{encode, Format, Slice};
//!
//! let weights: Vec<f32> = (0..3 * 40).map(|i| (i as f32).sin()).collect();
//! let encoded = encode(Format::Q8, &Slice::new(&weights, 3, 40))?;
//! let mut row = vec![0.0; 40];
//! encoded.matrix().decode_row(1, &mut row);
//! assert!(row.iter().zip(&weights[40..80]).all(|(a, b)| (a - b).abs() < 0.01));
//! # Ok::<(), qins_codec::EncodeError>(())
//! ```
//!
//! The decode rules are normative: a decoded weight is `f32(scale * table entry)`, the same bits on every machine.
//! This crate knows no tensor framework and no file.

mod bases;
mod cells;
mod deviation;
mod dispatch;
mod error;
mod format;
mod fpins;
mod kernels;
pub mod kv;
mod magnitude;
mod matmul;
mod matrix;
pub mod origins;
mod pack;
mod projective;
mod raw;
mod scale;
pub mod search;
mod shaped;
mod signed;
mod weights;

use format::Law;

pub use bases::needs_row_bases;
pub use deviation::{Deviation, WorstRow};
pub use dispatch::Level;
pub use error::{EncodeError, HeaderError, LayoutError, UnknownFormat, UnknownLevel};
pub use format::Format;
pub use matrix::{Decoder, Encoded, Header, Matrix};
pub use projective::{K_GRID, OCTAVES, logarithmic_table, projective_table};
pub use scale::{SCALE_STEPS, ZERO_GROUP, scale};
pub use weights::{Slice, Weights, matrix_shape, sample_rows};

/// Encodes a weight matrix, searching the format's parameters for the least squared error.
///
/// The bytes are the same for any number of threads and at any [`Level`].
///
/// # Errors
/// [`EncodeError::NotFinite`] names the first NaN or infinite weight by row and column, [`EncodeError::OutOfRange`] the
/// first that is too large for a 16-bit float.
pub fn encode(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    match format.law() {
        Law::Projective | Law::Logarithmic | Law::Linear => signed::encode(format, weights),
        Law::Shaped => shaped::encode(format, weights),
        Law::Progressive => fpins::encode(format, weights),
        Law::Raw => raw::encode(format, weights),
    }
}

/// Encodes with constants already chosen, for example those of another encoding of the same weights.
///
/// Magnitudes beyond the base are clipped to it.
///
/// # Errors
/// As [`encode`], and [`EncodeError::Header`] for an illegal constant.
///
/// # Panics
/// If the header's shape is not that of the weights.
pub fn encode_with(header: Header, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    assert_eq!((header.rows, header.cols), (weights.rows(), weights.cols()), "header and weights differ in shape");
    match header.format.law() {
        Law::Projective | Law::Logarithmic | Law::Linear => signed::encode_with(header, weights),
        Law::Progressive => fpins::encode_with(header, weights),
        Law::Shaped => shaped::encode_again(header.format, weights),
        Law::Raw => raw::encode(header.format, weights),
    }
}
