//! One pass over a row that finds its largest magnitude, and whether all of it is finite.

use crate::{
    dispatch::{Kernel, Level},
    error::EncodeError,
};

/// The largest magnitude of a row; an error names the first weight that is NaN or infinite.
pub(crate) fn largest_magnitude(row: usize, weights: &[f32]) -> Result<f32, EncodeError> {
    let largest = f32::from_bits(Level::current().run(LargestBits(weights)));
    if largest.is_finite() { Ok(largest) } else { EncodeError::check_finite(row, weights).map(|()| largest) }
}

/// The largest bits without the sign: those of infinity and NaN are above those of every number.
struct LargestBits<'a>(&'a [f32]);

impl Kernel for LargestBits<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        let mut largest = 0;
        for weight in self.0 {
            // As a signed number, which more instruction sets can compare.
            largest = (weight.to_bits() as i32 & i32::MAX).max(largest);
        }
        largest as u32
    }
}
