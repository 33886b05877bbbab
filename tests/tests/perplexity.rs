//! Perplexity against Hugging Face's, on a trained model and a real text.

use burn_flex::Flex;
use phi35_model::{Config, Tokenizer};
use qins_eval::{Corpus, Windows, perplexity};
use qins_import::{Checkpoint, load};
use qins_tests::{read_json, shared};

#[test]
fn a_trained_model_reads_wikitext_as_the_goldens_say() {
    let (Some(directory), Some(text)) = (shared("models/docs-lm"), shared("text/wikitext-2/test.txt")) else { return };
    let golden = read_json(&directory.join("golden.json"))["wikitext2_test"].clone();
    let tokenizer = Tokenizer::read(&directory.join("tokenizer.json")).unwrap();
    let corpus = Corpus::new(&std::fs::read_to_string(text).unwrap(), &tokenizer).unwrap();
    let all = Windows::new(512).of(corpus.ids.len()).unwrap();
    let bytes: usize = all.iter().map(|window| corpus.bytes(window.predicted.clone()).unwrap()).sum();
    let tokens: usize = all.iter().map(|window| window.predicted.len()).sum();
    assert_eq!(golden["tokens"], corpus.ids.len());
    assert_eq!(golden["windows"], all.len());
    assert_eq!(golden["predicted_tokens"], tokens);
    // A character that two tokens share is counted with one of them: at a window's edge, perhaps with another than there.
    let expected = golden["predicted_bytes"].as_u64().unwrap();
    assert!(expected.abs_diff(bytes as u64) <= 4, "{bytes} bytes for {expected}");

    // The whole text takes minutes. The first windows and the last, shorter one show that all are run alike.
    let config = Config::read(&directory.join("config.json")).unwrap();
    let model = load(config.init::<Flex>(&Default::default()).unwrap(), &Checkpoint::open(&directory).unwrap(), |_| ());
    let model = model.unwrap();
    let sums: Vec<f64> =
        golden["window_nll_sums"].as_array().unwrap().iter().map(|sum| sum.as_f64().unwrap()).collect();
    let first = perplexity(&model, &corpus, &Windows { limit: Some(4), ..Windows::new(512) }, |_| ()).unwrap();
    let tail = Corpus::from_ids(corpus.ids[all.last().unwrap().tokens.clone()].to_vec());
    let last = perplexity(&model, &tail, &Windows::new(512), |_| ()).unwrap();
    let found = first.per_window.iter().zip(&sums).chain(last.per_window.iter().zip(sums.last()));
    for (window, sum) in found {
        assert!((window.nll_nats / sum - 1.0).abs() < 1e-5, "{} nats where the golden has {sum}", window.nll_nats);
    }
}
