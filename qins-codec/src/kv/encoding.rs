//! How one head's key or value becomes bytes.

use crate::{
    Format,
    dispatch::{Kernel, Level},
    magnitude::largest_magnitude,
    projective::projective_table,
    shaped, signed,
};
use half::f16;
use std::sync::LazyLock;

/// A way to store a row. Numbers that are not finite make the whole row NaN, but in half precision, which has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Half precision. Finite numbers beyond its range become its largest.
    Half,
    /// Sign and 7-bit magnitude of the projective law, and one f32 scale.
    Projective,
    /// Groups of 16 with one of four tables, as in [`Format::Q4`].
    Shaped,
}

/// The shape of the law; fixed, so that a row needs none.
const K: f64 = 0.5;

/// `w/s` of all 256 codes.
static PROJECTIVE: LazyLock<Vec<f32>> = LazyLock::new(|| signed::code_values(Format::Q8, K));

static SHAPED: LazyLock<Vec<f32>> =
    LazyLock::new(|| shaped::tables(Format::Q4).concat().into_iter().map(f32::from).collect());

static SHAPED_SCALES: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| shaped::relative_scale(code as u8)));

static SHAPED_ENCODER: LazyLock<shaped::Encoder> = LazyLock::new(shaped::Encoder::of_q4);

impl Encoding {
    /// Bytes of a row's codes.
    #[inline(always)]
    pub(crate) fn code_bytes(self, head: usize) -> usize {
        match self {
            Encoding::Half => 2 * head,
            Encoding::Projective => head,
            Encoding::Shaped => (head / 2 + head % 2).next_multiple_of(4),
        }
    }

    /// Bytes before the scale codes of a row: an f32.
    #[inline(always)]
    pub(crate) fn base_bytes(self) -> usize {
        match self {
            Encoding::Half => 0,
            Encoding::Projective | Encoding::Shaped => size_of::<f32>(),
        }
    }

    /// Bytes of a row's base and scale codes.
    #[inline(always)]
    pub(crate) fn scale_bytes(self, head: usize) -> usize {
        match self {
            Encoding::Half => 0,
            Encoding::Projective => self.base_bytes(),
            Encoding::Shaped => self.base_bytes() + head.div_ceil(16),
        }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(self, head: usize) -> usize {
        self.code_bytes(head) + self.scale_bytes(head)
    }

    /// The tables of codes; none for half precision.
    pub(crate) fn values(self) -> &'static [f32] {
        match self {
            Encoding::Half => &[],
            Encoding::Projective => &PROJECTIVE,
            Encoding::Shaped => &SHAPED,
        }
    }

    /// What a group's scale code stands for, in units of the row's base.
    pub(crate) fn scales(self) -> &'static [f32; 256] {
        &SHAPED_SCALES
    }

    /// Writes a row; the bytes are the same at every level.
    pub(crate) fn encode(self, level: Level, row: &[f32], codes: &mut [u8], scales: &mut [u8]) {
        match self {
            Encoding::Half => {
                for (code, &x) in codes.as_chunks_mut().0.iter_mut().zip(row) {
                    let largest = f16::MAX.to_f32();
                    let within = if x.is_finite() { x.clamp(-largest, largest) } else { x };
                    *code = f16::from_f32(within).to_le_bytes();
                }
            }
            Encoding::Projective => {
                let scale = match largest_magnitude(0, row) {
                    Err(_) => f32::NAN,
                    Ok(0.0) => 0.0,
                    Ok(largest) => level.run(EncodeProjective { row, largest, codes }),
                };
                scales.copy_from_slice(&scale.to_le_bytes());
            }
            Encoding::Shaped => match largest_magnitude(0, row) {
                Ok(largest) => SHAPED_ENCODER.row(row, largest, codes, scales),
                Err(_) => scales[..size_of::<f32>()].copy_from_slice(&f32::NAN.to_le_bytes()),
            },
        }
    }

    /// Reads a row: the definition that kernels are tested against.
    pub(crate) fn decode(self, codes: &[u8], scales: &[u8], out: &mut [f32]) {
        let base = || f32::from_le_bytes(*scales.first_chunk().expect("a row's base"));
        match self {
            Encoding::Half => {
                for (out, &code) in out.iter_mut().zip(codes.as_chunks().0) {
                    *out = f16::from_le_bytes(code).to_f32();
                }
            }
            Encoding::Projective => {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = base() * PROJECTIVE[usize::from(code)];
                }
            }
            Encoding::Shaped => {
                for (i, out) in out.iter_mut().enumerate() {
                    let (code, header) = (codes[i / 2] >> (i % 2 * 4) & 15, scales[size_of::<f32>() + i / 16]);
                    let entry = SHAPED[Format::Q4.shape(header) * 16 + usize::from(code)];
                    *out = base() * SHAPED_SCALES[usize::from(header)] * entry;
                }
            }
        }
    }
}

/// The magnitudes of the projective table, and what finds the nearest.
struct Magnitudes {
    /// `w/s`, falling from 1.
    values: [f32; 128],
    /// Between codes `m - 1` and `m` at `m`; infinite where there is only one.
    midpoints: [f32; 129],
    /// Of the law at the first code, which is 1 after it.
    first: f32,
}

static MAGNITUDES: LazyLock<Magnitudes> = LazyLock::new(|| {
    let values: [f32; 128] = projective_table(K, 128).try_into().expect("128 magnitudes");
    let midpoints = std::array::from_fn(|m| match m {
        0 => f32::INFINITY,
        128 => f32::NEG_INFINITY,
        m => (values[m - 1] + values[m]) / 2.0,
    });
    Magnitudes { values, midpoints, first: crate::projective::law(1.0 / 256.0, K) as f32 }
});

impl Magnitudes {
    /// The code nearest to a magnitude of 0 to 1: a closed form, which rounding of the table moves by no more than one.
    #[inline(always)]
    fn nearest(&self, x: f32) -> usize {
        let scaled = x * self.first;
        let guess = ((1.0 - scaled) / (1.0 + K as f32 * scaled) * 128.0) as i32;
        // At most 127, which the compiler cannot know.
        let guess = guess.clamp(0, 127) as usize;
        let below = usize::from(self.midpoints[guess + 1] > x);
        let above = usize::from(self.midpoints[guess] <= x);
        (guess + below - above) & 127
    }
}

/// Writes codes and returns the scale: that of least squared error for the codes nearest to the row in units of its
/// largest magnitude.
struct EncodeProjective<'a> {
    row: &'a [f32],
    largest: f32,
    codes: &'a mut [u8],
}

/// Sums side by side.
const LANES: usize = 16;

impl Kernel for EncodeProjective<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { row, largest, codes } = self;
        let magnitudes = &*MAGNITUDES;
        let (mut products, mut squares) = ([0f32; LANES], [0f32; LANES]);
        for (row, codes) in row.chunks(LANES).zip(codes.chunks_mut(LANES)) {
            for (lane, (&weight, code)) in row.iter().zip(codes).enumerate() {
                let x = weight.abs() / largest;
                let m = magnitudes.nearest(x);
                *code = u8::from(weight < 0.0) << 7 | m as u8;
                let value = magnitudes.values[m];
                products[lane] += x * value;
                squares[lane] += value * value;
            }
        }
        // The largest has code 0, whose value is 1: squares are at least 1.
        let ratio = products.iter().sum::<f32>() / squares.iter().sum::<f32>();
        (largest * ratio).min(f32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::Law, projective::Nearest};

    #[test]
    fn nearest_is_nearest() {
        let nearest = Nearest::new(Law::Projective, 128, K);
        for i in 0..=1 << 20 {
            let x = i as f32 / (1 << 20) as f32;
            assert_eq!(MAGNITUDES.nearest(x), usize::from(nearest.code(x).0), "{x}");
        }
        for &midpoint in &MAGNITUDES.midpoints[1..128] {
            for x in [midpoint.next_down(), midpoint, midpoint.next_up()] {
                assert_eq!(MAGNITUDES.nearest(x), usize::from(nearest.code(x).0), "{x}");
            }
        }
    }

    #[test]
    fn extreme_rows_become_what_is_documented() {
        let encoded = |encoding: Encoding, row: &[f32]| {
            let n = row.len();
            let (mut codes, mut scales) = (vec![0; encoding.code_bytes(n)], vec![0; encoding.scale_bytes(n)]);
            encoding.encode(Level::Scalar, row, &mut codes, &mut scales);
            let mut out = vec![7.0; n];
            encoding.decode(&codes, &scales, &mut out);
            out
        };
        for encoding in [Encoding::Half, Encoding::Projective, Encoding::Shaped] {
            assert_eq!(encoded(encoding, &[0.0; 37]), [0.0; 37]);
            assert!(encoded(encoding, &[1.0, f32::NAN, 0.0]).iter().any(|x| x.is_nan()));
            let with_infinity = encoded(encoding, &[1.0, f32::NEG_INFINITY, 0.0]);
            assert!(with_infinity.iter().any(|x| !x.is_finite()), "{encoding:?}: {with_infinity:?}");
            assert!(encoded(encoding, &[f32::MAX, -1.0, 3e38]).iter().all(|x| x.is_finite()), "{encoding:?}");
        }
        assert_eq!(encoded(Encoding::Half, &[1e30, -1e30]), [65504.0, -65504.0]);
        // Subnormal numbers still have a code.
        assert!(encoded(Encoding::Projective, &[1e-44, 0.0])[0] > 0.0);
    }
}
