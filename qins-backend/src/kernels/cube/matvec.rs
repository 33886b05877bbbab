//! Products with few inputs: a line of units shares rows, each unit reading every so many words of them.

use super::{
    decode,
    layout::{Coded, Layout},
};
use cubecl::prelude::*;

/// Inputs that are multiplied while a weight is decoded once.
pub(super) const INPUTS: usize = 8;

/// Units that share rows: neighbours read neighbouring words.
pub(super) const LANES: usize = 32;

/// Times as many in a cube, so that copying the tables is little beside what is done with them.
pub(super) const LINES: usize = 8;

/// Bytes of a cube's own memory that every CUDA device has without being asked, and no kernel here exceeds.
const SHARED_BYTES: usize = 48 << 10;

/// How a product is divided, a constant of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Division {
    /// Inputs.
    pub(super) m: usize,
    /// Rows of a line, which share what is read of the inputs.
    pub(super) line_rows: usize,
    /// Units of a subgroup, which divide those of a line; 1 where subgroups are not used.
    subgroup: usize,
    /// Words, or inputs, that are read in one piece. More than 1 only where every row ends with a whole step.
    pub(super) width: usize,
    /// Copies of each value in the cube's own memory, so that units that look up different ones reach different banks.
    copies: usize,
}

impl Division {
    /// For `rows` rows of `cols` columns, on a device with `shared_bytes` of memory for each cube.
    pub(super) fn new(
        layout: &Layout,
        [rows, cols]: [usize; 2],
        m: usize,
        subgroup: usize,
        shared_bytes: usize,
    ) -> Self {
        let line_rows = match m {
            // Enough cubes are left to keep a large device busy.
            1 | 2 if rows >= 8192 => 4,
            5.. if subgroup == 1 => 1,
            _ => 2,
        };
        // Some 32 codes, so that even narrow rows have a step for most lanes.
        let fits =
            |width: &usize| cols.is_multiple_of(width * layout.unit_codes()) && width * layout.unit_codes() <= 32;
        let width = if layout.unit_words == 1 { [4, 2].into_iter().find(fits).unwrap_or(1) } else { 1 };
        let mut division = Self { m, line_rows, subgroup, width, copies: 1 };
        let most = shared_bytes.min(SHARED_BYTES);
        while layout.looks_up() && division.copies < LANES {
            let twice = Self { copies: division.copies * 2, ..division };
            if twice.shared_bytes(layout) > most {
                break;
            }
            division = twice;
        }
        division
    }

    /// Rows of a cube.
    pub(super) fn rows(&self) -> usize {
        LINES * self.line_rows
    }

    fn sums(&self) -> usize {
        self.line_rows * self.m
    }

    /// What is left of a sum: one of each subgroup, or of each unit. One more, so that units that add up different sums read
    /// different banks.
    fn stride(&self) -> usize {
        LANES / self.subgroup + 1
    }

    fn tables(&self, layout: &Layout) -> usize {
        if layout.shares_tables() { layout.values() * self.copies + 256 } else { 1 }
    }

    fn shared_bytes(&self, layout: &Layout) -> usize {
        size_of::<f32>() * (self.tables(layout) + LINES * self.sums() * self.stride())
    }
}

/// `x W^T`: `x [m, in]` to the columns of `out [m, out]` that are these rows of `W`.
#[cube(launch_unchecked)]
pub(super) fn matvec<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    codes: &Array<Vector<u32, N>>,
    coded: &Coded,
    out: &mut Array<F>,
    #[comptime] division: Division,
    #[comptime] layout: Layout,
    #[define(F)] _dtype: StorageType,
) {
    let lane = UNIT_POS_X as usize;
    let line = UNIT_POS_Y as usize;
    let m = comptime!(division.m);
    let line_rows = comptime!(division.line_rows);
    let first_row = CUBE_POS_X as usize * comptime!(division.rows()) + line * line_rows;
    let width = comptime!(division.width);
    let copies = comptime!(division.copies);
    // Not the remainder where there is none to take: knowing it, compilers take longer to compute addresses.
    let own = if comptime!(copies == LANES) { UNIT_POS_X } else { UNIT_POS_X % comptime!(copies as u32) };
    let step_codes = comptime!(layout.unit_codes() * width);
    let row_words = comptime!(layout.planes * layout.unit_words * width);
    let plane_words = comptime!(layout.unit_words * width);
    let groups = comptime!(layout.scales(step_codes));
    let group_codes = comptime!(step_codes / groups);
    let sums_a_lane = comptime!(division.sums());
    let steps = coded.cols.div_ceil(step_codes);

    let mut sums = Array::<f32>::new(sums_a_lane);
    let mut bases = Array::<f32>::new(line_rows);
    let mut words = Array::<u32>::new(comptime!(line_rows * row_words));
    let mut headers = Array::<u32>::new(comptime!(line_rows * groups));
    #[unroll]
    for i in 0..sums_a_lane {
        sums[i] = 0.0;
    }
    #[unroll]
    for r in 0..line_rows {
        // Rows behind the last are computed as the last, and not written.
        let row = min(first_row + r, coded.rows - 1);
        bases[r] = decode::base(coded, row, layout);
        read(codes, coded, row, min(lane, steps - 1), &mut words, &mut headers, r, width, layout);
    }

    // While the first codes are on their way.
    let mut shared = SharedMemory::<f32>::new(comptime!(division.tables(&layout)));
    if comptime!(layout.shares_tables()) {
        let values = comptime!(layout.values());
        let mut i = line * LANES + lane;
        while i < comptime!(layout.tables()) {
            let entry = coded.tables[i];
            if i < values {
                #[unroll]
                for copy in 0..copies {
                    // Neighbours write to different banks.
                    shared[i * copies + (copy + lane) % copies] = entry;
                }
            } else {
                shared[i + comptime!(values * (copies - 1))] = entry;
            }
            i += comptime!(LANES * LINES);
        }
        sync_cube();
    }

    let mut step = lane;
    while step < steps {
        let mut now = Array::<u32>::new(comptime!(line_rows * row_words));
        let mut scale_codes = Array::<u32>::new(comptime!(line_rows * groups));
        #[unroll]
        for i in 0..comptime!(line_rows * row_words) {
            now[i] = words[i];
        }
        #[unroll]
        for i in 0..comptime!(line_rows * groups) {
            scale_codes[i] = headers[i];
        }
        // The next step's codes are asked for before these are multiplied.
        #[unroll]
        for r in 0..line_rows {
            let row = min(first_row + r, coded.rows - 1);
            read(codes, coded, row, min(step + LANES, steps - 1), &mut words, &mut headers, r, width, layout);
        }

        #[unroll]
        for group in 0..groups {
            let mut parts = Array::<f32>::new(sums_a_lane);
            #[unroll]
            for i in 0..sums_a_lane {
                parts[i] = 0.0;
            }
            #[unroll]
            for vector in 0..comptime!(group_codes / width) {
                let i = comptime!(group * group_codes + vector * width);
                let col = step * step_codes + i;
                let mut weights = Array::<f32>::new(comptime!(line_rows * width));
                #[unroll]
                for r in 0..line_rows {
                    let table = own | decode::table(scale_codes[comptime!(r * groups + group)], copies, layout);
                    let first = comptime!(r * row_words);
                    #[unroll]
                    for k in 0..width {
                        let at = comptime!(i + k);
                        weights[comptime!(r * width + k)] = if comptime!(layout.shares_tables()) {
                            decode::value(&now, &shared.to_slice(), table, first, at, plane_words, copies, layout)
                        } else {
                            let tables = coded.tables.to_slice();
                            decode::value(&now, &tables, table, first, at, plane_words, copies, layout)
                        };
                    }
                }
                #[unroll]
                for j in 0..m {
                    let at = j * (coded.cols / width);
                    let inputs = if comptime!(layout.whole) {
                        x[at + step * comptime!(step_codes / width) + comptime!(i / width)]
                    } else {
                        // Rows that end within a unit are read one by one.
                        x[at + min(col, coded.cols - 1)]
                    };
                    #[unroll]
                    for k in 0..width {
                        let mut input = f32::cast_from(inputs[k]);
                        if comptime!(!layout.whole) {
                            // Codes behind the row's end are no weights.
                            input = select(col < coded.cols, input, 0.0f32);
                        }
                        #[unroll]
                        for r in 0..line_rows {
                            parts[comptime!(r * m + j)] += weights[comptime!(r * width + k)] * input;
                        }
                    }
                }
            }
            #[unroll]
            for r in 0..line_rows {
                let header = scale_codes[comptime!(r * groups + group)];
                let scale = if comptime!(layout.shares_tables()) {
                    decode::scale(&shared.to_slice(), bases[r], header, copies, layout)
                } else {
                    decode::scale(&coded.tables.to_slice(), bases[r], header, copies, layout)
                };
                #[unroll]
                for j in 0..m {
                    sums[comptime!(r * m + j)] += scale * parts[comptime!(r * m + j)];
                }
            }
        }
        step += LANES;
    }

    let left = comptime!(LANES / division.subgroup);
    let stride = comptime!(division.stride());
    let mut parts = SharedMemory::<f32>::new(comptime!(LINES * sums_a_lane * stride));
    #[unroll]
    for i in 0..sums_a_lane {
        let at = (line * sums_a_lane + i) * stride;
        if comptime!(division.subgroup > 1) {
            let sum = plane_sum(sums[i]);
            let in_subgroup = lane % comptime!(division.subgroup);
            if in_subgroup == 0 {
                parts[at + lane / comptime!(division.subgroup)] = sum;
            }
        } else {
            parts[at + lane] = sums[i];
        }
    }
    sync_cube();
    let of_unit = line * LANES + lane;
    if of_unit < comptime!(LINES * sums_a_lane) {
        let mut sum = 0.0f32;
        for i in 0..left {
            sum += parts[of_unit * stride + i];
        }
        let row = CUBE_POS_X as usize * comptime!(division.rows()) + of_unit / m;
        // Sums are ordered by row, then input.
        if row < coded.rows {
            out[(of_unit % m) * coded.all_rows + coded.first_row + row] = F::cast_from(sum);
        }
    }
}

/// Words and scale codes of one step of a row, to the places of row `r` of a line.
#[cube]
fn read<N: Size>(
    codes: &Array<Vector<u32, N>>,
    coded: &Coded,
    row: usize,
    step: usize,
    words: &mut Array<u32>,
    headers: &mut Array<u32>,
    #[comptime] r: usize,
    #[comptime] width: usize,
    #[comptime] layout: Layout,
) {
    let unit_words = comptime!(layout.unit_words);
    let step_codes = comptime!(layout.unit_codes() * width);
    #[unroll]
    for plane in 0..comptime!(layout.planes) {
        let at = (plane * coded.rows + row) * coded.row_words / width + step * unit_words;
        #[unroll]
        for i in 0..unit_words {
            let piece = codes[at + i];
            #[unroll]
            for k in 0..width {
                words[comptime!(((r * layout.planes + plane) * unit_words + i) * width + k)] = piece[k];
            }
        }
    }
    let groups = comptime!(layout.scales(step_codes));
    #[unroll]
    for i in 0..groups {
        headers[comptime!(r * groups + i)] = decode::scale_code(coded, row, step * step_codes, i, layout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qins_codec::{Format, Header};

    /// However products are divided, a cube takes no more memory than there is, and rows are whole steps where they must be.
    #[test]
    fn divisions_keep_to_what_a_device_has() {
        // What WebGPU promises, what a software device has, what CUDA devices have.
        for shared_bytes in [16 << 10, 32 << 10, 227 << 10] {
            for (&format, cols) in
                Format::ALL.iter().flat_map(|format| [1, 45, 96, 1152, 3072].map(|cols| (format, cols)))
            {
                let layout = Layout::new(&Header { format, rows: 1, cols, base: 1.0, k: 1.0, row_bases: false });
                for (m, rows) in (1..=INPUTS).flat_map(|m| [(m, 7), (m, 32064)]) {
                    for subgroup in [1, 8, 32] {
                        let division = Division::new(&layout, [rows, cols], m, subgroup, shared_bytes);
                        assert!(
                            division.shared_bytes(&layout) <= shared_bytes.min(SHARED_BYTES),
                            "{format}: {division:?}"
                        );
                        let whole = cols.is_multiple_of(division.width * layout.unit_codes());
                        assert!(division.width == 1 || whole, "{format}, {cols}: {division:?}");
                        assert!(division.copies == 1 || layout.looks_up(), "{format}: {division:?}");
                    }
                }
            }
        }
        let layout =
            Layout::new(&Header { format: Format::Q8, rows: 1, cols: 3072, base: 1.0, k: 1.0, row_bases: false });
        let division = Division::new(&layout, [16384, 3072], 1, 32, 227 << 10);
        assert_eq!((division.line_rows, division.width, division.copies), (4, 4, LANES));
    }
}
