//! Products of many inputs: a panel of weights is decoded once, to numbers that stay in the second-level cache, and multiplied
//! with all inputs, some rows and some vectors of inputs at a time, whose sums are as many as registers hold.
//!
//! A lane is an input, so that weights lie as rows are decoded and are broadcast. Each product is a sum over pieces of
//! [`COLS`] columns, each summed from zero in the order of decoding, whatever rows and inputs go with it: its bits depend
//! neither on the threads nor on the number of inputs.
//!
//! What weights and inputs become, and how a tile of them is multiplied, is an [`Arithmetic`]; how a row's codes become that,
//! [`Decode`].

use super::*;
use rayon::prelude::*;
use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
mod fixed;
mod float;

#[cfg(target_arch = "x86_64")]
pub(super) use fixed::{Bytes, Fixed, Integers, ONE, Pairs, Rounded, TWO, Whole, of_whole, unpacked};
pub(super) use float::Float;

/// Rows of a panel: whole tiles of every kind.
pub(super) const PANEL_ROWS: usize = 48;

/// Columns of a panel.
const COLS: usize = 256;

/// A piece of a row, or of an input, in the order of decoding.
type Piece = [f32; COLS];

/// Rows that are decoded a piece at a time.
pub(super) trait Source: Sync {
    /// Columns that are decoded together.
    const UNIT: usize;

    /// The column of a piece that is decoded to a place.
    fn column(place: usize) -> usize;

    /// What sums of the row are still to be multiplied by.
    fn base(&self, row: usize) -> f32;
}

/// How pieces of a source's rows are decoded for an arithmetic.
pub(super) trait Decode<A: Arithmetic>: Source {
    /// Decodes `count` columns, whole units, from `first` on; zeros after the last.
    ///
    /// # Safety
    /// The processor has the instructions of the source and of the arithmetic.
    unsafe fn decode(&self, row: usize, first: usize, count: usize, out: &mut A::Row);
}

/// What pieces of rows and inputs become, and how they are multiplied.
pub(super) trait Arithmetic: Sync {
    /// Sums, a lane for each input.
    type V: Vector;
    /// One that has the instructions.
    const LEVEL: Level;
    /// A piece of a row.
    type Row: Copy;
    /// A part of a piece of as many inputs as `V` has lanes.
    type Part: Copy + Send + Sync;
    /// Parts of a piece.
    const PARTS: usize;

    fn no_row() -> Self::Row;
    fn no_part() -> Self::Part;

    /// Puts one input's piece, of which `count` columns are used, into a lane.
    ///
    /// # Safety
    /// The processor has the instructions of the level, here and below.
    unsafe fn put(x: &Piece, count: usize, lane: usize, parts: &mut [Self::Part]);

    /// Adds the products of all rows with the first vectors of inputs, [`tiles`] of the best size; returns how many vectors
    /// those are.
    ///
    /// # Safety
    /// As for [`tile`](Self::tile), of all `vectors`.
    unsafe fn add(
        rows: &[Self::Row],
        x: &[Self::Part],
        vectors: usize,
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) -> usize;

    /// The sums over `count` columns of the products of `R` rows with `N` vectors of inputs.
    ///
    /// # Safety
    /// At the address are `N` times [`PARTS`](Self::PARTS), and `count` is at most [`COLS`].
    unsafe fn tile<const R: usize, const N: usize>(
        rows: &[Self::Row; R],
        x: *const Self::Part,
        count: usize,
    ) -> [[Self::V; N]; R];
}

/// Blocks of codes.
pub(super) struct Blocks<'a, B> {
    block: B,
    matrix: Matrix<'a>,
}

impl<B: Block> Source for Blocks<'_, B> {
    const UNIT: usize = B::COLS;

    fn column(place: usize) -> usize {
        place / B::COLS * B::COLS + B::column(place % B::COLS)
    }

    fn base(&self, row: usize) -> f32 {
        self.matrix.base(row)
    }
}

impl<B: Block> Blocks<'_, B> {
    /// Decodes as many columns as `out` is long, in whole blocks, from `first` on; zeros after the last.
    ///
    /// # Safety
    /// The processor has the instructions of the block.
    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        let header = self.matrix.header();
        let cols = header.cols;
        let (code_bytes, scale_bytes) = (header.format.code_bytes(cols), header.scale_bytes_of_row());
        let first = first / B::COLS;
        let whole = (cols / B::COLS - first).min(out.len() / B::COLS);
        let codes = &self.matrix.codes()[row * code_bytes..][..code_bytes][first * B::CODE_BYTES..];
        let scales = &self.matrix.scales()[row * scale_bytes..][..scale_bytes];
        let scales = &scales[header.base_bytes() + first * B::SCALES..];
        // SAFETY: as the caller promises.
        unsafe { ask_for_next::<B::V>(codes, code_bytes, COLS / B::COLS * B::CODE_BYTES) };
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
            let last = &mut last[..B::COLS];
            // SAFETY: the arrays hold one block.
            unsafe { decode_block(&self.block, codes.as_ptr(), scales.as_ptr(), last) };
            for (place, weight) in last.iter_mut().enumerate() {
                if B::column(place) >= cols % B::COLS {
                    *weight = 0.0;
                }
            }
        }
    }
}

/// Asks for the codes of the next piece, which is decoded when this one has been multiplied: of this row, or of the row in the
/// next panel. A row has so many bytes, `codes` are those from this piece on, and a piece has so many.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn ask_for_next<V: Vector>(codes: &[u8], row: usize, piece: usize) {
    let next = match piece < codes.len() {
        true => codes.as_ptr().wrapping_add(piece),
        false => codes.as_ptr().wrapping_add(codes.len() + (PANEL_ROWS - 1) * row),
    };
    for line in (0..codes.len().min(piece)).step_by(size_of::<CacheLine>()) {
        // SAFETY: as the caller promises.
        unsafe { V::prefetch(next.wrapping_add(line)) };
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
pub(super) struct Plain<'a> {
    matrix: Matrix<'a>,
}

impl Source for Plain<'_> {
    const UNIT: usize = 1;

    fn column(place: usize) -> usize {
        place
    }

    fn base(&self, _: usize) -> f32 {
        1.0
    }
}

impl<V: Vector> Decode<Float<V>> for Plain<'_> {
    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, count: usize, out: &mut float::Row) {
        self.matrix.decode_columns(row, first, &mut out.0[..count]);
    }
}

/// Inputs by pieces of [`COLS`] columns in the order of decoding: vectors of inputs, each with those of all columns. Zeros
/// after the last column and the last input.
struct Packed<A: Arithmetic> {
    parts: Vec<A::Part>,
    vectors: usize,
}

impl<A: Arithmetic> Packed<A> {
    fn new<S: Source>(x: &ChunksExact<'_, f32>, cols: usize) -> Self {
        let vectors = x.len().div_ceil(A::V::LANES);
        let columns: Vec<usize> = (0..COLS).map(S::column).collect();
        let mut parts = vec![A::no_part(); cols.div_ceil(COLS) * vectors * A::PARTS];
        parts.par_chunks_exact_mut(A::PARTS).enumerate().for_each(|(i, parts)| {
            let (piece, vector) = (i / vectors, i % vectors);
            let x = x.clone().skip(vector * A::V::LANES).take(A::V::LANES);
            A::LEVEL.run(Pack::<A, _> { x, from: piece * COLS, unit: S::UNIT, columns: &columns, parts });
        });
        Self { parts, vectors }
    }

    /// A piece and its vectors from one on.
    fn piece(&self, piece: usize, vector: usize) -> &[A::Part] {
        &self.parts[(piece * self.vectors + vector) * A::PARTS..]
    }
}

/// Fills the parts of a piece with some inputs.
struct Pack<'a, A: Arithmetic, X> {
    x: X,
    /// The first column.
    from: usize,
    /// Columns that are decoded together.
    unit: usize,
    /// The column of each place.
    columns: &'a [usize],
    parts: &'a mut [A::Part],
}

impl<'a, A: Arithmetic, X: Iterator<Item = &'a [f32]>> Kernel for Pack<'_, A, X> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (lane, x) in self.x.enumerate() {
            let x = &x[self.from..x.len().min(self.from + COLS)];
            let count = x.len().next_multiple_of(self.unit);
            let mut piece = [0.0; COLS];
            for (out, &column) in piece.iter_mut().zip(self.columns) {
                *out = x.get(column).copied().unwrap_or(0.0);
            }
            // SAFETY: this runs at the level.
            unsafe { A::put(&piece, count, lane, self.parts) };
        }
    }
}

/// A source and its inputs.
struct Panels<S, A: Arithmetic> {
    source: S,
    cols: usize,
    inputs: Packed<A>,
}

/// A pass over all inputs with blocks of codes.
pub(super) fn of_blocks<'a, A: Arithmetic + 'a, B: Block + 'a>(
    block: B,
    matrix: Matrix<'a>,
    x: &ChunksExact<'_, f32>,
) -> Box<dyn Pass + 'a>
where
    Blocks<'a, B>: Decode<A>,
{
    panels::<A, _>(Blocks { block, matrix }, matrix, x)
}

/// A pass over any inputs with rows that are decoded as everywhere.
pub(super) fn of_rows<'a, V: Vector + 'a>(matrix: Matrix<'a>, x: &ChunksExact<'_, f32>) -> Box<dyn Pass + 'a> {
    panels::<Float<V>, _>(Plain { matrix }, matrix, x)
}

fn panels<'a, A: Arithmetic + 'a, S: Decode<A> + 'a>(
    source: S,
    matrix: Matrix<'a>,
    x: &ChunksExact<'_, f32>,
) -> Box<dyn Pass + 'a> {
    let cols = matrix.header().cols;
    let inputs = Packed::<A>::new::<S>(x, cols);
    Box::new(Panels { source, cols, inputs })
}

impl<S: Decode<A>, A: Arithmetic> Pass for Panels<S, A> {
    fn rows(&self) -> usize {
        PANEL_ROWS
    }

    fn stride(&self) -> usize {
        self.inputs.vectors * A::V::LANES
    }

    fn of_rows(&self, first: usize, out: &mut [f32], stride: usize) {
        A::LEVEL.run(Panel { panels: self, first, out, stride });
    }
}

struct Panel<'a, S, A: Arithmetic> {
    panels: &'a Panels<S, A>,
    first: usize,
    out: &'a mut [f32],
    stride: usize,
}

impl<S: Decode<A>, A: Arithmetic> Kernel for Panel<'_, S, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut weights = vec![A::no_row(); PANEL_ROWS];
        for (i, out) in self.out.chunks_mut(PANEL_ROWS * self.stride).enumerate() {
            self.panels.together(self.first + i * PANEL_ROWS, out, self.stride, &mut weights);
        }
    }
}

impl<S: Decode<A>, A: Arithmetic> Panels<S, A> {
    /// The products of [`PANEL_ROWS`] rows or fewer, run at the level of `A`, by way of these `weights`.
    #[inline(always)]
    fn together(&self, first: usize, out: &mut [f32], stride: usize, weights: &mut [A::Row]) {
        let Panels { source, cols, inputs } = self;
        let rows = out.len().div_ceil(stride);
        for (piece, start) in (0..*cols).step_by(COLS).enumerate() {
            let count = COLS.min(cols - start).next_multiple_of(S::UNIT);
            for (row, weights) in weights.iter_mut().take(rows).enumerate() {
                // SAFETY: `Level::run` has found the instructions, here and below.
                unsafe { source.decode(first + row, start, count, weights) };
            }
            let mut vector = 0;
            while vector < inputs.vectors {
                let (parts, out) = (inputs.piece(piece, vector), &mut out[vector * A::V::LANES..]);
                // SAFETY: the parts are those of the vectors that are left.
                vector += unsafe { A::add(weights, parts, inputs.vectors - vector, count, out, stride) };
            }
        }
        for (row, out) in out.chunks_mut(stride).enumerate() {
            let base = source.base(first + row);
            out[..inputs.vectors * A::V::LANES].iter_mut().for_each(|out| *out *= base);
        }
    }
}

/// Adds the products of all rows with `N` vectors of inputs, `R` rows at a time; returns `N`.
///
/// # Safety
/// As for [`Arithmetic::tile`].
#[inline(always)]
unsafe fn tiles<A: Arithmetic, const R: usize, const N: usize>(
    rows: &[A::Row],
    x: &[A::Part],
    count: usize,
    out: &mut [f32],
    stride: usize,
) -> usize {
    const { assert!(PANEL_ROWS.is_multiple_of(R)) };
    assert!(x.len() >= N * A::PARTS && count <= COLS);
    for (rows, out) in rows.as_chunks::<R>().0.iter().zip(out.chunks_mut(R * stride)) {
        // SAFETY: as the caller promises, here and below; there are as many parts.
        let sums = unsafe { A::tile::<R, N>(rows, x.as_ptr(), count) };
        // By reference, as arrays that are moved are copied.
        for (out, sums) in out.chunks_mut(stride).zip(&sums) {
            let out = out[..N * A::V::LANES].as_mut_ptr();
            for (n, &sum) in sums.iter().enumerate() {
                // SAFETY: the slice has as many values as there are lanes.
                unsafe {
                    let out = out.add(n * A::V::LANES);
                    A::V::load(out).add(sum).store(out);
                }
            }
        }
    }
    N
}
