//! How one head's key or value becomes bytes.

use crate::{Format, format::Law, magnitude::largest_magnitude, projective::Nearest, shaped, signed};
use half::{f16, slice::HalfFloatSliceExt};
use std::sync::LazyLock;

/// A way to store a row. Numbers that are not finite make the whole row NaN, but in floats, which have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As it is.
    Full,
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
            Encoding::Full => 4 * head,
            Encoding::Half => 2 * head,
            Encoding::Projective => head,
            Encoding::Shaped => (head / 2 + head % 2).next_multiple_of(4),
        }
    }

    /// Bytes before the scale codes of a row: an f32.
    #[inline(always)]
    pub(crate) fn base_bytes(self) -> usize {
        match self {
            Encoding::Full | Encoding::Half => 0,
            Encoding::Projective | Encoding::Shaped => size_of::<f32>(),
        }
    }

    /// Bytes of a row's base and scale codes.
    #[inline(always)]
    pub(crate) fn scale_bytes(self, head: usize) -> usize {
        match self {
            Encoding::Full | Encoding::Half => 0,
            Encoding::Projective => self.base_bytes(),
            Encoding::Shaped => self.base_bytes() + head.div_ceil(16),
        }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(self, head: usize) -> usize {
        self.code_bytes(head) + self.scale_bytes(head)
    }

    /// The tables of codes; none for floats.
    pub(crate) fn values(self) -> &'static [f32] {
        match self {
            Encoding::Full | Encoding::Half => &[],
            Encoding::Projective => &PROJECTIVE,
            Encoding::Shaped => &SHAPED,
        }
    }

    /// What a group's scale code stands for, in units of the row's base.
    pub(crate) fn scales(self) -> &'static [f32; 256] {
        &SHAPED_SCALES
    }

    /// Writes a row; the bytes are the same at every level.
    pub(crate) fn encode(self, row: &[f32], codes: &mut [u8], scales: &mut [u8]) {
        match self {
            Encoding::Full => {
                for (code, x) in codes.as_chunks_mut().0.iter_mut().zip(row) {
                    *code = x.to_le_bytes();
                }
            }
            Encoding::Half => encode_half(row, codes),
            Encoding::Projective => {
                let scale = match largest_magnitude(0, row) {
                    Err(_) => f32::NAN,
                    Ok(0.0) => 0.0,
                    Ok(largest) => {
                        encode_projective(row, largest, codes);
                        largest
                    }
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
            Encoding::Full => {
                for (out, &code) in out.iter_mut().zip(codes.as_chunks().0) {
                    *out = f32::from_le_bytes(code);
                }
            }
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

/// Bins of equal width that magnitudes from 0 to 1 are looked up in: an eighth of the narrowest cell of the table or less.
const BINS: usize = 2048;

/// The code nearest to the middle of every bin. So a magnitude is off by half a bin at most where it lies between two
/// codes, which costs nothing that can be measured.
static NEAREST: LazyLock<[u8; BINS + 1]> = LazyLock::new(|| {
    let nearest = Nearest::new(Law::Projective, 128, K);
    std::array::from_fn(|bin| nearest.code((bin as f32 + 0.5) / BINS as f32).0 as u8)
});

/// Writes codes of a row in units of its largest magnitude, which is the scale.
fn encode_projective(row: &[f32], largest: f32, codes: &mut [u8]) {
    let nearest = &*NEAREST;
    for (&x, code) in row.iter().zip(codes) {
        let bin = (x.abs() / largest * BINS as f32) as usize;
        *code = u8::from(x < 0.0) << 7 | nearest[bin.min(BINS)];
    }
}

/// Half precision of finite numbers within its range.
fn encode_half(row: &[f32], codes: &mut [u8]) {
    const AT_ONCE: usize = 32;
    let largest = f16::MAX.to_f32();
    let (mut within, mut halves) = ([0.0; AT_ONCE], [f16::ZERO; AT_ONCE]);
    for (row, codes) in row.chunks(AT_ONCE).zip(codes.chunks_mut(2 * AT_ONCE)) {
        for (within, &x) in within.iter_mut().zip(row) {
            *within = if x.is_finite() { x.clamp(-largest, largest) } else { x };
        }
        halves.convert_from_f32_slice(&within);
        for (code, half) in codes.as_chunks_mut().0.iter_mut().zip(halves) {
            *code = half.to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projective::projective_table;

    #[test]
    fn codes_are_nearest_but_for_half_a_bin() {
        let table = projective_table(K, 128);
        let row: Vec<f32> = (0..=1 << 16).map(|i| i as f32 / (1 << 16) as f32).collect();
        let mut codes = vec![0; row.len()];
        encode_projective(&row, 1.0, &mut codes);
        for (x, code) in row.into_iter().zip(codes) {
            let best = table.iter().map(|value| (value - x).abs()).fold(f32::INFINITY, f32::min);
            let found = (table[usize::from(code)] - x).abs();
            assert!(found <= best + 1.0 / BINS as f32, "{x}: off by {found}, {best} is possible");
        }
    }

    #[test]
    fn extreme_rows_become_what_is_documented() {
        let encoded = |encoding: Encoding, row: &[f32]| {
            let n = row.len();
            let (mut codes, mut scales) = (vec![0; encoding.code_bytes(n)], vec![0; encoding.scale_bytes(n)]);
            encoding.encode(row, &mut codes, &mut scales);
            let mut out = vec![7.0; n];
            encoding.decode(&codes, &scales, &mut out);
            out
        };
        for encoding in [Encoding::Full, Encoding::Half, Encoding::Projective, Encoding::Shaped] {
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
