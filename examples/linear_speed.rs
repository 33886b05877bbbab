//! One linear layer of Phi-3.5-mini's feed-forward, `[m, 3072] x [3072, 8192]`, in float, in Burn's own quantization and on
//! codes. Enough layers are run in turn that weights come from memory and not from a cache.
//!
//!     cargo run --release --example linear_speed [-- ROWS ...]      rows of the input, `m` [default: 1]

use burn::{
    module::{Module, Quantizer},
    nn::{Linear, LinearConfig},
    tensor::{
        Distribution, Tensor,
        backend::Backend,
        quantization::{BlockSize, Calibration, QuantLevel, QuantParam, QuantScheme, QuantStore, QuantValue},
    },
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use qins_import::synthetic;
use std::time::Instant;

const INPUT: usize = 3072;
const OUTPUT: usize = 8192;

/// Bytes of weights that no cache holds.
const STREAMED: usize = 400 << 20;

fn linear<B: Backend>() -> Linear<B> {
    LinearConfig::new(INPUT, OUTPUT).with_bias(false).init(&Default::default())
}

/// Milliseconds of one product, and the bytes a second of weights of `bits` bits: the median of five rounds over the layers.
fn measure<B: Backend>(name: &str, bits: f64, m: usize, layer: impl Fn() -> Linear<B>) {
    let bytes = bits / 8.0 * (INPUT * OUTPUT) as f64;
    let layers: Vec<Linear<B>> = (0..(STREAMED as f64 / bytes).ceil() as usize).map(|_| layer()).collect();
    let x = Tensor::<B, 2>::random([m, INPUT], Distribution::Default, &Default::default());
    let round = || {
        let start = Instant::now();
        for layer in &layers {
            layer.forward(x.clone()).into_data();
        }
        start.elapsed().as_secs_f64() / layers.len() as f64
    };
    round();
    let mut seconds: Vec<f64> = (0..5).map(|_| round()).collect();
    seconds.sort_by(f64::total_cmp);
    println!("| {name} | {bits:.2} | {m} | {:.2} | {:.1} |", seconds[2] * 1e3, bytes / seconds[2] / 1e9);
}

fn quantized<B: Backend>() -> Linear<B> {
    let scheme = QuantScheme::default()
        .with_value(QuantValue::Q8S)
        .with_level(QuantLevel::Block(BlockSize::new([32])))
        .with_param(QuantParam::F32)
        .with_store(QuantStore::Native);
    linear().quantize_weights(&mut Quantizer { calibration: Calibration::MinMax, scheme })
}

fn coded<B: Backend>(format: Format) -> Linear<Qins<B>> {
    synthetic(linear(), &Policy::linear(format))
}

fn main() {
    let rows: Vec<usize> = std::env::args().skip(1).map(|rows| rows.parse().expect("a number of rows")).collect();
    println!("| weights | bits | m | ms | GB/s |\n|---|---|---|---|---|");
    for m in if rows.is_empty() { vec![1] } else { rows } {
        measure::<Flex>("Flex, f32", 32.0, m, linear);
        measure::<NdArray>("NdArray, f32", 32.0, m, linear);
        measure::<Flex>("Flex, Burn's Q8S in blocks of 32", 9.0, m, quantized);
        measure::<NdArray>("NdArray, Burn's Q8S in blocks of 32", 9.0, m, quantized);
        for (format, bits) in
            [(Format::Q8, 8.25), (Format::Lin8, 8.25), (Format::Q6, 6.51), (Format::Q4, 4.51), (Format::Bf16, 16.0)]
        {
            measure::<Qins<Flex>>(&format!("Qins<Flex>, {format}"), bits, m, || coded(format));
        }
        measure::<Qins<NdArray>>("Qins<NdArray>, q8", 8.25, m, || coded(Format::Q8));
    }
}
