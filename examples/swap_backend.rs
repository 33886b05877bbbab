//! One function, written for any Burn backend, run on every one: the backend is a type, and nothing else changes.
//!
//!     cargo run --release --example swap_backend
//!     cargo run --release --example swap_backend --features qins-examples/wgpu      (or cuda)

use burn::tensor::backend::Backend;
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

/// Plain Burn: knows nothing of QINS. The second run is timed: devices compile their kernels in the first.
fn logits<B: Backend>(model: &Phi3<B>, ids: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
    model.sequence_logits(ids)?.into_data();
    let start = Instant::now();
    let logits = model.sequence_logits(ids)?.into_data().to_vec().map_err(|e| format!("{e:?}"))?;
    let name = B::name(&Default::default());
    print!("{name:<32} {:>7.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(logits)
}

struct Demo {
    config: Config,
    record: Vec<u8>,
    ids: Vec<u32>,
    reference: Vec<f32>,
}

impl Demo {
    /// Random weights, drawn once: a record carries them to every backend.
    fn new() -> Result<Self, Box<dyn Error>> {
        let config: Config = serde_json::from_str(CONFIG)?;
        let ids: Vec<u32> = (0..32).map(|i| i * 61 % 2048).collect();
        Flex::seed(&Default::default(), 1);
        let random: Phi3<Flex> = config.init(&Default::default())?;
        let reference = random.sequence_logits(&ids)?.into_data().to_vec().map_err(|e| format!("{e:?}"))?;
        Ok(Self { config, record: record::<Flex, _>(random)?, ids, reference })
    }

    fn load<B: Backend>(&self) -> Result<Phi3<B>, Box<dyn Error>> {
        load(self.config.init(&Default::default())?, &self.record)
    }

    /// In float on `B`, on codes on `Qins<B>`.
    fn both<B: Backend>(&self) -> Result<(), Box<dyn Error>> {
        self.compare(&self.load::<B>()?)?;
        self.compare(&Policy::linear(Format::Q8).encode(self.load::<Qins<B>>()?)?)
    }

    fn compare<B: Backend>(&self, model: &Phi3<B>) -> Result<(), Box<dyn Error>> {
        let logits = logits(model, &self.ids)?;
        let difference = logits.iter().zip(&self.reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("   largest logit difference from flex {difference:.1e}");
        Ok(())
    }
}

fn record<B: Backend, M: burn::module::Module<B>>(module: M) -> Result<Vec<u8>, Box<dyn Error>> {
    use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
    Ok(Recorder::<B>::record(&BinBytesRecorder::<FullPrecisionSettings>::default(), module.into_record(), ())?)
}

fn load<B: Backend, M: burn::module::Module<B>>(module: M, record: &[u8]) -> Result<M, Box<dyn Error>> {
    use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
    let record = BinBytesRecorder::<FullPrecisionSettings>::default().load(record.to_vec(), &Default::default())?;
    Ok(module.load_record(record))
}

fn main() -> Result<(), Box<dyn Error>> {
    let demo = Demo::new()?;
    demo.both::<Flex>()?;
    demo.both::<NdArray>()?;
    #[cfg(feature = "wgpu")]
    demo.both::<burn_wgpu::Wgpu>()?;
    #[cfg(feature = "cuda")]
    demo.both::<burn_cuda::Cuda>()?;
    Ok(())
}
