//! What cubes found over spans of tokens, put together.

use super::few::HIDDEN;
use cubecl::prelude::*;

/// Units of a cube along columns, and along spans: a long text has many.
pub(super) const SIDE: [usize; 2] = [32, 8];

const UNITS: usize = SIDE[0] * SIDE[1];

/// `parts` as `few.rs` writes them, to `out [lanes, rows, head]`. A cube has a row.
#[cube(launch_unchecked)]
pub(super) fn merge<F: Float>(
    parts: &Array<f32>,
    out: &mut Array<F>,
    lanes: usize,
    rows: usize,
    splits: usize,
    #[comptime] head: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let unit = y * comptime!(SIDE[0]) + x;
    let (row, lane) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let first = lane * splits * rows + row;
    let states = lanes * splits * rows * head;

    let mut largest_of = SharedMemory::<f32>::new(comptime!(UNITS));
    let mut largest = f32::new(HIDDEN);
    let mut split = unit;
    while split < splits {
        largest = max(largest, parts[states + (first + split * rows) * 2]);
        split += UNITS;
    }
    largest_of[unit] = largest;
    sync_cube();
    // Half as many each time.
    #[unroll]
    for bit in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!(UNITS >> (bit + 1));
        if unit < half {
            largest_of[unit] = max(largest_of[unit], largest_of[unit + half]);
        }
        sync_cube();
    }
    let largest = largest_of[0];

    let columns = comptime!(head.div_ceil(SIDE[0]));
    let mut sums = Array::<f32>::new(columns);
    #[unroll]
    for c in 0..columns {
        sums[c] = 0.0;
    }
    let mut total = 0.0f32;
    let mut split = y;
    while split < splits {
        let part = first + split * rows;
        let weight = f32::exp(parts[states + part * 2] - largest);
        total += parts[states + part * 2 + 1] * weight;
        #[unroll]
        for c in 0..columns {
            // Columns behind the last are computed as the last, and not written.
            sums[c] += parts[part * head + min(x + comptime!(c * SIDE[0]), head - 1)] * weight;
        }
        split += comptime!(SIDE[1]);
    }

    // Sums of a column, and in the last column the totals.
    let mut found = SharedMemory::<f32>::new(comptime!(UNITS * (columns + 1)));
    #[unroll]
    for c in 0..columns {
        found[c * UNITS + unit] = sums[c];
    }
    found[columns * UNITS + unit] = total;
    sync_cube();
    if y == 0 {
        let mut total = 0.0f32;
        #[unroll]
        for i in 0..comptime!(SIDE[1]) {
            total += found[columns * UNITS + i * comptime!(SIDE[0]) + x];
        }
        #[unroll]
        for c in 0..columns {
            let col = x + comptime!(c * SIDE[0]);
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..comptime!(SIDE[1]) {
                sum += found[c * UNITS + i * comptime!(SIDE[0]) + x];
            }
            if col < head {
                out[(lane * rows + row) * head + col] = F::cast_from(sum / total);
            }
        }
    }
}

/// What of a cube's own memory it takes.
pub(super) fn shared_bytes(head: usize) -> usize {
    UNITS * (head.div_ceil(SIDE[0]) + 2) * size_of::<f32>()
}
