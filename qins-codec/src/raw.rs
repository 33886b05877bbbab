//! Formats that keep the bits of a 16-bit float.

use crate::{Decoder, Encoded, Format, Header, Weights, error::EncodeError};
use half::{bf16, f16};
use rayon::prelude::*;

/// The number that a code stands for.
pub(crate) fn value(format: Format, code: u16) -> f32 {
    match format {
        Format::F16 => f16::from_bits(code).to_f32(),
        _ => bf16::from_bits(code).to_f32(),
    }
}

/// The nearest code.
fn code(format: Format, weight: f32) -> u16 {
    match format {
        Format::F16 => f16::from_f32(weight).to_bits(),
        _ => bf16::from_f32(weight).to_bits(),
    }
}

/// Whether the format has a number near to a finite weight.
pub(crate) fn is_in_range(format: Format, weight: f32) -> bool {
    value(format, code(format, weight)).is_finite()
}

/// Codes of two bytes, as many as `out` is long.
pub(crate) fn decode(format: Format, codes: &[u8], out: &mut [f32]) {
    let (codes, _) = codes.as_chunks::<2>();
    let fill = |out: &mut [f32], value: fn(u16) -> f32| {
        for (o, &code) in out.iter_mut().zip(codes) {
            *o = value(u16::from_le_bytes(code));
        }
    };
    match format {
        Format::F16 => fill(out, |code| f16::from_bits(code).to_f32()),
        _ => fill(out, |code| bf16::from_bits(code).to_f32()),
    }
}

/// Rounds to the nearest; exact for weights that are of the format already.
pub(crate) fn encode(format: Format, weights: &impl Weights) -> Result<Encoded, EncodeError> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let decoder = Decoder::new(Header { format, rows, cols, base: 1.0, k: 0.0, row_bases: false })?;
    let row_bytes = format.code_bytes(cols);
    let mut codes = vec![0; decoder.header().code_bytes()];
    if cols == 0 {
        return Ok(Encoded { decoder, codes, scales: Vec::new() });
    }
    let encode_row = |buffer: &mut Vec<f32>, (row, codes): (usize, &mut [u8])| {
        weights.read_row(row, buffer);
        for (col, (&weight, bytes)) in buffer.iter().zip(codes.as_chunks_mut::<2>().0).enumerate() {
            if !weight.is_finite() {
                return Err(EncodeError::NotFinite { row, col, value: weight });
            }
            let code = code(format, weight);
            if !value(format, code).is_finite() {
                return Err(EncodeError::OutOfRange { row, col, value: weight, format });
            }
            *bytes = code.to_le_bytes();
        }
        Ok(())
    };
    let rows: Vec<_> =
        codes.par_chunks_exact_mut(row_bytes).enumerate().map_init(|| vec![0.0; cols], encode_row).collect();
    // In row order, so that the first bad weight is reported whatever the threads did.
    rows.into_iter().collect::<Result<(), _>>()?;
    Ok(Encoded { decoder, codes, scales: Vec::new() })
}
