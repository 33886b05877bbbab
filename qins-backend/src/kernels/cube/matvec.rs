//! Products with few inputs: a plane's worth of units shares a row, each reading every so many words of it.

use super::{
    decode,
    layout::{Coded, Layout},
};
use cubecl::prelude::*;

/// Inputs that are multiplied while a weight is decoded once.
pub(super) const INPUTS: usize = 8;

/// Units that share a row: neighbours read neighbouring words.
pub(super) const LANES: usize = 32;

/// Times as many in a cube.
pub(super) const LINES: usize = 4;

/// Rows of a line, which share what is read of the inputs.
pub(super) const LINE_ROWS: usize = 2;

/// Rows of a cube.
pub(super) const ROWS: usize = LINES * LINE_ROWS;

/// `x W^T`: `x [m, in]` to the columns of `out [m, out]` that are these rows of `W`.
#[cube(launch_unchecked)]
pub(super) fn matvec<F: Float>(
    x: &Array<F>,
    coded: &Coded,
    out: &mut Array<F>,
    #[comptime] m: usize,
    // Units of a subgroup, which divide those of a line; 1 where subgroups are not used.
    #[comptime] subgroup: usize,
    #[comptime] layout: Layout,
    #[define(F)] _dtype: StorageType,
) {
    let lane = UNIT_POS_X as usize;
    let line = UNIT_POS_Y as usize;
    let first_row = CUBE_POS_X as usize * ROWS + line * LINE_ROWS;
    let unit_codes = comptime!(layout.unit_codes());
    let sums_a_lane = comptime!(LINE_ROWS * m);

    let mut shared = SharedMemory::<f32>::new(comptime!(if layout.shares_tables() { layout.tables() } else { 1 }));
    if comptime!(layout.shares_tables()) {
        let mut i = line * LANES + lane;
        while i < comptime!(layout.tables()) {
            shared[i] = coded.tables[i];
            i += comptime!(LANES * LINES);
        }
        sync_cube();
    }

    let mut sums = Array::<f32>::new(sums_a_lane);
    let mut bases = Array::<f32>::new(LINE_ROWS);
    #[unroll]
    for i in 0..sums_a_lane {
        sums[i] = 0.0;
    }
    #[unroll]
    for r in 0..LINE_ROWS {
        bases[r] = decode::base(coded, min(first_row + r, coded.rows - 1), layout);
    }

    let units = coded.cols.div_ceil(unit_codes);
    let mut weights = Array::<f32>::new(comptime!(LINE_ROWS * unit_codes));
    let mut unit = lane;
    while unit < units {
        #[unroll]
        for r in 0..LINE_ROWS {
            // Rows behind the last are computed as the last, and not written.
            let row = min(first_row + r, coded.rows - 1);
            let first = comptime!(r * unit_codes);
            if comptime!(layout.shares_tables()) {
                decode::unit(coded, &shared.to_slice(), bases[r], row, unit, &mut weights, first, layout);
            } else {
                decode::unit(coded, &coded.tables.to_slice(), bases[r], row, unit, &mut weights, first, layout);
            }
        }
        #[unroll]
        for i in 0..unit_codes {
            let col = unit * unit_codes + i;
            #[unroll]
            for j in 0..m {
                let at = j * coded.cols;
                let value = if comptime!(layout.whole) {
                    f32::cast_from(x[at + col])
                } else {
                    // Codes behind the row's end are no weights.
                    select(col < coded.cols, f32::cast_from(x[at + min(col, coded.cols - 1)]), 0.0f32)
                };
                #[unroll]
                for r in 0..LINE_ROWS {
                    sums[comptime!(r * m + j)] += weights[comptime!(r * unit_codes + i)] * value;
                }
            }
        }
        unit += LANES;
    }

    // What is left of a sum: one of each subgroup, or of each unit. One more, so that units that add up different sums read
    // different banks.
    let width = comptime!(LANES / subgroup);
    let stride = comptime!(width + 1);
    let mut parts = SharedMemory::<f32>::new(comptime!(LINES * sums_a_lane * stride));
    #[unroll]
    for i in 0..sums_a_lane {
        let at = (line * sums_a_lane + i) * stride;
        if comptime!(subgroup > 1) {
            let sum = plane_sum(sums[i]);
            let in_subgroup = lane % subgroup;
            if in_subgroup == 0 {
                parts[at + lane / subgroup] = sum;
            }
        } else {
            parts[at + lane] = sums[i];
        }
    }
    sync_cube();
    let of_unit = line * LANES + lane;
    if of_unit < comptime!(LINES * sums_a_lane) {
        let mut sum = 0.0f32;
        for i in 0..width {
            sum += parts[of_unit * stride + i];
        }
        let row = CUBE_POS_X as usize * ROWS + of_unit / m;
        // Sums are ordered by row, then input.
        if row < coded.rows {
            out[(of_unit % m) * coded.all_rows + coded.first_row + row] = F::cast_from(sum);
        }
    }
}
