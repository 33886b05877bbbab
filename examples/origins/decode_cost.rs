//! The record's "lookup 4 cycles against 30": nanoseconds a weight to decode codes of the log codec, by a table and by
//! the formula.

use qins_codec::{Format, Slice, encode, origins::log::Codec};
use std::{hint::black_box, time::Instant};

/// Nanoseconds a weight of each way, medians.
pub struct Cost {
    /// A table of 256 floats.
    pub table: f64,
    /// `exp2` in f32 of the code, of the standard library.
    pub formula: f64,
    /// The project's `q8`, rows decoded with their scales.
    pub q8: f64,
}

const WEIGHTS: usize = 1 << 20;
const ROUNDS: usize = 15;

/// Measures on one thread.
pub fn measure() -> Cost {
    let weights = crate::source::gaussian(WEIGHTS, 9);
    let codec = Codec::of(&weights);
    let codes: Vec<u8> = weights.iter().map(|w| codec.code(f64::from(w.abs()))).collect();
    let signs: Vec<i8> = weights.iter().map(|w| if *w < 0.0 { -1 } else { 1 }).collect();
    let table: [f32; 256] = std::array::from_fn(|code| codec.magnitude(code as u8) as f32);
    let per_code = (codec.log_max - codec.log_min) / 254.0 * std::f64::consts::LOG2_E;
    let (low, step) = ((codec.log_min * std::f64::consts::LOG2_E) as f32, per_code as f32);
    let formula = |code: u8| (low + f32::from(255 - code) * step).exp2();
    let mut out = vec![0.0f32; WEIGHTS];
    let all = |out: &mut [f32], decode: &dyn Fn(&mut [f32])| {
        let mut seconds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                decode(black_box(&mut *out));
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        seconds[ROUNDS / 2] * 1e9 / WEIGHTS as f64
    };
    let codes_and_signs = || codes.iter().zip(&signs);
    let by_table = all(&mut out, &|out| {
        out.iter_mut().zip(codes_and_signs()).for_each(|(o, (&c, &s))| *o = table[usize::from(c)] * f32::from(s));
    });
    let by_formula = all(&mut out, &|out| {
        out.iter_mut().zip(codes_and_signs()).for_each(|(o, (&c, &s))| *o = formula(c) * f32::from(s));
    });
    let cols = 1024;
    let encoded = encode(Format::Q8, &Slice::new(&weights, WEIGHTS / cols, cols)).expect("finite numbers");
    let matrix = encoded.matrix();
    let by_q8 = all(&mut out, &|out| {
        out.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| matrix.decode_row(row, out));
    });
    Cost { table: by_table, formula: by_formula, q8: by_q8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_decode_to_the_same() {
        let codec = Codec { log_min: -9.0, log_max: 1.5 };
        for code in 1..=255u8 {
            let step = (codec.log_max - codec.log_min) / 254.0;
            let formula = ((codec.log_min + f64::from(255 - code) * step) * std::f64::consts::LOG2_E).exp2();
            assert!((formula / codec.magnitude(code) - 1.0).abs() < 1e-9);
        }
    }
}
