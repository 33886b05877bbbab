//! Attention of many queries, a prompt's: a tile of keys, then of values, is decoded into a cube's own memory once for the
//! cube's queries. The softmax is the online one.

use super::{
    few::HIDDEN,
    room::{Room, Seen, Stored, decode, first_seen, padding_of, row_at, scale_of},
};
use cubecl::prelude::*;

/// Units of a cube along keys or columns, and along queries.
pub(super) const SIDE: [usize; 2] = [16, 8];

const UNITS: usize = SIDE[0] * SIDE[1];

/// How much of the work is a cube's, and a unit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Queries of a unit.
    queries: usize,
    /// Keys of a unit, in a tile.
    keys: usize,
}

impl Tile {
    const ALL: [Self; 4] = [
        Self { queries: 4, keys: 2 },
        Self { queries: 4, keys: 1 },
        Self { queries: 2, keys: 1 },
        Self { queries: 1, keys: 1 },
    ];

    /// The largest for which a cube has memory.
    pub(super) fn fitting(head: usize, shared: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|tile| tile.shared_bytes(head) <= shared)
    }

    /// Queries of a cube.
    pub(super) fn queries(&self) -> usize {
        self.queries * SIDE[1]
    }

    /// Keys of a tile; a whole number of tiles is a block.
    fn keys(&self) -> usize {
        self.keys * SIDE[0]
    }

    /// Units that share a query's softmax.
    fn units(&self) -> usize {
        UNITS / self.queries()
    }

    fn shared_bytes(&self, head: usize) -> usize {
        let rows = self.queries() + self.keys();
        (rows * stride(head) + self.queries() * (self.keys() + 1) + UNITS + self.queries()) * size_of::<f32>()
    }
}

/// From one row to the next in a cube's memory: odd, so that units that read a column reach different banks.
fn stride(head: usize) -> usize {
    head | 1
}

/// `queries [lanes, rows, head]` to `out`, of the same shape.
#[cube(launch_unchecked)]
pub(super) fn many<F: Float>(
    queries: &Array<F>,
    room: &Room,
    seen: &Seen,
    out: &mut Array<F>,
    rows: usize,
    #[comptime] tile: Tile,
    #[comptime] stored: Stored,
    #[define(F)] _dtype: StorageType,
) {
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let unit = y * comptime!(SIDE[0]) + x;
    let (first_row, lane) = (CUBE_POS_X as usize * comptime!(tile.queries()), CUBE_POS_Y as usize);
    let head = comptime!(stored.keys.head);
    let row_stride = comptime!(stride(head));
    let (tile_queries, tile_keys) = comptime!((tile.queries(), tile.keys()));
    let (unit_queries, unit_keys) = comptime!((tile.queries, tile.keys));
    let score_stride = comptime!(tile.keys() + 1);
    let unit_columns = comptime!(head.div_ceil(SIDE[0]));
    let padding = padding_of(room, lane, stored);

    let mut query = SharedMemory::<f32>::new(comptime!(tile.queries() * stride(head)));
    let mut decoded = SharedMemory::<f32>::new(comptime!(tile.keys() * stride(head)));
    let mut scores = SharedMemory::<f32>::new(comptime!(tile.queries() * (tile.keys() + 1)));
    let mut factors = SharedMemory::<f32>::new(comptime!(tile.queries()));
    let mut exchanged = SharedMemory::<f32>::new(comptime!(UNITS));

    let mut i = unit;
    while i < comptime!(tile.queries() * head) {
        let (row, col) = (i / head, i % head);
        // Rows behind the last are computed as the last, and not written.
        let at = (lane * rows + min(first_row + row, rows - 1)) * head + col;
        query[row * row_stride + col] = f32::cast_from(queries[at]) * comptime!(stored.keys.score_scale());
        i += UNITS;
    }
    // Of all rows, but for padding.
    let mut start = seen.len;
    let mut end = 0usize;
    for row in 0..tile_queries {
        let token = seen.len - seen.tokens + min(first_row + row, rows - 1) % seen.tokens;
        start = min(start, first_seen(seen, token, 0));
        end = max(end, token + 1);
    }

    // Some units share the softmax of a row, each with every so many of its keys.
    let (own_row, own_key) = (unit / comptime!(tile.units()), unit % comptime!(tile.units()));
    let own_token = seen.len - seen.tokens + min(first_row + own_row, rows - 1) % seen.tokens;
    let own_first = first_seen(seen, own_token, padding);
    let mut largest = f32::new(HIDDEN);
    let mut total = 0.0f32;

    let mut found = Array::<f32>::new(comptime!(unit_queries * unit_keys));
    let mut values = Array::<f32>::new(comptime!(unit_queries * unit_columns));
    #[unroll]
    for i in 0..comptime!(unit_queries * unit_columns) {
        values[i] = 0.0;
    }

    let mut first = start / tile_keys * tile_keys;
    while first < end {
        // The values before are read.
        sync_cube();
        load(room, lane, first, seen.len, &mut decoded, tile, stored, false);
        sync_cube();
        #[unroll]
        for i in 0..comptime!(unit_queries * unit_keys) {
            found[i] = 0.0;
        }
        for col in 0..head {
            #[unroll]
            for q in 0..unit_queries {
                let weight = query[(y + comptime!(q * SIDE[1])) * row_stride + col];
                #[unroll]
                for k in 0..unit_keys {
                    let key = (x + comptime!(k * SIDE[0])) * row_stride + col;
                    found[comptime!(q * unit_keys + k)] += weight * decoded[key];
                }
            }
        }
        #[unroll]
        for q in 0..unit_queries {
            #[unroll]
            for k in 0..unit_keys {
                let at = (y + comptime!(q * SIDE[1])) * score_stride + x + comptime!(k * SIDE[0]);
                scores[at] = found[comptime!(q * unit_keys + k)];
            }
        }
        sync_cube();
        load(room, lane, first, seen.len, &mut decoded, tile, stored, true);
        let mut own_largest = f32::new(HIDDEN);
        #[unroll]
        for i in 0..comptime!(tile.keys() / tile.units()) {
            let key = own_key + comptime!(i * tile.units());
            let is_seen = first + key >= own_first && first + key <= own_token;
            let score = select(is_seen, scores[own_row * score_stride + key], HIDDEN);
            own_largest = max(own_largest, score);
        }
        exchanged[unit] = own_largest;
        sync_cube();
        let before = largest;
        #[unroll]
        for i in 0..comptime!(tile.units()) {
            largest = max(largest, exchanged[own_row * comptime!(tile.units()) + i]);
        }
        let factor = f32::exp(before - largest);
        total *= factor;
        #[unroll]
        for i in 0..comptime!(tile.keys() / tile.units()) {
            let key = own_key + comptime!(i * tile.units());
            let is_seen = first + key >= own_first && first + key <= own_token;
            let at = own_row * score_stride + key;
            let weight = select(is_seen, f32::exp(scores[at] - largest), 0.0f32);
            total += weight;
            scores[at] = weight;
        }
        if own_key == 0 {
            factors[own_row] = factor;
        }
        sync_cube();
        #[unroll]
        for q in 0..unit_queries {
            let factor = factors[y + comptime!(q * SIDE[1])];
            #[unroll]
            for c in 0..unit_columns {
                values[comptime!(q * unit_columns + c)] *= factor;
            }
        }
        for key in 0..tile_keys {
            #[unroll]
            for q in 0..unit_queries {
                let weight = scores[(y + comptime!(q * SIDE[1])) * score_stride + key];
                #[unroll]
                for c in 0..unit_columns {
                    // Columns behind the last are computed as the last, and not written.
                    let col = min(x + comptime!(c * SIDE[0]), head - 1);
                    values[comptime!(q * unit_columns + c)] += weight * decoded[key * row_stride + col];
                }
            }
        }
        first += tile_keys;
    }

    sync_cube();
    exchanged[unit] = total;
    sync_cube();
    #[unroll]
    for q in 0..unit_queries {
        let row = y + comptime!(q * SIDE[1]);
        let mut total = 0.0f32;
        #[unroll]
        for i in 0..comptime!(tile.units()) {
            total += exchanged[row * comptime!(tile.units()) + i];
        }
        #[unroll]
        for c in 0..unit_columns {
            let col = x + comptime!(c * SIDE[0]);
            if col < head && first_row + row < rows {
                let at = (lane * rows + first_row + row) * head + col;
                out[at] = F::cast_from(values[comptime!(q * unit_columns + c)] / total);
            }
        }
    }
}

/// Decodes a tile of keys or values from token `first` on; those behind the last token are as the last.
#[cube]
fn load(
    room: &Room,
    lane: usize,
    first: usize,
    len: usize,
    decoded: &mut SharedMemory<f32>,
    #[comptime] tile: Tile,
    #[comptime] stored: Stored,
    #[comptime] values: bool,
) {
    let rows = comptime!(if values { stored.values } else { stored.keys });
    let words = comptime!(rows.words());
    let mut i = UNIT_POS as usize;
    while i < comptime!(tile.keys() * rows.words()) {
        let (row, at) = (i / words, i % words);
        let token = min(first + row, len - 1) - room.before;
        let (codes, scale) = row_at(room.lanes, lane, token, stored, values);
        let word = room.words[codes + at];
        let scale = scale_of(&room.words, scale, rows);
        #[unroll]
        for j in 0..comptime!(rows.word_codes()) {
            let col = at * comptime!(rows.word_codes()) + j;
            if col < comptime!(rows.head) {
                decoded[row * comptime!(stride(rows.head)) + col] = decode(word, j, rows) * scale;
            }
        }
        i += UNITS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BLOCK;

    /// WebGPU promises 16 KiB, llvmpipe has 32.
    #[test]
    fn tiles_are_as_large_as_a_cubes_memory_allows() {
        let queries = |head, shared| Tile::fitting(head, shared).map(|tile| tile.queries());
        assert_eq!([96, 128, 256].map(|head| queries(head, 1 << 15)), [Some(32), Some(32), Some(8)]);
        assert_eq!([96, 128, 256].map(|head| queries(head, 1 << 14)), [Some(16), Some(8), None]);
        assert!(Tile::ALL.iter().all(|tile| BLOCK.is_multiple_of(tile.keys()) && tile.keys() >= tile.units()));
    }
}
