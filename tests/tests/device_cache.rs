//! Keys and values on a graphics device, plain, fused and within `Qins`, against the host's cache and the formula.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use phi35_model::{Generation, KvStore, Mask, Phi3, Prefix, resume};
use qins_backend::{Qins, allow_subgroups, limit_buffers, traffic};
use qins_codec::kv::{KvFormat, KvLayer, Seen};
use qins_import::{Checkpoint, load};
use qins_kv_cache::{ChosenKv, KvChoice, QinsKvCache, file};
use qins_tests::{Random, has_gpu, random_model};
use serde_json::{Value, json};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

type Unfused = CubeBackend<WgpuRuntime, f32, i32, u32>;

/// One test at a time: some change what devices are said to have.
static ALONE: Mutex<()> = Mutex::new(());

const ON_DEVICE: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::V8, KvFormat::Q8];

fn tensor<B: Backend>(values: &[f32], shape: [usize; 4]) -> Tensor<B, 4> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

fn bytes(layer: &KvLayer) -> Vec<u8> {
    let mut bytes = Vec::new();
    layer.write(&mut bytes).unwrap();
    bytes
}

/// What a model's layer would do, on a device and on the host.
struct Both<B: Backend> {
    device: QinsKvCache<B>,
    host: KvLayer,
    random: Random,
    heads: usize,
    mask: Mask,
}

impl<B: Backend> Both<B> {
    fn new(format: KvFormat, [batch, heads, kv_heads, head]: [usize; 4], mask: Mask) -> Self {
        let host = KvLayer::new(format, batch, kv_heads, head);
        Self { device: QinsKvCache::new(format), host, random: Random(head as u64), heads, mask }
    }

    /// Appends random tokens; their queries attend to the same.
    fn step(&mut self, tokens: usize) {
        let [batch, kv_heads, head] = self.host.shape();
        let mut draw = |heads: usize| self.random.weights(batch * heads * tokens * head, 1.0);
        let (keys, values, queries) = (draw(kv_heads), draw(kv_heads), draw(self.heads));
        let shape = [batch, kv_heads, tokens, head];
        self.device.append(tensor(&keys, shape), tensor(&values, shape));
        self.host.append(&keys, &values);
        assert!(self.device.is_on_device());
        assert_eq!((self.device.len(), self.device.first()), (self.host.len(), self.host.first()));

        let rule = self.mask.queries(tokens, self.host.len(), &Default::default());
        let found = self.device.attend(tensor(&queries, [batch, self.heads, tokens, head]), &rule);
        assert_eq!(found.dims(), [batch, self.heads, tokens, head]);
        let found: Vec<f32> = found.into_data().into_vec().unwrap();
        let seen = Seen { window: self.mask.window, left_padding: &self.mask.left_padding };
        let expected = self.host.attend(&queries, self.heads, seen);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let off = (found - expected).abs();
            let (format, len) = (self.host.format(), self.host.len());
            assert!(off < 2e-5, "{format}, {tokens} of {len} tokens of {shape:?}, {i}: {found}, not {expected}");
        }
        // What is stored is the same, bit for bit.
        assert!(bytes(&self.device.layer().unwrap()) == bytes(&self.host), "{} bytes differ", self.host.format());
    }
}

/// Chunks of all sizes: one query and many, rooms that grow.
fn attends<B: Backend>(format: KvFormat, shape: [usize; 4], chunks: &[usize]) {
    let mut both = Both::<B>::new(format, shape, Mask::default());
    chunks.iter().for_each(|&tokens| both.step(tokens));
}

/// Heads of whole words, of whole vectors and of neither, alone in their group and not.
#[test]
fn a_device_stores_and_attends_as_the_host_does() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        for format in ON_DEVICE {
            attends::<Qins<Wgpu>>(format, [1, 8, 8, 96], &[1, 64, 130, 1]);
        }
        for format in [KvFormat::F16, KvFormat::Q8] {
            attends::<Unfused>(format, [1, 4, 2, 8], &[1, 7, 64, 1, 130, 1]);
            attends::<Wgpu>(format, [1, 3, 3, 33], &[130, 1, 7, 300, 1]);
            attends::<Qins<Unfused>>(format, [2, 8, 2, 80], &[7, 1, 64, 1]);
        }
        // Tiles are of other sizes.
        attends::<Unfused>(KvFormat::Q8, [1, 1, 1, 256], &[20, 1]);
        attends::<Unfused>(KvFormat::F16, [1, 1, 1, 128], &[40, 1]);
    }
}

/// Of devices without subgroups, or with drivers that get them wrong.
#[test]
fn sums_need_no_subgroups() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        allow_subgroups(false);
        let done = catch_unwind(|| attends::<Unfused>(KvFormat::Q8, [1, 4, 2, 48], &[70, 1, 2]));
        allow_subgroups(true);
        done.unwrap();
    }
}

/// Padding, a window, and what it has passed freed; texts that go back; clones that go on by themselves.
fn lives<B: Backend>() {
    let mask = Mask { window: Some(50), left_padding: vec![0, 5, 90] };
    let mut both = Both::<B>::new(KvFormat::Q8, [3, 4, 2, 40], mask);
    for tokens in [30, 1, 7, 64, 1, 120, 1, 100, 1] {
        both.step(tokens);
        let first = (both.host.len() + 1).saturating_sub(50 + 64);
        both.device.free_before(first);
        both.host.free_before(first);
    }
    assert!(both.host.first() > 64);
    // What was freed was given up when the room was full, and blocks are not kept in twice the number.
    let needed = 3 * 2 * KvFormat::Q8.token_bytes(40) * KvLayer::BLOCK;
    assert!(both.device.bytes() <= 8 * needed, "{} bytes, a block is {needed}", both.device.bytes());

    // What comes after a text that went back is stored in the places of what was forgotten.
    let len = both.host.len() - 20;
    both.device.truncate(len);
    both.host.truncate(len);
    assert_eq!(both.device.len(), len);
    both.step(25);

    let mut clone = Both { device: both.device.clone(), host: both.host.clone(), random: Random(77), ..both };
    clone.step(1);
    let [_, kv_heads, head] = clone.host.shape();
    let rest = clone.device.layer().unwrap().key(1, kv_heads - 1, len);
    assert_eq!(rest.len(), head);
    assert_eq!(both.device.len() + 1, clone.device.len());
    assert!(bytes(&both.device.layer().unwrap()) == bytes(&both.host));

    both.device.truncate(0);
    assert!(both.device.is_empty() && both.device.layer().is_none() && both.device.bytes() == 0);
}

#[test]
fn windows_padding_and_texts_that_go_back_are_as_on_the_host() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        lives::<Unfused>();
        lives::<Qins<Wgpu>>();
    }
}

/// A room is made where the one before is full, and written where it lies otherwise. Attention reads each code once.
fn in_place<B: Backend>() {
    let token = |at: usize| tensor::<B>(&[at as f32; 2 * 32], [1, 2, 1, 32]);
    let before = traffic();
    let mut cache = QinsKvCache::<B>::new(KvFormat::Q8);
    for at in 0..300 {
        cache.append(token(at), token(at));
    }
    let rule = Mask::default();
    cache.attend(token(0), &rule.queries(1, 300, &Default::default())).into_data();
    // Of 64, 128, 256 and 512 tokens.
    assert_eq!(traffic().cache_rooms - before.cache_rooms, 4);
    assert_eq!(traffic().cache_bytes - before.cache_bytes, 300 * 2 * KvFormat::Q8.token_bytes(32) as u64);
    assert_eq!(cache.bytes(), 512 * 2 * KvFormat::Q8.token_bytes(32));

    let before = traffic();
    let mut reserved = QinsKvCache::<B>::new(KvFormat::F16);
    reserved.reserve(300);
    for at in 0..300 {
        reserved.append(token(at), token(at));
    }
    assert_eq!(reserved.layer().unwrap().value(0, 1, 299), [299.0; 32]);
    assert_eq!(traffic().cache_rooms - before.cache_rooms, 1);
}

#[test]
fn new_tokens_are_written_in_place() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        in_place::<Unfused>();
        in_place::<Wgpu>();
        in_place::<Qins<Wgpu>>();
    }
}

/// Zeros, tiny and huge numbers, subnormals, ties; infinity and NaN, which whoever sees them does not hide.
#[test]
fn extreme_rows_are_encoded_as_on_the_host() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let head = 64usize;
    let ramp = |scale: f32| (0..head).map(move |i| (i as f32 - 31.3) * scale).collect::<Vec<f32>>();
    // Half precision of these has ties, subnormal numbers, and less than its least.
    let ties: Vec<f32> = (0..head).map(|i| (2048.0 + i as f32) * (0.5f32).powi(i as i32 % 40 - 1)).collect();
    let rows = [ramp(0.0), ramp(1e-30), ramp(1e-8), ramp(1e-6), ramp(1.0), ramp(3000.0), ramp(1e30), ties];
    for format in ON_DEVICE {
        let numbers = rows.concat();
        let mut host = KvLayer::new(format, 1, 1, head);
        host.append(&numbers, &numbers);
        let mut device = QinsKvCache::<Wgpu>::new(format);
        let new = || tensor::<Wgpu>(&numbers, [1, 1, rows.len(), head]);
        device.append(new(), new());
        assert!(bytes(&device.layer().unwrap()) == bytes(&host), "{format}");

        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut with_bad = ramp(1.0);
            with_bad[3] = bad;
            host.append(&with_bad, &with_bad);
            let bad = || tensor::<Wgpu>(&with_bad, [1, 1, 1, head]);
            device.append(bad(), bad());
            let [found, expected] = [&*device.layer().unwrap(), &host]
                .map(|layer| [layer.key(0, 0, host.len() - 1), layer.value(0, 0, host.len() - 1)].concat());
            for (found, expected) in found.iter().zip(&expected) {
                assert!(found == expected || found.is_nan() && expected.is_nan(), "{format}: {found}, not {expected}");
            }
            let rule = Mask::default();
            let queries = tensor::<Wgpu>(&ramp(0.01), [1, 1, 1, head]);
            let found = device.attend(queries, &rule.queries(1, host.len(), &Default::default()));
            let found: Vec<f32> = found.into_data().into_vec().unwrap();
            assert!(found.iter().any(|x| !x.is_finite()), "{format}: {found:?}");
        }
    }
}

/// Keys, values and queries in half precision are stored as what they are in f32.
#[test]
fn floats_may_be_in_half_precision() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let mut random = Random(5);
    let mut half = || tensor::<Qins<Wgpu>>(&random.weights(2 * 70 * 32, 1.0), [1, 2, 70, 32]).cast(DType::F16);
    let (keys, values, queries) = (half(), half(), half());
    let floats = |x: &Tensor<Qins<Wgpu>, 4>| x.clone().into_data().convert::<f32>().into_vec::<f32>().unwrap();
    let mut host = KvLayer::new(KvFormat::Q8, 1, 2, 32);
    host.append(&floats(&keys), &floats(&values));
    let expected = host.attend(&floats(&queries), 2, Seen::default());
    let mut device = QinsKvCache::<Qins<Wgpu>>::new(KvFormat::Q8);
    device.append(keys, values);
    assert!(bytes(&device.layer().unwrap()) == bytes(&host));
    let rule = Mask::default();
    let found = device.attend(queries, &rule.queries(70, 70, &Default::default()));
    assert_eq!(found.dtype(), DType::F16);
    for (found, expected) in floats(&found).iter().zip(&expected) {
        assert!((found - expected).abs() < 2e-3, "{found}, not {expected}");
    }
}

/// A format whose codes are searched for, and devices that hold too little.
#[test]
fn what_a_device_does_not_keep_is_the_hosts_or_named() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let new = || tensor::<Wgpu>(&[0.5; 2 * 32], [1, 2, 1, 32]);
    let mut cache = QinsKvCache::<Wgpu>::new(KvFormat::V4);
    cache.append(new(), new());
    assert!(!cache.is_on_device());
    let rule = Mask::default();
    let found = cache.attend(new(), &rule.queries(1, 1, &Default::default())).into_data();
    assert!(found.iter::<f32>().all(|x| (x - 0.5).abs() < 0.05));

    let append = |tokens: usize| {
        let new = || tensor::<Wgpu>(&vec![0.5; 2 * tokens * 32], [1, 2, tokens, 32]);
        let mut cache = QinsKvCache::<Wgpu>::new(KvFormat::Q8);
        cache.append(new(), new());
        // As many as fit, where twice as many do not.
        cache.append(self::tensor(&[0.5; 2 * 32], [1, 2, 1, 32]), self::tensor(&[0.5; 2 * 32], [1, 2, 1, 32]));
        cache.bytes()
    };
    // Three blocks of 64 tokens of 2 x 72 bytes.
    limit_buffers(3 * 9216);
    let found = [128, 192].map(|tokens| catch_unwind(AssertUnwindSafe(|| append(tokens))));
    limit_buffers(usize::MAX);
    let [fits, does_not] = found;
    assert_eq!(fits.unwrap(), 3 * 9216);
    assert_eq!(
        does_not.unwrap_err().downcast_ref::<String>().unwrap(),
        "a q8 cache of 256 tokens, 1 x 2 heads of 32, takes 36864 bytes in one piece, of which the device holds 27648"
    );
}

/// The same random model on every backend.
fn model<B: Backend>(more: Value) -> Phi3<B> {
    let (_, config, weights) = random_model(more);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    std::fs::write(&path, weights.to_safetensors()).unwrap();
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    load(config.init::<B>(&Default::default()).unwrap(), &checkpoint, |_| ()).unwrap()
}

/// What the files name as their model.
const HASH: [u8; 32] = [7; 32];

fn saved<B: Backend>(prefix: &Prefix<B, ChosenKv<B>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    file::save(&HASH, prefix, &mut bytes).unwrap();
    bytes
}

/// A whole model says the same, and its cache goes from one backend to the other and back.
fn says_the_same<B: Backend>(kv: &str) {
    let config = json!({"vocab_size": 64, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 300, "sliding_window": 60});
    let (host, device) = (model::<Flex>(config.clone()), model::<B>(config));
    let kv: KvChoice = kv.parse().unwrap();
    let prompt: Vec<u32> = (0..100u32).map(|i| (i * i + 5 * i) % 64).collect();
    let options =
        || Generation { max_new_tokens: 90, prompt_chunk: Some(64), expected_tokens: 190, ..Default::default() };

    let mut on_host = resume(&host, Prefix::with(&host, || kv.store()), &prompt, options()).unwrap();
    let mut on_device = resume(&device, Prefix::with(&device, || kv.store()), &prompt, options()).unwrap();
    let expected: Vec<u32> = on_host.by_ref().collect();
    assert_eq!(on_device.by_ref().collect::<Vec<u32>>(), expected, "{kv}");
    let (on_host, on_device) = (on_host.into_prefix(), on_device.into_prefix());
    assert!(on_device.cache().layers().iter().all(|layer| matches!(layer, ChosenKv::Encoded(s) if s.is_on_device())));

    // Through the other backend and back, bit for bit.
    let of_host = saved(&on_host);
    let moved: Prefix<B, _> = file::load(&device, &HASH, kv, &of_host[..]).unwrap();
    assert!(saved(&moved) == of_host);
    let of_device = saved(&on_device);
    let back: Prefix<Flex, _> = file::load(&host, &HASH, kv, &of_device[..]).unwrap();
    assert!(saved(&back) == of_device);

    let text: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
    let more = || Generation { max_new_tokens: 20, ..options() };
    let mut on_host = resume(&host, back, &text, more()).unwrap();
    let mut on_device = resume(&device, moved, &text, more()).unwrap();
    assert!(on_host.reused_tokens() > 150 && on_device.reused_tokens() > 150);
    assert_eq!(on_device.by_ref().collect::<Vec<u32>>(), on_host.by_ref().collect::<Vec<u32>>(), "{kv}");
}

#[test]
fn a_model_says_on_a_device_what_it_says_on_the_host() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        says_the_same::<Qins<Wgpu>>("q8");
        says_the_same::<Unfused>("f16");
    }
}
