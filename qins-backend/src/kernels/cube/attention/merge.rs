//! What cubes found over spans of tokens, put together.

use super::few::HIDDEN;
use cubecl::prelude::*;

/// Units of a cube, which have columns of one query.
pub(super) const UNITS: usize = 64;

/// `parts` as `few.rs` writes them, to `out [lanes, rows, head]`.
#[cube(launch_unchecked)]
pub(super) fn merge<F: Float>(
    parts: &Array<f32>,
    out: &mut Array<F>,
    lanes: usize,
    rows: usize,
    splits: usize,
    head: usize,
    #[define(F)] _dtype: StorageType,
) {
    let (row, lane) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let first = lane * splits * rows + row;
    let states = lanes * splits * rows * head;
    let mut largest = f32::new(HIDDEN);
    for split in 0..splits {
        largest = max(largest, parts[states + (first + split * rows) * 2]);
    }
    let mut col = UNIT_POS as usize;
    while col < head {
        let mut sum = 0.0f32;
        let mut total = 0.0f32;
        for split in 0..splits {
            let part = first + split * rows;
            let weight = f32::exp(parts[states + part * 2] - largest);
            total += parts[states + part * 2 + 1] * weight;
            sum += parts[part * head + col] * weight;
        }
        out[(lane * rows + row) * head + col] = F::cast_from(sum / total);
        col += UNITS;
    }
}
