//! How one head's key or value becomes bytes.

use crate::{Format, magnitude::largest_magnitude, shaped};
use half::{f16, slice::HalfFloatSliceExt};
use std::sync::LazyLock;

/// A way to store a row. Numbers that are not finite make the whole row NaN, but in floats, which have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As it is.
    Full,
    /// Half precision. Finite numbers beyond its range become its largest.
    Half,
    /// The projective law of `k = 0` in 8 bits, which is equal steps. Bytes with a sign are the upper ones of 32-bit
    /// integers, an odd number of [half steps](HALF_STEP), in units of one f32 scale: decoding is two unpackings and a
    /// conversion.
    Linear,
    /// Groups of 16 with one of four tables, as in [`Format::Q4`].
    Shaped,
}

/// Half of the distance between neighbouring codes of [`Encoding::Linear`], in units of the scale.
pub const HALF_STEP: i32 = 1 << 23;

/// The largest magnitude that [`Encoding::Linear`] has a code for, in units of the scale.
pub const LARGEST: f32 = 255.0 * HALF_STEP as f32;

static SHAPED: LazyLock<Vec<f32>> =
    LazyLock::new(|| shaped::tables(Format::Q4).concat().into_iter().map(f32::from).collect());

static SHAPED_SCALES: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| shaped::relative_scale(code as u8)));

static SHAPED_ENCODER: LazyLock<shaped::Encoder> = LazyLock::new(shaped::Encoder::of_q4);

impl Encoding {
    /// Bytes of a row's codes.
    #[inline(always)]
    pub fn code_bytes(self, head: usize) -> usize {
        match self {
            Encoding::Full => 4 * head,
            Encoding::Half => 2 * head,
            Encoding::Linear => head,
            Encoding::Shaped => (head / 2 + head % 2).next_multiple_of(4),
        }
    }

    /// Bytes before the scale codes of a row: an f32.
    #[inline(always)]
    pub(crate) fn base_bytes(self) -> usize {
        match self {
            Encoding::Full | Encoding::Half => 0,
            Encoding::Linear | Encoding::Shaped => size_of::<f32>(),
        }
    }

    /// Bytes of a row's base and scale codes.
    #[inline(always)]
    pub fn scale_bytes(self, head: usize) -> usize {
        match self {
            Encoding::Full | Encoding::Half => 0,
            Encoding::Linear => self.base_bytes(),
            Encoding::Shaped => self.base_bytes() + head.div_ceil(16),
        }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(self, head: usize) -> usize {
        self.code_bytes(head) + self.scale_bytes(head)
    }

    /// The tables of [`Shaped`](Self::Shaped).
    pub(crate) fn shaped_values() -> &'static [f32] {
        &SHAPED
    }

    /// What a group's scale code of [`Shaped`](Self::Shaped) stands for, in units of the row's base.
    pub(crate) fn shaped_scales() -> &'static [f32; 256] {
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
            Encoding::Linear => {
                let scale = match largest_magnitude(0, row) {
                    Err(_) => f32::NAN,
                    Ok(largest) => encode_linear(row, largest, codes),
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
            Encoding::Linear => {
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = base() * step(code);
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

/// What a code of [`Encoding::Linear`] stands for: an odd number of half steps, so that no sign has one code more.
#[inline(always)]
pub(crate) fn step(code: u8) -> f32 {
    // Nine bits.
    (i32::from(code as i8) * 2 * HALF_STEP + HALF_STEP) as f32
}

/// Writes the nearest codes of a row and returns its scale. A row of which it would be subnormal becomes zeros.
fn encode_linear(row: &[f32], largest: f32, codes: &mut [u8]) -> f32 {
    let scale = largest / LARGEST;
    if scale < f32::MIN_POSITIVE {
        return 0.0;
    }
    let steps = 2.0 * HALF_STEP as f32 * scale;
    for (&x, code) in row.iter().zip(codes) {
        // Rounding down, of what is not negative. A cast ends at the type's limits.
        *code = (x / steps + 128.0) as u8 ^ 0x80;
    }
    scale
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

    #[test]
    fn codes_are_nearest() {
        let row: Vec<f32> = (-(1 << 16)..=1 << 16).map(|i| i as f32 / (1 << 16) as f32 * 0.7).collect();
        let mut codes = vec![0; row.len()];
        let scale = encode_linear(&row, 0.7, &mut codes);
        for (x, code) in row.into_iter().zip(codes) {
            let found = (scale * step(code) - x).abs();
            let most = HALF_STEP as f32 * scale;
            assert!(found <= 1.0001 * most, "{x}: off by {found}, half a step is {most}");
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
        for encoding in [Encoding::Full, Encoding::Half, Encoding::Linear, Encoding::Shaped] {
            assert_eq!(encoded(encoding, &[0.0; 37]), [0.0; 37]);
            assert!(encoded(encoding, &[1.0, f32::NAN, 0.0]).iter().any(|x| x.is_nan()));
            let with_infinity = encoded(encoding, &[1.0, f32::NEG_INFINITY, 0.0]);
            assert!(with_infinity.iter().any(|x| !x.is_finite()), "{encoding:?}: {with_infinity:?}");
            assert!(encoded(encoding, &[f32::MAX, -1.0, 3e38]).iter().all(|x| x.is_finite()), "{encoding:?}");
        }
        assert_eq!(encoded(Encoding::Half, &[1e30, -1e30]), [65504.0, -65504.0]);
        assert_eq!(encoded(Encoding::Linear, &[2e-29, 0.0]), [0.0; 2]);
        let [largest, ..] = encoded(Encoding::Linear, &[3e-29, 0.0])[..] else { unreachable!() };
        assert!((largest / 3e-29 - 1.0).abs() < 1e-6);
    }
}
