//! One function, written for any Burn backend, run on four: the backend is a type, and nothing else changes.
//!
//!     cargo run --release --example swap_backend

use burn::{
    module::Module,
    record::{BinBytesRecorder, FullPrecisionSettings, Recorder},
    tensor::backend::Backend,
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use phi35_model::{Config, Phi3};
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use std::{error::Error, time::Instant};

/// A small Phi-3 with random weights.
const CONFIG: &str = r#"{"model_type": "phi3", "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#;

/// Plain Burn: knows nothing of QINS.
fn logits<B: Backend>(model: &Phi3<B>, ids: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
    let start = Instant::now();
    let logits = model.sequence_logits(ids)?.into_data().to_vec().map_err(|e| format!("{e:?}"))?;
    let name = B::name(&Default::default());
    print!("{name:<14} {:>7.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(logits)
}

fn compare(logits: &[f32], reference: &[f32]) {
    let difference = logits.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("   largest logit difference from flex {difference:.1e}");
}

/// The same weights on any backend.
fn load<B: Backend>(config: &Config, record: &[u8]) -> Result<Phi3<B>, Box<dyn Error>> {
    let device = Default::default();
    let record = BinBytesRecorder::<FullPrecisionSettings>::default().load(record.to_vec(), &device)?;
    Ok(config.init(&device)?.load_record(record))
}

fn main() -> Result<(), Box<dyn Error>> {
    let config: Config = serde_json::from_str(CONFIG)?;
    let ids: Vec<u32> = (0..32).map(|i| i * 61 % 2048).collect();

    // Random weights, drawn once: a record carries them to every backend.
    Flex::seed(&Default::default(), 1);
    let random: Phi3<Flex> = config.init(&Default::default())?;
    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    let record = Recorder::<Flex>::record(&recorder, random.into_record(), ())?;

    let reference = logits(&load::<Flex>(&config, &record)?, &ids)?;
    println!();
    compare(&logits(&load::<NdArray>(&config, &record)?, &ids)?, &reference);
    let q8 = Policy::linear(Format::Q8);
    compare(&logits(&q8.encode(load::<Qins<Flex>>(&config, &record)?)?, &ids)?, &reference);
    compare(&logits(&q8.encode(load::<Qins<NdArray>>(&config, &record)?)?, &ids)?, &reference);
    Ok(())
}
