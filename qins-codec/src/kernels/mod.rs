//! Products with encoded weights: for a few inputs, codes are read once, decoded in registers and multiplied there; for
//! many, [`panel`] decodes to memory.
//!
//! This file has what all formats and instruction sets share: which weights are decoded together ([`Block`]), how inputs
//! lie in memory ([`Inputs`]), and the loop over rows. How a block is decoded stands in a file for each instruction set.
//! A level without a kernel for a format has none here, and `matmul.rs` decodes whole rows.

use crate::{
    Header, Matrix,
    dispatch::{Kernel, Level},
};
use std::slice::ChunksExact;

pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
mod panel;

/// Rows whose sums are kept while a [piece](PIECE) of the inputs is multiplied.
pub(crate) const ROWS: usize = 8;

/// Bytes of inputs that stay in the first-level cache while [`ROWS`] rows use them.
const PIECE: usize = 16 << 10;

/// Bytes of codes from those that are decoded to those that are asked for: with the inputs no more than that cache holds.
const AHEAD: usize = 12 << 10;

/// Vectors that a block of weights is decoded to.
const VECTORS: usize = 4;

/// Vectors that [`Vector::sum_each`] takes.
const AT_ONCE: usize = 8;

/// Inputs that are multiplied in one pass over the codes: as many sums as registers hold.
const MOST_INPUTS: usize = 8;

/// From so many inputs on, it pays to write decoded weights to memory, as [`panel`] does.
const PANEL_INPUTS: usize = 13;

/// What 8-bit integers are multiplied by where they are put into the upper bytes of 32 bits.
#[cfg(target_arch = "x86_64")]
const WIDENED: f32 = (1 << 24) as f32;

/// The scales of 8-bit integers, which stand for so many 128ths, where sums are so many times too large. `None` if one would
/// be subnormal.
#[cfg(target_arch = "x86_64")]
fn scales_of_integers(scales: &[f32; 256], times: f32) -> Option<Box<[f32; 256]>> {
    let smaller = scales.map(|scale| scale / (128.0 * times));
    let fits = smaller.iter().zip(scales).all(|(smaller, &scale)| smaller.is_normal() || scale == 0.0);
    fits.then(|| Box::new(smaller))
}

/// Magnitudes of 7 bits times [`panel::ONE`], to be integers, which so hold values of bf16 down to a 64th.
///
/// `None` where those of a group could all be far below its scale, and would lose more than where the largest is measured: if
/// others than the last 16 are below a 64th, or if columns are no whole groups.
#[cfg(target_arch = "x86_64")]
fn magnitudes(header: &Header, values: &[f32]) -> Option<[f32; 128]> {
    let Header { format, cols, .. } = header;
    let values: &[f32; 128] = values.first_chunk().expect("magnitudes of 7 bits");
    debug_assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
    let fit = values[111] >= 1.0 / 64.0 && cols.is_multiple_of(format.group());
    fit.then(|| values.map(|value| value * panel::ONE))
}

/// A matrix and its inputs, ready to be multiplied.
pub(crate) struct Products<'a> {
    passes: Vec<Box<dyn Pass + 'a>>,
    rows: usize,
    stride: usize,
}

impl<'a> Products<'a> {
    /// `None` if the level has no kernel for the format. There are `m` inputs and not none.
    pub(crate) fn new(level: Level, matrix: Matrix<'a>, x: &[f32], m: usize) -> Option<Self> {
        debug_assert!(level.is_supported());
        let cols = matrix.header().cols;
        // One input and many have products in fixed point; what is left of a few after passes over eight has not.
        let level = if (2..PANEL_INPUTS).contains(&m) { level.in_float() } else { level };
        let pass = |x: &[f32]| {
            let inputs = x.chunks_exact(cols);
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 | Level::Avx2Fixed => avx2::prepare(matrix, inputs, level),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Fixed => avx512::prepare(matrix, inputs, level),
                #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
                Level::Neon => neon::prepare(matrix, inputs),
                _ => None,
            }
        };
        // Codes of several planes have no kernel but panels, which take all inputs.
        let at_once = if m < PANEL_INPUTS && matrix.header().format.planes() == 1 { MOST_INPUTS } else { m };
        let passes: Vec<_> = x.chunks(at_once * cols).map(pass).collect::<Option<_>>()?;
        let (_, all_but_last) = passes.split_last().expect("some inputs");
        assert!(all_but_last.iter().all(|pass| pass.stride() == at_once), "inputs follow one another");
        let stride = passes.iter().map(|pass| pass.stride()).sum();
        Some(Self { rows: passes[0].rows(), passes, stride })
    }

    /// Rows that [`of_rows`](Self::of_rows) is best called for, or a multiple.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Values from one row's products to the next's: no fewer than there are inputs.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The products of the rows `first` and up, `[rows, stride]`, to zeros.
    pub(crate) fn of_rows(&self, first: usize, out: &mut [f32]) {
        if let [pass] = &self.passes[..] {
            return pass.of_rows(first, out, self.stride);
        }
        // While the codes of the rows are in a cache.
        for (i, out) in out.chunks_mut(self.rows * self.stride).enumerate() {
            let mut start = 0;
            for pass in &self.passes {
                pass.of_rows(first + i * self.rows, &mut out[start..], self.stride);
                start += pass.stride();
            }
        }
    }
}

/// Some of the inputs.
trait Pass: Sync {
    /// Rows that are computed together.
    fn rows(&self) -> usize;

    /// Values that a row's products take.
    fn stride(&self) -> usize;

    /// The products of the rows `first` and up, to zeros, those of one row `stride` after those of the one before.
    fn of_rows(&self, first: usize, out: &mut [f32], stride: usize);
}

/// Lanes of f32.
///
/// # Safety
/// All functions need the instructions of the implementing type.
trait Vector: Copy + Sync {
    const LANES: usize;
    /// Sums that registers hold while they are added to.
    const SUMS: usize;
    /// One that has the instructions.
    const LEVEL: Level;
    unsafe fn zero() -> Self;
    /// One value in all lanes.
    unsafe fn splat(from: *const f32) -> Self;
    /// Reads [`LANES`](Self::LANES) values, from any address.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes [`LANES`](Self::LANES) values.
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The sum of all lanes, in an order that does not depend on them.
    unsafe fn sum(self) -> f32;
    /// The sum of each, in an order that is the same for all.
    #[inline(always)]
    unsafe fn sum_each(vectors: [Self; AT_ONCE]) -> [f32; AT_ONCE] {
        // SAFETY: as the caller promises.
        vectors.map(|vector| unsafe { vector.sum() })
    }
    /// Asks for a cache line; any address will do.
    unsafe fn prefetch(at: *const u8);
}

/// How the codes of some neighbouring weights are decoded on an instruction set.
trait Block: Sync + Sized {
    type V: Vector;
    /// Weights in a block: whole groups.
    const COLS: usize = VECTORS * Self::V::LANES;
    /// Bytes of their codes.
    const CODE_BYTES: usize;
    /// Their scale codes.
    const SCALES: usize;
    /// Whether weights are still to be multiplied by a scale.
    const SCALED: bool;

    /// The column of the block whose weight is in a lane, counted through all vectors.
    fn column(lane: usize) -> usize;

    /// Decodes a block.
    ///
    /// # Safety
    /// The processor has the instructions of [`V`](Self::V), and from the addresses
    /// [`CODE_BYTES`](Self::CODE_BYTES) and [`SCALES`](Self::SCALES) bytes can be read.
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> Decoded<Self::V>;

    /// Decodes the first columns of a block, as many as there are codes of; what comes after has no meaning.
    ///
    /// # Safety
    /// The processor has the instructions of [`V`](Self::V).
    #[inline(always)]
    unsafe fn decode_part(&self, codes: &[u8], scales: &[u8]) -> Decoded<Self::V> {
        let (codes, scales) = last_block(codes, scales);
        // SAFETY: as the caller promises; the arrays hold a block.
        unsafe { self.decode(codes.as_ptr(), scales.as_ptr()) }
    }
}

/// The weights of a block in units of their scales, and the scales by lanes, the same in all vectors.
type Decoded<V> = ([V; VECTORS], V);

/// Inputs in the order in which blocks are decoded: for each block of columns, `M` inputs; zeros after the last column
/// and the last input.
struct Inputs<const M: usize>(Vec<CacheLine>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine([f32; LINE]);

const LINE: usize = 16;

impl<const M: usize> Inputs<M> {
    fn new<B: Block>(x: ChunksExact<'_, f32>, cols: usize) -> Self {
        let mut lines = vec![CacheLine([0.0; LINE]); cols.div_ceil(B::COLS) * M * B::COLS / LINE];
        let columns: Vec<usize> = (0..B::COLS).map(B::column).collect();
        for (input, x) in x.enumerate() {
            for (block, x) in x.chunks(B::COLS).enumerate() {
                let lines = &mut lines[(block * M + input) * B::COLS / LINE..];
                let mut padded = [0.0; MOST_COLS];
                padded[..x.len()].copy_from_slice(x);
                for (line, columns) in lines.iter_mut().zip(columns.as_chunks::<LINE>().0) {
                    line.0 = columns.map(|column| padded[column % MOST_COLS]);
                }
            }
        }
        Self(lines)
    }

    fn block<B: Block>(&self, block: usize) -> *const f32 {
        self.0[block * M * B::COLS / LINE..].as_ptr().cast()
    }
}

/// How the products of a row are summed, a run of blocks at a time.
trait Terms: Sync {
    type V: Vector;
    /// What is kept of a row.
    type Sums: Copy;
    /// Weights in a block.
    const COLS: usize;
    /// Bytes of their codes.
    const CODE_BYTES: usize;
    /// Their scale codes.
    const SCALES: usize;
    /// Bytes of the inputs that a block meets.
    const INPUT_BYTES: usize;
    /// Blocks that a run has, or a multiple, except at the end of a row.
    const RUN: usize;

    /// # Safety
    /// The processor has the instructions of [`V`](Self::V), here and below.
    unsafe fn zero() -> Self::Sums;

    /// Adds the products of `count` blocks of a row, from block `first` on; what lies `ahead` of the codes is asked for.
    ///
    /// # Safety
    /// There are `count` blocks of codes and of scale codes, and inputs of as many from `first` on.
    unsafe fn add(&self, codes: &[u8], scales: &[u8], first: usize, count: usize, ahead: usize, sums: &mut Self::Sums);

    /// Writes the sum for each input, times `base`.
    ///
    /// # Safety
    /// As above.
    unsafe fn write(sums: &Self::Sums, base: f32, out: &mut [f32]);
}

/// A block's way of decoding and some inputs, of which there are `M` or fewer.
struct Fused<B, const M: usize> {
    block: B,
    inputs: Inputs<M>,
}

/// A pass for the least power of two that covers the inputs; for more, a panel.
fn pass<'a, B: Block + 'a>(block: B, matrix: Matrix<'a>, x: ChunksExact<'_, f32>) -> Box<dyn Pass + 'a> {
    fn of<'a, B: Block + 'a, const M: usize>(
        block: B,
        matrix: Matrix<'a>,
        x: ChunksExact<'_, f32>,
    ) -> Box<dyn Pass + 'a> {
        let (count, cols) = (x.len(), matrix.header().cols);
        Box::new(FewInputs { terms: Fused::<B, M> { block, inputs: Inputs::new::<B>(x, cols) }, matrix, count })
    }
    match x.len() {
        1 => of::<B, 1>(block, matrix, x),
        2 => of::<B, 2>(block, matrix, x),
        3..=4 => of::<B, 4>(block, matrix, x),
        5..=MOST_INPUTS => of::<B, MOST_INPUTS>(block, matrix, x),
        _ => panel::of_blocks::<panel::Float<B::V>, B>(block, matrix, &x),
    }
}

/// The same, with panels in the arithmetic `A` at its own level.
#[cfg(target_arch = "x86_64")]
fn pass_at<'a, A: panel::Arithmetic + 'a, B: Block + 'a>(
    level: Level,
    block: B,
    matrix: Matrix<'a>,
    x: ChunksExact<'_, f32>,
) -> Box<dyn Pass + 'a>
where
    panel::Blocks<'a, B>: panel::Decode<A>,
{
    if level == A::LEVEL && x.len() > MOST_INPUTS {
        panel::of_blocks::<A, B>(block, matrix, &x)
    } else {
        pass(block, matrix, x)
    }
}

/// Products that keep weights in registers.
struct FewInputs<'a, T> {
    terms: T,
    matrix: Matrix<'a>,
    /// Inputs.
    count: usize,
}

impl<T: Terms> Pass for FewInputs<'_, T> {
    fn rows(&self) -> usize {
        ROWS
    }

    fn stride(&self) -> usize {
        self.count
    }

    fn of_rows(&self, first: usize, out: &mut [f32], stride: usize) {
        T::V::LEVEL.run(FewRows { of: self, first, out, stride });
    }
}

struct FewRows<'a, T> {
    of: &'a FewInputs<'a, T>,
    first: usize,
    out: &'a mut [f32],
    stride: usize,
}

impl<T: Terms> Kernel for FewRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (i, out) in self.out.chunks_mut(ROWS * self.stride).enumerate() {
            self.of.together(self.first + i * ROWS, out, self.stride);
        }
    }
}

impl<T: Terms> FewInputs<'_, T> {
    /// The products of [`ROWS`] rows or fewer, run at the level of `T`.
    #[inline(always)]
    fn together(&self, first: usize, out: &mut [f32], stride: usize) {
        let FewInputs { terms, matrix, count } = self;
        let header = matrix.header();
        let cols = header.cols;
        let rows = out.len().div_ceil(stride);
        let (code_bytes, scale_bytes) = (header.format.code_bytes(cols), header.scale_bytes_of_row());
        let codes = &matrix.codes()[first * code_bytes..][..rows * code_bytes];
        let scales = &matrix.scales()[first * scale_bytes..][..rows * scale_bytes];
        let whole = cols / T::COLS;
        // Whole rows, as the next of these columns lie.
        let ahead = code_bytes * (AHEAD / code_bytes.max(1)).max(1);
        let piece = (PIECE / (T::INPUT_BYTES * T::RUN)).max(1) * T::RUN;

        // SAFETY: `Level::run` has found the instructions of `T::V`, here and below.
        let mut sums = [unsafe { T::zero() }; ROWS];
        let mut start = 0;
        while start < whole {
            let blocks = piece.min(whole - start);
            for (row, sums) in sums[..rows].iter_mut().enumerate() {
                let codes = &codes[row * code_bytes + start * T::CODE_BYTES..][..blocks * T::CODE_BYTES];
                let scales = &scales[row * scale_bytes + header.base_bytes() + start * T::SCALES..];
                let scales = &scales[..blocks * T::SCALES];
                // SAFETY: the slices hold `blocks`; there are inputs for all columns.
                unsafe { terms.add(codes, scales, start, blocks, ahead, sums) };
            }
            start += blocks;
        }
        if !cols.is_multiple_of(T::COLS) {
            for (row, sums) in sums[..rows].iter_mut().enumerate() {
                let codes = &codes[row * code_bytes..][..code_bytes][whole * T::CODE_BYTES..];
                let scales = &scales[row * scale_bytes..][..scale_bytes];
                let scales = &scales[header.base_bytes() + whole * T::SCALES..];
                let (codes, scales) = last_block(codes, scales);
                // SAFETY: the arrays hold one block; there are inputs for all columns.
                unsafe { terms.add(&codes, &scales, whole, 1, 0, sums) };
            }
        }
        for (row, (out, sums)) in out.chunks_mut(stride).zip(&sums).enumerate() {
            // SAFETY: as above.
            unsafe { T::write(sums, matrix.base(first + row), &mut out[..*count]) };
        }
    }
}

impl<B: Block, const M: usize> Terms for Fused<B, M> {
    type V = B::V;
    type Sums = [B::V; M];
    const COLS: usize = B::COLS;
    const CODE_BYTES: usize = B::CODE_BYTES;
    const SCALES: usize = B::SCALES;
    const INPUT_BYTES: usize = M * B::COLS * size_of::<f32>();
    const RUN: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> [B::V; M] {
        // SAFETY: as the caller promises.
        [unsafe { B::V::zero() }; M]
    }

    #[inline(always)]
    unsafe fn add(&self, codes: &[u8], scales: &[u8], first: usize, count: usize, ahead: usize, sums: &mut [B::V; M]) {
        let x = self.inputs.block::<B>(first);
        // SAFETY: as the caller promises.
        unsafe { add_blocks(&self.block, codes, scales, x, count, ahead, sums) };
    }

    #[inline(always)]
    unsafe fn write(sums: &[B::V; M], base: f32, out: &mut [f32]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: as the caller promises.
            *out = unsafe { sum.sum() } * base;
        }
    }
}

/// No block has more weights.
const MOST_COLS: usize = 64;
/// No block has more bytes of codes.
const MOST_BYTES: usize = 128;
/// No block has more scale codes.
const MOST_SCALES: usize = 4;

/// The last codes and scale codes of a row with zeros after them, as a block has.
#[inline(always)]
fn last_block(codes: &[u8], scales: &[u8]) -> ([u8; MOST_BYTES], [u8; MOST_SCALES]) {
    let (mut last_codes, mut last_scales) = ([0; MOST_BYTES], [0; MOST_SCALES]);
    last_codes.iter_mut().zip(codes).for_each(|(last, &byte)| *last = byte);
    last_scales.iter_mut().zip(scales).for_each(|(last, &byte)| *last = byte);
    (last_codes, last_scales)
}

/// Adds the products of `count` blocks of a row with `M` inputs each; what lies `ahead` of the codes is asked for.
///
/// # Safety
/// The processor has the instructions of `B::V`; there are `count` blocks of codes and of scale codes, and at `x` as
/// many of `M * B::COLS` inputs.
#[inline(always)]
unsafe fn add_blocks<B: Block, const M: usize>(
    block: &B,
    codes: &[u8],
    scales: &[u8],
    x: *const f32,
    count: usize,
    ahead: usize,
    sums: &mut [B::V; M],
) {
    let (codes, scales) = (codes.as_ptr(), scales.as_ptr());
    let mut of_row = *sums;
    let mut i = 0;
    if M == 1 {
        while i + PAIR <= count {
            // SAFETY: blocks of `count`, as the caller promises.
            unsafe {
                for line in (0..PAIR * B::CODE_BYTES).step_by(size_of::<CacheLine>()) {
                    B::V::prefetch(codes.wrapping_add(i * B::CODE_BYTES + line + ahead));
                }
                for i in i..i + PAIR {
                    let (codes, scales) = (codes.add(i * B::CODE_BYTES), scales.add(i * B::SCALES));
                    add_block(block, codes, scales, x.add(i * M * B::COLS), &mut of_row);
                }
            }
            i += PAIR;
        }
    }
    while i < count {
        // SAFETY: block `i` of `count`, as the caller promises.
        unsafe {
            B::V::prefetch(codes.wrapping_add(i * B::CODE_BYTES + ahead));
            let (codes, scales) = (codes.add(i * B::CODE_BYTES), scales.add(i * B::SCALES));
            add_block(block, codes, scales, x.add(i * M * B::COLS), &mut of_row);
        }
        i += 1;
    }
    *sums = of_row;
}

/// Blocks that one round of the loop over blocks decodes.
const PAIR: usize = 2;

/// Adds the products of one block.
///
/// # Safety
/// As for [`add_blocks`].
#[inline(always)]
unsafe fn add_block<B: Block, const M: usize>(
    block: &B,
    codes: *const u8,
    scales: *const u8,
    x: *const f32,
    sums: &mut [B::V; M],
) {
    // SAFETY: as the caller promises.
    unsafe {
        let (mut weights, scale) = block.decode(codes, scales);
        if M <= VECTORS {
            for (input, sum) in sums.iter_mut().enumerate() {
                // A sum of its own, because one multiplication must wait for another, blocks need not.
                let mut of_block = weights[0].mul(B::V::load(x.add(input * B::COLS)));
                for (j, weights) in weights.iter().enumerate().skip(1) {
                    of_block = weights.mul_add(B::V::load(x.add(input * B::COLS + j * B::V::LANES)), of_block);
                }
                *sum = if B::SCALED { of_block.mul_add(scale, *sum) } else { of_block.add(*sum) };
            }
        } else {
            if B::SCALED {
                // Fewer than the sums.
                for weights in &mut weights {
                    *weights = weights.mul(scale);
                }
            }
            for (j, weights) in weights.iter().enumerate() {
                for (input, sum) in sums.iter_mut().enumerate() {
                    *sum = weights.mul_add(B::V::load(x.add(input * B::COLS + j * B::V::LANES)), *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decoder, Format, Header};

    /// Where there is none, products are right and slow.
    #[test]
    fn kernels_are_not_lost() {
        // Of one input, a few, and a panel; with bases of rows where they are legal.
        let kernel = |level, format| {
            let header = |row_bases| Header { format, rows: 1, cols: 32, base: 1.0, k: 0.5, row_bases };
            let legal = [false, true].into_iter().filter_map(|row_bases| Decoder::new(header(row_bases)).ok());
            let has = |decoder: &Decoder, m: usize| {
                let (codes, scales) = (vec![0; decoder.header().code_bytes()], vec![0; decoder.header().scale_bytes()]);
                Products::new(level, decoder.matrix(&codes, &scales).unwrap(), &vec![1.0; 32 * m], m).is_some()
            };
            legal.flat_map(|decoder| [1, 3, 8, 20].map(|m| has(&decoder, m))).all(|has| has)
        };
        for level in Level::all_supported() {
            let found: Vec<_> = Format::ALL.iter().copied().filter(|&format| kernel(level, format)).collect();
            let expected = match level {
                Level::Scalar => vec![],
                _ => Format::ALL.to_vec(),
            };
            assert_eq!(found, expected, "{level:?}");
        }
    }
}
