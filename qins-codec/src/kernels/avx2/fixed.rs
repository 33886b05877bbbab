//! Products of one input with weights that are integers times a scale, in whole numbers: half the instructions of f32.
//!
//! An input is rounded to 16-bit fixed point, so that one instruction multiplies 16 weights. Each 256 columns share a unit,
//! at most 2^-14 of the largest of them. Thus an input is off by 2^-15 of that at most: were it alone to count, its weight's
//! rounding to 8 bits would be some hundred times that. Sums over groups are exact, and scaled and added in f32.

use super::*;
use crate::{
    dispatch::Kernel,
    kernels::{FewInputs, Terms},
    shaped,
};
use std::marker::PhantomData;

/// Weights in a block.
const COLS: usize = 32;

/// Blocks of inputs that share a unit.
const RUN: usize = 8;

/// What the largest of a run is made, or up to twice that.
pub(super) const ONE: f32 = (1 << FRACTION) as f32;
const FRACTION: u32 = 14;

/// How the codes of 32 neighbouring weights become integers.
pub(super) trait Integral: Sync {
    const CODE_BYTES: usize;
    const SCALES: usize;
    /// What is added to all weights, so that none is negative.
    const OFFSET: i16;

    /// Puts the columns of a block in the order of [`decode`](Self::decode).
    ///
    /// # Safety
    /// Needs AVX2.
    unsafe fn arrange(columns: [__m256i; 2]) -> [__m256i; 2];

    /// Integers of 16 bits, and what they are multiplied by: two lanes of integers make one, the same of both vectors.
    ///
    /// # Safety
    /// Needs AVX2; [`CODE_BYTES`](Self::CODE_BYTES) and [`SCALES`](Self::SCALES) bytes can be read.
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> ([__m256i; 2], __m256);
}

/// Inputs of a block, in the order in which it is decoded.
#[derive(Clone, Copy)]
struct Inputs {
    /// 16-bit integers.
    x: [__m256i; 2],
    /// What [`OFFSET`](Integral::OFFSET) adds to sums of four products, to be taken off.
    offset: __m256i,
}

/// A block's way of decoding and one input.
pub(super) struct Fixed<B> {
    block: B,
    inputs: Vec<Inputs>,
    /// Of each run, times [`ONE`].
    units: Vec<f32>,
}

/// A pass for one input.
pub(super) fn pass<'a, B: Integral + 'a>(
    block: B,
    matrix: Matrix<'a>,
    mut x: ChunksExact<'_, f32>,
) -> Box<dyn Pass + 'a> {
    let x = x.next().expect("one input");
    // SAFETY: kernels are prepared only where there is AVX2.
    let zero = unsafe { _mm256_setzero_si256() };
    let mut terms = Fixed {
        block,
        inputs: vec![Inputs { x: [zero; 2], offset: zero }; x.len().div_ceil(COLS)],
        units: vec![0.0; x.len().div_ceil(COLS * RUN)],
    };
    Level::Avx2.run(Round { x, inputs: &mut terms.inputs, units: &mut terms.units, block: PhantomData::<B> });
    Box::new(FewInputs { terms, matrix, count: 1 })
}

/// Rounds an input.
struct Round<'a, B> {
    x: &'a [f32],
    inputs: &'a mut [Inputs],
    units: &'a mut [f32],
    block: PhantomData<B>,
}

impl<B: Integral> Kernel for Round<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        const COLS_OF_RUN: usize = COLS * RUN;
        const SIGN: u32 = 1 << 31;
        for ((x, inputs), unit) in self.x.chunks(COLS_OF_RUN).zip(self.inputs.chunks_mut(RUN)).zip(self.units) {
            let mut padded = [0.0; COLS_OF_RUN];
            padded[..x.len()].copy_from_slice(x);
            // Greater bits are greater magnitudes; those of infinity and NaN have all of the exponent's.
            let largest = padded.iter().fold(0, |largest, x| (x.to_bits() & !SIGN).max(largest));
            let exponent = (largest >> 23).max(FRACTION + 1);
            if exponent == 255 {
                *unit = f32::NAN;
                continue;
            }
            *unit = f32::from_bits(exponent << 23);
            let inverse = f32::from_bits((254 + FRACTION - exponent) << 23);
            let mut rounded = [0i16; COLS_OF_RUN];
            for (rounded, x) in rounded.iter_mut().zip(&padded) {
                // At so large a number f32 holds integers, and rounds to them.
                const SHIFT: f32 = 1.5 * (1 << 23) as f32;
                *rounded = ((x * inverse).min(f32::from(i16::MAX)) + SHIFT).to_bits() as i16;
            }
            for (input, rounded) in inputs.iter_mut().zip(rounded.as_chunks::<COLS>().0) {
                // SAFETY: this runs at a level with AVX2; the array holds two vectors.
                *input = unsafe { Inputs::of::<B>([0, 16].map(|i| _mm256_loadu_si256(rounded[i..].as_ptr().cast()))) };
            }
        }
    }
}

impl Inputs {
    /// # Safety
    /// Needs AVX2.
    #[inline(always)]
    unsafe fn of<B: Integral>(columns: [__m256i; 2]) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let x = B::arrange(columns);
            let offset = x.map(|x| _mm256_madd_epi16(x, _mm256_set1_epi16(-B::OFFSET)));
            Self { x, offset: _mm256_add_epi32(offset[0], offset[1]) }
        }
    }
}

impl<B: Integral> Terms for Fixed<B> {
    type V = __m256;
    type Sums = __m256;
    const COLS: usize = COLS;
    const CODE_BYTES: usize = B::CODE_BYTES;
    const SCALES: usize = B::SCALES;
    const INPUT_BYTES: usize = size_of::<Inputs>();
    const RUN: usize = RUN;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: as the caller promises.
        unsafe { __m256::zero() }
    }

    #[inline(always)]
    unsafe fn add(&self, codes: &[u8], scales: &[u8], first: usize, count: usize, ahead: usize, sum: &mut __m256) {
        let (codes, scales, x) = (codes.as_ptr(), scales.as_ptr(), self.inputs[first..].as_ptr());
        let units = self.units[first / RUN..].as_ptr();
        // SAFETY: blocks of `count`, as the caller promises, and their inputs.
        let block = |i: usize, sum: __m256| unsafe {
            self.block_after(codes.add(i * B::CODE_BYTES), scales.add(i * B::SCALES), &*x.add(i), sum)
        };
        let mut of_row = *sum;
        let mut i = 0;
        // SAFETY: as the caller promises; each run has a unit.
        unsafe {
            while i + RUN <= count {
                // Two, because one sum must wait for another.
                let (mut even, mut odd) = (__m256::zero(), __m256::zero());
                for j in (0..RUN).step_by(2) {
                    __m256::prefetch(codes.wrapping_add((i + j) * B::CODE_BYTES + ahead));
                    (even, odd) = (block(i + j, even), block(i + j + 1, odd));
                }
                of_row = even.add(odd).mul_add(__m256::splat(units.add(i / RUN)), of_row);
                i += RUN;
            }
            while i < count {
                of_row = block(i, __m256::zero()).mul_add(__m256::splat(units.add(i / RUN)), of_row);
                i += 1;
            }
        }
        *sum = of_row;
    }

    #[inline(always)]
    unsafe fn write(sum: &__m256, base: f32, out: &mut [f32]) {
        // SAFETY: as the caller promises.
        out[0] = unsafe { sum.sum() } * base;
    }
}

impl<B: Integral> Fixed<B> {
    /// `sum` and the products of a block, in units of the inputs.
    ///
    /// # Safety
    /// As for [`Integral::decode`].
    #[inline(always)]
    unsafe fn block_after(&self, codes: *const u8, scales: *const u8, inputs: &Inputs, sum: __m256) -> __m256 {
        // SAFETY: as the caller promises.
        unsafe {
            let (weights, scale) = self.block.decode(codes, scales);
            let [a, b] = [0, 1].map(|i| _mm256_madd_epi16(weights[i], inputs.x[i]));
            let mut products = _mm256_add_epi32(a, b);
            if B::OFFSET != 0 {
                products = _mm256_add_epi32(products, inputs.offset);
            }
            _mm256_cvtepi32_ps(products).mul_add(scale, sum)
        }
    }
}

/// 8-bit integers, in groups of 32 with a scale.
pub(super) struct Integers8 {
    scales: Box<[f32; 256]>,
}

impl Integers8 {
    /// `None` if a scale is too small.
    pub(super) fn new(scales: &[f32; 256]) -> Option<Self> {
        Some(Self { scales: scales_of_integers(scales, ONE)? })
    }
}

impl Integral for Integers8 {
    const CODE_BYTES: usize = 32;
    const SCALES: usize = 1;
    const OFFSET: i16 = 0;

    #[inline(always)]
    unsafe fn arrange(columns: [__m256i; 2]) -> [__m256i; 2] {
        columns
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> ([__m256i; 2], __m256) {
        // SAFETY: as the caller promises.
        unsafe {
            let weights = [0, 16].map(|at| _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.add(at).cast())));
            (weights, one_scale(&self.scales, scales))
        }
    }
}

/// Tables of 16 small integers. What a scale code says is kept together.
pub(super) struct Entries16(Box<[Group16; 256]>);

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Group16 {
    entries: [u8; 16],
    scale: [f32; 4],
}

impl Entries16 {
    pub(super) fn new(scales: &[f32; 256]) -> Self {
        let tables = shaped::tables(Format::Q4).map(|table| {
            let table: [i8; 16] = table.try_into().expect("16 entries");
            table.map(|entry| (i16::from(entry) + Self::OFFSET) as u8)
        });
        assert!(tables.iter().all(|table| table[0] == 0));
        let group = |code: usize| Group16 { entries: tables[code % 4], scale: [scales[code] / ONE; 4] };
        Self(Box::new(std::array::from_fn(group)))
    }
}

impl Integral for Entries16 {
    const CODE_BYTES: usize = 16;
    const SCALES: usize = 2;
    /// Makes the first entry of each table, its lowest, 0.
    const OFFSET: i16 = 127;

    /// The even ones, then the odd ones.
    #[inline(always)]
    unsafe fn arrange(columns: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let even = columns.map(|columns| _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(columns)));
            let odd = columns.map(|columns| _mm256_srai_epi32::<16>(columns));
            // Packing works on halves.
            [even, odd].map(|[a, b]| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b)))
        }
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> ([__m256i; 2], __m256) {
        // SAFETY: as the caller promises; entries and scales have 16 bytes.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.cast()));
            // The upper byte is 0, and so is its entry.
            let codes = [_mm256_and_si256(pairs, _mm256_set1_epi16(0x0F)), _mm256_srli_epi16::<4>(pairs)];
            let (first, second) = (&self.0[usize::from(*scales)], &self.0[usize::from(*scales.add(1))]);
            let entries = load_halves(first.entries.as_ptr().cast(), second.entries.as_ptr().cast());
            let scale = load_halves(first.scale.as_ptr().cast(), second.scale.as_ptr().cast());
            (codes.map(|codes| _mm256_shuffle_epi8(entries, codes)), _mm256_castsi256_ps(scale))
        }
    }
}
