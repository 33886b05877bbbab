//! The model against Hugging Face: logits, greedy tokens and text, the same generic function on every backend.

use burn::tensor::backend::Backend;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use phi35_model::{Config, Generation, Phi3, Tokenizer, generate};
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use qins_import::{Checkpoint, load, load_encoded};
use qins_tests::{ids, read_json, read_tensor, shared};
use std::path::Path;

/// In float: nothing is encoded, whatever the backend.
fn load_model<B: Backend>(directory: &Path) -> Phi3<B> {
    let config = Config::read(&directory.join("config.json")).unwrap();
    load(config.init(&Default::default()).unwrap(), &Checkpoint::open(directory).unwrap(), |_| ()).unwrap()
}

fn logits<B: Backend>(model: &Phi3<B>, ids: &[u32]) -> Vec<f32> {
    model.sequence_logits(ids).unwrap().into_data().to_vec().unwrap()
}

fn greedy<B: Backend>(model: &Phi3<B>, prompt: &[u32], n: usize) -> Vec<u32> {
    generate(model, prompt, Generation { max_new_tokens: n, ..Default::default() }).unwrap().collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Every prompt of a fixture: logits within 1e-3, greedy ids exactly.
fn fixture<B: Backend>(directory: &Path) {
    let model = load_model::<B>(directory);
    let golden = read_json(&directory.join("golden.json"));
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for (i, prompt) in prompts.iter().enumerate() {
        let input = ids(&prompt["input_ids"]);
        let expected = read_tensor(&directory.join("golden.safetensors"), &format!("p{i}.logits"));
        let difference = largest_difference(&logits(&model, &input), &expected);
        assert!(difference < 1e-3, "prompt {i}: logits off by {difference}");
        let expected = ids(&prompt["greedy_ids"]);
        assert_eq!(greedy(&model, &input, expected.len()), expected, "prompt {i}");
    }
}

#[test]
fn fixtures_match_on_every_backend_with_nothing_encoded() {
    for case in ["plain", "gqa-tied-f16", "partial-rotary-gqa"] {
        let Some(directory) = shared(&format!("fixtures/phi3/{case}")) else { return };
        fixture::<Flex>(&directory);
        fixture::<Qins<Flex>>(&directory);
        fixture::<NdArray>(&directory);
        fixture::<Qins<NdArray>>(&directory);
    }
}

#[test]
fn a_trained_model_tells_the_golden_stories() {
    let Some(directory) = shared("models/stories260k") else { return };
    let (flex, qins) = (load_model::<Flex>(&directory), load_model::<Qins<Flex>>(&directory));
    let tokenizer = Tokenizer::read(&directory.join("tokenizer.json")).unwrap();
    for prompt in read_json(&directory.join("golden.json"))["prompts"].as_array().unwrap() {
        let (input, expected) = (ids(&prompt["input_ids"]), ids(&prompt["greedy_ids"]));
        assert_eq!(tokenizer.encode(prompt["prompt"].as_str().unwrap()).unwrap(), input);
        let generated = greedy(&flex, &input, expected.len());
        assert_eq!(generated, expected);
        assert_eq!(greedy(&qins, &input, expected.len()), expected);
        let mut stream = tokenizer.stream(&input).unwrap();
        let streamed: String = generated.iter().map(|&id| stream.push(id).unwrap()).collect();
        let text = tokenizer.decode(&[input, generated].concat()).unwrap();
        assert_eq!(text, prompt["decoded"].as_str().unwrap());
        assert!(text.ends_with(&streamed), "{streamed}");
    }
}

/// Teacher-forced on the golden stories: the share of positions with the same top token, and the mean KL divergence.
fn agreement<A: Backend, B: Backend>(float: &Phi3<A>, coded: &Phi3<B>, sequences: &[Vec<u32>]) -> (f64, f64) {
    let (mut same, mut divergence, mut positions) = (0, 0.0, 0);
    for sequence in sequences {
        let vocabulary = float.config().vocab_size;
        let (a, b) = (logits(float, sequence), logits(coded, sequence));
        for (a, b) in a.chunks_exact(vocabulary).zip(b.chunks_exact(vocabulary)) {
            let (a, b) = (log_softmax(a), log_softmax(b));
            let top = |x: &[f64]| (0..x.len()).max_by(|&i, &j| x[i].total_cmp(&x[j]));
            same += usize::from(top(&a) == top(&b));
            divergence += a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
            positions += 1;
        }
    }
    (same as f64 / positions as f64, divergence / positions as f64)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let total = logits.iter().map(|&x| (x as f64 - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|&x| x as f64 - largest - total).collect()
}

#[test]
fn q8_agrees_with_float_on_trained_weights() {
    let policy = Policy::linear(Format::Q8);
    for model in ["models/stories260k", "models/docs-lm"] {
        let Some(directory) = shared(model) else { return };
        let float = load_model::<Flex>(&directory);
        let checkpoint = Checkpoint::open(&directory).unwrap();
        let fresh = || float.config().clone();
        let flex = load_encoded::<Flex, _>(fresh().init(&Default::default()).unwrap(), &checkpoint, &policy, |_| ());
        let golden = read_json(&directory.join("golden.json"));
        let prompts = golden["prompts"].as_array().or(golden["greedy"]["prompts"].as_array()).unwrap();
        let sequences: Vec<Vec<u32>> = prompts
            .iter()
            .map(|p| [ids(&p["input_ids"]), ids(&p["greedy_ids"])].concat().into_iter().take(256).collect())
            .collect();
        let (same, divergence) = agreement(&float, &flex.unwrap(), &sequences);
        assert!(same >= 0.99, "{model}: same top token at {same:.4} of the positions");
        assert!(divergence <= 5e-4 && divergence > 1e-12, "{model}: KL {divergence:.2e}");
    }
}

#[test]
fn q8_gives_the_same_logits_on_every_backend() {
    let Some(directory) = shared("models/stories260k") else { return };
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let policy = Policy::linear(Format::Q8);
    let config = Config::read(&directory.join("config.json")).unwrap();
    let flex = load_encoded::<Flex, _>(config.init(&Default::default()).unwrap(), &checkpoint, &policy, |_| ());
    let ndarray = load_encoded::<NdArray, _>(config.init(&Default::default()).unwrap(), &checkpoint, &policy, |_| ());
    let ids: Vec<u32> = (0..60).map(|i| i * 7 % 512).collect();
    let difference = largest_difference(&logits(&flex.unwrap(), &ids), &logits(&ndarray.unwrap(), &ids));
    assert!(difference < 1e-3, "logits differ by {difference}");
}
