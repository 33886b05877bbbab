//! The record's repair of code-domain computing: per-channel output scales S and one logit scale alpha, both by least
//! squares against float, and queries and keys left in float.

use crate::{
    rules::{Order, Rules, codes},
    toy::{Matrix, Place, Tap, Text, Toy, dot},
};
use std::collections::HashMap;

/// Codes in place of weights.
pub fn in_codes(toy: &Toy, order: Order) -> Toy {
    toy.clone().with_weights(|_, _, matrix| Matrix { values: codes(order, &matrix.values), ..matrix.clone() })
}

/// Codes in place of weights, repaired on calibration texts of equal length.
pub fn calibrated(toy: &Toy, order: Order, texts: &[Vec<u32>]) -> Toy {
    let coded = in_codes(toy, order);
    let mut inputs: HashMap<(usize, usize), Vec<Vec<f32>>> = HashMap::new();
    let float_logits = run(toy, texts, &mut |place, layer, now| {
        inputs.entry((place as usize, layer)).or_default().extend_from_slice(now);
    });
    let query_and_key_rows = (toy.config.num_attention_heads + toy.config.key_value_heads()) * toy.config.head_size();
    let mut floats = HashMap::new();
    let _ = toy.clone().with_weights(|place, layer, matrix| {
        floats.insert((place as usize, layer), matrix.clone());
        matrix.clone()
    });
    let mut repaired = coded.with_weights(|place, layer, matrix| {
        let (float, inputs) = (&floats[&(place as usize, layer)], &inputs[&(place as usize, layer)]);
        let mut values = Vec::with_capacity(matrix.values.len());
        for row in 0..matrix.rows {
            if place == Place::Qkv && row < query_and_key_rows {
                values.extend_from_slice(float.row(row));
                continue;
            }
            let outputs = inputs.iter().map(|x| (dot(float.row(row), x), dot(matrix.row(row), x)));
            let scale = least_squares(outputs);
            values.extend(matrix.row(row).iter().map(|code| scale * code));
        }
        Matrix { values, ..matrix.clone() }
    });
    let logits = run(&repaired, texts, &mut |_, _, _| ());
    let alpha = least_squares(float_logits.into_iter().zip(logits));
    // A negative scale would turn the ranking round; least squares gives one where the logits have nothing in common.
    let alpha = if alpha > 0.0 { alpha } else { 1.0 };
    repaired = repaired.with_weights(|place, _, matrix| match place {
        Place::Head => Matrix { values: matrix.values.iter().map(|v| alpha * v).collect(), ..matrix.clone() },
        _ => matrix.clone(),
    });
    repaired
}

/// The factor `s` of the least `sum (float - s coded)^2`.
fn least_squares(pairs: impl Iterator<Item = (f32, f32)>) -> f32 {
    let (above, below) = pairs.fold((0.0f64, 0.0f64), |(above, below), (float, coded)| {
        (above + f64::from(float) * f64::from(coded), below + f64::from(coded) * f64::from(coded))
    });
    if below > 0.0 { (above / below) as f32 } else { 1.0 }
}

/// All logits, one after the other.
fn run(toy: &Toy, texts: &[Vec<u32>], tap: Tap<'_>) -> Vec<f32> {
    let mut states = vec![Text::default(); texts.len()];
    let mut logits = Vec::new();
    for i in 0..texts[0].len() {
        let ids: Vec<u32> = texts.iter().map(|text| text[i]).collect();
        let now = toy.step_watched(&Rules::default(), &mut states, &ids, &mut |_, _| (), &mut *tap);
        logits.extend(now.into_iter().flatten());
    }
    logits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{agreement::top, source};

    #[test]
    fn no_logit_scale_changes_a_greedy_choice() {
        let toy = source::random(1, 64, 200, 5);
        let scaled = toy.clone().with_weights(|place, _, matrix| match place {
            Place::Head => Matrix { values: matrix.values.iter().map(|v| 0.25 * v).collect(), ..matrix.clone() },
            _ => matrix.clone(),
        });
        let ids = [7, 1, 199, 30];
        let (mut a, mut b) = ([Text::default()], [Text::default()]);
        for id in ids {
            let [a, b] =
                [(&toy, &mut a), (&scaled, &mut b)].map(|(toy, text)| toy.step(&Rules::default(), text, &[id]));
            assert_eq!(top(&a[0]), top(&b[0]));
            assert!((a[0][3] * 0.25 - b[0][3]).abs() < 1e-6);
        }
    }

    /// Each scale is the best for its channel, so that the layer is off by less, and not by nothing.
    #[test]
    fn channel_scales_mend_a_part_of_a_layer() {
        let toy = source::random(1, 64, 200, 5);
        let texts = [(0..40).map(|i| i * 4 + 3).collect()];
        let (mut float, mut inputs) = (None, Vec::new());
        run(&toy, &texts, &mut |place, _, now| {
            if place == Place::GateUp {
                inputs.extend_from_slice(now);
            }
        });
        let _ = toy.clone().with_weights(|place, _, matrix| {
            if place == Place::GateUp {
                float = Some(matrix.products(&inputs));
            }
            matrix.clone()
        });
        let float: Vec<f32> = float.unwrap().concat();
        let off = |toy: Toy| {
            let mut off = 0.0;
            let _ = toy.with_weights(|place, _, matrix| {
                if place == Place::GateUp {
                    let found: Vec<f32> = matrix.products(&inputs).concat();
                    off = crate::growth::relative_error(&found, &float);
                }
                matrix.clone()
            });
            off
        };
        let (plain, repaired) = (off(in_codes(&toy, Order::Inverse)), off(calibrated(&toy, Order::Inverse, &texts)));
        assert!(repaired < plain && repaired > 0.3, "{plain} {repaired}");
    }
}
