//! Decoding on NEON.
//!
//! Values that bf16 holds are looked up as two planes of bytes, as on AVX2. A vector is two registers, so that a
//! block is 32 weights: the first registers of all vectors hold 16 of them, the second the others.

use super::{Block, Decoded, Pass, VECTORS, Vector, panel, pass};
use crate::{Format, Matrix, dispatch::Level};
use std::{
    arch::{aarch64::*, asm},
    array,
    slice::ChunksExact,
};

pub(super) fn prepare<'a>(matrix: Matrix<'a>, x: ChunksExact<'_, f32>) -> Option<Box<dyn Pass + 'a>> {
    let decoder = matrix.decoder();
    let scales = decoder.scales();
    Some(match matrix.header().format {
        Format::Q8 | Format::Log8 | Format::Fpins1 => {
            pass(SignMagnitude::<32>::new(&decoder.values(), scales), matrix, x)
        }
        Format::Lin8 => pass(Integers { scales }, matrix, x),
        Format::Q8h => pass(SignMagnitude::<16>::new(&decoder.values(), scales), matrix, x),
        Format::Q4 => pass(Shaped16::new(&decoder.values(), scales), matrix, x),
        Format::Bf16 => pass(Brain, matrix, x),
        _ => panel::of_rows::<Lanes>(matrix, &x),
    })
}

#[derive(Clone, Copy)]
struct Lanes(float32x4_t, float32x4_t);

impl Vector for Lanes {
    const LANES: usize = 8;
    const SUMS: usize = 12;
    const LEVEL: Level = Level::Neon;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: NEON is part of the target, here and in all functions of this file.
        unsafe { Lanes(vdupq_n_f32(0.0), vdupq_n_f32(0.0)) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: as above, and a value can be read.
        unsafe { Lanes(vld1q_dup_f32(from), vld1q_dup_f32(from)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above, and eight values can be read.
        unsafe { Lanes(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above, and eight values can be written.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Lanes(vaddq_f32(self.0, b.0), vaddq_f32(self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Lanes(vmulq_f32(self.0, b.0), vmulq_f32(self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { Lanes(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address is legal.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags)) }
    }
}

/// The column in a lane: of the first half of a block in first registers.
fn column(lane: usize) -> usize {
    let (vector, half, lane) = (lane / 8, lane / 4 % 2, lane % 4);
    16 * half + 4 * vector + lane
}

/// Two halves of a block, each of 16 weights in order.
#[inline(always)]
fn halves(first: [float32x4_t; 4], second: [float32x4_t; 4]) -> [Lanes; VECTORS] {
    let ([a, b, c, d], [e, f, g, h]) = (first, second);
    [Lanes(a, e), Lanes(b, f), Lanes(c, g), Lanes(d, h)]
}

/// Eight bf16 and eight more as f32.
#[inline(always)]
fn widen(first: uint16x8_t, second: uint16x8_t) -> [float32x4_t; 4] {
    // SAFETY: as above.
    unsafe {
        [
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(first))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(first)),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(second))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(second)),
        ]
    }
}

/// The upper and lower bytes of 16 bf16 numbers as f32.
#[inline(always)]
fn join_planes(upper: uint8x16_t, lower: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: as above.
    unsafe { widen(vreinterpretq_u16_u8(vzip1q_u8(lower, upper)), vreinterpretq_u16_u8(vzip2q_u8(lower, upper))) }
}

/// One scale for the first registers, one for the second.
#[inline(always)]
fn two_scales(table: &[f32; 256], first: u8, second: u8) -> Lanes {
    // SAFETY: as above.
    unsafe { Lanes(vdupq_n_f32(table[usize::from(first)]), vdupq_n_f32(table[usize::from(second)])) }
}

/// A plane of bytes: of the low or the high half of bf16 values.
fn plane<const N: usize>(values: &[f32], byte: usize) -> [u8; N] {
    array::from_fn(|i| values[i].to_bits().to_le_bytes()[byte])
}

/// Sign and 7-bit magnitude. Planes are looked up 64 entries at a time.
struct SignMagnitude<'a, const GROUP: usize> {
    lower: [uint8x16x4_t; 2],
    upper: [uint8x16x4_t; 2],
    scales: &'a [f32; 256],
}

impl<'a, const GROUP: usize> SignMagnitude<'a, GROUP> {
    fn new(values: &[f32], scales: &'a [f32; 256]) -> Self {
        let halves = |byte| {
            // SAFETY: 64 bytes are read of 64.
            [0, 64].map(|first| unsafe { vld1q_u8_x4(plane::<64>(&values[first..], byte).as_ptr()) })
        };
        Self { lower: halves(2), upper: halves(3), scales }
    }
}

impl<const GROUP: usize> SignMagnitude<'_, GROUP> {
    #[inline(always)]
    fn half(&self, codes: uint8x16_t) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe {
            let magnitudes = vandq_u8(codes, vdupq_n_u8(0x7F));
            let signs = vbicq_u8(codes, vdupq_n_u8(0x7F));
            join_planes(vorrq_u8(look_up(&self.upper, magnitudes), signs), look_up(&self.lower, magnitudes))
        }
    }
}

/// Bytes of 128 at indices below.
#[inline(always)]
fn look_up(plane: &[uint8x16x4_t; 2], at: uint8x16_t) -> uint8x16_t {
    // SAFETY: as above.
    unsafe {
        // Beyond its 64 the first lookup gives 0; beyond its own, and so below 0, the second leaves what it finds.
        vqtbx4q_u8(vqtbl4q_u8(plane[0], at), plane[1], vsubq_u8(at, vdupq_n_u8(64)))
    }
}

impl<const GROUP: usize> Block for SignMagnitude<'_, GROUP> {
    type V = Lanes;
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 32 / GROUP;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        unsafe {
            let (first, second) = (self.half(vld1q_u8(codes)), self.half(vld1q_u8(codes.add(16))));
            (halves(first, second), two_scales(self.scales, *scales, *scales.add(Self::SCALES - 1)))
        }
    }
}

/// 8-bit integers, of so many 128ths.
struct Integers<'a> {
    scales: &'a [f32; 256],
}

impl Integers<'_> {
    #[inline(always)]
    fn half(codes: int8x16_t) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe {
            let (first, second) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
            [
                vcvtq_n_f32_s32::<7>(vmovl_s16(vget_low_s16(first))),
                vcvtq_n_f32_s32::<7>(vmovl_high_s16(first)),
                vcvtq_n_f32_s32::<7>(vmovl_s16(vget_low_s16(second))),
                vcvtq_n_f32_s32::<7>(vmovl_high_s16(second)),
            ]
        }
    }
}

impl Block for Integers<'_> {
    type V = Lanes;
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 1;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        unsafe {
            let [first, second] = [codes, codes.add(16)].map(|half| Self::half(vld1q_s8(half.cast())));
            (halves(first, second), two_scales(self.scales, *scales, *scales))
        }
    }
}

/// Tables of 16 entries, one of four for each group.
struct Shaped16<'a> {
    /// Of each table the lower bytes of its entries as bf16, and the upper ones.
    planes: [[uint8x16_t; 2]; 4],
    scales: &'a [f32; 256],
}

impl<'a> Shaped16<'a> {
    fn new(values: &[f32], scales: &'a [f32; 256]) -> Self {
        let planes = array::from_fn(|shape| {
            // SAFETY: 16 bytes are read of 16.
            [2, 3].map(|byte| unsafe { vld1q_u8(plane::<16>(&values[16 * shape..], byte).as_ptr()) })
        });
        Self { planes, scales }
    }

    #[inline(always)]
    fn group(&self, pairs: uint8x8_t, scale: u8) -> [float32x4_t; 4] {
        // SAFETY: as above.
        unsafe {
            let (even, odd) = (vand_u8(pairs, vdup_n_u8(0x0F)), vshr_n_u8::<4>(pairs));
            let codes = vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
            let [lower, upper] = self.planes[usize::from(scale & 3)];
            join_planes(vqtbl1q_u8(upper, codes), vqtbl1q_u8(lower, codes))
        }
    }
}

impl Block for Shaped16<'_> {
    type V = Lanes;
    const CODE_BYTES: usize = 16;
    const SCALES: usize = 2;
    const SCALED: bool = true;

    fn column(lane: usize) -> usize {
        column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        unsafe {
            let (codes, first, second) = (vld1q_u8(codes), *scales, *scales.add(1));
            let weights = halves(self.group(vget_low_u8(codes), first), self.group(vget_high_u8(codes), second));
            (weights, two_scales(self.scales, first, second))
        }
    }
}

/// The upper halves of f32.
struct Brain;

impl Block for Brain {
    type V = Lanes;
    const CODE_BYTES: usize = 64;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<Lanes> {
        // SAFETY: as the caller promises.
        unsafe {
            let [a, b, c, d] = [0, 16, 32, 48].map(|at| vreinterpretq_u16_u8(vld1q_u8(codes.add(at))));
            (halves(widen(a, b), widen(c, d)), Lanes::zero())
        }
    }
}
