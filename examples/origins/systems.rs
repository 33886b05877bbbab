//! The systems of the record, each made of a float toy.

use crate::{
    agreement::System,
    calibration::{calibrated, in_codes},
    rules::{Coding, Order, Rules, at_rest, at_rest_origin, codes},
    toy::{Matrix, Place, Toy},
};
use qins_codec::Format;

/// Which systems a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Decoded before they are multiplied.
    AtRest,
    /// Computed with codes.
    CodeDomain,
    /// Activations encoded, weights in float.
    Activations,
}

/// Weights encoded in a format, the head in another, and decoded where they are used.
pub fn decoded(toy: &Toy, body: Format, head: Format) -> Toy {
    toy.clone().with_weights(|place, _, matrix| {
        let format = if place == Place::Head { head } else { body };
        Matrix { values: at_rest(format, &matrix.values, matrix.cols), ..matrix.clone() }
    })
}

fn decoded_origin(toy: &Toy, name: &str) -> Toy {
    toy.clone().with_weights(|_, _, matrix| Matrix { values: at_rest_origin(name, &matrix.values), ..matrix.clone() })
}

fn coding(f: impl Fn(&[f32]) -> Vec<f32> + Sync + 'static) -> Option<Coding> {
    Some(Box::new(f))
}

/// A token's activations as one row, encoded and decoded.
fn row_coding(format: Format) -> Option<Coding> {
    coding(move |x| at_rest(format, x, x.len()))
}

/// The systems of a group; `texts` are for calibration and of equal length.
pub fn systems(group: Group, toy: &Toy, texts: &[Vec<u32>]) -> Vec<System> {
    let system = |name: &str, toy: Toy, rules: Rules| System { name: name.to_owned(), toy, rules };
    let plain = |name: &str, toy: Toy| system(name, toy, Rules::default());
    let with = |name: &str, rules: Rules| system(name, toy.clone(), rules);
    match group {
        Group::AtRest => vec![
            plain("at rest, `log`", decoded_origin(toy, "log")),
            plain("at rest, `linear-repair`", decoded_origin(toy, "linear-repair")),
            plain("at rest, `fpins-greedy:2`", decoded_origin(toy, "fpins-greedy:2")),
            plain("at rest, `inverse` (scale 256)", decoded_origin(toy, "inverse")),
            plain("at rest, `q8`", decoded(toy, Format::Q8, Format::Q8)),
            plain("hybrid, `q8` and head `q12`", decoded(toy, Format::Q8, Format::Q12)),
            plain("hybrid, `q8` and head `f16`", decoded(toy, Format::Q8, Format::F16)),
            plain("at rest, `q12`", decoded(toy, Format::Q12, Format::Q12)),
            plain("at rest, `q4`", decoded(toy, Format::Q4, Format::Q4)),
        ],
        Group::CodeDomain => vec![
            plain("codes for weights", in_codes(toy, Order::Inverse)),
            system(
                "codes for weights and inputs",
                in_codes(toy, Order::Inverse),
                Rules { inputs: coding(|x| codes(Order::Inverse, x)), ..Default::default() },
            ),
            plain("codes in direct order for weights", in_codes(toy, Order::Direct)),
            with("norms over codes", Rules { norm_inputs: coding(|x| codes(Order::Inverse, x)), ..Default::default() }),
            with(
                "norms over codes in direct order",
                Rules { norm_inputs: coding(|x| codes(Order::Direct, x)), ..Default::default() },
            ),
            plain("calibrated: S, alpha, Q and K in float", calibrated(toy, Order::Inverse, texts)),
            plain("calibrated, codes in direct order", calibrated(toy, Order::Direct, texts)),
        ],
        Group::Activations => vec![
            with(
                "between layers, `log` a token",
                Rules { between_layers: coding(|x| at_rest_origin("log", x)), ..Default::default() },
            ),
            with("between layers, `log8`", Rules { between_layers: row_coding(Format::Log8), ..Default::default() }),
            with("between layers, `q8`", Rules { between_layers: row_coding(Format::Q8), ..Default::default() }),
            with("V of the cache, `q8`", Rules { values: row_coding(Format::Q8), ..Default::default() }),
            with(
                "V of the cache, `log` a token",
                Rules { values: coding(|x| at_rest_origin("log", x)), ..Default::default() },
            ),
        ],
    }
}
