//! Whole and broken checkpoints, made here: what loads, and the message for what does not.

use burn::{
    module::Module,
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig},
    tensor::{Tensor, TensorPrimitive, backend::Backend},
};
use burn_flex::Flex;
use half::{bf16, f16};
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use qins_import::{
    Checkpoint, Container, ImportError, load, load_container, load_encoded, passed_over, save_container,
};
use safetensors::{Dtype, tensor::TensorView};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

#[derive(Module, Debug)]
struct Net<B: Backend> {
    embed: Embedding<B>,
    layers: Vec<Linear<B>>,
    norm: RmsNorm<B>,
}

impl<B: Backend> Net<B> {
    fn new() -> Self {
        let device = Default::default();
        let linear = |input, output| LinearConfig::new(input, output).init(&device);
        Self {
            embed: EmbeddingConfig::new(3, 4).init(&device),
            layers: vec![linear(4, 40), linear(40, 2)],
            norm: RmsNormConfig::new(2).init(&device),
        }
    }
}

type Tensors = Vec<(&'static str, Vec<usize>, Dtype, Vec<u8>)>;

fn values(n: usize) -> Vec<f32> {
    // Exact in bf16 and f16.
    (0..n).map(|i| (i as f32 - n as f32 / 2.0) / 128.0).collect()
}

fn encoded(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&v| match dtype {
            Dtype::F32 => v.to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// The tensors of `Net` as Hugging Face would store them.
fn whole(dtype: Dtype) -> Tensors {
    [
        ("embed.weight", vec![3, 4]),
        ("layers.0.weight", vec![40, 4]),
        ("layers.0.bias", vec![40]),
        ("layers.1.weight", vec![2, 40]),
        ("layers.1.bias", vec![2]),
        ("norm.weight", vec![2]),
    ]
    .into_iter()
    .map(|(name, shape)| {
        let bytes = encoded(dtype, &values(shape.iter().product()));
        (name, shape, dtype, bytes)
    })
    .collect()
}

fn write(tensors: &Tensors) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.safetensors");
    let views = tensors
        .iter()
        .map(|(name, shape, dtype, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &file).unwrap();
    (directory, file)
}

fn load_float(directory: &Path) -> Result<Net<Flex>, String> {
    let checkpoint = Checkpoint::open(directory).map_err(|e| e.to_string())?;
    load(Net::new(), &checkpoint, |_| ()).map_err(|e| e.to_string())
}

/// The message after the file's name.
fn error(tensors: &Tensors) -> String {
    let (directory, file) = write(tensors);
    let message = load_float(directory.path()).unwrap_err();
    message.strip_prefix(&format!("{}: ", file.display())).expect("the file's name first").to_owned()
}

#[test]
fn float_checkpoints_of_every_type_load_exactly() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let (directory, _) = write(&whole(dtype));
        let net = load_float(directory.path()).unwrap();
        let weight: Tensor<Flex, 2> = net.layers[0].weight.val();
        assert_eq!(weight.dims(), [4, 40], "[in, out]");
        assert_eq!(weight.transpose().into_data().to_vec::<f32>().unwrap(), values(160));
        assert_eq!(net.norm.gamma.val().into_data().to_vec::<f32>().unwrap(), values(2));
        assert_eq!(net.embed.weight.val().into_data().to_vec::<f32>().unwrap(), values(12));
    }
}

#[test]
fn loading_encoded_equals_encoding_the_loaded() {
    let (directory, _) = write(&whole(Dtype::BF16));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let policy = Policy::linear(Format::Q8);
    let mut told = Vec::new();
    let direct: Net<Qins<Flex>> =
        load_encoded(Net::new(), &checkpoint, &policy, |p| told.push(p.tensor.to_owned())).unwrap();
    let later: Net<Qins<Flex>> = policy.encode(load(Net::new(), &checkpoint, |_| ()).unwrap()).unwrap();
    for (a, b) in direct.layers.iter().zip(&later.layers) {
        assert!(matches!(a.weight.val().into_primitive(), TensorPrimitive::QFloat(_)));
        assert_eq!(a.weight.val().dims(), b.weight.val().dims());
        assert_eq!(a.weight.val().into_data(), b.weight.val().into_data(), "codes and constants");
    }
    let float = |net: &Net<Qins<Flex>>| net.embed.weight.val().into_data();
    assert_eq!(float(&direct), float(&later));
    assert_eq!(told.len(), 6);
}

#[test]
fn missing_and_extra_tensors_are_named() {
    let mut tensors = whole(Dtype::F32);
    tensors.remove(2);
    assert_eq!(error(&tensors), "1 tensor missing: `layers.0.bias`");
    let mut tensors = whole(Dtype::F32);
    tensors.push(("layers.2.weight", vec![1], Dtype::F32, vec![0; 4]));
    assert_eq!(error(&tensors), "1 tensor that the model does not have: `layers.2.weight`");
    assert_eq!(error(&vec![]).split(':').next(), Some("6 tensors missing"));
}

#[derive(Module, Debug)]
struct Body<B: Backend> {
    embed_tokens: Embedding<B>,
}

/// A model whose head is its embedding.
#[derive(Module, Debug)]
struct Tied<B: Backend> {
    model: Body<B>,
}

fn tied() -> Tied<Flex> {
    Tied { model: Body { embed_tokens: EmbeddingConfig::new(3, 4).init(&Default::default()) } }
}

#[test]
fn buffers_and_a_copy_of_the_embedding_are_passed_over() {
    let table = || ("model.embed_tokens.weight", vec![3, 4], Dtype::F32, encoded(Dtype::F32, &values(12)));
    let extra = |name, dtype: Dtype, bytes: usize| (name, vec![bytes / (dtype.bitsize() / 8)], dtype, vec![1; bytes]);
    let buffers = vec![
        extra("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, 8),
        extra("model.rotary_emb.cos_cached", Dtype::BF16, 8),
        extra("model.rotary_emb.long_factor", Dtype::F32, 8),
        extra("model.layers.0.attn.bias", Dtype::BOOL, 4),
        extra("model.layers.0.attn.masked_bias", Dtype::F32, 4),
        extra("embeddings.position_ids", Dtype::I64, 16),
    ];
    let head = |dtype| ("lm_head.weight", vec![3, 4], dtype, encoded(dtype, &values(12)));
    for head in [head(Dtype::F32), head(Dtype::BF16)] {
        let (directory, _) = write(&[vec![table(), head], buffers.clone()].concat());
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        load(tied(), &checkpoint, |_| ()).unwrap();
        let policy = Policy::default();
        assert_eq!(qins_import::plan(&tied(), &checkpoint, &policy).unwrap().len(), 1);
        let told = passed_over(&tied(), &checkpoint).unwrap();
        assert_eq!(told.len(), 1 + buffers.len(), "{told:?}");
        assert!(told.contains(&"lm_head.weight".to_owned()));
    }
    let refused = |extra: (&'static str, Vec<usize>, Dtype, Vec<u8>)| {
        let (directory, _) = write(&vec![table(), extra]);
        load(tied(), &Checkpoint::open(directory.path()).unwrap(), |_| ()).unwrap_err().to_string()
    };
    let mut other = head(Dtype::F32);
    other.3[5] ^= 1;
    assert!(refused(other).contains("`lm_head.weight` is not equal to `model.embed_tokens.weight`"));
    let mut other = head(Dtype::F32);
    other.1 = vec![4, 3];
    assert!(refused(other).contains("is not equal"));
    for name in ["model.layers.0.self_attn.bias", "inv_freq_2", "model.layers.2.weight"] {
        let message = refused((name, vec![1], Dtype::F32, vec![0; 4]));
        assert!(message.contains(&format!("that the model does not have: `{name}`")), "{message}");
    }
    // A head of its own is none.
    let (directory, _) = write(&vec![("lm_head.weight", vec![1], Dtype::F32, vec![0; 4])]);
    assert!(load_float(directory.path()).unwrap_err().contains("missing"));
}

#[test]
fn what_is_no_checkpoint_is_told_by_what_it_is() {
    for (name, method) in
        [("layers.0.qweight", "GPTQ"), ("layers.0.weight.absmax", "bitsandbytes"), ("layers.0.weight_scale_inv", "FP8")]
    {
        let mut tensors = whole(Dtype::F32);
        tensors[1] = (name, vec![1], Dtype::I32, vec![0; 4]);
        let message = error(&tensors);
        assert!(message.starts_with("the model is quantized already") && message.contains(method), "{message}");
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 42\n";
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("pytorch_model.bin"), pointer).unwrap();
    assert!(load_float(directory.path()).unwrap_err().contains("found `pytorch_model.bin`"));
    assert!(load_float(&at("pytorch_model.bin")).unwrap_err().contains("found a file: give its directory"));
    std::fs::write(at("model.safetensors"), pointer).unwrap();
    assert!(load_float(directory.path()).unwrap_err().contains("model.safetensors: a pointer of git-lfs"));
    std::fs::rename(at("model.safetensors"), at("model.safetensors.index.json")).unwrap();
    assert!(load_float(directory.path()).unwrap_err().contains("index.json: a pointer of git-lfs"));
    let shards = write_shards(|_, i| Some(format!("shard-{i}.safetensors")));
    std::fs::remove_file(shards.path().join("shard-1.safetensors")).unwrap();
    let message = load_float(shards.path()).unwrap_err();
    assert!(message.contains("shard-1.safetensors") && message.contains("the download is not complete"), "{message}");
}

#[test]
fn a_wrong_shape_and_a_wrong_type_are_told_with_what_was_expected() {
    let mut tensors = whole(Dtype::F32);
    tensors[1].1 = vec![4, 40];
    assert_eq!(error(&tensors), "layers.0.weight: expected shape [40, 4], found [4, 40]");
    let mut tensors = whole(Dtype::F32);
    tensors[4] = ("layers.1.bias", vec![2], Dtype::I32, vec![0; 8]);
    assert_eq!(error(&tensors), "layers.1.bias: expected F32, F16 or BF16, found I32");
}

#[test]
fn a_weight_that_is_not_finite_is_told_by_tensor_and_index() {
    let mut tensors = whole(Dtype::F32);
    tensors[3].3[4 * 45..4 * 46].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let (directory, file) = write(&tensors);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let error = load_encoded::<Flex, _>(Net::new(), &checkpoint, &Policy::linear(Format::Q8), |_| ()).unwrap_err();
    let expected = "layers.1.weight: weight [1, 5] is inf: only finite weights can be encoded";
    assert_eq!(error.to_string(), format!("{}: {expected}", file.display()));
}

#[test]
fn a_file_cut_at_any_point_is_refused() {
    let (directory, file) = write(&whole(Dtype::F32));
    let bytes = std::fs::read(&file).unwrap();
    for n in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
        std::fs::write(&file, &bytes[..n]).unwrap();
        let message = load_float(directory.path()).unwrap_err();
        assert!(message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn a_lying_header_is_refused() {
    let refuse = |header: &str, data: usize| {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        let message = load_float(directory.path()).unwrap_err();
        let told = ["not a whole safetensors file", "two tensors are called `a`"];
        assert!(told.iter().any(|told| message.contains(told)), "{message}");
    };
    refuse(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}"#, 8);
    refuse(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#, 8);
    refuse(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8);
    refuse("not json", 0);
    let two = |a: &str, b: &str, offsets: [usize; 2]| {
        let entry = |at: usize| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[{at},{}]}}"#, at + 8);
        format!(r#"{{"{a}":{},"{b}":{}}}"#, entry(offsets[0]), entry(offsets[1]))
    };
    refuse(&two("a", "b", [0, 4]), 12);
    refuse(&two("a", "b", [0, 12]), 20);
    refuse(&two("a", "a", [0, 8]), 16);
    refuse(&two("a", "a", [0, 0]), 8);
    for length in [u64::MAX, 1 << 40, 100] {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        assert!(load_float(directory.path()).unwrap_err().contains("header"));
    }
}

/// Splits the tensors of `Net` over two files and an index.
fn write_shards(index: impl Fn(&str, usize) -> Option<String>) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tensors = whole(Dtype::F32);
    let mut weight_map = serde_json::Map::new();
    for (i, part) in tensors.chunks(4).enumerate() {
        let views = part
            .iter()
            .map(|(name, shape, dtype, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &directory.path().join(format!("shard-{i}.safetensors"))).unwrap();
        for (name, ..) in part {
            if let Some(file) = index(name, i) {
                weight_map.insert(name.to_string(), file.into());
            }
        }
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(directory.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    directory
}

#[test]
fn shards_load_like_one_file() {
    let shards = write_shards(|_, i| Some(format!("shard-{i}.safetensors")));
    let (single, _) = write(&whole(Dtype::F32));
    let (a, b) = (load_float(shards.path()).unwrap(), load_float(single.path()).unwrap());
    assert_eq!(a.layers[1].weight.val().into_data(), b.layers[1].weight.val().into_data());
    assert_eq!(a.embed.weight.val().into_data(), b.embed.weight.val().into_data());
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let refuse = |index: fn(&str, usize) -> Option<String>, expected: &str| {
        let directory = write_shards(index);
        let message = load_float(directory.path()).unwrap_err();
        assert!(message.contains(expected), "{message}");
    };
    refuse(
        |_, i| Some(format!("../shard-{i}.safetensors")),
        "names of files beside it, found `../shard-0.safetensors`",
    );
    refuse(|_, _| Some("/etc/passwd".to_owned()), "found `/etc/passwd`");
    refuse(|_, i| Some(format!("none-{i}.safetensors")), "none-0.safetensors: No such file");
    refuse(|_, i| Some(format!("shard-{}.safetensors", 1 - i)), "expected `embed.weight` in shard-1.safetensors");
    refuse(
        |name, i| (name != "layers.0.bias").then(|| format!("shard-{i}.safetensors")),
        "the shards hold `layers.0.bias`, which it does not list",
    );
    let directory = write_shards(|_, i| Some(format!("shard-{i}.safetensors")));
    std::fs::copy(directory.path().join("shard-0.safetensors"), directory.path().join("shard-1.safetensors")).unwrap();
    assert!(load_float(directory.path()).unwrap_err().contains("is in"), "a tensor twice");
    std::fs::write(directory.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(load_float(directory.path()).unwrap_err().contains("weight_map"));
}

#[test]
fn a_directory_without_a_checkpoint_says_what_was_expected() {
    let directory = tempfile::tempdir().unwrap();
    let message = load_float(directory.path()).unwrap_err();
    assert!(message.ends_with("`model.safetensors.index.json`, found no such file"), "{message}");
    let message = load_float(&directory.path().join("none")).unwrap_err();
    assert!(message.ends_with("found no such directory"), "{message}");
}

#[test]
fn names_of_the_callers_choice_load_as_the_modules_own() {
    let (_directory, file) = write(&whole(Dtype::F32));
    let expected = load::<Flex, _>(Net::new(), &Checkpoint::open_file(&file).unwrap(), |_| ()).unwrap();
    let mut foreign = whole(Dtype::F32);
    foreign.iter_mut().for_each(|tensor| tensor.0 = format!("decoder.{}", tensor.0).leak());
    let (_directory, file) = write(&foreign);
    let open = || Checkpoint::open_file(&file).unwrap();
    assert!(load::<Flex, _>(Net::new(), &open(), |_| ()).is_err());
    let renamed = open().renamed(|name| name.replace("decoder.", "")).unwrap();
    let found = load::<Flex, _>(Net::new(), &renamed, |_| ()).unwrap();
    found.layers[0].weight.val().into_data().assert_eq(&expected.layers[0].weight.val().into_data(), true);
    let error = open().renamed(|_| "same".to_owned()).unwrap_err().to_string();
    assert!(error.contains("two tensors would be called `same`"), "{error}");
}

#[test]
fn an_encoded_module_is_saved_and_loaded_bit_for_bit() {
    let (directory, file) = write(&whole(Dtype::F32));
    let checkpoint = Checkpoint::open_file(&file).unwrap();
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::Bf16);
    let net: Net<Qins<Flex>> = load_encoded(Net::new(), &checkpoint, &policy, |_| ()).unwrap();
    let output = directory.path().join("net");
    save_container(&net, &output, false).unwrap();
    let container = Container::open(&output).unwrap();
    container.verify(|_, _| ()).unwrap();
    let loaded: Net<Qins<Flex>> = load_container(Net::new(), &container, |_| ()).unwrap();
    let is_coded = |tensor: Tensor<Qins<Flex>, 2>| matches!(tensor.into_primitive(), TensorPrimitive::QFloat(_));
    let same = |a: Tensor<Qins<Flex>, 2>, b: Tensor<Qins<Flex>, 2>| a.into_data().bytes == b.into_data().bytes;
    for (a, b) in net.layers.iter().zip(&loaded.layers) {
        assert!(is_coded(b.weight.val()));
        assert!(same(a.weight.val(), b.weight.val()));
        let bias = |layer: &Linear<_>| layer.bias.as_ref().unwrap().val().into_data();
        bias(a).assert_eq(&bias(b), true);
    }
    assert!(is_coded(loaded.embed.weight.val()));
    assert!(same(net.embed.weight.val(), loaded.embed.weight.val()));
    net.norm.gamma.val().into_data().assert_eq(&loaded.norm.gamma.val().into_data(), true);

    // A module in float is saved in float, a lazy float in its codes.
    let float: Net<Qins<Flex>> = load(Net::new(), &checkpoint, |_| ()).unwrap();
    assert!(matches!(save_container(&float, &output, false), Err(ImportError::Exists { .. })));
    save_container(&float, &output, true).unwrap();
    assert!(Container::open(&output).unwrap().manifest().tensors.values().all(|tensor| tensor.format == "f32"));
    save_container(&net.clone().fork(&Default::default()), &output, true).unwrap();
    let forked: Net<Qins<Flex>> = load_container(Net::new(), &Container::open(&output).unwrap(), |_| ()).unwrap();
    assert!(same(forked.layers[1].weight.val(), net.layers[1].weight.val()));
}
