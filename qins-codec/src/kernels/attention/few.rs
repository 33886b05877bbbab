//! Few queries: codes are decoded in registers, and used there.

use super::{FEW, Of, Softmax, Source, Stored, TOKENS, VECTORS, Vector, exp, reference};
use crate::dispatch::Kernel;
use std::ops::Range;

/// Bytes of a cache line.
const LINE: usize = 64;

impl<S: Source> Of<S> {
    /// Queries by blocks of columns, in the order of decoding: `[blocks, queries, COLS]`.
    pub(super) fn packed_few(&self, queries: &[f32], scale: f32) -> Vec<f32> {
        let count = queries.len() / self.head;
        let mut packed = vec![0.0; count * self.columns()];
        for (q, query) in queries.chunks_exact(self.head).enumerate() {
            for place in 0..self.columns() {
                if let Some(value) = query.get(Self::column(place)) {
                    let (block, lane) = (place / S::COLS, place % S::COLS);
                    packed[(block * count + q) * S::COLS + lane] = value * scale;
                }
            }
        }
        packed
    }

    /// Asks for the row of the next block that lies where this block has row `row`.
    #[inline(always)]
    fn prefetch(next: &[u8], row: usize) {
        let bytes = next.len() / TOKENS;
        for line in 0..bytes.div_ceil(LINE) {
            // SAFETY: a prefetch of any address is legal; the level's instructions are those of the running kernel.
            unsafe { S::V::prefetch(next.as_ptr().wrapping_add(row * bytes + line * LINE)) };
        }
    }
}

/// See [`Rows::scores`](super::Rows::scores).
pub(super) struct Scores<'a, S> {
    pub(super) of: &'a Of<S>,
    pub(super) keys: Stored<'a>,
    pub(super) range: Range<usize>,
    pub(super) queries: &'a [f32],
    pub(super) out: &'a mut [[f32; TOKENS]],
    pub(super) next: &'a [u8],
}

impl<S: Source> Kernel for Scores<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.out.len() {
            1 => self.of::<1>(),
            2 => self.of::<2>(),
            3 => self.of::<3>(),
            FEW => self.of::<FEW>(),
            more => unreachable!("{more} are more than a few queries"),
        }
    }
}

impl<S: Source> Scores<'_, S> {
    #[inline(always)]
    fn of<const M: usize>(self) {
        let Self { of, keys, range, queries, out, next } = self;
        let blocks = of.columns() / S::COLS;
        assert!(queries.len() == M * of.columns() && range.end <= TOKENS);
        // Sums of their own for each vector, where registers suffice: an addition must wait for the one before.
        let chains = if M <= 2 { VECTORS } else { 1 };
        for row in range {
            Of::<S>::prefetch(next, row);
            // SAFETY: `Level::run` has found the instructions, here and below.
            let mut sums = [[unsafe { S::V::zero() }; VECTORS]; M];
            for block in 0..blocks {
                // SAFETY: the row and the block exist; queries have `M` times `COLS` values a block.
                unsafe {
                    let keys = of.decode_block(keys, row, block);
                    let queries = queries.as_ptr().add(block * M * S::COLS);
                    for (q, sums) in sums.iter_mut().enumerate() {
                        for (j, keys) in keys.iter().enumerate() {
                            let query = S::V::load(queries.add(q * S::COLS + j * S::V::LANES));
                            sums[j % chains] = keys.mul_add(query, sums[j % chains]);
                        }
                    }
                }
            }
            let scale = of.row_scale(keys, row);
            for (out, sums) in out.iter_mut().zip(sums) {
                let [a, b, c, d] = sums;
                // SAFETY: as above.
                let sum = unsafe { if chains == 1 { a.sum() } else { a.add(b).add(c.add(d)).sum() } };
                out[row] = sum * scale;
            }
        }
    }
}

/// See [`Rows::add`](super::Rows::add).
pub(super) struct Add<'a, S> {
    pub(super) of: &'a Of<S>,
    pub(super) values: Stored<'a>,
    pub(super) range: Range<usize>,
    pub(super) weights: &'a [[f32; TOKENS]],
    pub(super) sums: &'a mut [f32],
    pub(super) next: &'a [u8],
}

impl<S: Source> Kernel for Add<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.weights.len() {
            1 => self.of::<1>(),
            2 => self.of::<2>(),
            3 => self.of::<3>(),
            FEW => self.of::<FEW>(),
            more => unreachable!("{more} are more than a few queries"),
        }
    }
}

impl<S: Source> Add<'_, S> {
    #[inline(always)]
    fn of<const M: usize>(self) {
        let Self { of, values, range, weights, sums, next } = self;
        let columns = of.columns();
        assert!(sums.len() == M * columns && range.end <= TOKENS);
        let mut scaled = [[0.0; TOKENS]; M];
        for row in range.clone() {
            let scale = of.row_scale(values, row);
            for (scaled, weights) in scaled.iter_mut().zip(weights) {
                scaled[row] = weights[row] * scale;
            }
        }
        for block in 0..columns / S::COLS {
            let at = |q: usize, j: usize| q * columns + block * S::COLS + j * S::V::LANES;
            // SAFETY: `Level::run` has found the instructions; sums are `M` times all columns.
            let mut of_block: [[S::V; VECTORS]; M] =
                std::array::from_fn(|q| std::array::from_fn(|j| unsafe { S::V::load(sums.as_ptr().add(at(q, j))) }));
            for row in range.clone() {
                if block == 0 {
                    Of::<S>::prefetch(next, row);
                }
                // SAFETY: as above; the row and the block exist.
                unsafe {
                    let values = of.decode_block(values, row, block);
                    for (sums, scaled) in of_block.iter_mut().zip(&scaled) {
                        let weight = S::V::splat(&scaled[row]);
                        for (sum, values) in sums.iter_mut().zip(values) {
                            *sum = values.mul_add(weight, *sum);
                        }
                    }
                }
            }
            for (q, of_block) in of_block.into_iter().enumerate() {
                for (j, sum) in of_block.into_iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { sum.store(sums.as_mut_ptr().add(at(q, j))) };
                }
            }
        }
    }
}

/// See [`softmax`](super::softmax).
pub(super) struct Weigh<'a> {
    pub(super) scores: &'a mut [f32; TOKENS],
    pub(super) range: Range<usize>,
    pub(super) state: &'a mut Softmax,
}

impl Kernel for Weigh<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { scores, range, state } = self;
        // What is not of the range weighs nothing; whole arrays become vectors.
        scores[..range.start].fill(f32::NEG_INFINITY);
        scores[range.end..].fill(f32::NEG_INFINITY);
        let mut lanes = [f32::NEG_INFINITY; 8];
        for scores in scores.as_chunks::<8>().0 {
            for (largest, &score) in lanes.iter_mut().zip(scores) {
                *largest = if score > *largest { score } else { *largest };
            }
        }
        let largest = lanes.into_iter().fold(state.largest, f32::max);
        let from = reference(largest);
        let mut totals = [0f32; 8];
        for scores in scores.as_chunks_mut::<8>().0 {
            for (total, score) in totals.iter_mut().zip(scores) {
                *score = exp(*score - from);
                *total += *score;
            }
        }
        let factor = exp(state.largest - from);
        *state = Softmax { largest, total: state.total * factor + totals.iter().sum::<f32>() };
        factor
    }
}
