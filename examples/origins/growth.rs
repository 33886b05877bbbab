//! How an error grows from layer to layer: the record's "1 % after one layer, 10 % after three, total after ten".

use crate::{
    agreement::System,
    rules::Rules,
    toy::{Text, Toy},
};

/// `|found - expected| / |expected|`.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let off: f64 = found.iter().zip(expected).map(|(f, e)| square(f - e)).sum();
    (off / expected.iter().map(|&e| square(e)).sum::<f64>()).sqrt()
}

/// The residual stream after each layer, one token after the other: `[layers + 1][tokens * width]`.
fn streams(toy: &Toy, rules: &Rules, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut text = [Text::default()];
    let mut streams = vec![Vec::new(); toy.config.num_hidden_layers + 1];
    for &id in ids {
        let mut watch = |layer: usize, stream: &[Vec<f32>]| streams[layer].extend_from_slice(&stream[0]);
        toy.step_watched(rules, &mut text, &[id], &mut watch, &mut |_, _, _| ());
    }
    streams
}

/// Relative error of the residual stream after each layer, both reading the same ids. The first is that of the
/// embedding: 0.
pub fn growth(float: &Toy, system: &System, ids: &[u32]) -> Vec<f64> {
    let expected = streams(float, &Rules::default(), ids);
    let found = streams(&system.toy, &system.rules, ids);
    found.iter().zip(&expected).map(|(found, expected)| relative_error(found, expected)).collect()
}
