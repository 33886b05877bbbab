//! Rows decoded to floats: those that an embedding looks up, or all.

use super::{
    decode,
    layout::{Coded, Layout},
};
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 64;

/// Rows `indices [n]`, or all `n`, to their places in `out`: `[indices, cols]`, or the whole matrix. Indices count rows of the
/// whole matrix; those behind its last row are the last.
#[cube(launch_unchecked)]
pub(super) fn rows<F: Float, I: Int>(
    indices: &Array<I>,
    codes: &Array<u32>,
    coded: &Coded,
    out: &mut Array<F>,
    n: usize,
    #[comptime] selected: bool,
    #[comptime] layout: Layout,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let unit_codes = comptime!(layout.unit_codes());
    let units = coded.cols.div_ceil(unit_codes);
    let (of, unit) = (ABSOLUTE_POS / units, ABSOLUTE_POS % units);
    if of < n {
        let mut row = of;
        let mut to = coded.first_row + of;
        let mut is_own = true;
        if comptime!(selected) {
            let index = min(usize::cast_from(indices[of]), coded.all_rows - 1);
            is_own = index >= coded.first_row && index - coded.first_row < coded.rows;
            row = select(is_own, index - coded.first_row, 0);
            to = of;
        }
        let mut weights = Array::<f32>::new(unit_codes);
        let base = decode::base(coded, row, layout);
        decode::unit(codes, coded, &coded.tables.to_slice(), base, row, unit, &mut weights, layout);
        #[unroll]
        for i in 0..unit_codes {
            let col = unit * unit_codes + i;
            if col < coded.cols && is_own {
                out[to * coded.cols + col] = F::cast_from(weights[i]);
            }
        }
    }
}
