//! Products with many inputs, a prompt's, without matrix units: a tile of weights is decoded into a cube's own memory once for all
//! inputs of the cube.

use super::{
    decode,
    layout::{Coded, Layout},
};
use cubecl::prelude::*;

/// Rows of weights of a cube.
pub(super) const ROWS: usize = 64;

/// Inputs of a cube.
pub(super) const INPUTS: usize = 32;

/// Columns that are decoded at a time: whole units of every format.
const COLS: usize = 32;

/// Results of a unit along either side: it has this many rows, each so many units apart, of as many inputs.
const SIDE: usize = 4;

/// Units of a cube along rows and along inputs.
pub(super) const UNITS: [usize; 2] = [ROWS / SIDE, INPUTS / SIDE];

const ALL_UNITS: usize = UNITS[0] * UNITS[1];

/// From one column to the next in a tile of inputs: one more than inputs, so that units that write successive columns
/// reach different banks.
const STRIDE: usize = INPUTS + 1;

/// `x W^T`: `x [m, in]` to the columns of `out [m, out]` that are these rows of `W`.
#[cube(launch_unchecked)]
pub(super) fn tile<F: Float>(
    x: &Array<F>,
    codes: &Array<u32>,
    coded: &Coded,
    out: &mut Array<F>,
    m: usize,
    #[comptime] layout: Layout,
    #[define(F)] _dtype: StorageType,
) {
    let this = UNIT_POS as usize;
    let first_row = CUBE_POS_X as usize * ROWS;
    let first_input = CUBE_POS_Y as usize * INPUTS;
    let unit_codes = comptime!(layout.unit_codes());
    let units = coded.cols.div_ceil(unit_codes);

    let mut tables = SharedMemory::<f32>::new(comptime!(if layout.shares_tables() { layout.tables() } else { 1 }));
    if comptime!(layout.shares_tables()) {
        let mut i = this;
        while i < comptime!(layout.tables()) {
            tables[i] = coded.tables[i];
            i += ALL_UNITS;
        }
    }
    let mut weights = SharedMemory::<f32>::new(comptime!(ROWS * COLS));
    let mut inputs = SharedMemory::<f32>::new(comptime!(STRIDE * COLS));

    // A unit always decodes weights of one row. Rows behind the last are computed as the last, and not written.
    let own_row = this % ROWS;
    let row = min(first_row + own_row, coded.rows - 1);
    let base = decode::base(coded, row, layout);
    let mut decoded = Array::<f32>::new(unit_codes);
    let mut sums = Array::<f32>::new(comptime!(SIDE * SIDE));
    #[unroll]
    for i in 0..comptime!(SIDE * SIDE) {
        sums[i] = 0.0;
    }

    let mut first_col = 0usize;
    while first_col < coded.cols {
        // The tile before is read, the tables are written.
        sync_cube();
        let mut own_unit = this / ROWS;
        while own_unit < comptime!(COLS / unit_codes) {
            let unit = first_col / unit_codes + own_unit;
            // What lies behind the row's end meets inputs of zero.
            if unit < units {
                if comptime!(layout.shares_tables()) {
                    decode::unit(codes, coded, &tables.to_slice(), base, row, unit, &mut decoded, layout);
                } else {
                    decode::unit(codes, coded, &coded.tables.to_slice(), base, row, unit, &mut decoded, layout);
                }
            } else {
                #[unroll]
                for i in 0..unit_codes {
                    decoded[i] = 0.0;
                }
            }
            #[unroll]
            for i in 0..unit_codes {
                weights[(own_unit * unit_codes + i) * ROWS + own_row] = decoded[i];
            }
            own_unit += comptime!(ALL_UNITS / ROWS);
        }
        let mut i = this;
        while i < comptime!(INPUTS * COLS) {
            let (input, col) = (first_input + i / COLS, first_col + i % COLS);
            let inside = input < m && col < coded.cols;
            let at = min(input, m - 1) * coded.cols + min(col, coded.cols - 1);
            inputs[(i % COLS) * STRIDE + i / COLS] = select(inside, f32::cast_from(x[at]), 0.0f32);
            i += ALL_UNITS;
        }
        sync_cube();

        for col in 0..COLS {
            #[unroll]
            for r in 0..SIDE {
                let weight = weights[col * ROWS + UNIT_POS_X as usize + comptime!(r * UNITS[0])];
                #[unroll]
                for j in 0..SIDE {
                    let value = inputs[col * STRIDE + UNIT_POS_Y as usize + comptime!(j * UNITS[1])];
                    sums[comptime!(r * SIDE + j)] += weight * value;
                }
            }
        }
        first_col += COLS;
    }

    #[unroll]
    for r in 0..SIDE {
        #[unroll]
        for j in 0..SIDE {
            let row = first_row + UNIT_POS_X as usize + comptime!(r * UNITS[0]);
            let input = first_input + UNIT_POS_Y as usize + comptime!(j * UNITS[1]);
            if row < coded.rows && input < m {
                out[input * coded.all_rows + coded.first_row + row] = F::cast_from(sums[comptime!(r * SIDE + j)]);
            }
        }
    }
}
