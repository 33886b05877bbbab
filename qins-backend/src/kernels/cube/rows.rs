//! Rows decoded to floats: those that an embedding looks up, or successive ones.

use super::{
    DevicePart, MAX_CUBES, decode,
    layout::{Coded, Layout},
};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 256;

/// Rows of a cube where they are many, so that copying the tables is little beside what is done with them.
const ROWS: usize = 4;

/// Which rows of a part are decoded.
pub(super) enum Which<'a, R: CubeRuntime> {
    /// Those of the whole matrix that indices `[n]` give, to the rows of a result `[n, in]`. Indices behind its last row mean
    /// the last; those of other parts are left out.
    Selected(&'a CubeTensor<R>),
    /// So many of the part's from one on, to the rows of a result from `first_row` on.
    Range { first: usize, n: usize },
}

/// Decodes rows of a part to floats.
pub(super) fn launch<R: CubeRuntime>(which: Which<R>, part: &DevicePart<R>, out: &CubeTensor<R>) {
    let layout = Layout::new(part.header);
    let (indices, first, n, selected, cube_rows) = match which {
        Which::Selected(indices) => (indices, 0, indices.meta.num_elements(), true, 1),
        // Something must be bound.
        Which::Range { first, n } => (part.codes, first, n, false, ROWS),
    };
    let types = [out.dtype.into(), indices.dtype.into()];
    let cubes = n.div_ceil(cube_rows);
    let across = cubes.min(MAX_CUBES);
    let [indices, codes, to] = [indices, part.codes, out].map(|tensor| tensor.clone().into_array_arg());
    // SAFETY: codes, scale codes and tables have the lengths that the header gives them; rows, columns and results are below
    // their numbers where they are read and written, whatever indices say; and any code chooses an entry of its table.
    unsafe {
        rows::launch_unchecked(
            &out.client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1),
            CubeDim::new_2d((UNITS / cube_rows) as u32, cube_rows as u32),
            width(&layout),
            indices,
            codes,
            part.coded(),
            to,
            first,
            n,
            selected,
            layout,
            types,
        );
    }
}

/// Weights that are written in one piece: those of rows that end within a unit one by one.
fn width(layout: &Layout) -> usize {
    if layout.whole { layout.unit_codes().min(4) } else { 1 }
}

/// See [`Which`].
#[cube(launch_unchecked)]
fn rows<F: Float, I: Int, N: Size>(
    indices: &Array<I>,
    codes: &Array<u32>,
    coded: &Coded,
    out: &mut Array<Vector<F, N>>,
    first: usize,
    count: usize,
    #[comptime] selected: bool,
    #[comptime] layout: Layout,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let unit_codes = comptime!(layout.unit_codes());
    let width = comptime!(width(&layout));
    let mut tables = SharedMemory::<f32>::new(comptime!(if layout.shares_tables() { layout.tables() } else { 1 }));
    if comptime!(layout.shares_tables()) {
        let mut i = UNIT_POS as usize;
        while i < comptime!(layout.tables()) {
            tables[i] = coded.tables[i];
            i += UNITS;
        }
        sync_cube();
    }
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let of = cube * CUBE_DIM_Y as usize + UNIT_POS_Y as usize;
    let mut row = first + of;
    let mut to = coded.first_row + of;
    let mut is_own = of < count;
    if comptime!(selected) {
        let index = min(usize::cast_from(indices[min(of, count - 1)]), coded.all_rows - 1);
        is_own = is_own && index >= coded.first_row && index - coded.first_row < coded.rows;
        row = index - coded.first_row;
        to = of;
    }
    if is_own {
        let base = decode::base(coded, row, layout);
        let mut weights = Array::<f32>::new(unit_codes);
        let mut unit = UNIT_POS_X as usize;
        while unit < coded.cols.div_ceil(unit_codes) {
            if comptime!(layout.shares_tables()) {
                decode::unit(codes, coded, &tables.to_slice(), base, row, unit, &mut weights, layout);
            } else {
                decode::unit(codes, coded, &coded.tables.to_slice(), base, row, unit, &mut weights, layout);
            }
            #[unroll]
            for piece in 0..comptime!(unit_codes / width) {
                let col = unit * unit_codes + comptime!(piece * width);
                if col < coded.cols {
                    let mut floats = Vector::<F, N>::empty();
                    #[unroll]
                    for i in 0..width {
                        floats[i] = F::cast_from(weights[comptime!(piece * width + i)]);
                    }
                    out[(to * coded.cols + col) / width] = floats;
                }
            }
            unit += CUBE_DIM_X as usize;
        }
    }
}
