//! Where the toys come from: random weights, the demo model of the program, or a few minutes of training.

use crate::{corpus, grammar::Grammar, toy::Toy};
use burn_flex::Flex;
use phi35_model::{Config, Phi3, Tokenizer};
use qins_import::{Checkpoint, load};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde_json::json;
use std::{error::Error, f64::consts::TAU, path::Path};

/// The record's vocabulary.
pub const VOCABULARY: usize = 5000;

/// A toy's shape: heads of 32 to 64, a feed-forward layer three times as wide as the model.
pub fn config(layers: usize, width: usize, vocabulary: usize) -> Config {
    let config = json!({
        "model_type": "phi3", "hidden_act": "silu", "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": 3 * width, "num_hidden_layers": layers, "num_attention_heads": 8,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": null, "tie_word_embeddings": false, "eos_token_id": 0,
    });
    serde_json::from_value(config).expect("all fields are there")
}

/// A random toy.
pub fn random(layers: usize, width: usize, vocabulary: usize, seed: u64) -> Toy {
    Toy::random(&config(layers, width, vocabulary), seed)
}

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../qins-cli/demo");

/// The model that is part of the program: 4 layers, 128 wide, trained for an hour on a grammar's text.
pub fn demo() -> Result<Toy, Box<dyn Error>> {
    Ok(demo_with_phi3()?.0)
}

/// The same, in both forms.
pub fn demo_with_phi3() -> Result<(Toy, Phi3<Flex>), Box<dyn Error>> {
    let directory = Path::new(DEMO);
    let config = Config::read(&directory.join("config.json"))?;
    let model = load::<Flex, _>(config.init(&Default::default())?, &Checkpoint::open(directory)?, |_| ())?;
    Ok((Toy::of(&model, &config), model))
}

/// Normal numbers of spread 1; the same for a seed on every machine.
pub fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || (f64::from(random.next_u32()) + 1.0) / 4_294_967_296.0;
    (0..n).map(|_| ((-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos()) as f32).collect()
}

/// Prompts of random tokens.
pub fn random_prompts(n: usize, tokens: usize, vocabulary: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut prompt = || (0..tokens).map(|_| random.next_u32() % vocabulary as u32).collect();
    (0..n).map(|_| prompt()).collect()
}

/// Beginnings of the demo grammar's documents.
pub fn story_prompts(n: usize, tokens: usize, seed: u64) -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
    Ok(story_ids(4 * n, seed)?
        .into_iter()
        .filter(|ids| ids.len() >= tokens)
        .map(|ids| ids[..tokens].to_vec())
        .take(n)
        .collect())
}

/// Tokens of the demo grammar's documents, by the demo's tokenizer.
pub fn story_ids(documents: usize, seed: u64) -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
    let tokenizer = Tokenizer::read(&Path::new(DEMO).join("tokenizer.json"))?;
    let documents = corpus::documents(&Grammar::of_the_demo(), documents, seed);
    documents.iter().map(|document| Ok(tokenizer.encode(document.text())?)).collect()
}
