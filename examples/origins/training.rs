//! A few minutes of training, for toys whose weights mean something.

use crate::{source, toy::Toy};
use burn::{
    grad_clipping::GradientClippingConfig,
    module::AutodiffModule,
    nn::loss::CrossEntropyLossConfig,
    optim::{AdamWConfig, GradientsParams, Optimizer},
    tensor::{Int, Tensor, TensorData, backend::Backend},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use phi35_model::{Config, DenseKv, Phi3};
use std::error::Error;

type Trained = Autodiff<Flex>;

/// Tokens of a sequence and sequences of a batch.
const SEQUENCE: usize = 96;
const BATCH: usize = 8;
const PEAK_LEARNING_RATE: f64 = 3e-3;

/// Trains on the demo grammar's text, whose tokens are the first of the vocabulary; returns the last loss in nats too.
pub fn train(config: &Config, steps: usize, seed: u64) -> Result<(Toy, f64), Box<dyn Error>> {
    let device = Default::default();
    Trained::seed(&device, seed);
    let mut model = config.init::<Trained>(&device)?;
    let embedding = &mut model.model.embed_tokens.weight;
    *embedding = embedding.clone().map(|weight| weight * 0.02);
    let text: Vec<u32> = source::story_ids(steps * BATCH, seed)?.concat();
    let sequences: Vec<&[u32]> = text.chunks_exact(SEQUENCE + 1).take(steps * BATCH).collect();
    let mut optimizer =
        AdamWConfig::new().with_beta_2(0.95).with_grad_clipping(Some(GradientClippingConfig::Norm(1.0))).init();
    let (mut smooth, steps) = (f64::NAN, sequences.len() / BATCH);
    for (step, batch) in sequences.chunks_exact(BATCH).enumerate() {
        let (loss, gradients) = gradients(&model, batch);
        let warm = ((step + 1) as f64 / 20.0).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
        model = optimizer.step(PEAK_LEARNING_RATE * warm * (0.01 + 0.99 * cosine), model, gradients);
        smooth = if smooth.is_nan() { loss } else { 0.9 * smooth + 0.1 * loss };
        if step % 20 == 19 {
            eprintln!("step {} of {steps}: loss {smooth:.3}", step + 1);
        }
    }
    Ok((Toy::of(&model.valid(), config), smooth))
}

fn gradients(model: &Phi3<Trained>, batch: &[&[u32]]) -> (f64, GradientsParams) {
    let part = |from: usize| -> Tensor<Trained, 2, Int> {
        let ids: Vec<i64> = batch.iter().flat_map(|ids| ids[from..][..SEQUENCE].iter().map(|&id| id.into())).collect();
        Tensor::from_data(TensorData::new(ids, [batch.len(), SEQUENCE]), &Default::default())
    };
    let logits: Tensor<Trained, 2> = model.forward(part(0), &mut model.cache::<DenseKv<Trained>>()).flatten(0, 1);
    let loss = CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, part(1).flatten(0, 1));
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    (f64::from(loss.into_scalar()), gradients)
}
