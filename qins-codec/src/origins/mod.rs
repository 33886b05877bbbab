//! The encodings of the original record, to compare with: no file holds them and no model runs on them.
//!
//! All are per tensor and keep the sign apart, an `i8` of -1, 0 or 1: a weight takes a byte more than its code, and a
//! zero weight decodes to 0 whatever its code. [`lookup`] is the record's arithmetic on codes.
//!
//! ```
//! use qins_codec::{origins, Deviation, Slice};
//!
//! let weights: Vec<f32> = (1..=120).map(|i| (i as f32).sin()).collect();
//! let weights = Slice::new(&weights, 3, 40);
//! for origin in origins::ALL {
//!     let decoded = origin.round_trip(&weights)?;
//!     let deviation = Deviation::of(&Slice::new(&decoded, 3, 40), &weights);
//!     println!("{origin}: {} bits a weight, {:?} dB", origin.bits_per_weight(), deviation.sqnr_db);
//! }
//! # Ok::<(), qins_codec::EncodeError>(())
//! ```
//!
//! What each of them loses: `cargo run --release -p qins-codec --example origins`.

pub mod fpins;
pub mod inverse;
pub mod linear;
pub mod log;
pub mod lookup;

use crate::{EncodeError, Weights};
use std::fmt;

/// Every encoding, in the order of the record.
pub const ALL: &[Origin] =
    &[log::ORIGIN, inverse::ORIGIN, linear::ORIGIN, fpins::origin::<1>(), fpins::origin::<2>(), fpins::origin::<3>()];

/// One encoding of the original record.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    name: &'static str,
    /// Bytes of a code, without the sign.
    code_bytes: usize,
    /// Encodes and decodes the finite weights of a whole tensor.
    decoded: fn(&[f32]) -> Vec<f32>,
}

impl Origin {
    /// The name, for tables and command lines.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Stored bits a weight: the code, and the byte of the sign. The constants of a tensor, at most a table of 1 KiB, are
    /// not counted.
    pub fn bits_per_weight(&self) -> f64 {
        (8 * (self.code_bytes + size_of::<i8>())) as f64
    }

    /// The weights encoded as one tensor and decoded again, row-major.
    ///
    /// # Errors
    /// [`EncodeError::NotFinite`] names the first NaN or infinite weight by row and column.
    pub fn round_trip(&self, weights: &impl Weights) -> Result<Vec<f32>, EncodeError> {
        let (rows, cols) = (weights.rows(), weights.cols());
        let mut tensor = vec![0.0; rows * cols];
        if cols > 0 {
            for (row, buffer) in tensor.chunks_exact_mut(cols).enumerate() {
                weights.read_row(row, buffer);
                EncodeError::check_finite(row, buffer)?;
            }
        }
        Ok((self.decoded)(&tensor))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Magnitudes of the weights that are not 0.
fn magnitudes(weights: &[f32]) -> impl Iterator<Item = f64> {
    weights.iter().filter(|&&w| w != 0.0).map(|w| f64::from(w.abs()))
}

/// The largest magnitude, 0 if all are.
fn largest(weights: &[f32]) -> f64 {
    magnitudes(weights).fold(0.0, f64::max)
}

/// Decoded weights: the sign, times what becomes of the magnitude.
fn with_signs(weights: &[f32], decoded: impl Fn(f64) -> f64) -> Vec<f32> {
    let decoded = |&w: &f32| if w == 0.0 { 0.0 } else { (decoded(f64::from(w.abs())) as f32).copysign(w) };
    weights.iter().map(decoded).collect()
}
