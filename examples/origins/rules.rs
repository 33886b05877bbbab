//! What is done to the numbers of a toy: weights replaced, activations encoded on their way.

use qins_codec::{Format, Slice, encode, origins};

/// What a vector of activations becomes.
pub type Coding = Box<dyn Fn(&[f32]) -> Vec<f32> + Sync>;

/// What is done to activations; nothing by default.
#[derive(Default)]
pub struct Rules {
    /// To the inputs of every linear layer.
    pub inputs: Option<Coding>,
    /// To what the norms see.
    pub norm_inputs: Option<Coding>,
    /// To the residual stream between layers.
    pub between_layers: Option<Coding>,
    /// To the values of attention as they are stored: a token's, all heads.
    pub values: Option<Coding>,
}

/// Encoded and decoded again in a format of the project.
pub fn at_rest(format: Format, values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    encode(format, &Slice::new(values, rows, cols)).expect("finite numbers").matrix().decode()
}

/// Encoded and decoded again by an encoding of the record, as one tensor.
pub fn at_rest_origin(name: &str, values: &[f32]) -> Vec<f32> {
    let origin = origins::ALL.iter().find(|origin| origin.name() == name).expect("a name of the list");
    origin.round_trip(&Slice::new(values, 1, values.len())).expect("finite numbers")
}

/// The numbers of the record's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the log codec stores them: 1 for the largest magnitude, 255 for the smallest.
    Inverse,
    /// Turned round: 255 for the largest.
    Direct,
}

/// The codes themselves as numbers, the record's "encoded values": the sign times `code / 255` of the log codec over
/// `values` as one tensor, and 0 for 0. One factor brings them to the norm of `values`, so that a network of them has
/// activations of the usual size; the record had none, and its residual streams grew without measure.
pub fn codes(order: Order, values: &[f32]) -> Vec<f32> {
    let codec = origins::log::Codec::of(values);
    let code = |&value: &f32| match (value == 0.0, order, codec.code(f64::from(value.abs()))) {
        (true, _, _) => 0.0,
        (_, Order::Inverse, code) => (f32::from(code) / 255.0).copysign(value),
        (_, Order::Direct, code) => ((256.0 - f32::from(code)) / 255.0).copysign(value),
    };
    let codes: Vec<f32> = values.iter().map(code).collect();
    let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
    let factor = norm(values) / norm(&codes).max(f32::MIN_POSITIVE);
    codes.into_iter().map(|code| code * factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_signs_and_norm_and_turn_magnitudes_round() {
        let values = [0.001, -0.1, 1.0, 0.0];
        for (order, falls) in [(Order::Inverse, true), (Order::Direct, false)] {
            let codes = codes(order, &values);
            assert!(codes[0] > 0.0 && codes[1] < 0.0 && codes[2] > 0.0 && codes[3] == 0.0);
            assert_eq!(codes[0] > codes[2], falls);
            assert!((codes.iter().map(|c| c * c).sum::<f32>() - 1.010_001).abs() < 1e-4);
        }
    }
}
