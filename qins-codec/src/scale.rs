//! Group scales: logarithmic codes of 1/32 octave below a base.

/// Scale codes in an octave.
pub const SCALE_STEPS: usize = 32;

/// Scale code of a group whose weights are all zero; it decodes to exact zeros.
pub const ZERO_GROUP: u8 = 255;

/// `2^(-i/32)` rounded to f32. A table, because the decode rules are normative and `powf` differs between machines.
const FRACTION: [f32; SCALE_STEPS] = [
    1.0, 0.9785721, 0.9576033, 0.93708384, 0.91700405, 0.89735454, 0.8781261, 0.8593097, 0.8408964, 0.82287776,
    0.80524516, 0.78799045, 0.7711054, 0.7545822, 0.7384131, 0.7225904, 0.70710677, 0.691955, 0.6771278, 0.66261834,
    0.6484198, 0.6345255, 0.6209289, 0.6076237, 0.59460354, 0.58186245, 0.5693943, 0.5571934, 0.5452539, 0.53357023,
    0.52213687, 0.5109486,
];

/// The f32 scale of `code`: `base * 2^(-code/32)`, 0 for [`ZERO_GROUP`].
///
/// The fraction of the exponent comes from a table, its whole part is exact, and one f32 product joins them.
pub fn scale(base: f32, code: u8) -> f32 {
    if code == ZERO_GROUP { 0.0 } else { base * relative_scale(code) }
}

/// `2^(-code/32)`, exact to f32, for `code` below [`ZERO_GROUP`].
pub(crate) fn relative_scale(code: u8) -> f32 {
    // At most 2^-7: exact.
    FRACTION[code as usize % SCALE_STEPS] / (1u32 << (code as usize / SCALE_STEPS)) as f32
}

/// The base whose code 0 is one step above `largest`, the largest magnitude of the matrix.
pub(crate) fn base_for(largest: f32) -> f32 {
    ((largest as f64 * 2f64.powf(1.0 / SCALE_STEPS as f64)) as f32).min(f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_powers_of_two_rounded_to_f32() {
        for (i, &f) in FRACTION.iter().enumerate() {
            assert_eq!(f, 2f64.powf(-(i as f64) / 32.0) as f32, "step {i}");
        }
    }

    #[test]
    fn scales_fall_by_a_factor_of_two_every_32_codes() {
        for code in 0..ZERO_GROUP - 32 {
            assert_eq!(scale(3.5, code + 32), scale(3.5, code) / 2.0);
            assert!(scale(3.5, code + 1) < scale(3.5, code));
        }
        assert_eq!(scale(3.5, ZERO_GROUP), 0.0);
    }

    #[test]
    fn the_largest_float_has_a_base() {
        assert!(base_for(f32::MAX).is_finite());
    }
}
