//! Panels in fixed point: products of 16-bit integers, of which an instruction takes twice as many as of f32.
//!
//! Some 32 weights of a row, and as many of an input, become integers of at most 13 bits and a sign, in units of their own, so that
//! the largest is ±[`LARGEST`]. Sums of 32 products are exact, and scaled and added in f32. A weight or an input is off by half a
//! unit at most, 2^-14 of the largest of the 32: codes of 8 bits have lost some forty times that.
//!
//! Of a piece, in the order of decoding, as 16 columns of a table, each two neighbouring ones share a unit: so units are found
//! for all at once, without moving a number from lane to lane.

use super::*;

/// Columns of the table.
const WIDTH: usize = 16;

/// Pairs of them, which share a unit.
const GROUPS: usize = WIDTH / 2;

/// Rows of the table.
const PAIRS: usize = COLS / WIDTH;

/// 32 squares of it fit 32 bits.
const LARGEST: f32 = 8191.0;
const _: () = assert!((LARGEST as i64 * LARGEST as i64) * (2 * PAIRS as i64) <= i32::MAX as i64);

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

/// With vectors `I` of `LANES` integers.
pub(in super::super) struct Fixed<I, const LANES: usize>(PhantomData<fn() -> I>);

/// A piece of a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Row {
    pairs: [[[i16; 2]; GROUPS]; PAIRS],
    units: [f32; GROUPS],
}

/// A group of as many inputs as there are lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Group<const LANES: usize> {
    pairs: [[[i16; 2]; LANES]; PAIRS],
    units: [f32; LANES],
}

impl<I: Integers, const LANES: usize> Arithmetic for Fixed<I, LANES> {
    type V = I::Floats;
    const LEVEL: Level = I::LEVEL;
    type Row = Row;
    type Part = Group<LANES>;
    const PARTS: usize = GROUPS;

    fn no_row() -> Row {
        Row { pairs: [[[0; 2]; GROUPS]; PAIRS], units: [0.0; GROUPS] }
    }

    fn no_part() -> Group<LANES> {
        const { assert!(LANES == I::Floats::LANES) };
        Group { pairs: [[[0; 2]; LANES]; PAIRS], units: [0.0; LANES] }
    }

    #[inline(always)]
    unsafe fn put(x: &Piece, count: usize, lane: usize, groups: &mut [Group<LANES>]) {
        let mut row = Self::no_row();
        // SAFETY: as the caller promises.
        unsafe { round::<I>(x, count, &mut row) };
        for (g, group) in groups.iter_mut().enumerate() {
            group.units[lane] = row.units[g];
            for (of_lanes, pairs) in group.pairs.iter_mut().zip(&row.pairs) {
                of_lanes[lane] = pairs[g];
            }
        }
    }

    #[inline(always)]
    unsafe fn decode<S: Source>(source: &S, row: usize, first: usize, count: usize, out: &mut Row) {
        const { assert!(S::UNIT.is_multiple_of(WIDTH)) };
        let mut piece = [0.0; COLS];
        // SAFETY: as the caller promises.
        unsafe {
            source.decode(row, first, &mut piece[..count]);
            round::<I>(&piece, count, out);
        }
    }

    #[inline(always)]
    unsafe fn add(
        rows: &[Row],
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
    unsafe fn tile<const R: usize, const N: usize>(
        rows: &[Row; R],
        x: *const Group<LANES>,
        count: usize,
    ) -> [[I::Floats; N]; R] {
        // SAFETY: as the caller promises; a unit is whole groups.
        unsafe {
            let mut sums = [[I::Floats::zero(); N]; R];
            for g in 0..GROUPS {
                let groups: [&Group<LANES>; N] = std::array::from_fn(|n| &*x.add(n * GROUPS + g));
                let mut products = [[I::zero(); N]; R];
                for pair in 0..count / WIDTH {
                    let x = groups.map(|group| I::load(group.pairs[pair].as_ptr()));
                    for (products, row) in products.iter_mut().zip(rows) {
                        let weights = I::splat(&row.pairs[pair][g]);
                        for (products, x) in products.iter_mut().zip(x) {
                            *products = products.add_products(weights, x);
                        }
                    }
                }
                let units = groups.map(|group| I::Floats::load(group.units.as_ptr()));
                for ((sums, products), row) in sums.iter_mut().zip(products).zip(rows) {
                    let unit = I::Floats::splat(&row.units[g]);
                    for ((sum, products), of_inputs) in sums.iter_mut().zip(products).zip(units) {
                        *sum = products.to_floats().mul(of_inputs).mul_add(unit, *sum);
                    }
                }
            }
            sums
        }
    }
}

/// Makes the first `count` of a piece integers and units, which are NaN where a number is not finite.
///
/// # Safety
/// The processor has the instructions of `I`.
#[inline(always)]
unsafe fn round<I: Integers>(x: &Piece, count: usize, row: &mut Row) {
    let table = &x.as_chunks::<WIDTH>().0[..count / WIDTH];
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
