//! Attention over keys and values that stay encoded.
//!
//! Tokens come in blocks of [`TOKENS`], of one head each. For [few](few) queries codes are decoded in registers and used
//! there; for [many](many) a block is decoded once to memory that stays in the cache. Either way a block is visited once:
//! weights of the softmax are relative to the largest score so far, and what was summed before is scaled when a larger one
//! comes (the online softmax).
//!
//! How rows are decoded is a [`Block`], as for products; this folder has what all encodings share.

use super::{Block, Decoded, MOST_COLS, MOST_SCALES, VECTORS, Vector};
use crate::{dispatch::Level, kv::Encoding};
use std::{marker::PhantomData, ops::Range};

mod few;
mod many;
mod portable;

/// Tokens in a block.
pub(crate) const TOKENS: usize = 64;

/// Queries that are served from registers.
pub(crate) const FEW: usize = 4;

/// A block of tokens of one head as it is stored: [`TOKENS`] rows of codes, and as many of scales.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
}

/// Rows of an encoding on an instruction set. Columns are in the order in which they are decoded, and padded.
pub(crate) trait Rows: Sync {
    /// Columns of a row, padding included.
    fn columns(&self) -> usize;

    /// Queries `[rows, head]`, times `scale`, as [`scores`](Self::scores) wants them.
    fn few_queries(&self, queries: &[f32], scale: f32) -> Vec<f32>;

    /// Products of `range` of the block's keys with `m` queries, at most [`FEW`]. What lies at `next` is asked for.
    fn scores(&self, keys: Stored<'_>, range: Range<usize>, queries: &[f32], out: &mut [[f32; TOKENS]], next: &[u8]);

    /// Adds `range` of the block's values, each times its weight, to sums `[m, columns]`. What lies at `next` is asked for.
    fn add(&self, values: Stored<'_>, range: Range<usize>, weights: &[[f32; TOKENS]], sums: &mut [f32], next: &[u8]);

    /// Decodes the first `count` rows to `[count, columns]`.
    fn decode(&self, rows: Stored<'_>, count: usize, out: &mut [f32]);

    /// Vectors of queries `[rows, head]`, times `scale`, for [`many`](Self::many).
    fn many_queries(&self, queries: &[f32], scale: f32) -> Vec<f32>;

    /// Queries in a tile of [`many`](Self::many).
    fn tile(&self) -> usize;

    /// Attends the queries of some tiles to the first `count` tokens of a block, decoded.
    fn many(&self, block: &DecodedBlock<'_>, tile: &mut Tile<'_>);

    /// Sums over columns in the order of decoding to columns in order, `head` of them.
    fn in_order(&self, sums: &[f32], out: &mut [f32]);
}

/// A decoded block of tokens: `[tokens, columns]` each.
pub(crate) struct DecodedBlock<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    /// Columns of a value; those of a key are the queries'.
    pub(crate) value_columns: usize,
    /// Position of the block's first token.
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// A tile of queries and what has been summed for them.
pub(crate) struct Tile<'a> {
    /// `[columns of a key, tile]`
    pub(crate) queries: &'a [f32],
    /// The keys that each query sees, as positions.
    pub(crate) seen: &'a [Range<usize>],
    /// Largest score so far.
    pub(crate) largest: &'a mut [f32],
    /// Sum of weights so far.
    pub(crate) total: &'a mut [f32],
    /// `[columns of a value, tile]`
    pub(crate) sums: &'a mut [f32],
    /// For scores: `[TOKENS, tile]`.
    pub(crate) scores: &'a mut [f32],
}

/// How rows of a `head` are decoded at a level.
pub(crate) fn rows(level: Level, encoding: Encoding, head: usize) -> Box<dyn Rows> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx2Fixed => super::avx2::attention_rows(encoding, head),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Fixed => super::avx512::attention_rows(encoding, head),
        _ => portable::rows(encoding, head),
    }
}

/// `e^x` for `x` of at most 0, within 2e-7 of itself; 0 below -87; NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Where an f32 of this size has steps of 1: the sum rounds.
    const ROUND: f32 = 12_582_912.0;
    let place = x * std::f32::consts::LOG2_E + ROUND;
    let whole = place - ROUND;
    // ln 2 in two parts, the first of which has few bits.
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    // Of Cephes' expf.
    let mut series = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        series = series * rest + coefficient;
    }
    let fraction = series * rest * rest + rest + 1.0;
    let power = f32::from_bits(place.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { fraction * power }
}

/// What scores are taken relative to: where all are -infinity, nothing.
#[inline(always)]
fn reference(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// How the values of a block of columns are decoded, but for what the whole row is multiplied by.
trait Source: Sync {
    type V: Vector;
    /// Columns in a block.
    const COLS: usize = VECTORS * Self::V::LANES;
    /// Bytes of their codes.
    const CODE_BYTES: usize;
    /// Bytes of their scale codes.
    const SCALES: usize;

    fn column(lane: usize) -> usize;

    /// # Safety
    /// The processor has the instructions of [`V`](Self::V), and from the addresses [`CODE_BYTES`](Self::CODE_BYTES) and
    /// [`SCALES`](Self::SCALES) bytes can be read.
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> [Self::V; VECTORS];

    /// The first columns of a block, as [`Block::decode_part`].
    ///
    /// # Safety
    /// The processor has the instructions of [`V`](Self::V).
    unsafe fn decode_part(&self, codes: &[u8], scales: &[u8]) -> [Self::V; VECTORS];
}

/// One scale a row: a block's own are not looked at.
pub(super) struct Whole<B>(pub(super) B);

impl<B: Block> Source for Whole<B> {
    type V = B::V;
    const CODE_BYTES: usize = B::CODE_BYTES;
    const SCALES: usize = 0;

    fn column(lane: usize) -> usize {
        B::column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> [B::V; VECTORS] {
        const { assert!(B::SCALES <= MOST_SCALES) };
        static NONE: [u8; MOST_SCALES] = [0; MOST_SCALES];
        // SAFETY: as the caller promises; the array has as many scale codes as a block.
        unsafe { self.0.decode(codes, NONE.as_ptr()).0 }
    }

    #[inline(always)]
    unsafe fn decode_part(&self, codes: &[u8], _: &[u8]) -> [B::V; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe { self.0.decode_part(codes, &[]).0 }
    }
}

/// Scales of groups besides.
pub(super) struct Grouped<B>(pub(super) B);

impl<B: Block> Source for Grouped<B> {
    type V = B::V;
    const CODE_BYTES: usize = B::CODE_BYTES;
    const SCALES: usize = B::SCALES;

    fn column(lane: usize) -> usize {
        B::column(lane)
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, scales: *const u8) -> [B::V; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe { scaled::<B>(self.0.decode(codes, scales)) }
    }

    #[inline(always)]
    unsafe fn decode_part(&self, codes: &[u8], scales: &[u8]) -> [B::V; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe { scaled::<B>(self.0.decode_part(codes, scales)) }
    }
}

/// # Safety
/// The processor has the instructions of the block.
#[inline(always)]
unsafe fn scaled<B: Block>((mut weights, scale): Decoded<B::V>) -> [B::V; VECTORS] {
    if B::SCALED {
        for weights in &mut weights {
            // SAFETY: as the caller promises.
            *weights = unsafe { weights.mul(scale) };
        }
    }
    weights
}

/// Rows of a source.
struct Of<S> {
    source: S,
    head: usize,
    /// Bytes of a row.
    code_bytes: usize,
    base_bytes: usize,
    scale_bytes: usize,
}

pub(super) fn of_whole<B: Block + 'static>(block: B, encoding: Encoding, head: usize) -> Box<dyn Rows> {
    Box::new(Of::new(Whole(block), encoding, head))
}

pub(super) fn of_groups<B: Block + 'static>(block: B, encoding: Encoding, head: usize) -> Box<dyn Rows> {
    Box::new(Of::new(Grouped(block), encoding, head))
}

/// Numbers as they are.
pub(super) struct Full<V>(PhantomData<fn() -> V>);

impl<V> Default for Full<V> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<V: Vector> Block for Full<V> {
    type V = V;
    const CODE_BYTES: usize = size_of::<f32>() * Self::COLS;
    const SCALES: usize = 0;
    const SCALED: bool = false;

    fn column(lane: usize) -> usize {
        lane
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: *const u8, _: *const u8) -> Decoded<V> {
        const { assert!(cfg!(target_endian = "little"), "numbers lie in the order of files") };
        let codes = codes.cast::<f32>();
        // SAFETY: as the caller promises; loads need not be aligned.
        unsafe { (std::array::from_fn(|j| V::load(codes.add(j * V::LANES))), V::zero()) }
    }

    #[inline(always)]
    unsafe fn decode_part(&self, codes: &[u8], _: &[u8]) -> Decoded<V> {
        // SAFETY: as the caller promises; of a chunk all numbers can be read.
        unsafe {
            let mut vectors = [V::zero(); VECTORS];
            let chunks = codes.chunks_exact(V::LANES * size_of::<f32>());
            let last = chunks.remainder();
            let mut whole = 0;
            for codes in chunks {
                vectors[whole] = V::load(codes.as_ptr().cast());
                whole += 1;
            }
            if !last.is_empty() {
                let mut padded = [0f32; MOST_COLS];
                for (padded, code) in padded.iter_mut().zip(last.as_chunks().0) {
                    *padded = f32::from_le_bytes(*code);
                }
                vectors[whole] = V::load(padded.as_ptr());
            }
            (vectors, V::zero())
        }
    }
}

impl<S: Source> Of<S> {
    fn new(source: S, encoding: Encoding, head: usize) -> Self {
        let (code_bytes, scale_bytes) = (encoding.code_bytes(head), encoding.scale_bytes(head));
        Self { source, head, code_bytes, base_bytes: encoding.base_bytes(), scale_bytes }
    }

    fn columns(&self) -> usize {
        self.head.next_multiple_of(S::COLS)
    }

    /// The column at a place of a decoded row; beyond the head at padding.
    fn column(place: usize) -> usize {
        place / S::COLS * S::COLS + S::column(place % S::COLS)
    }

    /// Fails unless the first `count` rows are there.
    #[inline(always)]
    fn check(&self, rows: Stored<'_>, count: usize) {
        assert!(rows.codes.len() >= count * self.code_bytes && rows.scales.len() >= count * self.scale_bytes);
    }

    /// Decodes a block of columns of which the head has all.
    ///
    /// # Safety
    /// The processor has the instructions; the row was [checked](Self::check), and the block is in it.
    #[inline(always)]
    unsafe fn decode_whole(&self, rows: Stored<'_>, row: usize, block: usize) -> [S::V; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = rows.codes.as_ptr().add(row * self.code_bytes + block * S::CODE_BYTES);
            let scale = row * self.scale_bytes + self.base_bytes + block * S::SCALES;
            self.source.decode(codes, rows.scales.as_ptr().wrapping_add(scale))
        }
    }

    /// Decodes the last columns, where they are fewer than a block; what comes after has no meaning.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn decode_last(&self, rows: Stored<'_>, row: usize) -> [S::V; VECTORS] {
        let block = self.head / S::COLS;
        let codes = &rows.codes[row * self.code_bytes..][..self.code_bytes][block * S::CODE_BYTES..];
        let scales = &rows.scales[row * self.scale_bytes..][..self.scale_bytes][self.base_bytes + block * S::SCALES..];
        // SAFETY: as the caller promises.
        unsafe { self.source.decode_part(codes, scales) }
    }

    /// Decodes any block of columns.
    ///
    /// # Safety
    /// As for [`decode_whole`](Self::decode_whole).
    #[inline(always)]
    unsafe fn decode_block(&self, rows: Stored<'_>, row: usize, block: usize) -> [S::V; VECTORS] {
        // SAFETY: as the caller promises.
        unsafe {
            if block < self.head / S::COLS { self.decode_whole(rows, row, block) } else { self.decode_last(rows, row) }
        }
    }

    /// What rows are multiplied by, if by anything; those beyond the stored have no meaning.
    #[inline(always)]
    fn row_scales(&self, rows: Stored<'_>) -> Option<[f32; TOKENS]> {
        const BASE: usize = size_of::<f32>();
        let mut scales = [0.0; TOKENS];
        match (self.base_bytes, self.scale_bytes) {
            (0, _) => return None,
            // A loop of its own, because it becomes vectors.
            (BASE, BASE) => {
                for (scale, bytes) in scales.iter_mut().zip(rows.scales.as_chunks().0) {
                    *scale = f32::from_le_bytes(*bytes);
                }
            }
            _ => {
                for (row, scale) in scales.iter_mut().enumerate().take(rows.scales.len() / self.scale_bytes) {
                    *scale = self.row_scale(rows, row);
                }
            }
        }
        Some(scales)
    }

    /// What row `row` is multiplied by.
    #[inline(always)]
    fn row_scale(&self, rows: Stored<'_>, row: usize) -> f32 {
        match self.base_bytes {
            0 => 1.0,
            _ => f32::from_le_bytes(*rows.scales[row * self.scale_bytes..].first_chunk().expect("a row's scale")),
        }
    }
}

impl<S: Source> Rows for Of<S> {
    fn columns(&self) -> usize {
        Of::columns(self)
    }

    fn few_queries(&self, queries: &[f32], scale: f32) -> Vec<f32> {
        self.packed_few(queries, scale)
    }

    fn scores(&self, keys: Stored<'_>, range: Range<usize>, queries: &[f32], out: &mut [[f32; TOKENS]], next: &[u8]) {
        S::V::LEVEL.run(few::Scores { of: self, keys, range, queries, out, next });
    }

    fn add(&self, values: Stored<'_>, range: Range<usize>, weights: &[[f32; TOKENS]], sums: &mut [f32], next: &[u8]) {
        S::V::LEVEL.run(few::Add { of: self, values, range, weights, sums, next });
    }

    fn decode(&self, rows: Stored<'_>, count: usize, out: &mut [f32]) {
        S::V::LEVEL.run(many::Decode { of: self, rows, count, out });
    }

    fn many_queries(&self, queries: &[f32], scale: f32) -> Vec<f32> {
        self.packed_many(queries, scale)
    }

    fn tile(&self) -> usize {
        many::VECTORS_A_TILE * S::V::LANES
    }

    fn many(&self, block: &DecodedBlock<'_>, tile: &mut Tile<'_>) {
        S::V::LEVEL.run(many::Attend::<S::V>::new(block, tile));
    }

    fn in_order(&self, sums: &[f32], out: &mut [f32]) {
        for (place, &sum) in sums.iter().enumerate() {
            if let Some(out) = out.get_mut(Self::column(place)) {
                *out = sum;
            }
        }
    }
}

/// The softmax of one query over a block: makes scores of `range` to weights and returns what sums so far are multiplied by.
pub(crate) fn softmax(level: Level, scores: &mut [f32; TOKENS], range: Range<usize>, state: &mut Softmax) -> f32 {
    level.run(few::Weigh { scores, range, state })
}

/// A query's softmax so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    pub(crate) largest: f32,
    pub(crate) total: f32,
}

impl Default for Softmax {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, total: 0.0 }
    }
}

impl Softmax {
    /// Takes in what was found over other tokens: returns what sums of this and of the other are multiplied by.
    pub(crate) fn merge(&mut self, other: Softmax) -> [f32; 2] {
        let largest = if other.largest > self.largest { other.largest } else { self.largest };
        let factors = [self.largest, other.largest].map(|part| exp(part - reference(largest)));
        *self = Self { largest, total: self.total * factors[0] + other.total * factors[1] };
        factors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_close_and_ends_in_zero() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 3e-7, "e^{x} = {found}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-87.1), exp(-1e30), exp(f32::NEG_INFINITY)], [0.0; 3]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn parts_without_a_finite_score_change_nothing() {
        let mut whole = Softmax { largest: 2.0, total: 3.0 };
        assert_eq!(whole.merge(Softmax::default()), [1.0, 0.0]);
        assert_eq!((whole.largest, whole.total), (2.0, 3.0));
        let mut none = Softmax::default();
        none.merge(Softmax::default());
        assert_eq!(none.total, 0.0);
    }
}
