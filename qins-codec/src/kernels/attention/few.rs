//! Few queries: codes are decoded in registers, and used there.

use super::{FEW, Of, Softmax, Source, Stored, TOKENS, VECTORS, Vector, exp, reference};
use crate::{dispatch::Kernel, kernels::AT_ONCE};
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

    /// Asks for the rows of the next block that lie where this block has those from `row` on.
    #[inline(always)]
    fn prefetch(next: &[u8], row: usize) {
        let bytes = next.len() / TOKENS * AT_ONCE;
        let first = next.as_ptr().wrapping_add(row / AT_ONCE * bytes);
        for line in (0..bytes).step_by(LINE) {
            // SAFETY: a prefetch of any address is legal; the level's instructions are those of the running kernel.
            unsafe { S::V::prefetch(first.wrapping_add(line)) };
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
        match (self.out.len(), self.of.head.is_multiple_of(S::COLS)) {
            (1, true) => self.of::<1, true>(),
            (1, false) => self.of::<1, false>(),
            (2, true) => self.of::<2, true>(),
            (2, false) => self.of::<2, false>(),
            (3, true) => self.of::<3, true>(),
            (3, false) => self.of::<3, false>(),
            (FEW, true) => self.of::<FEW, true>(),
            (FEW, false) => self.of::<FEW, false>(),
            (more, _) => unreachable!("{more} are more than a few queries"),
        }
    }
}

impl<S: Source> Scores<'_, S> {
    /// `M` queries; `WHOLE` where a head is whole blocks of columns, so that tables stay in registers.
    #[inline(always)]
    fn of<const M: usize, const WHOLE: bool>(self) {
        let Self { of, keys, range, queries, out, next } = self;
        let (whole, columns) = (of.head / S::COLS, of.columns());
        assert!(queries.len() == M * columns && range.end <= TOKENS);
        of.check(keys, range.end);
        // SAFETY: `Level::run` has found the instructions, here and below; queries have `M` times `COLS` values a block.
        let add = |sums: &mut [S::V; M], keys: [S::V; VECTORS], block: usize| unsafe {
            let queries = queries.as_ptr().add(block * M * S::COLS);
            for (q, sum) in sums.iter_mut().enumerate() {
                let query = |j: usize| S::V::load(queries.add(q * S::COLS + j * S::V::LANES));
                // A sum of its own, because one multiplication must wait for another, blocks need not.
                let mut of_block = keys[0].mul(query(0));
                for (j, keys) in keys.iter().enumerate().skip(1) {
                    of_block = keys.mul_add(query(j), of_block);
                }
                *sum = sum.add(of_block);
            }
        };
        for first in range.clone().step_by(AT_ONCE) {
            Of::<S>::prefetch(next, first);
            // SAFETY: as above.
            let mut sums = [[unsafe { S::V::zero() }; AT_ONCE]; M];
            let count = AT_ONCE.min(range.end - first);
            for at in 0..count {
                let row = first + at;
                // SAFETY: as above.
                let mut of_row = [unsafe { S::V::zero() }; M];
                for block in 0..whole {
                    // SAFETY: as above; the rows were checked.
                    add(&mut of_row, unsafe { of.decode_whole(keys, row, block) }, block);
                }
                if !WHOLE {
                    // SAFETY: as above.
                    add(&mut of_row, unsafe { of.decode_last(keys, row) }, whole);
                }
                sums.iter_mut().zip(of_row).for_each(|(sums, of_row)| sums[at] = of_row);
            }
            for (out, sums) in out.iter_mut().zip(sums) {
                // SAFETY: as above.
                let sums = unsafe { S::V::sum_each(sums) };
                match out[first..].first_chunk_mut() {
                    // What comes after `count` has no meaning.
                    Some(out) => *out = sums,
                    None => out[first..].copy_from_slice(&sums[..TOKENS - first]),
                }
            }
        }
        if let Some(scales) = of.row_scales(keys) {
            for out in out {
                out.iter_mut().zip(&scales).for_each(|(out, scale)| *out *= scale);
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
        of.check(values, range.end);
        let mut scaled: [[f32; TOKENS]; M] = std::array::from_fn(|q| weights[q]);
        if let Some(scales) = of.row_scales(values) {
            for scaled in &mut scaled {
                scaled.iter_mut().zip(&scales).for_each(|(weight, scale)| *weight *= scale);
            }
        }
        for block in 0..columns / S::COLS {
            let at = |q: usize, j: usize| q * columns + block * S::COLS + j * S::V::LANES;
            // SAFETY: `Level::run` has found the instructions, here and below; sums are `M` times all columns.
            let mut of_block: [[S::V; VECTORS]; M] =
                std::array::from_fn(|q| std::array::from_fn(|j| unsafe { S::V::load(sums.as_ptr().add(at(q, j))) }));
            let mut add = |values: [S::V; VECTORS], row: usize| {
                for (sums, scaled) in of_block.iter_mut().zip(&scaled) {
                    // SAFETY: as above.
                    let weight = unsafe { S::V::splat(&scaled[row]) };
                    for (sum, values) in sums.iter_mut().zip(values) {
                        // SAFETY: as above.
                        *sum = unsafe { values.mul_add(weight, *sum) };
                    }
                }
            };
            if block * S::COLS + S::COLS > of.head {
                for row in range.clone() {
                    // SAFETY: as above.
                    add(unsafe { of.decode_last(values, row) }, row);
                }
            } else {
                let next = if block == 0 { next } else { &[] };
                for first in range.clone().step_by(AT_ONCE) {
                    Of::<S>::prefetch(next, first);
                    for row in first..range.end.min(first + AT_ONCE) {
                        // SAFETY: as above; the rows were checked.
                        add(unsafe { of.decode_whole(values, row, block) }, row);
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

/// Sums side by side.
const LANES: usize = 16;

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
        // What is not of the range weighs nothing. Plain loops over the whole array are what becomes vectors.
        scores[..range.start].fill(f32::NEG_INFINITY);
        scores[range.end..].fill(f32::NEG_INFINITY);
        let (parts, []) = scores.as_chunks_mut::<LANES>() else { unreachable!("tokens are whole parts") };
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for part in &*parts {
            for (largest, &score) in lanes.iter_mut().zip(part) {
                *largest = if score > *largest { score } else { *largest };
            }
        }
        let largest = lanes.into_iter().fold(state.largest, f32::max);
        let from = reference(largest);
        let mut totals = [0f32; LANES];
        for part in parts {
            for (total, score) in totals.iter_mut().zip(part) {
                *score = exp(*score - from);
                *total += *score;
            }
        }
        let factor = exp(state.largest - from);
        *state = Softmax { largest, total: state.total * factor + totals.iter().sum::<f32>() };
        factor
    }
}
