//! The model against Hugging Face: logits, greedy tokens and text, the same generic function on every backend.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use phi35_model::{
    ChatTemplate, Config, DenseKv, Generation, KvCache, Mask, Message, Phi3, Positions, Rope, Tokenizer, generate,
};
use qins_backend::{Policy, Qins};
use qins_codec::{Format, Level};
use qins_import::{
    Checkpoint,
    container::{Container, Converter},
    load, load_container, load_encoded, plan,
};
use qins_kv_cache::KvChoice;
use qins_tests::{has_gpu, ids, read_json, read_tensor, shared};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

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

/// Every prompt of a fixture, and its batches: logits within `tolerance`, greedy ids exactly.
fn fixture<B: Backend>(directory: &Path, tolerance: f32) {
    let model = load_model::<B>(directory);
    let golden = read_json(&directory.join("golden.json"));
    let tensor = |name: &str| read_tensor(&directory.join("golden.safetensors"), name);
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for (i, prompt) in prompts.iter().enumerate() {
        let input = ids(&prompt["input_ids"]);
        let difference = largest_difference(&logits(&model, &input), &tensor(&format!("p{i}.logits")));
        assert!(difference < tolerance, "prompt {i}: logits off by {difference}");
        let expected = ids(&prompt["greedy_ids"]);
        assert_eq!(greedy(&model, &input, expected.len()), expected, "prompt {i}");
        if i == 1 {
            let difference = largest_difference(&after_first_layer(&model, &input), &tensor("p1.hidden_after_layer0"));
            assert!(difference < tolerance, "state after the first layer off by {difference}");
        }
    }
    for name in ["batch", "batch_mixed"] {
        if let Some(batch) = golden.get(name) {
            check_batch(&model, batch, &tensor(&format!("{name}.logits")), tolerance);
        }
    }
}

/// The residual stream after the first layer, by the layer's own interface.
fn after_first_layer<B: Backend>(model: &Phi3<B>, ids: &[u32]) -> Vec<f32> {
    let device = Default::default();
    let rope = Rope::new(model.config(), &[Positions::whole(ids.len())], &device);
    let mask = Mask { window: model.config().sliding_window, ..Default::default() };
    let x = model.model.embed_tokens.forward(tokens::<B>(&[ids.to_vec()]));
    let mask = mask.queries(ids.len(), ids.len(), &device);
    let x = model.model.layers[0].forward(x, &rope, &mask, &mut DenseKv::default());
    x.into_data().to_vec().unwrap()
}

fn tokens<B: Backend>(rows: &[Vec<u32>]) -> Tensor<B, 2, Int> {
    let flat: Vec<i64> = rows.iter().flatten().map(|&id| id.into()).collect();
    Tensor::from_data(TensorData::new(flat, [rows.len(), rows[0].len()]), &Default::default())
}

/// A row in a batch equals the row alone: longrope factors are chosen for each row by its own length.
fn check_batch<B: Backend>(model: &Phi3<B>, batch: &serde_json::Value, golden: &[f32], tolerance: f32) {
    let rows: Vec<Vec<u32>> = batch["input_ids"].as_array().unwrap().iter().map(ids).collect();
    let masks: Vec<Vec<u32>> = batch["attention_mask"].as_array().unwrap().iter().map(ids).collect();
    let padding: Vec<usize> = masks.iter().map(|mask| mask.iter().filter(|&&m| m == 0).count()).collect();
    let expected: Vec<Vec<u32>> = batch["rows_alone_greedy_ids"].as_array().unwrap().iter().map(ids).collect();
    // Hugging Face takes one set of factors for the whole batch: there, rows of another length differ from the goldens.
    let alone: Vec<f64> =
        batch["max_abs_logit_diff_row_alone"].as_array().unwrap().iter().map(|d| d.as_f64().unwrap()).collect();

    let mut cache: KvCache<B> = model.cache().with_left_padding(padding.clone());
    let mut logits: Vec<f32> = model.forward(tokens::<B>(&rows), &mut cache).into_data().to_vec().unwrap();
    let (length, vocabulary) = (rows[0].len(), model.config().vocab_size);
    for (r, &padding) in padding.iter().enumerate() {
        let real = |all: &[f32]| all[(r * length + padding) * vocabulary..(r + 1) * length * vocabulary].to_vec();
        let by_itself = self::logits(model, &rows[r][padding..]);
        let difference = largest_difference(&real(&logits), &by_itself);
        assert!(difference < tolerance, "row {r}: logits off by {difference} from the row alone");
        if alone[r] < 1e-3 {
            let difference = largest_difference(&real(&logits), &real(golden));
            assert!(difference < tolerance, "row {r}: logits off by {difference}");
        }
    }
    let mut generated: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
    for _ in 0..expected[0].len() {
        let step = logits.len() / rows.len();
        let next: Vec<Vec<u32>> = logits
            .chunks_exact(step)
            .map(|row| {
                let last = &row[step - vocabulary..];
                vec![(0..vocabulary).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap() as u32]
            })
            .collect();
        generated.iter_mut().zip(&next).for_each(|(all, id)| all.extend(id));
        logits = model.forward(tokens::<B>(&next), &mut cache).into_data().to_vec().unwrap();
    }
    assert_eq!(generated, expected);
}

const FIXTURES: [&str; 6] =
    ["plain", "longrope", "gqa-tied-f16", "sliding-window-sharded", "head96-longrope-bf16", "partial-rotary-gqa"];

#[test]
fn fixtures_match_on_every_backend_with_nothing_encoded() {
    for case in FIXTURES {
        let Some(directory) = shared(&format!("fixtures/phi3/{case}")) else { return };
        fixture::<Flex>(&directory, 1e-3);
        fixture::<Qins<Flex>>(&directory, 1e-3);
        fixture::<NdArray>(&directory, 1e-3);
        fixture::<Qins<NdArray>>(&directory, 1e-3);
    }
}

#[test]
fn fixtures_match_on_a_graphics_device() {
    for case in FIXTURES {
        let Some(directory) = shared(&format!("fixtures/phi3/{case}")) else { return };
        if !has_gpu() {
            return;
        }
        fixture::<Wgpu>(&directory, 2e-3);
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
        let mut stream = tokenizer.stream(&input);
        let streamed: String = generated.iter().map(|&id| stream.push(id).unwrap()).collect();
        let text = tokenizer.decode(&[input, generated].concat()).unwrap();
        assert_eq!(text, prompt["decoded"].as_str().unwrap());
        assert!(text.ends_with(&streamed), "{streamed}");
    }
}

#[test]
fn texts_round_trip_stream_whole_characters_and_chats_are_templated() {
    let Some(directory) = shared("tokenizer/phi-3-mini") else { return };
    let tokenizer = Tokenizer::read(&directory.join("tokenizer.json")).unwrap();
    let showing = tokenizer.clone().showing_special_tokens();
    let template = ChatTemplate::read(&directory).unwrap();
    let golden = read_json(&directory.join("golden.json"));
    let entries = golden.as_array().or(golden["entries"].as_array()).unwrap();
    let (mut compared, mut chats) = (0, 0);
    for entry in entries.iter().filter(|entry| entry["text"].is_string() && entry["ids"].is_array()) {
        let (text, expected) = (entry["text"].as_str().unwrap(), ids(&entry["ids"]));
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        let decoded = entry["decoded_skip_special"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&expected).unwrap(), decoded, "{text:?}");
        let mut stream = tokenizer.stream(&[]);
        let pieces: Vec<String> = expected.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces.concat(), decoded, "{pieces:?}");

        // The goldens were streamed with special tokens; null where nothing is complete yet.
        let mut stream = showing.stream(&[]);
        let pieces: Vec<String> = expected.iter().map(|&id| stream.push(id).unwrap()).collect();
        let golden = entry["stream_pieces"].as_array().unwrap();
        let golden: Vec<&str> = golden.iter().map(|piece| piece.as_str().unwrap_or_default()).collect();
        assert_eq!(pieces, golden, "{text:?}");
        assert_eq!(showing.decode(&expected).unwrap(), entry["decoded"].as_str().unwrap());
        for (n, prefix) in entry["prefix_decoded"].as_array().into_iter().flatten().enumerate() {
            assert_eq!(showing.decode(&expected[..=n]).unwrap(), prefix.as_str().unwrap());
        }

        if entry["messages"].is_array() {
            let messages: Vec<Message> = serde_json::from_value(entry["messages"].clone()).unwrap();
            let rendered = template.render(&messages, entry["add_generation_prompt"].as_bool().unwrap()).unwrap();
            assert_eq!(rendered, text);
            assert_eq!(tokenizer.encode_chat(&rendered).unwrap(), expected);
            chats += 1;
        }
        compared += 1;
    }
    assert!(compared > 40 && chats > 2, "only {compared} texts and {chats} chats");
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

/// The model that is part of the program.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qins-cli/demo")
}

#[test]
fn q8_agrees_with_float_on_the_demo_model() {
    let float = load_model::<Flex>(&demo());
    let tokenizer = Tokenizer::read(&demo().join("tokenizer.json")).unwrap();
    let checkpoint = Checkpoint::open(&demo()).unwrap();
    let fresh = float.config().init(&Default::default()).unwrap();
    let coded = load_encoded::<Flex, _>(fresh, &checkpoint, &Policy::linear(Format::Q8), |_| ()).unwrap();
    let story = |prompt: &str| {
        let prompt = tokenizer.encode(prompt).unwrap();
        let told = greedy(&float, &prompt, 200);
        [prompt, told].concat()
    };
    let sequences: Vec<Vec<u32>> = ["Once upon a time", "Long ago", "There once was", ""].map(story).to_vec();
    // The top token says little here: the grammar chooses among equals, and so does the model.
    let (_, divergence) = agreement(&float, &coded, &sequences);
    assert!(divergence <= 5e-4 && divergence > 1e-12, "KL {divergence:.2e}");
}

#[test]
fn one_container_gives_the_same_logits_on_every_backend() {
    // Fixed point would round what differs in the last bit to another integer.
    Level::detected().in_float().set_current();
    let (directory, output) = (demo(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let config = Config::read(&directory.join("config.json")).unwrap();
    let q8 = Policy::linear(Format::Q8).with_embeddings(checkpoint.half_format());
    // Every format somewhere.
    let mixed = [
        ("model.layers.0.mlp", Format::Q8h),
        ("model.layers.1", Format::Q6),
        ("model.layers.2", Format::Q3),
        ("model.layers.3.self_attn", Format::Log8),
        ("model.layers.3.mlp.gate_up*", Format::Q2),
        ("model.layers.0.self_attn", Format::Fpins2),
        ("model.layers.1.mlp.down*", Format::Fpins3),
        ("lm_head", Format::Q12),
    ];
    let q4 = Policy::linear(Format::Q4).with_embeddings(Format::Bf16);
    let mixed = mixed.into_iter().fold(q4, |policy, (pattern, format)| policy.set(pattern, format).unwrap());

    fn run<B: Backend>(config: &Config, container: &Container) -> Vec<f32> {
        let ids: Vec<u32> = (0..60).map(|i| i * 7 % 512).collect();
        let model: Phi3<Qins<B>> =
            load_container(config.init(&Default::default()).unwrap(), container, |_| ()).unwrap();
        logits(&model, &ids)
    }
    for (i, policy) in [q8, mixed].into_iter().enumerate() {
        let planned = plan(&config.init::<Flex>(&Default::default()).unwrap(), &checkpoint, &policy).unwrap();
        let path = output.path().join(i.to_string());
        let converter = Converter::new(&directory, &checkpoint, &path, planned, policy.to_string(), false).unwrap();
        converter.run(|_| ()).unwrap();
        let mut container = Container::open(&path).unwrap();
        let formats: BTreeSet<&str> = container.manifest().tensors.values().map(|t| t.format.as_str()).collect();
        assert_eq!(formats.len(), [2, 11][i], "{formats:?}");

        let mut before = None;
        for depth in (1..=[1, 3][i]).rev() {
            container = container.at_depth(depth).unwrap();
            let flex = run::<Flex>(&config, &container);
            let mut others = vec![("NdArray", run::<NdArray>(&config, &container))];
            if has_gpu() && depth != 2 {
                others.push(("Wgpu, fused", run::<Wgpu>(&config, &container)));
                others.push(("Wgpu", run::<CubeBackend<WgpuRuntime, f32, i32, u32>>(&config, &container)));
            }
            for (name, other) in others {
                let difference = largest_difference(&flex, &other);
                assert!(difference < 1e-3, "{policy} on {name} at depth {depth}: logits differ by {difference}");
            }
            if let Some(before) = before.replace(flex.clone()) {
                assert_ne!(before, flex, "depth {depth} reads what depth {} reads", depth + 1);
            }
        }
        let error = container.at_depth(4).unwrap_err().to_string();
        assert!(error.contains("found 4"), "{error}");
    }
}

/// Every cache against that of floats, on text that the model was not trained on: mean divergence of what it predicts.
/// With `--nocapture` it prints the table of `docs/kv-cache.md`.
#[test]
fn encoded_caches_change_a_trained_model_as_little_as_documented() {
    let (Some(directory), Some(text)) = (shared("models/docs-lm"), shared("text/wikitext-2/test.txt")) else { return };
    let model = load_model::<Flex>(&directory);
    let tokenizer = Tokenizer::read(&directory.join("tokenizer.json")).unwrap();
    let text: String = std::fs::read_to_string(text).unwrap().chars().take(12_000).collect();
    let ids = tokenizer.encode(&text).unwrap();
    let windows: Vec<&[u32]> = ids.chunks_exact(512).take(4).collect();
    assert_eq!(windows.len(), 4);
    let predicted = |kv: KvChoice| -> Vec<Vec<f64>> {
        let of_window = |ids: &&[u32]| -> Vec<f32> {
            let cache = model.cache_with(|| kv.store());
            model.sequence_logits_with(ids, cache, 100).unwrap().into_data().into_vec().unwrap()
        };
        let logits: Vec<f32> = windows.iter().flat_map(of_window).collect();
        logits.chunks(model.config().vocab_size).map(log_softmax).collect()
    };
    let float = predicted(KvChoice::Dense);
    println!("cache  perplexity  KL against f32");
    for (name, most) in [("f32", 1e-9), ("f16", 1e-6), ("v8", 1e-4), ("q8", 1e-3), ("v4", 5e-3)] {
        let found = predicted(name.parse().unwrap());
        let of_row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
        let kl = float.iter().zip(&found).map(of_row).sum::<f64>() / found.len() as f64;
        let of_window = |(rows, ids): (&[Vec<f64>], &&[u32])| -> f64 {
            rows.iter().zip(&ids[1..]).map(|(row, &next)| row[next as usize]).sum()
        };
        let total: f64 = found.chunks(512).zip(&windows).map(of_window).sum();
        println!("{name:<5}  {:>10.4}  {kl:.2e}", (-total / (4 * 511) as f64).exp());
        assert!(kl < most && (kl > 0.0 || name == "f32"), "{name}: {kl:e}");
    }
}
