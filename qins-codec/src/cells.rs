//! The search for a group's scale: squared errors at many scale codes at once, without asking for any weight's code.
//!
//! Scale codes are steps of a logarithm, so a weight's nearest table values at successive scale codes are those at evenly
//! spaced places of a logarithmic axis. [`Bins`] keeps them side by side: what a weight loses at [`LANES`] scale codes is
//! one load and four operations on whole vectors. Tables of too many cells for that have a closed form, [`Moebius`].

use crate::{
    projective::Nearest,
    scale::{SCALE_STEPS, ZERO_GROUP, relative_scale},
};

/// Scale codes tried side by side.
pub(crate) const LANES: usize = 16;

/// Places of the logarithmic axis in an octave: narrower than a quarter of the narrowest cell of a 7-bit table.
const OCTAVE: i32 = 512;

/// Places from one scale code to the next.
const STEP: i32 = OCTAVE / SCALE_STEPS as i32;

/// Scale codes outside the legal ones that lanes may stand for.
const BEYOND: i32 = 32;

/// Beyond every weight that is not clipped, and far enough below the largest f32 for sums of squares.
const CLIPPED: f32 = 1e15;

/// Magnitudes of a group in units of the base; zeros after the last.
pub(crate) struct Group<const N: usize> {
    pub(crate) count: usize,
    x: [f32; N],
    places: [i32; N],
}

impl<const N: usize> Group<N> {
    /// `base` is not 0, the weights are at most `N`.
    #[inline(always)]
    pub(crate) fn new(weights: &[f32], base: f32) -> Self {
        let mut x = padded(weights);
        let mut places = [0; N];
        for i in 0..N {
            let magnitude = x[i].abs() / base;
            x[i] = if magnitude < CLIPPED { magnitude } else { CLIPPED };
            places[i] = place(x[i]);
        }
        Self { count: weights.len(), x, places }
    }

    /// The scale code whose scale is nearest to the largest magnitude, `None` if all are below 2^-100.
    #[inline(always)]
    pub(crate) fn start(&self) -> Option<i32> {
        let mut largest = i32::MIN;
        for i in 0..N {
            largest = largest.max(self.places[i]);
        }
        (largest >= -100 * OCTAVE).then(|| ((STEP / 2 - largest) >> STEP.ilog2()).clamp(0, i32::from(ZERO_GROUP) - 1))
    }
}

/// `log2(x)` in places, rounded to the nearest, by operations that are the same on every machine. About -127 octaves
/// for 0 and subnormal numbers.
#[inline(always)]
pub(crate) const fn place(x: f32) -> i32 {
    const { assert!(OCTAVE == 512) };
    // Where an f32 of this size has steps of 1: the sum rounds.
    const ROUND: f32 = 12_582_912.0;
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let t = f32::from_bits(bits & 0x7F_FFFF | 0x3F80_0000) - 1.0;
    // log2(1 + t) within 1.2e-4, a sixteenth of a place, and exact at both ends.
    let log2 = t + t * (1.0 - t) * (0.438_725_33 + t * (t * 0.082_128_88 - 0.239_056_35));
    let places = (exponent as f32 + log2) * OCTAVE as f32;
    (places + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// At most `N` weights, and zeros after the last.
#[inline(always)]
pub(crate) fn padded<const N: usize>(weights: &[f32]) -> [f32; N] {
    // A whole group is nothing to loop over.
    weights.try_into().unwrap_or_else(|_| {
        let mut padded = [0.0; N];
        padded[..weights.len()].copy_from_slice(weights);
        padded
    })
}

/// A table of magnitudes that encodes groups.
pub(crate) trait Cells: Sync {
    /// Squared errors of a group, in units of the base, at the scale codes `first..first + LANES`, infinite at those that
    /// are none. `first` is at least `-BEYOND / 2` and at most 254.
    fn errors<const N: usize>(&self, group: &Group<N>, first: i32) -> [f32; LANES];

    /// The magnitude codes nearest to a group's weights at a scale code.
    fn codes<const N: usize>(&self, group: &Group<N>, scale_code: u8) -> [u16; N];
}

/// The scale code of least squared error among those around the start of a group, and the error.
#[inline(always)]
pub(crate) fn best_scale<C: Cells, const N: usize>(
    cells: &C,
    group: &Group<N>,
    start: i32,
    firsts: &[i32],
) -> (u8, f32) {
    let (mut best, mut code) = (u32::MAX, start);
    for &first in firsts {
        let errors = cells.errors(group, start + first);
        // The least error and its lane in one number: bits of positive floats are in order.
        let mut least = u32::MAX;
        for (lane, error) in errors.iter().enumerate() {
            least = least.min(error.to_bits() & !(LANES as u32 - 1) | lane as u32);
        }
        if least < best {
            (best, code) = (least, start + first + (least % LANES as u32) as i32);
        }
    }
    (code.clamp(0, i32::from(ZERO_GROUP) - 1) as u8, f32::from_bits(best & !(LANES as u32 - 1)))
}

/// The relative scales of all scale codes; infinite, so that no error is smaller, for `BEYOND` more on either side.
struct Scales(Box<[f32; SCALES]>);
const SCALES: usize = ZERO_GROUP as usize + 2 * BEYOND as usize;

impl Scales {
    fn new() -> Self {
        Self(Box::new(std::array::from_fn(|i| match i as i32 - BEYOND {
            code if (0..i32::from(ZERO_GROUP)).contains(&code) => relative_scale(code as u8),
            _ => f32::INFINITY,
        })))
    }

    #[inline(always)]
    fn from(&self, first: i32) -> &[f32; LANES] {
        lanes(&self.0[..], (first + BEYOND) as usize)
    }
}

#[inline(always)]
fn lanes(values: &[f32], at: usize) -> &[f32; LANES] {
    values[at..at + LANES].try_into().expect("as many as the range")
}

/// Adds the squared differences of a weight from values in units of scales.
#[inline(always)]
fn add_squares(sums: &mut [f32; LANES], values: &[f32; LANES], scales: &[f32; LANES], x: f32) {
    for lane in 0..LANES {
        let difference = values[lane] * scales[lane] - x;
        sums[lane] += difference * difference;
    }
}

/// Any table of which every cell spans some [places](OCTAVE).
pub(crate) struct Bins {
    /// The value nearest to place `(lowest + i) * STEP + phase` at `phase * length + i`.
    values: Vec<f32>,
    codes: Vec<u8>,
    length: i32,
    lowest: i32,
    /// Between codes `m - 1` and `m` at `m`; what lies beyond no table is infinite.
    midpoints: Box<[f32; 257]>,
    scales: Scales,
}

impl Bins {
    /// `None` if the table has cells too narrow, or too many octaves.
    pub(crate) fn new(table: &[f32]) -> Option<Self> {
        // Four places and what `place` may be off.
        let narrowest = 2f64.powf(4.2 / f64::from(OCTAVE));
        let smallest = *table.iter().rfind(|&&value| value > 0.0)?;
        let wide = |pair: &[f32]| pair[0] > pair[1] && f64::from(pair[0]) >= f64::from(pair[1]) * narrowest;
        if table.len() > 256 || smallest < 2f32.powi(-24) || !table.windows(2).all(wide) {
            return None;
        }
        // Whole octaves down to one below the smallest value, or half of it where the last is 0, so that what is clamped there
        // reads only the last; and enough above 1 to read only the first.
        let octaves = 128 - (smallest.to_bits() >> 23) as i32 + i32::from(table.last() == Some(&0.0));
        let lowest = -octaves * SCALE_STEPS as i32;
        let length = LANES as i32 - lowest;
        let count = (length * STEP) as usize;
        let (mut values, mut codes) = (vec![0.0; count], vec![0; count]);
        let mut x = 2f64.powi(-octaves);
        let mut code = table.len() - 1;
        for place in 0..count {
            while code > 0 && x + x > f64::from(table[code]) + f64::from(table[code - 1]) {
                code -= 1;
            }
            let at = place % STEP as usize * length as usize + place / STEP as usize;
            (values[at], codes[at]) = (table[code], code as u8);
            // 2^(1/512)
            x *= 1.001_354_719_892_108_2;
        }
        let midpoints = Box::new(std::array::from_fn(|m| match m {
            0 => f32::INFINITY,
            m if m < table.len() => (table[m - 1] + table[m]) / 2.0,
            _ => f32::NEG_INFINITY,
        }));
        Some(Self { values, codes, length, lowest, midpoints, scales: Scales::new() })
    }

    /// Midpoints, values and codes for an encoder outside the host's memory; gives the entries of a phase.
    pub(crate) fn append_to(&self, tables: &mut Vec<f32>) -> usize {
        let entries = self.codes.iter().max().map_or(0, |&last| usize::from(last) + 1);
        tables.extend(self.midpoints[..=entries].iter().map(finite));
        tables.extend(&self.values);
        tables.extend(self.codes.iter().map(|&code| f32::from(code)));
        self.length as usize
    }

    /// Where weights are found at a scale code; the last of as many as `lanes` after it is inside too.
    #[inline(always)]
    fn find<const N: usize>(&self, group: &Group<N>, scale_code: i32, lanes: i32) -> [u32; N] {
        let mut at = [0; N];
        for (at, &place) in at.iter_mut().zip(&group.places) {
            let along = ((place >> STEP.ilog2()) + (scale_code - self.lowest)).max(0).min(self.length - lanes);
            *at = ((place & (STEP - 1)) * self.length + along) as u32;
        }
        at
    }
}

impl Cells for Bins {
    #[inline(always)]
    fn errors<const N: usize>(&self, group: &Group<N>, first: i32) -> [f32; LANES] {
        let at = self.find(group, first, LANES as i32);
        let scales = self.scales.from(first);
        // Two sums, because an addition takes longer than what comes between two.
        let (mut even, mut odd) = ([0f32; LANES], [0f32; LANES]);
        let mut i = 0;
        while i + 1 < group.count {
            add_squares(&mut even, lanes(&self.values, at[i] as usize), scales, group.x[i]);
            add_squares(&mut odd, lanes(&self.values, at[i + 1] as usize), scales, group.x[i + 1]);
            i += 2;
        }
        if i < group.count {
            add_squares(&mut even, lanes(&self.values, at[i] as usize), scales, group.x[i]);
        }
        let mut sums = [0f32; LANES];
        for lane in 0..LANES {
            sums[lane] = even[lane] + odd[lane];
        }
        sums
    }

    #[inline(always)]
    fn codes<const N: usize>(&self, group: &Group<N>, scale_code: u8) -> [u16; N] {
        let at = self.find(group, scale_code.into(), 1);
        let inverse = 1.0 / self.scales.from(scale_code.into())[0];
        let (mut above, mut below, mut codes) = ([0f32; N], [0f32; N], [0u16; N]);
        for i in 0..N {
            let m = self.codes[at[i] as usize];
            codes[i] = m.into();
            (above[i], below[i]) = (self.midpoints[usize::from(m)], self.midpoints[usize::from(m) + 1]);
        }
        for i in 0..N {
            let x = group.x[i] * inverse;
            // The middle of a place is at most one cell off.
            codes[i] = codes[i] + u16::from(below[i] > x) - u16::from(above[i] <= x);
        }
        codes
    }
}

/// A midpoint as every device has it: not all have infinity.
fn finite(midpoint: &f32) -> f32 {
    midpoint.clamp(-1.0, f32::MAX)
}

/// The projective law in closed form, for tables that are not rounded. With `Y = first |w|/s`, `u = (1 - Y)/(1 + kY)` is
/// the coordinate of which cells are equal parts, and the law is its own inverse.
pub(crate) struct Moebius {
    k: f32,
    first: f32,
    half: f32,
    /// Between codes `m - 1` and `m` at `m`; what lies beyond no table is infinite.
    midpoints: Vec<f32>,
    scales: Scales,
}

impl Moebius {
    pub(crate) fn new(table: &[f32], k: f64) -> Self {
        let cells = 2.0 * table.len() as f64;
        let first = (1.0 - 1.0 / cells) / (1.0 + k / cells);
        let mut midpoints = vec![f32::INFINITY];
        midpoints.extend(table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0));
        midpoints.push(f32::NEG_INFINITY);
        let (k, first, half) = (k as f32, first as f32, table.len() as f32);
        Self { k, first, half, midpoints, scales: Scales::new() }
    }

    /// Midpoints and constants for an encoder outside the host's memory.
    pub(crate) fn append_to(&self, tables: &mut Vec<f32>) {
        tables.extend(self.midpoints.iter().map(finite));
        tables.extend([self.k, self.first, self.slope()]);
    }

    /// Of the law at `Y` it is `-(1 + kY)^2 / (1 + k)`; in units of x, a cell:
    #[inline(always)]
    fn slope(&self) -> f32 {
        1.0 / ((1.0 + self.k) * self.first * self.half)
    }

    /// The coordinate in cells, and `1 + kY`.
    #[inline(always)]
    fn coordinate(&self, x: f32) -> (f32, f32) {
        let scaled = x * self.first;
        let below = 1.0 + self.k * scaled;
        ((1.0 - scaled) / below * self.half, below)
    }

    /// The cell of a coordinate.
    #[inline(always)]
    fn cell(&self, coordinate: f32) -> u32 {
        // Where an f32 of this size has steps of 1: the sum rounds.
        const ROUND: f32 = 8_388_608.0;
        let middle = coordinate - 0.5;
        let inside = if middle > 0.0 { middle } else { 0.0 };
        let inside = if inside < self.half - 1.0 { inside } else { self.half - 1.0 };
        (inside + ROUND).to_bits() - ROUND.to_bits()
    }
}

impl Cells for Moebius {
    #[inline(always)]
    fn errors<const N: usize>(&self, group: &Group<N>, first: i32) -> [f32; LANES] {
        let scales = self.scales.from(first);
        let mut inverse = [0f32; LANES];
        for lane in 0..LANES {
            inverse[lane] = 1.0 / scales[lane];
        }
        let slope = self.slope();
        let mut sums = [0f32; LANES];
        for i in 0..group.count.min(N) {
            for lane in 0..LANES {
                let x = group.x[i] * inverse[lane];
                let (coordinate, below) = self.coordinate(x);
                let inside = (coordinate - (self.cell(coordinate) as i32 as f32 + 0.5)) * below * below * slope;
                let difference = if x > 1.0 { x - 1.0 } else { inside } * scales[lane];
                sums[lane] += difference * difference;
            }
        }
        sums
    }

    #[inline(always)]
    fn codes<const N: usize>(&self, group: &Group<N>, scale_code: u8) -> [u16; N] {
        let inverse = 1.0 / self.scales.from(scale_code.into())[0];
        let (mut x, mut cells, mut codes) = ([0f32; N], [0; N], [0; N]);
        for i in 0..N {
            x[i] = group.x[i] * inverse;
            cells[i] = self.cell(self.coordinate(x[i]).0);
        }
        for i in 0..N {
            let m = cells[i] as usize;
            codes[i] = (m + usize::from(self.midpoints[m + 1] > x[i]) - usize::from(self.midpoints[m] <= x[i])) as u16;
        }
        codes
    }
}

/// One weight after the other: for tables too fine for [`Bins`] that have no closed form.
impl Cells for Nearest {
    fn errors<const N: usize>(&self, group: &Group<N>, first: i32) -> [f32; LANES] {
        std::array::from_fn(|lane| match u8::try_from(first + lane as i32) {
            Ok(code) if code < ZERO_GROUP => {
                let (s, inverse) = (relative_scale(code), 1.0 / relative_scale(code));
                group.x[..group.count].iter().map(|&x| (self.code(x * inverse).1 * s - x).powi(2)).sum()
            }
            _ => f32::INFINITY,
        })
    }

    fn codes<const N: usize>(&self, group: &Group<N>, scale_code: u8) -> [u16; N] {
        let inverse = 1.0 / relative_scale(scale_code);
        group.x.map(|x| self.code(x * inverse).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::Law,
        projective::{K_GRID, OCTAVES, linear_table, logarithmic_table, projective_table},
    };
    use proptest::prelude::*;

    /// Every kind of table with the plain search for the nearest code.
    fn tables(constant: f64) -> Vec<(Vec<f32>, Nearest)> {
        vec![
            (projective_table(constant, 128), Nearest::new(Law::Projective, 128, constant)),
            (projective_table(constant, 2048), Nearest::new(Law::Projective, 2048, constant)),
            (logarithmic_table(constant), Nearest::new(Law::Logarithmic, 128, constant)),
            (linear_table(), Nearest::new(Law::Linear, 128, 0.0)),
        ]
    }

    fn each(
        table: &[f32],
        nearest: &Nearest,
        constant: f64,
        mut check: impl FnMut(&dyn Fn(&Group<32>, i32) -> [f32; LANES], &dyn Fn(&Group<32>, u8) -> [u16; 32]),
    ) {
        fn run<C: Cells>(
            cells: &C,
            check: &mut impl FnMut(&dyn Fn(&Group<32>, i32) -> [f32; LANES], &dyn Fn(&Group<32>, u8) -> [u16; 32]),
        ) {
            check(&|group, first| cells.errors(group, first), &|group, code| cells.codes(group, code));
        }
        if let Some(bins) = Bins::new(table) {
            run(&bins, &mut check);
        }
        if table.len() == 2048 {
            run(&Moebius::new(table, constant), &mut check);
        }
        run(nearest, &mut check);
    }

    #[test]
    fn every_table_that_encoders_search_has_bins() {
        assert!(K_GRID.iter().all(|&k| Bins::new(&projective_table(k, 128)).is_some()));
        assert!(OCTAVES.iter().all(|&octaves| Bins::new(&logarithmic_table(octaves)).is_some()));
        assert!(Bins::new(&linear_table()).is_some());
        for k in [0.01, 0.1, 3.0, 50.0, 1e6, 1e200] {
            assert!(Bins::new(&projective_table(k, 128)).is_some(), "{k}");
        }
        assert!(Bins::new(&logarithmic_table(0.1)).is_none() && Bins::new(&logarithmic_table(1e9)).is_none());
    }

    #[test]
    fn places_are_logarithms() {
        let mut previous = i32::MIN;
        for i in 0..100_000 {
            let x = 1e-6f32 * 1.000_3f32.powi(i);
            let found = place(x);
            assert!((f64::from(found) - f64::from(x).log2() * f64::from(OCTAVE)).abs() < 0.6, "{x}");
            assert!(found >= previous);
            previous = found;
        }
        assert_eq!((place(1.0), place(2.0), place(0.125)), (0, OCTAVE, -3 * OCTAVE));
        assert!(place(0.0) <= -126 * OCTAVE && place(f32::MIN_POSITIVE / 4.0) <= -126 * OCTAVE);
    }

    proptest! {
        #[test]
        fn codes_are_those_of_the_plain_search(
            constant in prop_oneof![prop::sample::select(K_GRID.to_vec()), prop::sample::select(OCTAVES.to_vec()), 0.0..300.0],
            weights in prop::collection::vec(prop_oneof![6 => -1.0f32..1.0, 1 => Just(0.0f32), 1 => -1e-9f32..1e-9, 1 => -1e20f32..1e20], 1..=32),
            scale_code in 0u8..ZERO_GROUP,
        ) {
            let group = Group::<32>::new(&weights, 1.0);
            let inverse = 1.0 / relative_scale(scale_code);
            for (table, nearest) in tables(constant) {
                let expected = group.x.map(|x| nearest.code(x * inverse).1);
                let mut found = Vec::new();
                each(&table, &nearest, constant, |_, codes| found.push(codes(&group, scale_code)));
                for codes in found {
                    // Where two values are as near, either.
                    for ((code, expected), x) in codes.into_iter().zip(expected).zip(group.x) {
                        let off = |value: f32| (value - x * inverse).abs();
                        prop_assert!(off(table[usize::from(code)]) <= off(expected) * 1.000_01, "{} {:?}", x, constant);
                    }
                }
            }
        }

        #[test]
        fn errors_are_those_of_the_nearest_codes(
            constant in prop_oneof![prop::sample::select(K_GRID.to_vec()), prop::sample::select(OCTAVES.to_vec())],
            weights in prop::collection::vec(-1.0f32..1.0, 1..=32),
            first in -16i32..255,
        ) {
            let group = Group::<32>::new(&weights, 1.0);
            for (table, nearest) in tables(constant) {
                let exact = nearest.errors(&group, first);
                let mut found = Vec::new();
                each(&table, &nearest, constant, |errors, _| found.push(errors(&group, first)));
                for errors in found {
                    for (lane, (error, exact)) in errors.into_iter().zip(exact).enumerate() {
                        let legal = (0..i32::from(ZERO_GROUP)).contains(&(first + lane as i32));
                        prop_assert_eq!(legal, error.is_finite());
                        // Within a place of a midpoint the other value counts: squares of 1 + 1/4 and 1 - 1/4 at most.
                        let close = error >= exact * 0.99 - 1e-9 && error <= exact * 2.8 + 1e-9;
                        prop_assert!(!legal || close, "{} {}", error, exact);
                    }
                }
            }
        }
    }
}
