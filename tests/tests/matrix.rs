//! Every backend, plain and decorated, on every kind of layer, in float and on codes: the largest differences from plain
//! loops in f64, and from the same computation on the inner backend.
//!
//!     cargo test --release --workspace --test matrix                 prints the tables
//!     cargo test --release --workspace --test matrix -- --update     writes them to docs/backends.md as well

use burn::{
    module::{AutodiffModule, Module, Param},
    nn::{
        Embedding, Linear,
        attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig},
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{DType, Int, Tensor, TensorData, backend::Backend, set_default_dtypes},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use half::f16;
use phi35_model::{Config, Phi3};
use qins_backend::{Policy, Qins, lazy_float};
use qins_codec::Format;
use qins_import::{Checkpoint, load};
use qins_tests::{Random, Weight, Weights, has_gpu, random_model, scalar};
use serde_json::json;
use std::{fmt::Write, path::Path, process::Command};

type Unfused = CubeBackend<WgpuRuntime, f32, i32, u32>;

const CASES: [&str; 5] = ["linear", "attention", "conv", "embedding", "model"];
/// What f32 may be off by; the model's logits are of the order of 1.
const TOLERANCE: f64 = 1e-4;
/// f16 keeps 11 bits, and every operation rounds to them.
const TOLERANCE_F16: f64 = 0.02;

const D: usize = 72;
const HEADS: usize = 4;
const IMAGE: [usize; 3] = [5, 9, 7];
const CHANNELS: usize = 11;
const KERNEL: usize = 3;
const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 95];

/// Outputs of the cases.
type Outputs = [Vec<f64>; CASES.len()];

/// Inputs and weights, the same for all.
struct Problem {
    config: Config,
    weights: Weights,
    x: Vec<f32>,
    image: Vec<f32>,
}

impl Problem {
    fn new() -> Self {
        let (_, config, mut weights) =
            random_model(json!({"vocab_size": 96, "hidden_size": D, "intermediate_size": 100,
            "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": D / HEADS,
            "max_position_embeddings": 64}));
        let mut random = Random(11);
        let mut add = |name: &str, shape: &[usize]| {
            let fan_in: usize = shape.iter().skip(1).product();
            let values = random.weights(shape.iter().product(), (fan_in as f32).powf(-0.5));
            weights.0.push(Weight { name: name.to_owned(), shape: shape.to_vec(), values });
        };
        add("linear.weight", &[45, D]);
        add("linear.bias", &[45]);
        for part in ["query", "key", "value", "output"] {
            add(&format!("attention.{part}.weight"), &[D, D]);
            add(&format!("attention.{part}.bias"), &[D]);
        }
        add("conv.weight", &[CHANNELS, IMAGE[0], KERNEL, KERNEL]);
        add("conv.bias", &[CHANNELS]);
        add("embedding.weight", &[96, D]);
        let x = random.weights(IDS.len() * D, 1.0);
        let image = random.weights(IMAGE.iter().product(), 1.0);
        // As f16 holds them, so that f16 has the same problem.
        let half = |values: Vec<f32>| values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect::<Vec<_>>();
        weights.0.iter_mut().for_each(|weight| weight.values = half(std::mem::take(&mut weight.values)));
        Self { config, weights, x: half(x), image: half(image) }
    }

    /// In plain loops.
    fn reference(&self, weights: &Weights) -> Outputs {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let x = wide(&self.x);
        let get = |name| weights.get(name);
        let table = get("embedding.weight");
        [
            scalar::linear(&x, get("linear.weight"), Some(get("linear.bias")), D),
            scalar::attention(&x, weights, "attention", D, HEADS),
            scalar::conv2d(&wide(&self.image), get("conv.weight"), get("conv.bias"), IMAGE, KERNEL),
            IDS.iter().flat_map(|&id| wide(&table[id as usize * D..][..D])).collect(),
            scalar::phi3(&self.config, weights, &IDS),
        ]
    }

    fn layers<B: Backend>(&self, weights: &Weights) -> Layers<B> {
        let device = Default::default();
        fn param<B: Backend, const N: usize>(weight: &Weight) -> Param<Tensor<B, N>> {
            let data = TensorData::new(weight.values.clone(), weight.shape.clone());
            Param::from_tensor(Tensor::from_data(data, &Default::default()))
        }
        let linear = |name: &str| {
            let weight: Param<Tensor<B, 2>> = param(weights.weight(&format!("{name}.weight")));
            // Burn's layout is [in, out].
            let weight = weight.map(|weight| weight.transpose());
            Linear { weight, bias: Some(param(weights.weight(&format!("{name}.bias")))) }
        };
        let mut attention: MultiHeadAttention<B> =
            MultiHeadAttentionConfig::new(D, HEADS).with_dropout(0.0).init(&device);
        attention.query = linear("attention.query");
        attention.key = linear("attention.key");
        attention.value = linear("attention.value");
        attention.output = linear("attention.output");
        let mut conv: Conv2d<B> = Conv2dConfig::new([IMAGE[0], CHANNELS], [KERNEL, KERNEL]).init(&device);
        conv.weight = param(weights.weight("conv.weight"));
        conv.bias = Some(param(weights.weight("conv.bias")));
        let of_model = |weight: &&Weight| weight.name.starts_with("model.") || weight.name == "lm_head.weight";
        let of_model = weights.0.iter().filter(of_model).map(|weight| Weight {
            name: weight.name.clone(),
            shape: weight.shape.clone(),
            values: weight.values.clone(),
        });
        let file = Weights(of_model.collect()).to_safetensors();
        let checkpoint = Checkpoint::from_bytes(file, Path::new("random")).unwrap();
        Layers {
            linear: linear("linear"),
            attention,
            conv,
            embedding: Embedding { weight: param(weights.weight("embedding.weight")) },
            model: load(self.config.init(&device).unwrap(), &checkpoint, |_| ()).unwrap(),
        }
    }

    fn run<B: Backend>(&self, layers: &Layers<B>) -> Outputs {
        let device = Default::default();
        fn tensor<B: Backend, const N: usize>(values: &[f32], shape: [usize; N]) -> Tensor<B, N> {
            Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
        }
        fn read<B: Backend, const N: usize>(tensor: Tensor<B, N>) -> Vec<f64> {
            tensor.into_data().iter::<f64>().collect()
        }
        let x = tensor::<B, 3>(&self.x, [1, IDS.len(), D]);
        let ids = Tensor::<B, 2, Int>::from_data([IDS.map(|id| id as i64)], &device);
        [
            read(layers.linear.forward(x.clone())),
            read(layers.attention.forward(MhaInput::self_attn(x)).context),
            read(layers.conv.forward(tensor::<B, 4>(&self.image, [1, IMAGE[0], IMAGE[1], IMAGE[2]]))),
            read(layers.embedding.forward(ids)),
            read(layers.model.sequence_logits(&IDS).unwrap()),
        ]
    }
}

#[derive(Module, Debug)]
struct Layers<B: Backend> {
    linear: Linear<B>,
    attention: MultiHeadAttention<B>,
    conv: Conv2d<B>,
    embedding: Embedding<B>,
    model: Phi3<B>,
}

/// One backend: outputs in float and on codes, or on the decoded weights where a backend has no codes.
struct Row {
    name: String,
    float: Outputs,
    q8: Outputs,
    /// The same on the inner backend, for a decorated one.
    inner: Option<(Outputs, Outputs)>,
}

fn differences(a: &Outputs, b: &Outputs) -> [f64; CASES.len()] {
    std::array::from_fn(|case| {
        assert_eq!(a[case].len(), b[case].len());
        a[case].iter().zip(&b[case]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    })
}

fn policy() -> Policy {
    Policy::linear(Format::Q8).with_embeddings(Format::Q8).with_convolutions(Format::Q8)
}

/// A backend and its decorated self.
fn pair<B: Backend>(name: &str, problem: &Problem) -> [Row; 2] {
    let decoded = problem.weights.decoded(Format::Q8);
    let plain = |weights: &Weights| problem.run(&problem.layers::<B>(weights));
    let (float, on_decoded) = (plain(&problem.weights), plain(&decoded));
    let layers = || problem.layers::<Qins<B>>(&problem.weights);
    let coded = policy().encode(layers()).unwrap();
    let decorated = Row {
        name: format!("Qins<{name}>"),
        float: problem.run(&layers()),
        q8: problem.run(&coded),
        inner: Some((float.clone(), on_decoded.clone())),
    };
    [Row { name: name.to_owned(), float, q8: on_decoded, inner: None }, decorated]
}

fn autodiff(problem: &Problem) -> Row {
    type B = Autodiff<Qins<Flex>>;
    let coded = lazy_float(policy().encode(problem.layers::<Qins<Flex>>(&problem.weights)).unwrap());
    let inner = pair::<Flex>("", problem)[1].inner.take();
    Row {
        name: "Autodiff<Qins<Flex>>".to_owned(),
        float: problem.run(&problem.layers::<B>(&problem.weights)),
        q8: problem.run(&Layers::<B>::from_inner(coded)),
        inner,
    }
}

/// A line of a table; `false` for a figure beyond the tolerance.
fn line(name: &str, float: [f64; CASES.len()], q8: [f64; CASES.len()], tolerance: f64) -> (String, bool) {
    let mut line = format!("| `{name}` |");
    let mut good = true;
    for (float, q8) in float.into_iter().zip(q8) {
        write!(line, " {float:.0e} | {q8:.0e} |").unwrap();
        good &= float <= tolerance && q8 <= tolerance;
    }
    (line, good)
}

fn table(title: &str, lines: &[String]) -> String {
    let cases: String = CASES.iter().map(|case| format!(" {case}, float | q8 |")).collect();
    let rule = "---|".repeat(1 + 2 * CASES.len());
    format!("| {title} |{cases}\n|{rule}\n{}\n", lines.join("\n"))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let half = arguments.iter().any(|argument| argument == "--half");
    if half {
        // Once a process, before the first tensor.
        set_default_dtypes::<Flex>(&Default::default(), DType::F16, DType::I32).unwrap();
    }
    let problem = Problem::new();
    let rows: Vec<Row> = if half {
        pair::<Flex>("Flex, f16", &problem).into()
    } else {
        let mut rows: Vec<Row> = pair::<NdArray>("NdArray", &problem).into();
        rows.extend(pair::<Flex>("Flex", &problem));
        rows.push(autodiff(&problem));
        if has_gpu() {
            rows.extend(pair::<Unfused>("Wgpu, unfused", &problem));
            rows.extend(pair::<Wgpu>("Wgpu, fused", &problem));
        }
        rows
    };

    let float = problem.reference(&problem.weights);
    let q8 = problem.reference(&problem.weights.decoded(Format::Q8));
    let codec = differences(&float, &q8);
    assert!(codec.iter().all(|&difference| difference > 100.0 * 1e-6), "q8 must not be float: {codec:?}");
    let tolerance = if half { TOLERANCE_F16 } else { TOLERANCE };
    let mut failed = Vec::new();
    let (mut from_reference, mut from_inner) = (Vec::new(), Vec::new());
    for row in &rows {
        let (line_, good) = line(&row.name, differences(&row.float, &float), differences(&row.q8, &q8), tolerance);
        from_reference.push(line_);
        let mut all_good = good;
        if let Some((inner_float, inner_q8)) = &row.inner {
            let differences = (differences(&row.float, inner_float), differences(&row.q8, inner_q8));
            // Float tensors are the inner backend's own; Autodiff has operations of its own.
            if row.name.starts_with("Qins") {
                assert_eq!(differences.0, [0.0; CASES.len()], "{} in float", row.name);
            }
            let (line_, good) = line(&row.name, differences.0, differences.1, tolerance);
            from_inner.push(line_);
            all_good &= good;
        }
        if !all_good {
            failed.push(row.name.as_str());
        }
    }
    if half {
        // For the process that started this one.
        println!("{}\n{}", from_reference.join("\n"), from_inner.join("\n"));
    } else {
        let other = Command::new(std::env::current_exe().unwrap()).arg("--half").output().unwrap();
        let text = String::from_utf8(other.stdout).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        eprint!("{}", String::from_utf8_lossy(&other.stderr));
        assert!(other.status.success() && lines.len() == 3, "in f16: {text}");
        from_reference.extend(lines[..2].iter().cloned());
        from_inner.extend(lines[2..].iter().cloned());
        let tables = [
            table("largest difference from f64 loops", &from_reference),
            table("largest difference from the inner backend", &from_inner),
        ]
        .join("\n");
        println!("{tables}");
        if arguments.iter().any(|argument| argument == "--update") {
            update(&tables);
        }
    }
    assert!(failed.is_empty(), "beyond {tolerance}: {failed:?}");
}

/// Puts the tables between the marks of the document.
fn update(tables: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/backends.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- matrix -->\n", "<!-- end of matrix -->");
    let (before, rest) = document.split_once(start).expect("the document has the marks");
    let (_, after) = rest.split_once(end).expect("the document has the marks");
    std::fs::write(&path, format!("{before}{start}{tables}{end}{after}")).unwrap();
}
