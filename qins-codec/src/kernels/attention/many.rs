//! Many queries: a block of tokens is decoded once, to memory that stays in the cache, for all of them.
//!
//! A lane is a query, so that decoded keys and values are broadcast, and nothing of the softmax goes across lanes.

use super::{DecodedBlock, Of, Source, Stored, TOKENS, Tile, Vector, exp, reference};
use crate::dispatch::Kernel;
use std::marker::PhantomData;

/// Vectors of queries in a tile.
pub(super) const VECTORS_A_TILE: usize = 2;

/// Rows whose sums registers hold beside that.
const ROWS: usize = 4;

/// Lanes of all tiles; the most that a level has.
const MOST_LANES: usize = 32;

impl<S: Source> Of<S> {
    /// Queries by tiles, in the order of decoding: `[tiles, columns, tile]`; zeros after the last.
    pub(super) fn packed_many(&self, queries: &[f32], scale: f32) -> Vec<f32> {
        let tile = VECTORS_A_TILE * S::V::LANES;
        let (count, columns) = (queries.len() / self.head, self.columns());
        let mut packed = vec![0.0; count.div_ceil(tile) * columns * tile];
        for (q, query) in queries.chunks_exact(self.head).enumerate() {
            let packed = &mut packed[q / tile * columns * tile..][q % tile..];
            for place in 0..columns {
                if let Some(value) = query.get(Self::column(place)) {
                    packed[place * tile] = value * scale;
                }
            }
        }
        packed
    }
}

/// See [`Rows::decode`](super::Rows::decode).
pub(super) struct Decode<'a, S> {
    pub(super) of: &'a Of<S>,
    pub(super) rows: Stored<'a>,
    pub(super) count: usize,
    pub(super) out: &'a mut [f32],
}

impl<S: Source> Kernel for Decode<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { of, rows, count, out } = self;
        let columns = of.columns();
        of.check(rows, count);
        for (row, out) in out.chunks_exact_mut(columns).take(count).enumerate() {
            let scale = of.row_scale(rows, row);
            for (block, out) in out.chunks_exact_mut(S::COLS).enumerate() {
                // SAFETY: `Level::run` has found the instructions; the row and the block exist, and a block is `VECTORS`
                // vectors.
                unsafe {
                    let scale = S::V::splat(&scale);
                    for (j, values) in of.decode_block(rows, row, block).into_iter().enumerate() {
                        values.mul(scale).store(out.as_mut_ptr().add(j * S::V::LANES));
                    }
                }
            }
        }
    }
}

/// See [`Rows::many`](super::Rows::many).
pub(super) struct Attend<'a, 'block, 'tile, V> {
    block: &'a DecodedBlock<'block>,
    tile: &'a mut Tile<'tile>,
    level: PhantomData<V>,
}

impl<'a, 'block, 'tile, V: Vector> Attend<'a, 'block, 'tile, V> {
    pub(super) fn new(block: &'a DecodedBlock<'block>, tile: &'a mut Tile<'tile>) -> Self {
        Self { block, tile, level: PhantomData }
    }
}

impl<V: Vector> Kernel for Attend<'_, '_, '_, V> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { block, tile, .. } = self;
        let lanes = VECTORS_A_TILE * V::LANES;
        let key_columns = tile.queries.len() / lanes;
        let &DecodedBlock { keys, values, value_columns, first, count } = block;
        assert!(count <= TOKENS && keys.len() >= count * key_columns && values.len() >= count * value_columns);
        assert!(tile.scores.len() >= count * lanes && tile.sums.len() == value_columns * lanes && lanes <= MOST_LANES);
        assert!([tile.largest.len(), tile.total.len(), tile.seen.len()] == [lanes; 3]);
        let whole = count / ROWS * ROWS;
        for row in (0..whole).step_by(ROWS) {
            // SAFETY: `Level::run` has found the instructions, here and below; the slices hold the rows, as asserted.
            unsafe {
                let keys = keys.as_ptr().add(row * key_columns);
                let zeros = [[V::zero(); VECTORS_A_TILE]; ROWS];
                let sums = products::<V, ROWS>(keys, key_columns, 1, tile.queries.as_ptr(), key_columns, zeros);
                store(sums, tile.scores.as_mut_ptr().add(row * lanes));
            }
        }
        for row in whole..count {
            // SAFETY: as above.
            unsafe {
                let keys = keys.as_ptr().add(row * key_columns);
                let zeros = [[V::zero(); VECTORS_A_TILE]; 1];
                let sums = products::<V, 1>(keys, key_columns, 1, tile.queries.as_ptr(), key_columns, zeros);
                store(sums, tile.scores.as_mut_ptr().add(row * lanes));
            }
        }
        let scores = &mut tile.scores[..count * lanes];
        if !tile.seen.iter().all(|seen| seen.start <= first && first + count <= seen.end) {
            for (row, scores) in scores.chunks_exact_mut(lanes).enumerate() {
                for (score, seen) in scores.iter_mut().zip(tile.seen) {
                    if !seen.contains(&(first + row)) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
        let mut largest = [f32::NEG_INFINITY; MOST_LANES];
        largest[..lanes].copy_from_slice(tile.largest);
        for scores in scores.chunks_exact(lanes) {
            for (largest, &score) in largest.iter_mut().zip(scores) {
                *largest = if score > *largest { score } else { *largest };
            }
        }
        let (mut from, mut factor, mut total) = ([0.0; MOST_LANES], [0.0; MOST_LANES], [0.0; MOST_LANES]);
        for lane in 0..lanes {
            from[lane] = reference(largest[lane]);
            factor[lane] = exp(tile.largest[lane] - from[lane]);
            total[lane] = tile.total[lane] * factor[lane];
        }
        for scores in scores.chunks_exact_mut(lanes) {
            for ((score, from), total) in scores.iter_mut().zip(&from).zip(&mut total) {
                *score = exp(*score - from);
                *total += *score;
            }
        }
        tile.largest.copy_from_slice(&largest[..lanes]);
        tile.total.copy_from_slice(&total[..lanes]);
        for column in (0..value_columns).step_by(ROWS) {
            // SAFETY: as above; columns are whole vectors, so a multiple of `ROWS`.
            unsafe {
                let at = tile.sums.as_mut_ptr().add(column * lanes);
                let factor: [V; VECTORS_A_TILE] = std::array::from_fn(|n| V::load(factor.as_ptr().add(n * V::LANES)));
                let sums: [[V; VECTORS_A_TILE]; ROWS] = std::array::from_fn(|r| {
                    std::array::from_fn(|n| V::load(at.add(r * lanes + n * V::LANES)).mul(factor[n]))
                });
                let values = values.as_ptr().add(column);
                store(products::<V, ROWS>(values, 1, value_columns, tile.scores.as_ptr(), count, sums), at);
            }
        }
    }
}

/// Adds to each of `R` sums the products of `count` numbers, `row` after those of the one before and `step` apart, with as
/// many tiles of lanes.
///
/// # Safety
/// The processor has the instructions of `V`; so many numbers and lanes can be read.
#[inline(always)]
unsafe fn products<V: Vector, const R: usize>(
    numbers: *const f32,
    row: usize,
    step: usize,
    lanes: *const f32,
    count: usize,
    mut sums: [[V; VECTORS_A_TILE]; R],
) -> [[V; VECTORS_A_TILE]; R] {
    // SAFETY: as the caller promises.
    unsafe {
        for k in 0..count {
            let lanes: [V; VECTORS_A_TILE] =
                std::array::from_fn(|n| V::load(lanes.add((k * VECTORS_A_TILE + n) * V::LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let number = V::splat(numbers.add(r * row + k * step));
                for (sum, lanes) in sums.iter_mut().zip(lanes) {
                    *sum = number.mul_add(lanes, *sum);
                }
            }
        }
        sums
    }
}

/// # Safety
/// The processor has the instructions of `V`; so much can be written.
#[inline(always)]
unsafe fn store<V: Vector, const R: usize>(sums: [[V; VECTORS_A_TILE]; R], to: *mut f32) {
    for (i, sum) in sums.into_iter().flatten().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { sum.store(to.add(i * V::LANES)) };
    }
}
