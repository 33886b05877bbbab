//! Whole modules through Burn's own API: which weights a policy takes, what becomes of coded parameters in clones, forks,
//! records and other backends, gradients through them.

use burn::{
    module::{AutodiffModule, Module, ModuleVisitor, Param, Quantizer},
    nn::{
        BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
        attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig},
        conv::{Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig},
    },
    optim::{GradientsParams, Optimizer, SgdConfig},
    record::{
        BinBytesRecorder, FullPrecisionSettings, HalfPrecisionSettings, NamedMpkBytesRecorder, PrecisionSettings,
        Recorder,
    },
    tensor::{
        Distribution, Int, Tensor, TensorPrimitive, Tolerance,
        backend::Backend,
        quantization::{Calibration, QuantLevel, QuantScheme, QuantValue},
    },
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use qins_backend::{ParamPath, Policy, PolicyError, Qins, QinsFloat, QinsLinear, QinsLinearConfig, lazy_float, recode};
use qins_codec::Format;
use qins_import::{container::Container, load_container, save_container};
use std::collections::BTreeMap;

type Q<B> = Qins<B>;

/// A module with a layer of every kind.
#[derive(Module, Debug)]
struct Net<B: Backend> {
    embedding: Embedding<B>,
    conv: Conv2d<B>,
    norm: BatchNorm<B>,
    up: ConvTranspose1d<B>,
    attention: MultiHeadAttention<B>,
    layer_norm: LayerNorm<B>,
    heads: Vec<Linear<B>>,
    own: Param<Tensor<B, 2>>,
}

fn net<B: Backend>() -> Net<B> {
    let device = Default::default();
    B::seed(&device, 3);
    Net {
        embedding: EmbeddingConfig::new(20, 48).init(&device),
        conv: Conv2dConfig::new([3, 48], [3, 3]).init(&device),
        norm: BatchNormConfig::new(48).init(&device),
        up: ConvTranspose1dConfig::new([48, 48], 2).init(&device),
        attention: MultiHeadAttentionConfig::new(48, 4).with_dropout(0.0).init(&device),
        layer_norm: LayerNormConfig::new(48).init(&device),
        heads: (0..2).map(|_| LinearConfig::new(48, 33).init(&device)).collect(),
        own: Param::from_tensor(Tensor::random([48, 48], Distribution::Normal(0.0, 0.1), &device)),
    }
}

impl<B: Backend> Net<B> {
    /// Uses every parameter. `image [1, 3, 6, 6]`, `ids [1, 6]`.
    fn forward(&self, image: Tensor<B, 4>, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let seen = self.norm.forward(self.conv.forward(image)).flatten::<3>(2, 3);
        let seen = self.up.forward(seen).swap_dims(1, 2).slice([0..1, 0..6]);
        let x = self.embedding.forward(ids) + seen;
        let x = self.attention.forward(MhaInput::self_attn(self.layer_norm.forward(x))).context;
        let x = x.matmul(self.own.val().unsqueeze());
        self.heads[0].forward(x.clone()) + self.heads[1].forward(x)
    }

    fn run(&self) -> Tensor<B, 3> {
        let device = Default::default();
        let image = Tensor::<B, 1, Int>::arange(0..108, &device).float().reshape([1, 3, 6, 6]) / 108.0;
        self.forward(image, Tensor::from_data([[3, 1, 4, 1, 5, 9]], &device))
    }
}

/// Names of the coded parameters, and whether they are quantized parameters (or lazy floats).
fn coded<B: Backend, M: Module<Q<B>>>(module: &M) -> BTreeMap<String, bool> {
    #[derive(Default)]
    struct Coded(ParamPath, BTreeMap<String, bool>);
    impl<B: Backend> ModuleVisitor<Q<B>> for Coded {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.0.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Q<B>, D>>) {
            match param.val().into_primitive() {
                TensorPrimitive::QFloat(_) => drop(self.1.insert(self.0.dotted(), true)),
                TensorPrimitive::Float(QinsFloat::Coded(..)) => drop(self.1.insert(self.0.dotted(), false)),
                TensorPrimitive::Float(QinsFloat::Dense(_)) => (),
            }
        }
    }
    let mut found = Coded::default();
    module.visit(&mut found);
    found.1
}

fn names(found: &BTreeMap<String, bool>) -> Vec<&str> {
    found.keys().map(String::as_str).collect()
}

fn everything() -> Policy {
    let policy = Policy::linear(Format::Q8).with_convolutions(Format::Q8).with_embeddings(Format::Q8);
    policy.set("own", Format::Q8).unwrap()
}

fn assert_close<B: Backend>(a: Tensor<B, 3>, b: Tensor<B, 3>) {
    a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
}

/// How far apart, in decibels below the signal.
fn snr<B: Backend>(signal: Tensor<B, 3>, other: Tensor<B, 3>) -> f32 {
    let power = |t: Tensor<B, 3>| t.powi_scalar(2).mean().into_data().iter::<f32>().next().unwrap();
    10.0 * (power(signal.clone()) / power(signal - other)).log10()
}

#[test]
fn a_policy_takes_weights_by_kind_and_by_name_and_never_norms_or_biases_unasked() {
    let taken = |policy: &Policy| coded(&policy.encode(net::<Q<Flex>>()).unwrap());
    let linear =
        ["attention.key.weight", "attention.output.weight", "attention.query.weight", "attention.value.weight"];
    let heads = ["heads.0.weight", "heads.1.weight"];
    assert_eq!(names(&taken(&Policy::linear(Format::Q8))), [&linear[..], &heads].concat());
    let expected = [&linear[..], &["conv.weight", "embedding.weight"], &heads, &["own", "up.weight"]].concat();
    assert_eq!(names(&taken(&everything())), expected);
    let set = |pattern: &str| taken(&Policy::default().set(pattern, Format::F16).unwrap());
    assert_eq!(names(&set("attention")), linear, "a module takes the weights in it, not their biases");
    assert_eq!(names(&set("heads.*")), heads);
    assert_eq!(names(&set("**.key")), ["attention.key.weight"]);
    assert_eq!(names(&set("heads.**.bias")), ["heads.0.bias", "heads.1.bias"], "a bias by its name");
    assert_eq!(names(&set("norm.gamma")), ["norm.gamma"]);
    assert_eq!(names(&set("{up,conv}")), ["conv.weight", "up.weight"]);
    // The last rule decides.
    let policy = Policy::linear(Format::Q8).keep("attention.*").unwrap().set("**.query", Format::Bf16).unwrap();
    assert_eq!(names(&taken(&policy)), [&["attention.query.weight"][..], &heads].concat());
    assert_eq!(policy.to_string(), "linear=q8 attention.*=float **.query=bf16");

    let unused = Policy::default().set("lm_haed", Format::Q8).unwrap().encode(net::<Q<Flex>>()).unwrap_err();
    assert_eq!(unused, PolicyError::NothingTaken { pattern: "lm_haed".to_owned() });
    assert_eq!(unused.to_string(), "the pattern `lm_haed` takes no parameter of the module");
    assert!(Policy::default().set("heads..weight", Format::Q8).is_err());
    assert!(
        Policy::default().set("heads.[", Format::Q8).unwrap_err().to_string().starts_with("the pattern `heads.[`: ")
    );
}

fn a_module_computes<B: Backend>() {
    let plain = net::<B>();
    let expected = Tensor::from_data(plain.run().into_data(), &Default::default());
    let float = Q::<B>::module_from_inner(&plain, net::<Q<B>>()).unwrap();
    assert_close(float.run(), expected.clone());
    let encoded = everything().encode(float).unwrap();
    let coded_run = encoded.run();
    let snr = snr(expected, coded_run.clone());
    assert!(snr > 35.0 && snr < 80.0, "{snr} dB");

    // Against the same module of decoded weights, on B itself.
    let decoded = Q::<B>::module_into_inner(&encoded, net::<B>()).unwrap();
    let run = decoded.run();
    assert_close(Tensor::from_data(run.into_data(), &Default::default()), coded_run.clone());
    // And back: floats, no codes.
    let back = Q::<B>::module_from_inner(&decoded, net::<Q<B>>()).unwrap();
    assert!(coded(&back).is_empty());
    assert_close(back.run(), coded_run);
}

#[test]
fn a_module_computes_the_same_on_codes_as_on_decoded_weights() {
    a_module_computes::<Flex>();
    a_module_computes::<NdArray>();
    a_module_computes::<Autodiff<Flex>>();
}

#[test]
fn a_module_of_another_structure_is_refused_by_name() {
    let device = Default::default();
    let small: Linear<Flex> = LinearConfig::new(4, 3).init(&device);
    let large: Linear<Q<Flex>> = LinearConfig::new(4, 5).init(&device);
    let error = Q::<Flex>::module_from_inner(&small, large).unwrap_err();
    assert_eq!(error.to_string(), "weight: expected a parameter of shape [4, 5], found [4, 3]");
    let without: Linear<Flex> = LinearConfig::new(4, 3).with_bias(false).init(&device);
    let with: Linear<Q<Flex>> = LinearConfig::new(4, 3).init(&device);
    let error = Q::<Flex>::module_from_inner(&without, with).unwrap_err();
    assert_eq!(error.to_string(), "bias: expected a parameter of shape [3], found none");
}

#[test]
fn burns_own_quantizer_gives_right_results() {
    fn check<B: Backend>() {
        let float = net::<Q<B>>();
        let expected = float.run();
        // With blocks, Burn itself refuses a parameter that is not whole blocks.
        let scheme = QuantScheme::default().with_value(QuantValue::Q8S).with_level(QuantLevel::Tensor);
        let mut quantizer = Quantizer { calibration: Calibration::MinMax, scheme };
        // Burn takes every float parameter: norms and biases too.
        let quantized = float.quantize_weights(&mut quantizer);
        assert!(coded(&quantized).len() > 16 && coded(&quantized).values().all(|&parameter| parameter));
        let snr = snr(expected, quantized.run());
        assert!(snr > 30.0, "{snr} dB");
    }
    check::<Flex>();
    check::<NdArray>();
}

#[test]
fn clones_devices_and_forks_keep_the_codes_and_recode_makes_them_parameters_again() {
    let device = Default::default();
    let encoded = everything().encode(net::<Q<Flex>>()).unwrap();
    let expected = encoded.run().into_data();
    let parameters = coded(&encoded);
    let n = encoded.num_params();
    assert_eq!(n, net::<Flex>().num_params(), "as many parameters as in float");
    for same in [encoded.clone(), encoded.clone().to_device(&device), encoded.clone().no_grad()] {
        assert_eq!(coded(&same), parameters);
        assert_eq!(same.run().into_data(), expected);
    }
    let forked = encoded.clone().fork(&device);
    assert_eq!(names(&coded(&forked)), names(&parameters));
    assert!(coded(&forked).values().all(|&parameter| !parameter), "Burn makes floats of them, lazily");
    assert_eq!(forked.run().into_data(), expected);
    let again = recode(forked);
    assert_eq!(coded(&again), parameters);
    assert_eq!(again.run().into_data(), expected);
    assert_eq!(again.num_params(), n);
    let bytes = |module: Net<Q<Flex>>| record::<Flex, _, FullPrecisionSettings>(module);
    assert_eq!(bytes(again), bytes(encoded), "bit for bit");
}

fn record<B: Backend, M: Module<Q<B>>, S: PrecisionSettings>(module: M) -> Vec<u8> {
    Recorder::<Q<B>>::record(&BinBytesRecorder::<S>::default(), module.into_record(), ()).unwrap()
}

#[test]
fn recorders_round_trip_coded_parameters_between_backends() {
    let encoded = everything().encode(net::<Q<Flex>>()).unwrap();
    let expected = encoded.run();
    let bytes = record::<Flex, _, FullPrecisionSettings>(encoded.clone());
    let float = record::<Flex, _, FullPrecisionSettings>(net::<Q<Flex>>());
    assert!(bytes.len() * 2 < float.len(), "{} bytes, {} in float", bytes.len(), float.len());

    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    let loaded = net::<Q<Flex>>().load_record(recorder.load(bytes.clone(), &Default::default()).unwrap());
    assert_eq!(coded(&loaded), coded(&encoded));
    assert_eq!(loaded.run().into_data(), expected.clone().into_data());
    let loaded = net::<Q<NdArray>>().load_record(recorder.load(bytes, &Default::default()).unwrap());
    assert_close(Tensor::from_data(loaded.run().into_data(), &Default::default()), expected.clone());

    // Half precision is for the floats; codes stay what they are.
    let recorder = BinBytesRecorder::<HalfPrecisionSettings>::default();
    let half = record::<Flex, _, HalfPrecisionSettings>(encoded.clone());
    let loaded = net::<Q<Flex>>().load_record(recorder.load(half, &Default::default()).unwrap());
    assert_eq!(coded(&loaded), coded(&encoded));
    assert!(snr(expected.clone(), loaded.run()) > 50.0);

    let recorder = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
    let named = Recorder::<Q<Flex>>::record(&recorder, encoded.clone().into_record(), ()).unwrap();
    let loaded = net::<Q<Flex>>().load_record(recorder.load(named, &Default::default()).unwrap());
    assert_eq!(coded(&loaded), coded(&encoded));
    assert_eq!(loaded.run().into_data(), expected.into_data());
}

#[test]
fn containers_hold_any_coded_module() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    // The parameter of one's own lies as it was made; Burn's own quantizer codes linear weights along `out`.
    let by_policy = everything().encode(net::<Q<Flex>>()).unwrap();
    let scheme = QuantScheme::default().with_value(QuantValue::Q8S).with_level(QuantLevel::Tensor);
    let by_burn = net::<Q<Flex>>().quantize_weights(&mut Quantizer { calibration: Calibration::MinMax, scheme });
    for (encoded, bits_kept) in [(by_policy, true), (by_burn, false)] {
        save_container(&encoded, &path, true).unwrap();
        let container = Container::open(&path).unwrap();
        let loaded = load_container::<Flex, _>(net(), &container, |_| ()).unwrap();
        if bits_kept {
            assert_eq!(coded(&loaded), coded(&encoded));
            assert_eq!(loaded.run().into_data(), encoded.run().into_data());
        } else {
            assert_close(loaded.run(), encoded.run());
        }
        let loaded = load_container::<NdArray, _>(net(), &container, |_| ()).unwrap();
        assert_close(Tensor::from_data(loaded.run().into_data(), &Default::default()), encoded.run());
    }
}

#[test]
fn qins_linear_is_a_linear_layer_on_codes() {
    fn check<B: Backend>() {
        let device = Default::default();
        for (input, output, bias) in [(64, 96, true), (33, 7, false), (1, 1, true)] {
            let linear: Linear<Q<B>> = LinearConfig::new(input, output).with_bias(bias).init(&device);
            let x: Tensor<Q<B>, 3> = Tensor::random([2, 3, input], Distribution::Default, &device);
            // Burn draws weights when they are first used: before, each clone would draw its own.
            linear.forward(x.clone());
            let layer = QinsLinear::from_linear(linear.clone(), Format::Q8).unwrap();
            let coded_linear = Policy::linear(Format::Q8).encode(linear).unwrap();
            let expected = coded_linear.forward(x.clone());
            assert_eq!(layer.forward(x.clone()).into_data(), expected.clone().into_data());
            assert_eq!(names(&coded(&layer)), ["weight"]);

            let cached = layer.clone().cache_decoded();
            assert_close(cached.forward(x.clone()), expected.clone());
            let bytes = |layer| record::<B, QinsLinear<Q<B>>, FullPrecisionSettings>(layer);
            assert_eq!(bytes(cached.clone()), bytes(layer.clone()), "records hold codes alone");
            assert_eq!(cached.drop_decoded().forward(x.clone()).into_data(), expected.clone().into_data());

            // Records of the two layers are the same.
            let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
            let fresh = QinsLinearConfig::new(input, output).with_bias(bias).init::<B>(&device);
            let loaded = fresh.load_record(recorder.load(bytes(layer.clone()), &device).unwrap());
            assert_eq!(loaded.forward(x.clone()).into_data(), expected.clone().into_data());
            let linear: Linear<Q<B>> = LinearConfig::new(input, output).with_bias(bias).init(&device);
            let loaded = linear.load_record(recorder.load(bytes(layer), &device).unwrap());
            assert_eq!(loaded.forward(x).into_data(), expected.into_data());
        }
    }
    check::<Flex>();
    check::<NdArray>();
    check::<Autodiff<Flex>>();
    let layer = QinsLinearConfig::new(5, 3).with_format(Format::F16).init::<Flex>(&Default::default());
    assert!(layer.to_string().contains("d_input: 5, d_output: 3, bias: true"), "{layer}");
    assert_eq!(layer.num_params(), 18);
}

/// A coded layer, frozen, and a float layer after it.
#[derive(Module, Debug)]
struct Adapted<B: Backend> {
    base: Linear<B>,
    adapter: Linear<B>,
}

#[test]
fn gradients_pass_through_frozen_codes_and_floats_beside_them_train() {
    fn check<B: Backend>() {
        type A<B> = Autodiff<Q<B>>;
        let device = Default::default();
        B::seed(&device, 5);
        let plain: Adapted<Q<B>> = Adapted {
            base: LinearConfig::new(40, 24).with_bias(false).init(&device),
            adapter: LinearConfig::new(40, 24).with_bias(false).init(&device),
        };
        let base = lazy_float(Policy::linear(Format::Q8).encode(plain.base).unwrap());
        let model =
            Adapted::<A<B>> { base: Linear::from_inner(base).no_grad(), adapter: Linear::from_inner(plain.adapter) };
        let x = Tensor::<A<B>, 2>::random([5, 40], Distribution::Default, &device).require_grad();
        let target = Tensor::<A<B>, 2>::random([5, 24], Distribution::Default, &device);
        let loss = |model: &Adapted<A<B>>| {
            (model.base.forward(x.clone()) + model.adapter.forward(x.clone()) - target.clone()).powi_scalar(2).mean()
        };
        // The gradient of the input, against the same on decoded weights.
        let gradients = loss(&model).backward();
        let found = x.grad(&gradients).unwrap();
        let decoded = Param::from_tensor((model.base.weight.val().inner() * 1.0).set_require_grad(false));
        let decoded = Adapted::<A<B>> {
            base: Linear::from_inner(Linear { weight: decoded, bias: None }).no_grad(),
            adapter: model.adapter.clone(),
        };
        let expected = x.grad(&loss(&decoded).backward()).unwrap();
        found.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(1e-4, 1e-6));
        assert!(model.base.weight.grad(&gradients).is_none(), "the codes are frozen");

        // The adapter trains; the codes stay.
        let mut model = model;
        let before = loss(&model).into_data().iter::<f32>().next().unwrap();
        let weight = model.base.weight.val().into_data();
        let mut optimizer = SgdConfig::new().init();
        for _ in 0..30 {
            let gradients = GradientsParams::from_grads(loss(&model).backward(), &model);
            model = optimizer.step(0.5, model, gradients);
        }
        let after = loss(&model).into_data().iter::<f32>().next().unwrap();
        assert!(after < before * 0.5, "loss {before} to {after}");
        assert_eq!(model.base.weight.val().into_data(), weight);
        assert_eq!(coded(&recode(model.valid())).get("base.weight"), Some(&true), "codes all the while");
    }
    check::<Flex>();
    check::<NdArray>();
}
