//! Lanes and blocks in plain Rust, for levels without blocks of their own.

use super::{Full, Rows, of_groups, of_whole};
use crate::{
    Format,
    dispatch::Level,
    kernels::{Block, Decoded, VECTORS, Vector},
    kv::{Encoding, step},
    pack::unpack_eight,
};
use half::f16;

pub(super) fn rows(encoding: Encoding, head: usize) -> Box<dyn Rows> {
    match encoding {
        Encoding::Full => of_whole(Full::<Lanes>::default(), encoding, head),
        Encoding::Half => of_whole(Half, encoding, head),
        Encoding::Linear => of_whole(Linear, encoding, head),
        Encoding::Shaped => of_groups(Shaped, encoding, head),
    }
}

const LANES: usize = 8;

#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Vector for Lanes {
    const LANES: usize = LANES;
    const SUMS: usize = 12;
    const LEVEL: Level = Level::Scalar;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: a value can be read, as the caller promises.
        Self([unsafe { *from }; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: eight values can be read, as the caller promises.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: eight values can be written, as the caller promises.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + b.0[i]))
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i]))
    }

    /// Rounded twice: without the instruction, once would be a call of a function for each lane.
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

/// IEEE half precision.
struct Half;

impl Block for Half {
    type V = Lanes;
    const CODE_BYTES: usize = 2 * Self::COLS;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        let codes = unsafe { codes.cast::<[[[u8; 2]; LANES]; VECTORS]>().read_unaligned() };
        (codes.map(|codes| Lanes(codes.map(|code| f16::from_le_bytes(code).to_f32()))), Lanes([1.0; LANES]))
    }
}

/// Equal steps.
struct Linear;

impl Block for Linear {
    type V = Lanes;
    const CODE_BYTES: usize = Self::COLS;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        let codes = unsafe { codes.cast::<[[u8; LANES]; VECTORS]>().read_unaligned() };
        (codes.map(|codes| Lanes(codes.map(step))), Lanes([1.0; LANES]))
    }
}

/// Four tables of 16 entries, one of which a group of 16 chooses.
struct Shaped;

impl Block for Shaped {
    type V = Lanes;
    const CODE_BYTES: usize = Self::COLS / 2;
    const SCALES: usize = 2;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        let (codes, scales) =
            unsafe { (codes.cast::<[[u8; 4]; VECTORS]>().read_unaligned(), scales.cast::<[u8; 2]>().read_unaligned()) };
        let weights = std::array::from_fn(|j| {
            let header = scales[j / 2];
            let table = &Encoding::shaped_values()[Format::Q4.shape(header) * 16..][..16];
            let scale = Encoding::shaped_scales()[usize::from(header)];
            Lanes(unpack_eight(&codes[j]).map(|code| table[usize::from(code) % 16] * scale))
        });
        (weights, Lanes([1.0; LANES]))
    }
}
