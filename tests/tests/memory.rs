//! Peak memory, counted: an encoded weight is never built as a float matrix, neither when used nor when loaded.

use burn::{
    nn::{Linear, LinearConfig},
    tensor::{Distribution, Tensor, TensorPrimitive, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use burn_wgpu::Wgpu;
use phi35_model::{Config, Generation, Prefix, resume};
use qins_backend::{Policy, Qins, device_memory};
use qins_codec::{Format, kv::KvFormat};
use qins_import::{
    Checkpoint, Container, ImportError, container::Converter, load_container, load_encoded, plan, save_container,
    synthetic,
};
use qins_kv_cache::QinsKvCache;
use qins_tests::{has_gpu, random_model, skip, write_model};
use serde_json::json;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Counts what is allocated, and the most there was at once.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are those of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are those of `System.dealloc`, and `pointer` came from it.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests share the counters.
static ALONE: Mutex<()> = Mutex::new(());

/// Waits for the others, which may have failed.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most bytes that `work` had allocated at once, beyond what was there before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    (result, PEAK.load(Relaxed) - before)
}

const IN: usize = 2048;
const OUT: usize = 1536;
const FLOAT: usize = IN * OUT * 4;

#[test]
fn a_coded_linear_layer_never_builds_its_matrix() {
    let _alone = alone();
    let device = Default::default();
    // Warm: thread pools and tables of the libraries.
    let small: Linear<Qins<Flex>> = LinearConfig::new(64, 64).init(&device);
    Policy::linear(Format::Q8).encode(small).unwrap().forward(Tensor::<Qins<Flex>, 2>::zeros([4, 64], &device));

    let linear: Linear<Qins<Flex>> = LinearConfig::new(IN, OUT).init(&device);
    let linear = Policy::linear(Format::Q8).encode(linear).unwrap();
    for tokens in [1, 16] {
        let x: Tensor<Qins<Flex>, 3> = Tensor::random([1, tokens, IN], Distribution::Default, &device);
        let (y, coded) = peak(|| linear.forward(x.clone()));
        assert_eq!(y.dims(), [1, tokens, OUT]);
        assert!(coded < FLOAT / 20, "{coded} bytes for {tokens} tokens; the matrix has {FLOAT}");
        // The counter would see it: decoding does build the matrix.
        let (_, decoded) = peak(|| linear.weight.val().dequantize() * 1.0);
        assert!(decoded >= FLOAT, "{decoded} bytes to decode");
    }
    // A matrix product, and one from the other side.
    let x: Tensor<Qins<Flex>, 2> = Tensor::random([2, IN], Distribution::Default, &device);
    let (_, product) = peak(|| x.clone().matmul(linear.weight.val()));
    assert!(product < FLOAT / 20, "{product} bytes");
    let (_, product) = peak(|| linear.weight.val().transpose().matmul(x.clone().transpose()));
    assert!(product < FLOAT / 20, "{product} bytes");
}

#[test]
fn an_embedding_decodes_only_its_rows() {
    let _alone = alone();
    let device = Default::default();
    let table: Tensor<Qins<Flex>, 2> = Tensor::random([OUT, IN], Distribution::Default, &device);
    let table = table.quantize_dynamic(&Default::default());
    assert!(matches!(table.clone().into_primitive(), TensorPrimitive::QFloat(_)));
    let ids = Tensor::from_data([[3, 1500, 3]], &device);
    let (rows, bytes) = peak(|| burn::tensor::module::embedding(table.clone(), ids));
    assert_eq!(rows.dims(), [1, 3, IN]);
    assert!(bytes < FLOAT / 20, "{bytes} bytes for 3 rows; the table has {FLOAT}");
}

#[test]
fn a_container_is_used_where_it_is_mapped() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("hf"), directory.path().join("container"));
    std::fs::create_dir(&source).unwrap();
    let sizes = json!({"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
        "num_attention_heads": 8, "max_position_embeddings": 64});
    let (config, tensors) = write_model(&source, sizes);
    let weights: usize = tensors.iter().map(|t| t.values.len()).sum();
    drop(tensors);
    let fresh = || config.init::<Qins<Flex>>(&Default::default()).unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::F16);
    let planned = plan(&fresh(), &checkpoint, &policy).unwrap();
    let largest = 2048 * 512;
    let converter = Converter::new(&source, &checkpoint, &output, planned, policy.to_string(), false).unwrap();
    let (_, converting) = peak(|| converter.run(|_| ()).unwrap());
    // One tensor's codes, the tokenizer-sized rest, and the encoder's sample.
    assert!(converting < 2 * largest + (2 << 20), "{converting} bytes to convert");

    let container = Container::open(&output).unwrap();
    let (model, loading) = peak(|| load_container::<Flex, _>(fresh(), &container, |_| ()).unwrap());
    assert!(loading < 100_000, "{loading} bytes to load {weights} weights");
    let elsewhere = config.init::<Qins<NdArray>>(&Default::default()).unwrap();
    let (_, loading) = peak(|| load_container::<NdArray, _>(elsewhere, &container, |_| ()).unwrap());
    assert!(loading < 100_000, "{loading} bytes to load {weights} weights on NdArray");
    // What Flex multiplies floats with keeps memory for itself, as much as the second-level cache has.
    let square = Tensor::<Flex, 2>::ones([64, 64], &Default::default());
    drop(square.clone().matmul(square));
    let (_, running) = peak(|| model.sequence_logits(&[1, 2, 3]).unwrap());
    assert!(running < weights / 5, "{running} bytes to run {weights} weights");
}

#[test]
fn loading_encoded_makes_no_float_copy() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let sizes = json!({"vocab_size": 64, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 8, "max_position_embeddings": 64});
    let (config, tensors) = write_model(directory.path(), sizes);
    let matrices = |name: &str| name.contains("proj") || name.contains("lm_head");
    let weights: usize = tensors.iter().filter(|t| matrices(&t.name)).map(|t| t.values.len()).sum();
    let largest = tensors.iter().map(|t| t.values.len()).max().unwrap();
    let others: usize = tensors.iter().filter(|t| !matrices(&t.name)).map(|t| t.values.len()).sum();
    drop(tensors);

    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let model = config.init::<Qins<Flex>>(&Default::default()).unwrap();
    let (_, bytes) = peak(|| load_encoded::<Flex, _>(model, &checkpoint, &Policy::linear(Format::Q8), |_| ()).unwrap());
    let encoded = weights * 33 / 32;
    // What stays, the codes of one tensor twice while they move to the device, the encoder's sample.
    let allowed = encoded + others * 4 + largest * 33 / 32 + (1 << 20);
    assert!(bytes <= allowed, "{bytes} bytes; {encoded} are codes, {} would be the floats", weights * 4);
    assert!(allowed < weights * 4 / 2, "the gate would let half the floats through");
}

/// In codes, with a window or a shift: after 2000 tokens nothing grows but the text itself.
#[test]
fn ten_thousand_tokens_take_the_memory_of_two_thousand() {
    let _alone = alone();
    for (window, context, shift) in [(Some(100), 20_000, None), (None, 96, Some(8))] {
        let config = json!({"vocab_size": 40, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": context, "sliding_window": window});
        let (_, config, _) = random_model(config);
        let model = config.init::<Flex>(&Default::default()).unwrap();
        let prefix = Prefix::with(&model, || QinsKvCache::new(KvFormat::Q8));
        let options = Generation { max_new_tokens: 10_000, shift, ..Default::default() };
        let mut tokens = resume(&model, prefix, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], options).unwrap();
        assert_eq!(tokens.by_ref().take(2000).count(), 2000);
        let (more, grown) = peak(|| tokens.by_ref().count());
        assert_eq!(more, 8000);
        // Twice its ids where their room is doubled, and what running tokens takes for a moment.
        let allowed = 2 * 10_010 * size_of::<u32>() + (1 << 18);
        assert!(grown < allowed, "{grown} bytes more, window {window:?}");
        let stored = 8000 * 2 * 4 * KvFormat::Q8.token_bytes(24);
        assert!(allowed < stored / 2, "the gate would let half of what is stored through");
        let bytes: usize = tokens.into_prefix().cache().layers().iter().map(QinsKvCache::bytes).sum();
        assert!(bytes <= 256 * 2 * 4 * KvFormat::Q8.token_bytes(24), "{bytes} bytes");
    }
}

/// What Rust has allocated while a container goes to a graphics device: the device's own memory and what its driver stages
/// are not Rust's.
#[test]
fn a_container_goes_to_a_device_tensor_by_tensor() {
    let _alone = alone();
    if !has_gpu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("hf"), directory.path().join("container"));
    std::fs::create_dir(&source).unwrap();
    let sizes = json!({"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 8, "max_position_embeddings": 64});
    let (config, tensors) = write_model(&source, sizes);
    drop(tensors);
    let fresh = || config.init::<Qins<Wgpu>>(&Default::default()).unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::F16);
    let planned = plan(&fresh(), &checkpoint, &policy).unwrap();
    Converter::new(&source, &checkpoint, &output, planned, policy.to_string(), false).unwrap().run(|_| ()).unwrap();
    let container = Container::open(&output).unwrap();
    // Warm: what the device and its kernel for reading need once.
    drop(load_container::<Wgpu, _>(fresh(), &container, |_| ()).unwrap());

    let (mut total, mut largest) = (0, 0);
    let (model, loading) = peak(|| {
        let on_progress = |progress: qins_import::Progress<'_>| {
            total += progress.bytes;
            largest = largest.max(progress.bytes);
        };
        load_container::<Wgpu, _>(fresh(), &container, on_progress).unwrap()
    });
    println!("{loading} bytes to load {total}, the largest tensor {largest}");
    let allowed = 2 * largest + (1 << 20);
    assert!(loading <= allowed, "{loading} bytes to load {total}, the largest tensor {largest}");
    assert!(allowed < total / 3, "the gate would let much of the container through");
    drop(model);
}

/// Of 131 MB in `q8`.
fn middle_sized() -> Config {
    let config = json!({"model_type": "phi3", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "eos_token_id": 2, "dtype": "float32", "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 8, "num_attention_heads": 8, "max_position_embeddings": 4096});
    serde_json::from_value(config).unwrap()
}

/// A container of random codes.
fn write_random(config: &Config, output: &Path) {
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::F16);
    let random = synthetic(config.init::<Qins<Flex>>(&Default::default()).unwrap(), &policy);
    save_container(&random, output, false).unwrap();
}

/// What the device gives for a model that runs from a container: its weights and its keys and values, and little beyond.
fn device_holds_no_more<B: Backend>() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("container");
    let config = middle_sized();
    write_random(&config, &output);
    let container = Container::open(&output).unwrap();

    let device = Default::default();
    assert_eq!(device_memory::<B>(&device).unwrap().reserved, 0, "each thread has memory of its own");
    let model = load_container::<B, _>(config.init(&device).unwrap(), &container, |_| ()).unwrap();
    let loaded = device_memory::<B>(&device).unwrap();
    let prefix = Prefix::with(&model, || QinsKvCache::new(KvFormat::V8));
    let options = Generation { max_new_tokens: 1000, ..Default::default() };
    let mut tokens = resume(&model, prefix, &[1, 2, 3], options).unwrap();
    assert_eq!(tokens.by_ref().take(2).count(), 2);
    let ran = device_memory::<B>(&device).unwrap();
    let kv: usize = tokens.into_prefix().cache().layers().iter().map(QinsKvCache::bytes).sum();
    let bytes = container.bytes();
    println!("container {bytes}, keys and values {kv}; loaded {loaded:?}, after two tokens {ran:?}");
    for held in [loaded, ran] {
        assert!(held.in_use as usize >= bytes, "{held:?} for a container of {bytes} are not this thread's");
    }
    assert!(ran.reserved as f64 <= 1.1 * (bytes + kv) as f64, "{ran:?} for {bytes} and {kv}");
}

#[test]
fn a_device_gives_little_more_than_weights_and_cache() {
    let _alone = alone();
    if has_gpu() {
        device_holds_no_more::<Wgpu>();
    }
}

/// Starts this program again, for limits of a process: one whose device is of software has no memory for more than a part
/// of the weights.
#[test]
fn a_weight_without_memory_is_named() {
    const CONTAINER: &str = "QINS_TEST_CONTAINER";
    if let Some(path) = std::env::var_os(CONTAINER) {
        return load_without_memory(Path::new(&path));
    }
    let _alone = alone();
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("no prlimit (Debian: util-linux)");
    }
    if !has_gpu() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("container");
    write_random(&middle_sized(), &output);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_weight_without_memory_is_named", "--nocapture"]).env(CONTAINER, &output);
    // Printing one takes memory, too: without it the standard library waits for itself.
    command.env("RUST_BACKTRACE", "0");
    let mut child = command.output().unwrap();
    // The limit is the process's: at times a thread of the device lacks memory of its own before a weight does.
    for _ in 0..4 {
        if child.status.success() || !String::from_utf8_lossy(&child.stderr).contains("wgpu error: Out of Memory") {
            break;
        }
        println!("once more, as the device itself had no memory");
        child = command.output().unwrap();
    }
    let (told, texts) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    if told.contains("not of software") {
        return skip("the graphics device is not of software: its memory is not the process's");
    }
    assert!(child.status.success() && told.contains("the device has no memory for its"), "{told}{texts}");
    println!("{told}");
}

fn load_without_memory(path: &Path) {
    assert!(has_gpu());
    let container = Container::open(path).unwrap();
    let size = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    };
    let device = Default::default();
    let fresh = || middle_sized().init::<Qins<Wgpu>>(&device).unwrap();
    let before = size();
    let model = load_container::<Wgpu, _>(fresh(), &container, |_| ()).unwrap();
    if size() - before < container.bytes() {
        return println!("not of software");
    }
    drop(model);
    <Wgpu as Backend>::memory_cleanup(&device);
    <Wgpu as Backend>::sync(&device).unwrap();
    let half = format!("--as={}", size() + container.bytes() / 2);
    let pid = format!("--pid={}", std::process::id());
    assert!(Command::new("prlimit").args([pid, half]).status().unwrap().success());
    let mut last = String::new();
    let error = load_container::<Wgpu, _>(fresh(), &container, |progress| last = progress.tensor.to_owned());
    let error = error.map(|_| ()).unwrap_err();
    println!("{error}");
    let ImportError::DeviceMemory { tensor, bytes, held, needed, .. } = error else { panic!("{error}") };
    assert_ne!(tensor, last);
    assert_eq!((bytes, needed), (container.tensor_bytes(&tensor), container.bytes()));
    assert!(held < needed, "{held} of {needed}");
}
