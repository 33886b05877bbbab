//! Panels in fixed point: products of 16-bit integers, of which an instruction takes twice as many as of f32.
//!
//! 32 inputs, and as many weights of a row, share a unit and are integers of at most 13 bits and a sign. Sums of 32 products are
//! exact, and scaled and added in f32.
//!
//! Where groups are of 32 and share a table, integers are looked up in place of its values ([`Whole`]). Other weights, and all
//! inputs, are [rounded](round), so that the largest of the 32 is ±[`LARGEST`]: they are off by half a unit at most, 2^-14 of the
//! largest. Codes of 8 bits have lost some forty times that.

use super::*;

/// Pairs of columns that share a unit.
const PAIRS: usize = 16;

/// Units of a piece.
const GROUPS: usize = COLS / (2 * PAIRS);

/// A piece of inputs is a table of so many columns and [`PAIRS`] rows. Two neighbouring columns share a unit: so units are found
/// for all at once, without moving a number from lane to lane.
const WIDTH: usize = 2 * GROUPS;

/// The largest integer of an input.
const LARGEST: f32 = 8191.0;

/// What 1 becomes among weights that are looked up.
pub(in super::super) const ONE: f32 = 8192.0;
const _: () = assert!(LARGEST <= ONE && (LARGEST as i64 * ONE as i64) * (2 * PAIRS as i64) <= i32::MAX as i64);

/// The largest of a group counts as no less, so that units are no subnormal numbers.
const SMALLEST: f32 = 1.0 / (1u128 << 112) as f32;

/// Vectors of 32-bit sums of products.
///
/// # Safety
/// All functions need the instructions of [`LEVEL`](Self::LEVEL).
pub(in super::super) trait Integers: Copy + Sync {
    /// As many.
    type Floats: Vector;
    /// One that has the instructions.
    const LEVEL: Level;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const [i16; 2]) -> Self;
    /// One pair in all lanes.
    unsafe fn splat(from: *const [i16; 2]) -> Self;
    /// `self`, and the products of the two of each pair.
    unsafe fn add_products(self, a: Self, b: Self) -> Self;
    unsafe fn to_floats(self) -> Self::Floats;
    /// The greatest bits of magnitudes of each column, none less than these.
    unsafe fn largest(table: &[[f32; WIDTH]], least: u32) -> [u32; WIDTH];
    /// The nearest integers of numbers times others, if all fit 16 bits.
    unsafe fn round(x: &[f32; WIDTH], times: &[f32; WIDTH]) -> [[i16; 2]; GROUPS];
}

/// With vectors `I` of `LANES` integers, and rows `R`.
pub(in super::super) struct Fixed<I, R, const LANES: usize>(PhantomData<fn() -> (I, R)>);

/// A piece of a row: integers, and a unit for each group.
pub(in super::super) trait Row: Copy {
    fn zero() -> Self;

    /// Groups of a piece of so many columns, and pairs of each.
    fn extents(count: usize) -> [usize; 2];

    fn pair(&self, group: usize, pair: usize) -> &[i16; 2];

    fn unit(&self, group: usize) -> &f32;
}

/// As inputs are rounded: groups are columns of a table.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Rounded {
    pairs: [[[i16; 2]; GROUPS]; PAIRS],
    units: [f32; GROUPS],
}

impl Row for Rounded {
    fn zero() -> Self {
        Self { pairs: [[[0; 2]; GROUPS]; PAIRS], units: [0.0; GROUPS] }
    }

    fn extents(count: usize) -> [usize; 2] {
        [GROUPS, count / WIDTH]
    }

    #[inline(always)]
    fn pair(&self, group: usize, pair: usize) -> &[i16; 2] {
        &self.pairs[pair][group]
    }

    #[inline(always)]
    fn unit(&self, group: usize) -> &f32 {
        &self.units[group]
    }
}

/// As codes lie: groups are those of the format.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Exact {
    pairs: [Pairs; GROUPS],
    units: [f32; GROUPS],
}

/// A group of 32 weights.
pub(in super::super) type Pairs = [[i16; 2]; PAIRS];

impl Row for Exact {
    fn zero() -> Self {
        Self { pairs: [[[0; 2]; PAIRS]; GROUPS], units: [0.0; GROUPS] }
    }

    fn extents(count: usize) -> [usize; 2] {
        [count / (2 * PAIRS), PAIRS]
    }

    #[inline(always)]
    fn pair(&self, group: usize, pair: usize) -> &[i16; 2] {
        &self.pairs[group][pair]
    }

    #[inline(always)]
    fn unit(&self, group: usize) -> &f32 {
        &self.units[group]
    }
}

/// A group of as many inputs as there are lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Group<const LANES: usize> {
    pairs: [[[i16; 2]; LANES]; PAIRS],
    units: [f32; LANES],
}

impl<I: Integers, R: Row, const LANES: usize> Arithmetic for Fixed<I, R, LANES> {
    type V = I::Floats;
    const LEVEL: Level = I::LEVEL;
    type Row = R;
    type Part = Group<LANES>;
    const PARTS: usize = GROUPS;

    fn no_row() -> R {
        R::zero()
    }

    fn no_part() -> Group<LANES> {
        const { assert!(LANES == I::Floats::LANES) };
        Group { pairs: [[[0; 2]; LANES]; PAIRS], units: [0.0; LANES] }
    }

    #[inline(always)]
    unsafe fn put(x: &Piece, count: usize, lane: usize, groups: &mut [Group<LANES>]) {
        let mut row = Rounded::zero();
        let [_, pairs] = R::extents(count);
        // SAFETY: as the caller promises.
        unsafe { round::<I>(x, pairs, &mut row) };
        for (g, group) in groups.iter_mut().enumerate() {
            group.units[lane] = row.units[g];
            for (of_lanes, pairs) in group.pairs.iter_mut().zip(&row.pairs) {
                of_lanes[lane] = pairs[g];
            }
        }
    }

    #[inline(always)]
    unsafe fn add(
        rows: &[R],
        x: &[Group<LANES>],
        vectors: usize,
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) -> usize {
        // SAFETY: as the caller promises.
        unsafe {
            match (vectors, I::Floats::SUMS) {
                (1, 24..) => tiles::<Self, 24, 1>(rows, x, count, out, stride),
                (1, _) => tiles::<Self, 6, 1>(rows, x, count, out, stride),
                (_, 24..) => tiles::<Self, 12, 2>(rows, x, count, out, stride),
                (_, _) => tiles::<Self, 3, 2>(rows, x, count, out, stride),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const ROWS: usize, const N: usize>(
        rows: &[R; ROWS],
        x: *const Group<LANES>,
        count: usize,
    ) -> [[I::Floats; N]; ROWS] {
        let [used, pairs] = R::extents(count);
        // SAFETY: as the caller promises; a piece has no more groups.
        unsafe {
            let mut sums = [[I::Floats::zero(); N]; ROWS];
            for g in 0..used {
                let groups: [&Group<LANES>; N] = std::array::from_fn(|n| &*x.add(n * GROUPS + g));
                let mut products = [[I::zero(); N]; ROWS];
                for pair in 0..pairs {
                    let x = groups.map(|group| I::load(group.pairs[pair].as_ptr()));
                    for (products, row) in products.iter_mut().zip(rows) {
                        let weights = I::splat(row.pair(g, pair));
                        for (products, x) in products.iter_mut().zip(x) {
                            *products = products.add_products(weights, x);
                        }
                    }
                }
                let units = groups.map(|group| I::Floats::load(group.units.as_ptr()));
                // By reference, as arrays that are moved are copied.
                for ((sums, products), row) in sums.iter_mut().zip(&products).zip(rows) {
                    let unit = I::Floats::splat(row.unit(g));
                    for ((sum, &products), &of_inputs) in sums.iter_mut().zip(products).zip(&units) {
                        *sum = products.to_floats().mul(of_inputs).mul_add(unit, *sum);
                    }
                }
            }
            sums
        }
    }
}

/// Makes a table of inputs integers, and units, which are NaN where a number is not finite.
///
/// # Safety
/// The processor has the instructions of `I`.
#[inline(always)]
unsafe fn round<I: Integers>(x: &Piece, pairs: usize, row: &mut Rounded) {
    let table = &x.as_chunks::<WIDTH>().0[..pairs];
    // SAFETY: as the caller promises.
    let largest = unsafe { I::largest(table, SMALLEST.to_bits()) };
    let mut times = [0.0; WIDTH];
    for (g, unit) in row.units.iter_mut().enumerate() {
        // Bits of infinity and NaN are greater than all others, and those of a quotient by it.
        let largest = f32::from_bits(largest[2 * g].max(largest[2 * g + 1]));
        *unit = if largest.is_finite() { largest / LARGEST } else { f32::NAN };
        (times[2 * g], times[2 * g + 1]) = (LARGEST / largest, LARGEST / largest);
    }
    for (x, pairs) in table.iter().zip(&mut row.pairs) {
        // SAFETY: as above.
        *pairs = unsafe { I::round(x, &times) };
    }
}

impl<I: Integers, B: Block<V = I::Floats>, const LANES: usize> Decode<Fixed<I, Rounded, LANES>> for Blocks<'_, B> {
    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, count: usize, out: &mut Rounded) {
        const { assert!(B::COLS.is_multiple_of(WIDTH)) };
        let mut piece = [0.0; COLS];
        // SAFETY: as the caller promises.
        unsafe {
            self.decode(row, first, &mut piece[..count]);
            round::<I>(&piece, count / WIDTH, out);
        }
    }
}

/// Codes of a byte, in groups of 32, that stand for integers times a scale.
pub(in super::super) trait Whole: Sync {
    type I: Integers;

    /// The column of a group that lies at a place.
    fn column(place: usize) -> usize;

    /// What the integers of a group are multiplied by, for each scale code.
    fn units(&self) -> &[f32; 256];

    /// The integers of two groups, of at most [`ONE`].
    ///
    /// # Safety
    /// The processor has the instructions of `I`.
    unsafe fn decode(&self, codes: &[u8; TWO]) -> [Pairs; 2];
}

/// The column at a place of a group whose bytes were unpacked half by half: eight of either half, then the eight after them.
pub(in super::super) fn unpacked(place: usize) -> usize {
    16 * (place / 8 % 2) + 8 * (place / 16) + place % 8
}

/// Codes that are decoded together.
pub(in super::super) const TWO: usize = 4 * PAIRS;

/// Codes that are the integers.
pub(in super::super) struct Bytes<I> {
    units: Box<[f32; 256]>,
    integers: PhantomData<fn() -> I>,
}

impl<I> Bytes<I> {
    /// `None` if a scale is too small.
    pub(in super::super) fn new(scales: &[f32; 256]) -> Option<Self> {
        Some(Self { units: scales_of_integers(scales, 1.0)?, integers: PhantomData })
    }
}

impl<I: Integers> Whole for Bytes<I> {
    type I = I;

    fn column(place: usize) -> usize {
        place
    }

    fn units(&self) -> &[f32; 256] {
        &self.units
    }

    #[inline(always)]
    unsafe fn decode(&self, codes: &[u8; TWO]) -> [Pairs; 2] {
        let mut integers = [[[0; 2]; PAIRS]; 2];
        for (integer, &code) in integers.as_flattened_mut().as_flattened_mut().iter_mut().zip(codes) {
            *integer = i16::from(code as i8);
        }
        integers
    }
}

/// Codes of a matrix.
struct Codes<'a, W> {
    whole: W,
    matrix: Matrix<'a>,
}

impl<W: Whole> Source for Codes<'_, W> {
    const UNIT: usize = TWO;

    /// Inputs are a table, of which columns are groups.
    fn column(place: usize) -> usize {
        let (row, column) = (place / WIDTH, place % WIDTH);
        column / 2 * (2 * PAIRS) + W::column(2 * row + column % 2)
    }

    fn base(&self, row: usize) -> f32 {
        self.matrix.base(row)
    }
}

impl<W: Whole, const LANES: usize> Decode<Fixed<W::I, Exact, LANES>> for Codes<'_, W> {
    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, count: usize, out: &mut Exact) {
        let header = self.matrix.header();
        let (code_bytes, scale_bytes) = (header.format.code_bytes(header.cols), header.scale_bytes_of_row());
        let codes = &self.matrix.codes()[row * code_bytes..][..code_bytes][first..];
        let scales = &self.matrix.scales()[row * scale_bytes..][..scale_bytes];
        let scales = &scales[header.base_bytes() + first / (2 * PAIRS)..];
        // SAFETY: as the caller promises, here and below.
        unsafe { ask_for_next::<<W::I as Integers>::Floats>(codes, code_bytes, COLS) };
        let (whole, last) = codes[..count.min(codes.len())].as_chunks::<TWO>();
        let (of_whole, of_last) = out.pairs[..count / (2 * PAIRS)].as_chunks_mut::<2>().0.split_at_mut(whole.len());
        for (out, codes) in of_whole.iter_mut().zip(whole) {
            // SAFETY: as above.
            *out = unsafe { self.whole.decode(codes) };
        }
        if let [of_last] = of_last {
            // What follows the last column meets inputs that are zero.
            let mut padded = [0; TWO];
            padded[..last.len()].copy_from_slice(last);
            // SAFETY: as above.
            *of_last = unsafe { self.whole.decode(&padded) };
            out.units[count / (2 * PAIRS) - 1] = 0.0;
        }
        for (unit, &scale) in out.units.iter_mut().zip(scales) {
            *unit = self.whole.units()[usize::from(scale)];
        }
    }
}

/// A pass over all inputs.
pub(in super::super) fn of_whole<'a, W: Whole + 'a, const LANES: usize>(
    whole: W,
    matrix: Matrix<'a>,
    x: &ChunksExact<'_, f32>,
) -> Box<dyn Pass + 'a>
where
    W::I: 'a,
{
    let Header { format, .. } = *matrix.header();
    assert!(format.code_bits() == 8 && format.group() == 2 * PAIRS);
    panels::<Fixed<W::I, Exact, LANES>, _>(Codes { whole, matrix }, matrix, x)
}
