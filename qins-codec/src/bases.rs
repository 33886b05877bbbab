//! What scale codes are relative to: one base for all rows, or one for each row where groups lie too far below that.

use crate::{
    EncodeError, Format, Header, Weights,
    cells::place,
    dispatch::{Kernel, Level},
    scale::{ZERO_GROUP, base_for, scale},
};
use rayon::prelude::*;

/// Whether [`encode`](crate::encode) gives the rows of these weights bases of their own, which takes 32 bits a row more. It
/// does where a group that is not all zeros lies below the smallest scale of the matrix's base, 8 octaves below the largest
/// weight, and its row holds no weight of that size. Formats of which rows have bases anyway, or never, are not asked for.
///
/// # Errors
/// [`EncodeError::NotFinite`] names the first NaN or infinite weight.
pub fn needs_row_bases(format: Format, weights: &impl Weights) -> Result<bool, EncodeError> {
    if !format.allows_row_bases() {
        return Ok(false);
    }
    Ok(Bases::of(&survey(format, weights)?).by_row)
}

/// What a row's weights say about the base that they need.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RowMagnitudes {
    pub(crate) largest: f32,
    /// Of the largest magnitudes of all groups, the least that is not 0; infinite where there is none.
    pub(crate) least_of_groups: f32,
}

/// Every row's magnitudes.
pub(crate) fn survey(format: Format, weights: &impl Weights) -> Result<Vec<RowMagnitudes>, EncodeError> {
    let level = Level::current();
    let of_row = |buffer: &mut Vec<f32>, row| {
        weights.read_row(row, buffer);
        let found = level.run(OfRow { weights: buffer, group: format.group() });
        if !found.largest.is_finite() {
            EncodeError::check_finite(row, buffer)?;
        }
        Ok(found)
    };
    let rows: Vec<_> = (0..weights.rows()).into_par_iter().map_init(|| vec![0.0; weights.cols()], of_row).collect();
    // In row order, so that the first bad weight is reported whatever the threads did.
    rows.into_iter().collect()
}

struct OfRow<'a> {
    weights: &'a [f32],
    group: usize,
}

impl Kernel for OfRow<'_> {
    type Output = RowMagnitudes;

    #[inline(always)]
    fn run(self) -> RowMagnitudes {
        if self.group == 16 { self.by_groups::<16>() } else { self.by_groups::<32>() }
    }
}

impl OfRow<'_> {
    #[inline(always)]
    fn by_groups<const N: usize>(self) -> RowMagnitudes {
        debug_assert_eq!(self.group, N);
        let (groups, last) = self.weights.as_chunks::<N>();
        // Bits without the sign are in order, as signed numbers too, and those of 0 are 0.
        let (mut largest, mut least) = (0, f32::INFINITY.to_bits() as i32);
        let mut add = |of_group: i32| {
            largest = of_group.max(largest);
            least = if of_group > 0 { of_group.min(least) } else { least };
        };
        for group in groups {
            add(largest_bits(group));
        }
        add(largest_bits(last));
        RowMagnitudes { largest: f32::from_bits(largest as u32), least_of_groups: f32::from_bits(least as u32) }
    }
}

#[inline(always)]
fn largest_bits(weights: &[f32]) -> i32 {
    weights.iter().fold(0, |largest, weight| (weight.to_bits() as i32 & i32::MAX).max(largest))
}

/// The base of a matrix, and whether rows have their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bases {
    pub(crate) base: f32,
    pub(crate) by_row: bool,
}

impl Bases {
    /// For rows of which all weights are finite.
    pub(crate) fn of(rows: &[RowMagnitudes]) -> Self {
        let base = base_for(rows.iter().fold(0.0, |largest, row| row.largest.max(largest)));
        let floor = scale(base, ZERO_GROUP - 1);
        let is_lifted = |row: &RowMagnitudes| row.least_of_groups < floor && row_base(base, row.largest) < base;
        Self { base, by_row: rows.iter().any(is_lifted) }
    }
}

/// The base of a row whose largest magnitude this is: the matrix's base, halved as often as the row still fits below it. So
/// the scales of all rows are of one grid, and no row has larger ones than with the matrix's base.
pub(crate) fn row_base(base: f32, largest: f32) -> f32 {
    // Halving normal numbers is exact. Rows of zeros need no base.
    let least = base_for(largest).max(f32::MIN_POSITIVE);
    let mut own = base;
    while largest > 0.0 && own / 2.0 >= least {
        own /= 2.0;
    }
    own
}

/// The base that a row is encoded with.
pub(crate) fn base_of_row(header: &Header, weights: &[f32]) -> f32 {
    match header.row_bases {
        true => row_base(header.base, f32::from_bits(largest_bits(weights) as u32)),
        false => header.base,
    }
}

/// The same for weights that may have been decoded from codes, which may have moved a row's largest magnitude to where its
/// base would be halved once more or once less: that of the least `error`.
pub(crate) fn base_of_decoded_row(header: &Header, weights: &[f32], error: impl Fn(f32) -> f64) -> f32 {
    let own = base_of_row(header, weights);
    if !header.row_bases {
        return own;
    }
    let others = [own * 2.0, own / 2.0].into_iter().filter(|&base| base <= header.base && base >= f32::MIN_POSITIVE);
    let least = |best: (f32, f64), base| {
        let found = error(base);
        if found < best.1 { (base, found) } else { best }
    };
    others.fold((own, error(own)), least).0
}

/// What a row with a base of its own counts when constants are chosen for all rows: the logarithm of its squared error, in
/// units of the base, against its signal. Beside an outlier any constant loses much: as one row among the others it decides
/// little.
pub(crate) fn rating(error: f64, row: &[f32], base: f32) -> f64 {
    /// What rows without an error count.
    const LEAST: f64 = 1e-20;
    let signal: f64 = row.iter().map(|&weight| (f64::from(weight) / f64::from(base)).powi(2)).sum();
    let lost = if signal > 0.0 { error / signal } else { 0.0 };
    // The same on every machine, unlike the standard library's logarithm.
    f64::from(place(lost.clamp(LEAST, 1.0 / LEAST) as f32))
}
