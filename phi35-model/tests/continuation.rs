//! A text that is run in parts, continued or resumed equals the same text run at once.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use phi35_model::{Config, Generation, KvCache, Phi3, Prefix, StopReason, generate, resume};
use serde_json::json;

/// Random weights; longrope whose factors change past 300 tokens, or plain rope.
fn model(longrope: bool) -> Phi3<Flex> {
    let factors = |f: f32| (0..4).map(|i| 1.0 + f * i as f32).collect::<Vec<_>>();
    let scaling = json!({"type": "longrope", "short_factor": factors(0.1), "long_factor": factors(2.0)});
    let config = json!({"model_type": "phi3", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 700,
        "original_max_position_embeddings": 300, "rms_norm_eps": 1e-5, "rope_theta": 100.0, "sliding_window": 280,
        "rope_scaling": longrope.then_some(scaling)});
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

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + 7 * i) % 40).collect()
}

fn tensor(ids: &[u32]) -> Tensor<Flex, 2, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    let n = ids.len();
    Tensor::from_data(TensorData::new(ids, [1, n]), &Default::default())
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-4, "{what}: {largest}");
}

/// Logits of the whole sequence, run at once.
fn at_once(model: &Phi3<Flex>, ids: &[u32]) -> Vec<f32> {
    let mut cache: KvCache<Flex> = model.cache();
    model.forward(tensor(ids), &mut cache).into_data().to_vec().unwrap()
}

#[test]
fn a_sequence_run_in_parts_is_rotated_as_the_whole() {
    for longrope in [false, true] {
        let model = model(longrope);
        for n in [290, 300, 301, 600] {
            let logits: Vec<f32> = model.sequence_logits(&ids(n)).unwrap().into_data().to_vec().unwrap();
            assert_close(&logits, &at_once(&model, &ids(n)), &format!("longrope {longrope}, {n} tokens"));
        }
    }
}

#[test]
fn keys_are_rotated_anew_in_both_directions_of_the_crossing() {
    let model = model(true);
    let mut cache: KvCache<Flex> = model.cache();
    let last = |logits: Tensor<Flex, 3>| -> Vec<f32> {
        let n = logits.dims()[1];
        logits.slice_dim(1, n - 1..n).into_data().to_vec().unwrap()
    };
    let all = ids(320);
    model.forward(tensor(&all[..299]), &mut cache);
    for n in [300, 301, 302] {
        let logits = last(model.forward(tensor(&all[n - 1..n]), &mut cache));
        let expected = at_once(&model, &all[..n]);
        assert_close(&logits, &expected[expected.len() - 40..], &format!("token {n}"));
    }
    cache.truncate(200);
    let logits = last(model.forward(tensor(&all[200..210]), &mut cache));
    let expected = at_once(&model, &all[..210]);
    assert_close(&logits, &expected[expected.len() - 40..], "back to a short sequence");
}

#[test]
fn what_is_resumed_goes_on_as_if_run_from_the_start() {
    for longrope in [false, true] {
        let model = model(longrope);
        let options = || Generation { max_new_tokens: 12, ..Default::default() };
        let fresh = |prompt: &[u32]| generate(&model, prompt, options()).unwrap().collect::<Vec<_>>();
        let mut prefix = Prefix::new(&model);
        let mut text = ids(295);
        // Longer; the same; shorter and otherwise; longer than the crossing again.
        for (keep, more, reused) in [(295, 0, 0), (295, 20, 295), (295, 20, 314), (100, 50, 100), (150, 250, 150)] {
            text.truncate(keep);
            text.extend((0..more).map(|i| (i * 3 + 1) % 40));
            let mut tokens = resume(&model, prefix, &text, options()).unwrap();
            // What was generated before differs from what is added now, but for chance at the very first token.
            assert!(tokens.reused_tokens().abs_diff(reused) <= 1, "{} not {reused}", tokens.reused_tokens());
            let found: Vec<u32> = tokens.by_ref().collect();
            assert_eq!(found, fresh(&text), "longrope {longrope}, {} tokens", text.len());
            assert_eq!(tokens.stop_reason(), Some(StopReason::Length));
            prefix = tokens.into_prefix();
        }
    }
}

#[test]
fn a_long_prompt_can_be_run_in_steps_and_left() {
    let model = model(false);
    let mut tokens = generate(&model, &ids(600), Generation { max_new_tokens: 1, ..Default::default() }).unwrap();
    assert!(tokens.run_prompt_part());
    assert_eq!(tokens.tokens_run(), 256);
    let left: Vec<u32> =
        resume(&model, tokens.into_prefix(), &ids(600), Generation { max_new_tokens: 1, ..Default::default() })
            .unwrap()
            .collect();
    let whole: Vec<u32> =
        generate(&model, &ids(600), Generation { max_new_tokens: 1, ..Default::default() }).unwrap().collect();
    assert_eq!(left, whole);
}
