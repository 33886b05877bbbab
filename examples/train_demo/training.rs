//! The training loop.

use crate::tokenizer::VOCABULARY;
use burn::{
    grad_clipping::GradientClippingConfig,
    module::{AutodiffModule, Module},
    nn::loss::CrossEntropyLossConfig,
    optim::{AdamWConfig, GradientsAccumulator, GradientsParams, Optimizer},
    tensor::{Int, Tensor, TensorData, backend::Backend},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use indicatif::{ProgressBar, ProgressStyle};
use phi35_model::{Config, ConfigError, DenseKv, KvCache, Phi3};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde_json::{Value, json};

type Trained = Autodiff<Flex>;

/// Longest sequence.
const CONTEXT: usize = 512;
/// Tokens of a batch, padding included.
const BATCH_TOKENS: usize = 4096;
const PEAK_LEARNING_RATE: f64 = 3e-3;
const WARMUP_STEPS: usize = 100;

/// `config.json` of the demo model.
pub fn config() -> Value {
    json!({
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "original_max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": true,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float16",
    })
}

/// Runs once over all sequences.
pub fn train(config: &Config, sequences: Vec<Vec<u32>>, seed: u64) -> Result<Phi3<Flex>, ConfigError> {
    let device = Default::default();
    Trained::seed(&device, seed);
    let mut model = config.init::<Trained>(&device)?;
    let embedding = &mut model.model.embed_tokens.weight;
    *embedding = embedding.clone().map(|weight| weight * 0.02);

    let batches = batches(sequences, &mut ChaCha8Rng::seed_from_u64(seed));
    let mut optimizer = AdamWConfig::new()
        .with_beta_2(0.95)
        .with_weight_decay(0.05)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init();
    let bar = ProgressBar::new(batches.len() as u64).with_style(
        ProgressStyle::with_template("training {bar:30} {pos}/{len}, {eta} left, {msg}").expect("well formed"),
    );
    let mut smooth = None;
    for (step, batch) in batches.iter().enumerate() {
        let (now, gradients) = gradients(&model, batch);
        model = optimizer.step(learning_rate(step, batches.len()), model, gradients);
        let smoothed = smooth.map_or(now, |before: f64| 0.98 * before + 0.02 * now);
        smooth = Some(smoothed);
        bar.set_message(format!("loss {smoothed:.3}"));
        bar.inc(1);
        if step % 50 == 49 {
            eprintln!("step {}: loss {smoothed:.4}", step + 1);
        }
    }
    bar.finish();
    Ok(model.valid())
}

/// Mean loss over a batch and its gradients. The batch is cut in two, each half on its own thread: most operations of
/// Flex run on one.
fn gradients(model: &Phi3<Trained>, batch: &[Vec<u32>]) -> (f64, GradientsParams) {
    let half = |rows: &[Vec<u32>], model: Phi3<Trained>| {
        let [input, target] = [0, 1].map(|from| tensor(rows, from));
        let mut cache: KvCache<Trained, DenseKv<Trained>> = model.cache();
        let logits: Tensor<Trained, 2> = model.forward(input, &mut cache).flatten(0, 1);
        let loss = CrossEntropyLossConfig::new().with_pad_tokens(Some(vec![PADDING as usize])).init(&logits.device());
        let loss = loss.forward(logits, target.flatten(0, 1)) * (rows.len() as f64 / batch.len() as f64);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        (f64::from(loss.into_scalar()), gradients)
    };
    let (a, b) = batch.split_at(batch.len().div_ceil(2));
    if b.is_empty() {
        return half(a, model.clone());
    }
    // Forked, so that the halves share no node of autodiff's graph, which would be locked for one of them at a time.
    let [first, second] = [(); 2].map(|()| model.clone().fork(&Default::default()));
    let ((loss_a, grads_a), (loss_b, grads_b)) = std::thread::scope(|scope| {
        let other = scope.spawn(move || half(b, second));
        (half(a, first), other.join().expect("the other half does not panic"))
    });
    let mut sum = GradientsAccumulator::new();
    sum.accumulate(model, grads_a);
    sum.accumulate(model, grads_b);
    (loss_a + loss_b, sum.grads())
}

/// A target that does not count: `<s>`, which no token is ever followed by.
const PADDING: i64 = 1;

/// The tokens of a batch, those after the first `from`, `[batch, longest - 1]`.
fn tensor(batch: &[Vec<u32>], from: usize) -> Tensor<Trained, 2, Int> {
    let tokens = batch.iter().map(Vec::len).max().unwrap_or(0) - 1;
    let padded = |sequence: &Vec<u32>| {
        let mut row: Vec<i64> = sequence.iter().skip(from).take(tokens).map(|&id| i64::from(id)).collect();
        row.resize(tokens, PADDING);
        row
    };
    let ids: Vec<i64> = batch.iter().flat_map(padded).collect();
    Tensor::from_data(TensorData::new(ids, [batch.len(), tokens]), &Default::default())
}

/// Rises, then falls along a cosine.
fn learning_rate(step: usize, steps: usize) -> f64 {
    let warm = (step + 1) as f64 / WARMUP_STEPS as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
    PEAK_LEARNING_RATE * warm.min(1.0) * (0.01 + 0.99 * cosine)
}

/// Sequences of like length together, in random order.
fn batches(mut sequences: Vec<Vec<u32>>, random: &mut ChaCha8Rng) -> Vec<Vec<Vec<u32>>> {
    // One token more than the context: the first is no target, the last no input.
    sequences.iter_mut().for_each(|sequence| sequence.truncate(CONTEXT + 1));
    sequences.sort_by_key(Vec::len);
    let mut batches: Vec<Vec<Vec<u32>>> = vec![Vec::new()];
    for sequence in sequences {
        let last = batches.last_mut().expect("never empty");
        if (last.len() + 1) * sequence.len() > BATCH_TOKENS {
            batches.push(vec![sequence]);
        } else {
            last.push(sequence);
        }
    }
    shuffle(&mut batches, random);
    batches
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, random.next_u64() as usize % (i + 1));
    }
}
