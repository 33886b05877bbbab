//! What keys before rotation and first tokens in float would change in a key-value cache, as KVQuant and KIVI store them:
//! perplexity and divergence from floats, of a model on a text.
//!
//! `cargo run --release --example kv_variants -- MODEL TEXT [WINDOWS]`

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use phi35_model::{Config, DenseKv, KvStore, QueryMask, Tokenizer};
use qins_codec::kv::{KvFormat, KvLayer};
use qins_eval::{Corpus, Windows, WithStore, compare};
use qins_import::{Checkpoint, load};
use std::{error::Error, path::PathBuf};

/// Tokens that stay in float where some do: attention sinks are among the first.
const FIRST: usize = 4;

/// What is rounded.
#[derive(Clone, Copy, PartialEq)]
enum Rounded {
    KeysTo8,
    KeysTo4,
    ValuesTo4,
}

/// A way to store keys and values. All is kept in floats, rounded as codes would be.
#[derive(Clone)]
struct Variant {
    rounded: Rounded,
    /// Rotary dimensions and base, where keys are rounded as they are before rotation.
    unrotated: Option<(usize, f32)>,
    /// Tokens at the start that are not rounded.
    first: usize,
    store: DenseKv<Flex>,
}

/// Turns a key by `position`, or back.
fn rotate(key: &mut [f32], position: usize, (rotary, base): (usize, f32), sign: f32) {
    let half = rotary / 2;
    for i in 0..half {
        let angle = position as f32 / base.powf((2 * i) as f32 / rotary as f32);
        let (sin, cos) = (sign * angle.sin(), angle.cos());
        let (a, b) = (key[i], key[i + half]);
        (key[i], key[i + half]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

impl Variant {
    /// Rows of all heads and tokens, `[1, heads, tokens, head]`, as they come back from codes.
    fn rounded(&self, rows: Tensor<Flex, 4>, are_keys: bool) -> Tensor<Flex, 4> {
        if are_keys == (self.rounded == Rounded::ValuesTo4) {
            return rows;
        }
        let [_, heads, tokens, head] = rows.dims();
        let mut values: Vec<f32> = rows.into_data().into_vec().expect("floats");
        let unrotated = self.unrotated.filter(|_| are_keys);
        let turn = |values: &mut [f32], sign: f32| {
            let Some(rope) = unrotated else { return };
            for (row, key) in values.chunks_exact_mut(head).enumerate() {
                rotate(key, self.store.len() + row % tokens, rope, sign);
            }
        };
        let exact = values.clone();
        turn(&mut values, -1.0);
        // Codes of values, which even the shortest rows have: a row is a row.
        let format = if self.rounded == Rounded::KeysTo8 { KvFormat::Q8 } else { KvFormat::V4 };
        let mut layer = KvLayer::new(format, 1, heads, head);
        layer.append(&values, &values);
        for (row, out) in values.chunks_exact_mut(head).enumerate() {
            let (of, token) = (row / tokens, row % tokens);
            out.copy_from_slice(&layer.value(0, of, token));
        }
        turn(&mut values, 1.0);
        let rows = values.chunks_exact_mut(head).zip(exact.chunks_exact(head));
        for (row, (out, exact)) in rows.enumerate() {
            if self.store.len() + row % tokens < self.first {
                out.copy_from_slice(exact);
            }
        }
        Tensor::from_data(TensorData::new(values, [1, heads, tokens, head]), &Default::default())
    }
}

impl KvStore<Flex> for Variant {
    fn append(&mut self, keys: Tensor<Flex, 4>, values: Tensor<Flex, 4>) {
        let (keys, values) = (self.rounded(keys, true), self.rounded(values, false));
        self.store.append(keys, values);
    }

    fn attend(&self, queries: Tensor<Flex, 4>, mask: &QueryMask<'_, Flex>) -> Tensor<Flex, 4> {
        self.store.attend(queries, mask)
    }

    fn truncate(&mut self, len: usize) {
        self.store.truncate(len);
    }

    fn len(&self) -> usize {
        self.store.len()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, text, more @ ..] = &arguments[..] else { return Err("expected MODEL TEXT [WINDOWS]".into()) };
    let directory = PathBuf::from(directory);
    let path = directory.join("config.json");
    let config = Config::from_json(&std::fs::read(&path)?, &path)?;
    if config.rope_scaling.is_some() {
        return Err("expected a model without long rope: its factors change with the length".into());
    }
    let model = load(config.init::<Flex>(&Default::default())?, &Checkpoint::open(&directory)?, |_| ())?;
    let corpus = Corpus::new(&std::fs::read_to_string(text)?, &Tokenizer::read(&directory.join("tokenizer.json"))?)?;
    let limit = more.first().map(|windows| windows.parse()).transpose()?;
    let windows = Windows { limit, ..Windows::new(config.max_position_embeddings.min(512)) };
    let rope = (config.rotary_dim(), config.rope_theta as f32);
    println!("rounded          keys      first {FIRST} tokens  perplexity  mean KL");
    for (name, rounded) in
        [("keys, 8 bits", Rounded::KeysTo8), ("keys, 4 bits", Rounded::KeysTo4), ("values, 4 bits", Rounded::ValuesTo4)]
    {
        let keys = [("rotated", None), ("before", Some(rope))];
        for (keys, unrotated) in keys.into_iter().filter(|(_, rope)| rope.is_none() || rounded != Rounded::ValuesTo4) {
            for (tokens, first) in [("rounded", 0), ("in float", FIRST)] {
                let store = || Variant { rounded, unrotated, first, store: DenseKv::default() };
                let found = compare(&WithStore { model: &model, store }, &model, &corpus, &windows, |_| ())?;
                let (perplexity, kl) = (found.model_perplexity.perplexity_per_token.value, found.kl_nats.mean.value);
                println!("{name:<16} {keys:<9} {tokens:<15} {perplexity:>10.4}  {kl:.3e}");
            }
        }
    }
    Ok(())
}
