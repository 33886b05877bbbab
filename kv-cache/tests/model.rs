//! A whole model over every cache: close to the float cache, alike for all sizes of chunks, bounded in memory.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use phi35_model::{Batch, Config, Generation, KvCache, KvStore, Phi3, Prefix, QueryMask, Sampling, StopReason, resume};
use qins_codec::kv::{KvFormat, KvLayer};
use qins_kv_cache::{ChosenKv, KvChoice, QinsKvCache, file};
use serde_json::{Value, json};
use std::{cell::Cell, rc::Rc};

const VOCABULARY: u32 = 40;

/// Random weights, of heads that are no whole blocks of columns; `more` changes the configuration.
fn model(more: Value) -> Phi3<Flex> {
    let mut config = json!({"model_type": "phi3", "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 700,
        "original_max_position_embeddings": 700, "rms_norm_eps": 1e-5, "rope_theta": 100.0});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config: Config = serde_json::from_value(config).unwrap();
    Flex::seed(&Default::default(), 3);
    let mut model = config.init(&Default::default()).unwrap();
    // Burn's first weights barely look at their input: larger ones make texts that vary.
    model.lm_head = model.lm_head.map(|mut head| {
        head.weight = head.weight.map(|w| w * 3.0);
        head
    });
    model
}

fn longrope() -> Value {
    let factors = |f: f32| (0..6).map(|i| 1.0 + f * i as f32).collect::<Vec<_>>();
    let scaling = json!({"type": "longrope", "short_factor": factors(0.1), "long_factor": factors(2.0)});
    json!({"original_max_position_embeddings": 300, "rope_scaling": scaling})
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + 7 * i) % VOCABULARY).collect()
}

fn logits(model: &Phi3<Flex>, kv: KvChoice, ids: &[u32], chunk: usize) -> Vec<f32> {
    let cache = model.cache_with(|| kv.store());
    model.sequence_logits_with(ids, cache, chunk).unwrap().into_data().into_vec().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Mean over positions of the divergence of two distributions, in nats.
fn mean_kl(a: &[f32], b: &[f32]) -> f64 {
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
        logits.iter().map(|&x| f64::from(x - largest) - total.ln()).collect()
    };
    let rows = a.chunks(VOCABULARY as usize).zip(b.chunks(VOCABULARY as usize));
    let divergences = rows.map(|(a, b)| -> f64 {
        let (a, b) = (log_softmax(a), log_softmax(b));
        a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum()
    });
    divergences.sum::<f64>() / (a.len() / VOCABULARY as usize) as f64
}

#[test]
fn every_cache_is_as_close_to_floats_as_its_format() {
    let model = model(json!({"sliding_window": 90}));
    let ids = ids(200);
    let float = logits(&model, KvChoice::Dense, &ids, 64);
    for (kv, most) in [("f32", 1e-12), ("f16", 1e-6), ("v8", 1e-5), ("q8", 1e-4), ("v4", 1e-3)] {
        let kl = mean_kl(&float, &logits(&model, kv.parse().unwrap(), &ids, 64));
        println!("{kv}: {kl:e}");
        // Rounding may make it a little less than nothing.
        assert!(kl.abs() < most, "{kv}: {kl}");
        // Not by storing floats after all.
        assert!(kl > 1e-12 || kv == "f32", "{kv}");
    }
}

/// Queries attend to encoded keys and values, those of their own chunk included.
#[test]
fn chunks_of_any_size_give_the_same_logits() {
    for config in [json!({}), json!({"sliding_window": 33}), longrope()] {
        let model = model(config);
        let ids = ids(320);
        for kv in KvChoice::all() {
            let one_by_one = logits(&model, kv, &ids, 1);
            for chunk in [2, 7, 64, 100, 320] {
                let difference = largest_difference(&one_by_one, &logits(&model, kv, &ids, chunk));
                assert!(difference < 1e-3, "{kv}, chunks of {chunk}: {difference}");
            }
        }
    }
}

fn generated(model: &Phi3<Flex>, kv: KvChoice, prompt: &[u32], options: Generation) -> Vec<u32> {
    resume(model, Prefix::with(model, || kv.store()), prompt, options).unwrap().collect()
}

/// Answers that pass the original length within turns that reuse what came before.
#[test]
fn turns_across_the_long_rope_equal_runs_from_the_start() {
    let model = model(longrope());
    for kv in KvChoice::all() {
        let mut prefix = Prefix::with(&model, || kv.store());
        let mut text = ids(150);
        for turn in 0..5 {
            let options = || Generation { max_new_tokens: 60, ..Generation::default() };
            let mut tokens = resume(&model, prefix, &text, options()).unwrap();
            assert_eq!(tokens.reused_tokens() > 0, turn > 0);
            let found: Vec<u32> = tokens.by_ref().collect();
            assert_eq!(found, generated(&model, kv, &text, options()), "{kv}, turn {turn}");
            prefix = tokens.into_prefix();
            text.extend(found);
            text.extend([turn, 3]);
        }
        assert!(text.len() > 450);
    }
}

/// A text that was told to become long has the long factors from its first token on.
#[test]
fn a_long_start_runs_nothing_again() {
    let model = model(longrope());
    let (kv, prompt) = ("q8".parse().unwrap(), ids(290));
    let last = |expected_tokens: usize, more: usize| {
        let options = Generation { max_new_tokens: more, expected_tokens, ..Generation::default() };
        generated(&model, kv, &prompt, options)
    };
    // After the crossing both are rotated alike; before, they are not.
    let text: Vec<u32> = prompt.iter().copied().chain(last(301, 30)).collect();
    let whole = logits(&model, kv, &text, 64);
    let mut cache: KvCache<Flex, QinsKvCache<Flex>> = model.cache_with(|| QinsKvCache::new(KvFormat::Q8));
    cache.expect(301);
    let of_parts = text.chunks(29).flat_map(|part| {
        let ids: Vec<i64> = part.iter().map(|&id| id.into()).collect();
        let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, [1, part.len()]), &Default::default());
        model.forward(ids, &mut cache).into_data().into_vec::<f32>().unwrap()
    });
    let of_parts: Vec<f32> = of_parts.collect();
    assert!(largest_difference(&whole, &of_parts) < 1e-3);
}

/// The soak: keys and values beyond the window are freed, and nothing else grows.
#[test]
fn ten_thousand_tokens_neither_grow_the_cache_nor_break() {
    let model = model(json!({"sliding_window": 100, "max_position_embeddings": 20_000}));
    let mut store = Prefix::with(&model, || QinsKvCache::<Flex>::new(KvFormat::Q8));
    let (mut text, mut most) = (ids(10), 0);
    while text.len() < 10_010 {
        let options = Generation { max_new_tokens: 1000, ..Generation::default() };
        let mut tokens = resume(&model, store, &text, options).unwrap();
        let before = text.len();
        text.extend(tokens.by_ref());
        assert_eq!(text.len(), before + 1000);
        store = tokens.into_prefix();
        most = store.cache().layers().iter().map(QinsKvCache::bytes).max().unwrap().max(most);
    }
    let room = KvChoice::Encoded(KvFormat::Q8).stored_tokens(text.len(), Some(100));
    assert!(room <= 4 * KvLayer::BLOCK);
    assert!(most <= (room + KvLayer::BLOCK) * 2 * KvFormat::Q8.token_bytes(12), "{most} bytes");
    let last = logits(&model, KvChoice::Encoded(KvFormat::Q8), &text[text.len() - 300..], 64);
    assert!(last.iter().all(|x| x.is_finite()));
    // Not one token again and again.
    assert!((0..VOCABULARY).filter(|id| text[5000..].contains(id)).count() > 3);
}

#[test]
fn a_full_context_ends_the_text_or_is_shifted() {
    let model = model(json!({"max_position_embeddings": 96, "original_max_position_embeddings": 96}));
    let prompt = ids(20);
    for kv in ["f32", "q8"].map(|kv| kv.parse().unwrap()) {
        let options = |shift| Generation { max_new_tokens: 400, shift, ..Generation::default() };
        let ended = generated(&model, kv, &prompt, options(None));
        assert_eq!(ended.len(), 96 - 20 + 1);
        let shifted = generated(&model, kv, &prompt, options(Some(8)));
        assert_eq!(shifted.len(), 400);
        assert_eq!(shifted[..77], ended);
        // What follows is what follows the first tokens and the later half of the others.
        let all: Vec<u32> = prompt.iter().chain(&shifted).copied().collect();
        let left = [&all[..8], &all[97 - 44..97]].concat();
        let next = Generation { max_new_tokens: 20, ..Generation::default() };
        assert_eq!(generated(&model, kv, &left, next), shifted[77..97]);
    }
}

/// Rows of several lengths, by padding.
#[test]
fn a_row_in_a_batch_is_the_row_alone() {
    let model = model(json!({"sliding_window": 20}));
    let rows = [ids(30), ids(23)];
    for kv in KvChoice::all() {
        let mut cache = model.cache_with(|| kv.store()).with_left_padding(vec![0, 7]);
        let padded = std::iter::repeat_n(0, 7).chain(rows[1].iter().copied());
        let flat: Vec<i64> = rows[0].iter().copied().chain(padded).map(i64::from).collect();
        let input = Tensor::<Flex, 2, Int>::from_data(TensorData::new(flat, [2, 30]), &Default::default());
        let found: Vec<f32> = model.forward(input, &mut cache).into_data().into_vec().unwrap();
        assert!(cache.layers().iter().all(|layer| layer.len() == 30));
        let width = VOCABULARY as usize;
        let alone = rows.each_ref().map(|row| logits(&model, kv, row, 64));
        assert!(largest_difference(&found[..30 * width], &alone[0]) < 1e-3, "{kv}");
        assert!(largest_difference(&found[37 * width..], &alone[1]) < 1e-3, "{kv}");
    }
}

/// Prompts of several lengths, each with its own options and seed; rows end at a stop id, at their own number of tokens and
/// at the end of the context, one joins late, and texts cross the long rope, a window and a shift at different times.
#[test]
fn every_row_of_a_batch_is_the_text_that_it_is_alone() {
    let window = json!({"sliding_window": 25, "max_position_embeddings": 120, "original_max_position_embeddings": 120});
    for (config, shift) in [(json!({}), None), (longrope(), None), (window, Some(6))] {
        let model = model(config);
        for kv in KvChoice::all() {
            for temperature in [0.0, 1.0] {
                let rows = [(5, 40), (290, 30), (100, 60), (295, 1), (1, 50)];
                let rows = rows.map(|(prompt, n)| (prompt.min(model.config().max_position_embeddings - 20), n));
                let options = |row: usize, stop_ids: &[u32]| Generation {
                    max_new_tokens: rows[row].1,
                    stop_ids: stop_ids.to_vec(),
                    sampling: Sampling { temperature, seed: row as u64, ..Default::default() },
                    prompt_chunk: Some(64),
                    shift,
                    ..Default::default()
                };
                let alone = |row: usize, stop_ids: &[u32]| {
                    let prefix = Prefix::with(&model, || kv.store());
                    let mut tokens = resume(&model, prefix, &ids(rows[row].0), options(row, stop_ids)).unwrap();
                    (tokens.by_ref().collect::<Vec<_>>(), tokens.stop_reason())
                };
                // One row is ended by the last token that it would have had.
                let stop = *alone(2, &[]).0.last().unwrap();
                let stops = |row: usize| if row == 2 { vec![stop] } else { Vec::new() };
                let mut batch = Batch::new(&model);
                let add = |batch: &mut Batch<'_, _, _>, row: usize| {
                    let prefix = Prefix::with(&model, || kv.store());
                    assert_eq!(batch.add(prefix, &ids(rows[row].0), options(row, &stops(row))), Ok(row));
                };
                (0..4).for_each(|row| add(&mut batch, row));
                let mut found = vec![Vec::new(); rows.len()];
                for step in 0.. {
                    if step == 7 {
                        add(&mut batch, 4);
                    }
                    let Some(tokens) = batch.step() else { break };
                    tokens.into_iter().for_each(|(row, id)| found[row].push(id));
                }
                assert_eq!(batch.written(), 0);
                for (row, found) in found.into_iter().enumerate() {
                    let expected = alone(row, &stops(row));
                    assert_eq!((found, batch.stop_reason(row)), expected, "{kv}, row {row}, temperature {temperature}");
                }
                assert_eq!(batch.stop_reason(2), Some(StopReason::Eos));
            }
        }
    }
}

/// What the stores of a batch were asked for.
#[derive(Default)]
struct Asked {
    stores: Cell<usize>,
    queries: Cell<usize>,
}

struct Counted(QinsKvCache<Flex>, Rc<Asked>);

impl Counted {
    fn new(asked: &Rc<Asked>) -> Self {
        asked.stores.set(asked.stores.get() + 1);
        Self(QinsKvCache::new(KvFormat::Q8), asked.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.stores.set(self.1.stores.get() - 1);
    }
}

impl KvStore<Flex> for Counted {
    fn append(&mut self, keys: Tensor<Flex, 4>, values: Tensor<Flex, 4>) {
        self.0.append(keys, values);
    }

    fn attend(&self, queries: Tensor<Flex, 4>, mask: &QueryMask<'_, Flex>) -> Tensor<Flex, 4> {
        assert_eq!(queries.dims()[0], 1);
        self.1.queries.set(self.1.queries.get() + queries.dims()[2]);
        self.0.attend(queries, mask)
    }

    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Its cache is gone, and nothing is computed for it.
#[test]
fn a_row_that_ended_costs_nothing() {
    let model = model(json!({}));
    let asked = Rc::new(Asked::default());
    let mut batch = Batch::new(&model);
    for n in [2, 9, 4, 9] {
        let options = Generation { max_new_tokens: n, ..Default::default() };
        batch.add(Prefix::with(&model, || Counted::new(&asked)), &ids(20 + n), options).unwrap();
    }
    let layers = model.config().num_hidden_layers;
    for (step, rows) in [4, 4, 3, 3, 2, 1, 1, 1, 1].into_iter().enumerate() {
        if step == 5 {
            batch.end(3);
        }
        asked.queries.set(0);
        assert_eq!(batch.step().unwrap().len(), rows, "step {step}");
        if step > 0 {
            assert_eq!(asked.queries.get(), rows * layers, "step {step}");
        }
        assert_eq!(asked.stores.get(), batch.written() * layers, "step {step}");
        assert_eq!(batch.written(), [4, 3, 3, 2, 2, 1, 1, 1, 0][step], "step {step}");
    }
    assert_eq!((batch.step(), asked.stores.get()), (None, 0));
}

/// Save, load in a new run, go on: the same tokens, across the long rope too; and nothing else is taken for a cache.
#[test]
fn a_saved_cache_goes_on_as_if_it_had_never_left_memory() {
    let model = model(longrope());
    for kv in KvChoice::all().filter(|&kv| kv != KvChoice::Dense) {
        let options = || Generation { max_new_tokens: 30, ..Generation::default() };
        let mut tokens = resume(&model, Prefix::with(&model, || kv.store()), &ids(250), options()).unwrap();
        let mut text = ids(250);
        text.extend(tokens.by_ref());
        let prefix: Prefix<Flex, ChosenKv<Flex>> = tokens.into_prefix();
        let mut bytes = Vec::new();
        file::save(&[7; 32], &prefix, &mut bytes).unwrap();

        let loaded = file::load(&model, &[7; 32], kv, &bytes[..]).unwrap();
        let [mut kept, mut loaded] = [prefix, loaded].map(|prefix| resume(&model, prefix, &text, options()).unwrap());
        assert_eq!(loaded.reused_tokens(), 279);
        let found: Vec<u32> = loaded.by_ref().collect();
        assert_eq!(found, kept.by_ref().collect::<Vec<u32>>(), "{kv}");

        for at in [0, 9, 40, bytes.len() / 2, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(file::load(&model, &[7; 32], kv, &changed[..]).is_err(), "byte {at}");
            assert!(file::load(&model, &[7; 32], kv, &bytes[..at]).is_err(), "{at} bytes");
        }
        let other = if kv.name() == "q8" { "v8" } else { "q8" };
        let error = file::load(&model, &[7; 32], other.parse().unwrap(), &bytes[..]).unwrap_err();
        assert_eq!(error.to_string(), format!("format: expected {other}, found {kv}"));
        let of_another = file::load(&model, &[8; 32], kv, &bytes[..]).unwrap_err();
        assert!(
            of_another.to_string().starts_with("SHA-256 of weights and configuration: expected 0808"),
            "{of_another}"
        );
    }
    let floats = Prefix::with(&model, || KvChoice::Dense.store());
    assert!(file::save(&[7; 32], &floats, Vec::new()).unwrap_err().to_string().contains("floats"));
}
