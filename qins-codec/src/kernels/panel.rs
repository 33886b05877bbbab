//! Products of many inputs: a panel of weights is decoded once, to f32 that stay in the second-level cache, and multiplied
//! with all inputs, some rows and some vectors of inputs at a time, whose sums are as many as registers hold.
//!
//! A lane is an input, so that weights lie as rows are decoded and are broadcast. Each product is a sum over pieces of
//! [`COLS`] columns, each summed from zero in the order of decoding, whatever rows and inputs go with it: its bits depend
//! neither on the threads nor on the number of inputs.

use super::*;
use rayon::prelude::*;
use std::marker::PhantomData;

/// Rows of a panel: whole tiles of either kind.
pub(super) const PANEL_ROWS: usize = 48;

/// Columns of a panel.
const COLS: usize = 256;

/// How a piece of a row is decoded.
pub(super) trait Source: Sync {
    type V: Vector;
    /// Columns that are decoded together.
    const UNIT: usize;

    /// The column of a unit that is decoded to a place.
    fn column(place: usize) -> usize;

    /// What sums of the row are still to be multiplied by.
    fn base(&self, row: usize) -> f32;

    /// Decodes as many columns as `out` is long, in whole units, from `first` on; those after the last become numbers that
    /// are finite where scales are.
    ///
    /// # Safety
    /// The processor has the instructions of [`V`](Self::V).
    unsafe fn decode(&self, row: usize, first: usize, out: &mut [f32]);
}

/// Blocks of codes.
pub(super) struct Blocks<'a, B> {
    block: B,
    matrix: Matrix<'a>,
}

impl<B: Block> Source for Blocks<'_, B> {
    type V = B::V;
    const UNIT: usize = B::COLS;

    fn column(place: usize) -> usize {
        B::column(place)
    }

    fn base(&self, row: usize) -> f32 {
        self.matrix.base(row)
    }

    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        let Header { format, cols, .. } = *self.matrix.header();
        let (code_bytes, scale_bytes) = (format.code_bytes(cols), format.scale_bytes(cols));
        let first = first / B::COLS;
        let whole = (cols / B::COLS - first).min(out.len() / B::COLS);
        let codes = &self.matrix.codes()[row * code_bytes..][..code_bytes][first * B::CODE_BYTES..];
        let scales = &self.matrix.scales()[row * scale_bytes..][..scale_bytes];
        let scales = &scales[format.base_bytes() + first * B::SCALES..];
        let (of_whole, last) = out.split_at_mut(whole * B::COLS);
        let (whole_codes, codes) = codes.split_at(whole * B::CODE_BYTES);
        let (whole_scales, scales) = scales.split_at(whole * B::SCALES);
        for (i, out) in of_whole.chunks_exact_mut(B::COLS).enumerate() {
            let (codes, scales) = (whole_codes[i * B::CODE_BYTES..].as_ptr(), whole_scales[i * B::SCALES..].as_ptr());
            // SAFETY: the slices hold `whole` blocks; the caller has found the instructions, here and below.
            unsafe { decode_block(&self.block, codes, scales, out) };
        }
        if !last.is_empty() {
            let (codes, scales) = last_block(codes, scales);
            // SAFETY: the arrays hold one block.
            unsafe { decode_block(&self.block, codes.as_ptr(), scales.as_ptr(), &mut last[..B::COLS]) };
        }
    }
}

/// Decodes a block to as many weights as it has.
///
/// # Safety
/// As for [`Block::decode`].
#[inline(always)]
unsafe fn decode_block<B: Block>(block: &B, codes: *const u8, scales: *const u8, out: &mut [f32]) {
    assert_eq!(out.len(), B::COLS);
    // SAFETY: as the caller promises; a block is `VECTORS` vectors.
    unsafe {
        let (weights, scale) = block.decode(codes, scales);
        for (j, weights) in weights.into_iter().enumerate() {
            let weights = if B::SCALED { weights.mul(scale) } else { weights };
            weights.store(out.as_mut_ptr().add(j * B::V::LANES));
        }
    }
}

/// Rows without blocks, decoded as everywhere.
pub(super) struct Plain<'a, V> {
    matrix: Matrix<'a>,
    level: PhantomData<fn() -> V>,
}

impl<V: Vector> Source for Plain<'_, V> {
    type V = V;
    const UNIT: usize = 1;

    fn column(place: usize) -> usize {
        place
    }

    fn base(&self, _: usize) -> f32 {
        1.0
    }

    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        self.matrix.decode_columns(row, first, out);
    }
}

/// Inputs by pieces of [`COLS`] columns in the order of decoding: vectors of inputs, each with those of all columns. Zeros
/// after the last column and the last input.
struct Packed {
    lines: Vec<CacheLine>,
    vectors: usize,
}

impl Packed {
    fn new<S: Source>(x: &ChunksExact<'_, f32>, cols: usize) -> Self {
        let vectors = x.len().div_ceil(S::V::LANES);
        let lines_a_vector = COLS * S::V::LANES / LINE;
        let mut lines = vec![CacheLine([0.0; LINE]); cols.div_ceil(COLS) * vectors * lines_a_vector];
        let pack = |(i, lines): (usize, &mut [CacheLine])| {
            let (first, vector) = (i / vectors * COLS, i % vectors);
            for (lane, x) in x.clone().skip(vector * S::V::LANES).take(S::V::LANES).enumerate() {
                let x = &x[first..cols.min(first + COLS)];
                for place in 0..x.len().next_multiple_of(S::UNIT) {
                    let column = place / S::UNIT * S::UNIT + S::column(place % S::UNIT);
                    if let Some(&x) = x.get(column) {
                        let at = place * S::V::LANES + lane;
                        lines[at / LINE].0[at % LINE] = x;
                    }
                }
            }
        };
        lines.par_chunks_exact_mut(lines_a_vector).enumerate().for_each(pack);
        Self { lines, vectors }
    }

    /// A piece and its vectors from one on.
    fn piece<V: Vector>(&self, piece: usize, vector: usize) -> &[CacheLine] {
        &self.lines[(piece * self.vectors + vector) * COLS * V::LANES / LINE..]
    }
}

/// A source and its inputs.
struct Panels<S> {
    source: S,
    cols: usize,
    inputs: Packed,
}

/// A pass over all inputs with blocks of codes.
pub(super) fn of_blocks<'a, B: Block + 'a>(
    block: B,
    matrix: Matrix<'a>,
    x: &ChunksExact<'_, f32>,
) -> Box<dyn Pass + 'a> {
    panels(Blocks { block, matrix }, matrix, x)
}

/// A pass over any inputs with rows that are decoded as everywhere.
pub(super) fn of_rows<'a, V: Vector + 'a>(matrix: Matrix<'a>, x: &ChunksExact<'_, f32>) -> Box<dyn Pass + 'a> {
    panels(Plain::<V> { matrix, level: PhantomData }, matrix, x)
}

fn panels<'a, S: Source + 'a>(source: S, matrix: Matrix<'a>, x: &ChunksExact<'_, f32>) -> Box<dyn Pass + 'a> {
    let cols = matrix.header().cols;
    let inputs = Packed::new::<S>(x, cols);
    Box::new(Panels { source, cols, inputs })
}

impl<S: Source> Pass for Panels<S> {
    fn rows(&self) -> usize {
        PANEL_ROWS
    }

    fn stride(&self) -> usize {
        self.inputs.vectors * S::V::LANES
    }

    fn of_rows(&self, first: usize, out: &mut [f32], stride: usize) {
        S::V::LEVEL.run(Panel { panels: self, first, out, stride });
    }
}

struct Panel<'a, S> {
    panels: &'a Panels<S>,
    first: usize,
    out: &'a mut [f32],
    stride: usize,
}

impl<S: Source> Kernel for Panel<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut weights = vec![0f32; PANEL_ROWS * COLS];
        for (i, out) in self.out.chunks_mut(PANEL_ROWS * self.stride).enumerate() {
            self.panels.together(self.first + i * PANEL_ROWS, out, self.stride, &mut weights);
        }
    }
}

impl<S: Source> Panels<S> {
    /// The products of [`PANEL_ROWS`] rows or fewer, run at the level of `S`, by way of these `weights`.
    #[inline(always)]
    fn together(&self, first: usize, out: &mut [f32], stride: usize, weights: &mut [f32]) {
        let Panels { source, cols, inputs } = self;
        let rows = out.len().div_ceil(stride);
        for (piece, start) in (0..*cols).step_by(COLS).enumerate() {
            let count = COLS.min(cols - start).next_multiple_of(S::UNIT);
            for (row, weights) in weights.chunks_exact_mut(COLS).take(rows).enumerate() {
                // SAFETY: `Level::run` has found the instructions.
                unsafe { source.decode(first + row, start, &mut weights[..count]) };
            }
            let mut vector = 0;
            while vector < inputs.vectors {
                let x = inputs.piece::<S::V>(piece, vector);
                let out = &mut out[vector * S::V::LANES..];
                vector += match (inputs.vectors - vector, S::V::SUMS) {
                    (1, 24..) => tiles::<S::V, 24, 1>(weights, x, count, out, stride),
                    (1, _) => tiles::<S::V, 12, 1>(weights, x, count, out, stride),
                    (_, 24..) => tiles::<S::V, 12, 2>(weights, x, count, out, stride),
                    (_, _) => tiles::<S::V, 6, 2>(weights, x, count, out, stride),
                };
            }
        }
        for (row, out) in out.chunks_mut(stride).enumerate() {
            let base = source.base(first + row);
            out[..inputs.vectors * S::V::LANES].iter_mut().for_each(|out| *out *= base);
        }
    }
}

/// Adds the products of all rows with `N` vectors of inputs, tile after tile; returns `N`.
#[inline(always)]
fn tiles<V: Vector, const R: usize, const N: usize>(
    weights: &[f32],
    x: &[CacheLine],
    count: usize,
    out: &mut [f32],
    stride: usize,
) -> usize {
    const { assert!(PANEL_ROWS.is_multiple_of(R)) };
    assert!(weights.len() == PANEL_ROWS * COLS && x.len() * LINE >= N * COLS * V::LANES && count <= COLS);
    let rows = out.chunks_mut(R * stride);
    for (weights, out) in weights.chunks_exact(R * COLS).zip(rows) {
        // SAFETY: there are `R` rows and `N` vectors of `COLS` columns, and `count` is no more. The instructions have been
        // found by whoever runs a kernel.
        let sums = unsafe { tile::<V, R, N>(weights.as_ptr(), x.as_ptr().cast(), count) };
        for (out, sums) in out.chunks_mut(stride).zip(sums) {
            for (out, sum) in out[..N * V::LANES].chunks_exact_mut(V::LANES).zip(sums) {
                // SAFETY: as above; the slice has as many values as there are lanes.
                unsafe { V::load(out.as_ptr()).add(sum).store(out.as_mut_ptr()) };
            }
        }
    }
    N
}

/// The sums over `count` columns of the products of `R` rows with `N` vectors.
///
/// # Safety
/// The processor has the instructions of `V`; from the addresses `R` and `N` times [`COLS`] columns can be read, of one and
/// of [`V::LANES`](Vector::LANES) values, and `count` is no more.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const N: usize>(
    weights: *const f32,
    x: *const f32,
    count: usize,
) -> [[V; N]; R] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[V::zero(); N]; R];
        for k in 0..count {
            let x: [V; N] = std::array::from_fn(|n| V::load(x.add((n * COLS + k) * V::LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(weights.add(r * COLS + k));
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = weight.mul_add(x, *sum);
                }
            }
        }
        sums
    }
}
