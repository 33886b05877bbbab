//! Coded tensors through Burn's own API, against the same computation on the decoded weights: on the backends with a
//! kernel, and on one without.

use burn::{
    module::{Module, Param},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, LinearLayout},
    record::{BinBytesRecorder, FullPrecisionSettings, Recorder},
    tensor::{
        Distribution, ElementConversion, FloatDType, Int, Tensor, TensorData, TensorPrimitive, Tolerance,
        backend::Backend,
    },
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use proptest::prelude::*;
use qins_backend::{Policy, Qins, QinsFloat, QinsTensor};
use qins_codec::{Format, Level};

type Q<B> = Qins<B>;

/// A backend that no kernel knows: everything is decoded in its own operations.
type Portable = Autodiff<Flex>;

/// An encoded tensor and what it stands for. Products are in f32: what fixed point may lose is the codec's to test.
fn coded<B: Backend, const D: usize>(format: Format, shape: [usize; D]) -> (Tensor<Q<B>, D>, Tensor<Q<B>, D>) {
    Level::detected().in_float().set_current();
    let float: Tensor<B, D> = Tensor::random(shape, Distribution::Normal(0.0, 0.02), &Default::default());
    let tensor = QinsTensor::<B>::encode(float.into_primitive().tensor(), format).unwrap();
    let decoded = QinsFloat::Dense(tensor.clone().decode(FloatDType::F32));
    (Tensor::from_primitive(tensor.into_primitive()), Tensor::from_primitive(TensorPrimitive::Float(decoded)))
}

fn is_coded<B: Backend, const D: usize>(tensor: &Tensor<Q<B>, D>) -> bool {
    matches!(tensor.clone().into_primitive(), TensorPrimitive::QFloat(_) | TensorPrimitive::Float(QinsFloat::Coded(..)))
}

fn assert_close<B: Backend, const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) {
    a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
}

fn assert_same<B: Backend, const D: usize>(a: Tensor<B, D>, b: Tensor<B, D>) {
    assert_eq!(a.into_data(), b.into_data());
}

/// The float tensor that Burn makes of a quantized one before an operation.
fn lazy<B: Backend, const D: usize>(tensor: Tensor<Q<B>, D>) -> Tensor<Q<B>, D> {
    tensor.dequantize()
}

fn products<B: Backend>(format: Format, m: usize, input: usize, output: usize) {
    let device = Default::default();
    let (weight, decoded) = coded::<B, 2>(format, [output, input]);
    let x: Tensor<Q<B>, 2> = Tensor::random([m, input], Distribution::Default, &device);
    // x W^T, the layout of a linear layer.
    assert_close(x.clone().matmul(weight.clone().transpose()), x.clone().matmul(decoded.clone().transpose()));
    // W x^T
    assert_close(weight.clone().matmul(x.clone().transpose()), decoded.clone().matmul(x.clone().transpose()));
    // Groups along the other axis: decoded first.
    let y: Tensor<Q<B>, 2> = Tensor::random([m, output], Distribution::Default, &device);
    assert_close(y.clone().matmul(weight.clone()), y.matmul(decoded.clone()));
    // Coded on both sides.
    assert_close(
        weight.clone().matmul(weight.clone().transpose()),
        decoded.clone().matmul(decoded.clone().transpose()),
    );
    // Batches, and an input that is a view with strides.
    let strided: Tensor<Q<B>, 4> = Tensor::random([2, input, 3, m], Distribution::Default, &device);
    let strided = strided.permute([0, 2, 3, 1]);
    let wide = |w: Tensor<Q<B>, 2>| w.transpose().reshape([1, 1, input, output]);
    assert_close(strided.clone().matmul(wide(lazy(weight))), strided.matmul(wide(decoded)));
}

fn views<B: Backend>(format: Format, rows: usize, cols: usize) {
    let device = Default::default();
    let (codes, decoded) = coded::<B, 2>(format, [rows, cols]);
    let float = || lazy(codes.clone());
    let view = float().transpose().unsqueeze::<4>().reshape([1, cols, 1, rows]).swap_dims(0, 2).reshape([cols, rows]);
    assert!(is_coded(&view), "transposing and reshaping leave the codes");
    assert_same(view, decoded.clone().transpose());
    let detached = float().detach();
    assert!(is_coded(&detached), "detaching leaves the codes");
    assert_same(detached, decoded.clone());
    let flat = [rows * cols];
    assert_same(float().transpose().reshape(flat), decoded.clone().transpose().reshape(flat));

    let indices = |n: usize| Tensor::<Q<B>, 1, Int>::from_data([n as i64 - 1, 0, n as i64 / 2], &device);
    let selected = float().select(0, indices(rows));
    assert!(is_coded(&selected), "rows are selected as codes");
    assert_same(selected.clone(), decoded.clone().select(0, indices(rows)));
    let x: Tensor<Q<B>, 2> = Tensor::random([2, cols], Distribution::Default, &device);
    let product = x.clone().matmul(decoded.clone().select(0, indices(rows)).transpose());
    assert_close(x.matmul(selected.transpose()), product);
    let expanded = float().transpose().expand([2, 3, cols, rows]);
    assert!(is_coded(&expanded), "expanding leaves the codes");
    let decoded_expanded = decoded.clone().transpose().expand([2, 3, cols, rows]);
    assert_same(expanded.clone(), decoded_expanded.clone());
    let x: Tensor<Q<B>, 4> = Tensor::random([2, 1, 4, cols], Distribution::Default, &device);
    assert_close(x.clone().matmul(expanded.clone()), x.matmul(decoded_expanded.clone()));
    let part = [1..2, 1..3, 0..cols, 0..rows];
    assert!(is_coded(&expanded.clone().slice(part.clone())));
    assert_same(expanded.slice(part.clone()), decoded_expanded.slice(part));
    assert_same(float().select(1, indices(cols)), decoded.clone().select(1, indices(cols)));
    let transposed = decoded.clone().transpose();
    assert_same(float().transpose().select(1, indices(rows)), transposed.select(1, indices(rows)));
    // Burn's quantized operations: codes of whole rows stay as they are, whichever way the tensor lies.
    assert_same(codes.clone().select(0, indices(rows)).dequantize(), decoded.clone().select(0, indices(rows)));
    assert_same(codes.clone().flip([0]).dequantize(), decoded.clone().flip([0]));
    assert_same(codes.clone().transpose().flip([1]).dequantize(), decoded.clone().transpose().flip([1]));
    assert_same(codes.clone().slice([0..rows, 0..cols]).dequantize(), decoded.clone());
    assert_same(
        codes.clone().slice([rows - 1..rows, 0..cols]).dequantize(),
        decoded.clone().slice([rows - 1..rows, 0..cols]),
    );
    assert_same(codes.clone().expand([2, rows, cols]).dequantize(), decoded.clone().expand([2, rows, cols]));
    let loaded = Tensor::<Q<B>, 3>::from_data(codes.clone().expand([2, rows, cols]).into_data(), &device);
    assert_same(loaded.dequantize(), decoded.expand([2, rows, cols]));

    let (codes, decoded) = coded::<B, 3>(format, [rows, 3, cols]);
    assert!(is_coded(&lazy(codes.clone()).select(0, indices(rows))));
    assert_same(lazy(codes.clone()).select(0, indices(rows)), decoded.clone().select(0, indices(rows)));
    assert_same(lazy(codes.clone()).select(1, indices(3)), decoded.clone().select(1, indices(3)));
    let permuted = lazy(codes).permute([2, 0, 1]);
    assert!(is_coded(&permuted));
    assert_same(permuted.clone() * 2.0, decoded.clone().permute([2, 0, 1]) * 2.0);
    let part = [0..cols, 0..1, 1..3];
    assert_same(permuted.slice(part.clone()), decoded.permute([2, 0, 1]).slice(part));
}

/// Slices of whole rows and groups stay coded; any slice and any gather shows the decoded weights.
fn parts<B: Backend>(format: Format, rows: usize, cols: usize, from: (usize, usize), n: (usize, usize)) {
    let device = Default::default();
    let (codes, decoded) = coded::<B, 2>(format, [rows, cols]);
    let part = [from.0..from.0 + n.0, from.1..from.1 + n.1];
    let sliced = lazy(codes.clone()).slice(part.clone());
    assert_same(sliced.clone(), decoded.clone().slice(part.clone()));
    let transposed = [part[1].clone(), part[0].clone()];
    let view = lazy(codes.clone()).transpose().slice(transposed.clone());
    assert_eq!(is_coded(&view), is_coded(&sliced));
    assert_same(view.clone(), decoded.clone().transpose().slice(transposed.clone()));
    // The part in use: products, rows, parts of parts, bytes.
    let x: Tensor<Q<B>, 2> = Tensor::random([2, n.1], Distribution::Default, &device);
    assert_close(x.clone().matmul(view), x.matmul(decoded.clone().transpose().slice(transposed)));
    let last = Tensor::<Q<B>, 1, Int>::from_data([n.0 as i64 - 1], &device);
    assert_same(sliced.clone().select(0, last.clone()), decoded.clone().slice(part.clone()).select(0, last));
    assert_same(sliced.clone().slice_dim(0, 0..1), decoded.clone().slice(part.clone()).slice_dim(0, 0..1));
    let quantized = codes.clone().slice(part.clone());
    if is_coded(&sliced) {
        let loaded = Tensor::<Q<B>, 2>::from_data(quantized.into_data(), &device);
        assert_same(loaded.dequantize(), decoded.clone().slice(part));
    }
    // Any elements, along either dimension.
    let gathered = |coded: Tensor<Q<B>, 2>, decoded: Tensor<Q<B>, 2>| {
        for dim in [0, 1] {
            let mut shape = decoded.dims();
            let limit = shape[dim] as i64;
            shape[dim] = 3;
            let values: Vec<i64> = (0..shape[0] * shape[1]).map(|i| (i as i64 * 7 + 3) % limit).collect();
            let indices = Tensor::<Q<B>, 2, Int>::from_data(TensorData::new(values, shape), &device);
            assert_same(coded.clone().gather(dim, indices.clone()), decoded.clone().gather(dim, indices));
        }
    };
    gathered(lazy(codes.clone()), decoded.clone());
    gathered(lazy(codes).transpose(), decoded.transpose());
}

#[test]
fn slices_of_whole_rows_and_groups_stay_coded() {
    fn stays<B: Backend>(shape: [usize; 2], part: [std::ops::Range<usize>; 2]) -> bool {
        is_coded(&lazy(coded::<B, 2>(Format::Q8, shape).0).slice(part))
    }
    fn check<B: Backend>() {
        assert!(stays::<B>([9, 128], [2..7, 0..128]), "rows");
        assert!(stays::<B>([9, 256], [2..7, 128..256]), "rows and groups");
        assert!(stays::<B>([8, 70], [4..6, 0..70]), "rows with a tail, from a whole word of scale codes");
        assert!(stays::<B>([8, 70], [1..6, 0..70]), "scale codes that start within a word");
        assert!(!stays::<B>([9, 256], [2..7, 100..256]), "part of a group");
    }
    check::<Flex>();
    check::<NdArray>();
    check::<Portable>();
}

fn layers<B: Backend>() {
    let device = Default::default();
    for layout in [LinearLayout::Row, LinearLayout::Col] {
        let config = LinearConfig::new(70, 33).with_layout(layout);
        let linear: Linear<Q<B>> = config.init(&device);
        let x: Tensor<Q<B>, 3> = Tensor::random([2, 5, 70], Distribution::Default, &device);
        let float = linear.forward(x.clone());
        let linear = Policy::linear(Format::Q8).encode(linear).unwrap();
        assert!(is_coded(&linear.weight.val()) && !is_coded(&linear.bias.as_ref().unwrap().val()));
        let decoded = Linear { weight: Param::from_tensor(lazy(linear.weight.val()) * 1.0), bias: linear.bias.clone() };
        assert!(!is_coded(&decoded.weight.val()));
        assert_close(linear.forward(x.clone()), decoded.forward(x.clone()));
        let first = x.clone().slice([0..1, 0..1]);
        assert_close(linear.forward(first.clone()), decoded.forward(first));
        // The codec's own error, and no more.
        let mean_square = |t: Tensor<Q<B>, 3>| -> f32 { t.powi_scalar(2).mean().into_scalar().elem() };
        let (error, signal) = (mean_square(linear.forward(x) - float.clone()), mean_square(float));
        assert!(error < signal * 1e-4 && error > 0.0, "{error} of {signal}");

        let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = Recorder::<Q<B>>::record(&recorder, linear.clone().into_record(), ()).unwrap();
        let loaded = config.init::<Q<B>>(&device).load_record(recorder.load(bytes, &device).unwrap());
        assert!(is_coded(&loaded.weight.val()));
        assert_same(lazy(loaded.weight.val()), lazy(linear.weight.val()));
    }
    let embedding: Embedding<Q<B>> = EmbeddingConfig::new(9, 40).init(&device);
    let (table, decoded) = coded::<B, 2>(Format::Q8, [9, 40]);
    let ids: Tensor<Q<B>, 2, Int> = Tensor::from_data([[3, 8, 0], [3, 1, 5]], &device);
    let with = |weight| Embedding { weight: Param::initialized(embedding.weight.id, weight) };
    assert_same(with(table).forward(ids.clone()), with(decoded).forward(ids.clone()));

    let float = embedding.forward(ids.clone());
    let policy = Policy::linear(Format::Q8);
    assert!(!is_coded(&policy.encode(embedding.clone()).unwrap().weight.val()));
    let half = policy.with_embeddings(Format::Bf16).encode(embedding).unwrap();
    assert!(is_coded(&half.weight.val()));
    // bf16 keeps 8 bits.
    half.forward(ids).into_data().assert_approx_eq::<f32>(&float.into_data(), Tolerance::rel_abs(1.0 / 256.0, 1e-6));
}

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_on_codes_equal_products_on_floats(format in any_format(), m in 1usize..5, input in 1usize..90, output in 1usize..40) {
        products::<Flex>(format, m, input, output);
        products::<NdArray>(format, m, input, output);
        products::<Portable>(format, m, input, output);
    }

    #[test]
    fn parts_show_the_decoded_weights(
        (rows, row, height) in (1usize..9).prop_flat_map(|n| (Just(n), 0..n)).prop_flat_map(|(n, i)| (Just(n), Just(i), 1..=n - i)),
        (groups, group, width) in (1usize..9).prop_flat_map(|n| (Just(n), 0..n)).prop_flat_map(|(n, i)| (Just(n), Just(i), 1..=n - i)),
        format in any_format(),
        cut in 0usize..32,
    ) {
        // Whole groups, and all the same with a row tail.
        parts::<Flex>(format, rows, groups * 32, (row, group * 32), (height, width * 32));
        parts::<NdArray>(format, rows, groups * 32, (row, group * 32), (height, width * 32));
        parts::<Portable>(format, rows, groups * 32, (row, group * 32), (height, width * 32));
        let cols = groups * 32 - cut;
        parts::<Flex>(format, rows, cols, (row, group * 32), (height, (width * 32).min(cols - group * 32)));
        parts::<NdArray>(format, rows, cols, (row, cols / 2), (height, cols - cols / 2));
        parts::<Portable>(format, rows, cols, (row, cols / 2), (height, cols - cols / 2));
    }

    #[test]
    fn views_show_the_decoded_weights(format in any_format(), rows in 1usize..9, cols in 1usize..70) {
        views::<Flex>(format, rows, cols);
        views::<NdArray>(format, rows, cols);
        views::<Portable>(format, rows, cols);
    }
}

#[test]
fn burns_layers_run_on_codes() {
    layers::<Flex>();
    layers::<NdArray>();
    layers::<Portable>();
}

#[test]
fn empty_tensors_encode_slice_select_and_record() {
    fn check<B: Backend>() {
        let device = Default::default();
        for shape in [[0, 4], [3, 0], [0, 0]] {
            let float = Tensor::<Q<B>, 2>::zeros(shape, &device);
            let quantized = float.clone().quantize_dynamic(&Default::default());
            assert_eq!(quantized.dims(), shape);
            assert_same(quantized.clone().dequantize(), float.clone());
            assert_same(quantized.clone().transpose().dequantize() * 2.0, float.clone().transpose());
            let loaded = Tensor::<Q<B>, 2>::from_data(quantized.into_data(), &device);
            assert_same(loaded.dequantize(), float);
        }
        let (codes, decoded) = coded::<B, 2>(Format::Q8, [5, 40]);
        let none = Tensor::<Q<B>, 1, Int>::empty([0], &device);
        assert_same(codes.clone().select(0, none.clone()).dequantize(), decoded.clone().select(0, none.clone()));
        assert_same(lazy(codes.clone()).select(0, none.clone()), decoded.clone().select(0, none));
        assert_same(codes.clone().slice([2..2, 0..40]).dequantize(), decoded.clone().slice([2..2, 0..40]));
        assert_same(lazy(codes).slice([2..2, 3..9]), decoded.slice([2..2, 3..9]));
    }
    check::<Flex>();
    check::<NdArray>();
    check::<Portable>();
}

#[test]
fn an_index_beyond_its_dimension_fails_as_it_does_on_floats() {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    fn check<B: Backend>() {
        let (codes, _) = coded::<B, 2>(Format::Q8, [3, 40]);
        let gather = |tensor: Tensor<Q<B>, 2>, dim: usize, index: i64| {
            let shape = if dim == 0 { [1, tensor.dims()[1]] } else { [tensor.dims()[0], 1] };
            let indices = Tensor::<Q<B>, 2, Int>::full(shape, index, &Default::default());
            catch_unwind(AssertUnwindSafe(|| drop(tensor.gather(dim, indices).into_data()))).is_ok()
        };
        for dim in [0, 1] {
            for tensor in [lazy(codes.clone()), lazy(codes.clone()).transpose()] {
                let size = tensor.dims()[dim] as i64;
                assert!(gather(tensor.clone(), dim, size - 1));
                for index in [size, size + 1, 64, -1] {
                    assert!(!gather(tensor.clone(), dim, index), "index {index} of {size} along {dim}");
                }
            }
        }
        for index in [3, -1] {
            let indices = Tensor::<Q<B>, 1, Int>::from_data([index], &Default::default());
            let select = || drop(lazy(codes.clone()).select(0, indices).into_data());
            assert!(catch_unwind(AssertUnwindSafe(select)).is_err(), "row {index}");
        }
    }
    check::<Flex>();
    check::<NdArray>();
    check::<Portable>();
}

#[test]
fn f64_inputs_are_multiplied_in_f64() {
    fn check<B: Backend>() {
        let (weight, decoded) = coded::<B, 2>(Format::Q8, [33, 70]);
        let x: Tensor<Q<B>, 2> = Tensor::random([3, 70], Distribution::Default, &Default::default());
        let x = x.cast(FloatDType::F64) / 3.0;
        let product = x.clone().matmul(weight.transpose());
        assert_eq!(product.dtype(), FloatDType::F64.into());
        let expected = x.matmul(decoded.cast(FloatDType::F64).transpose());
        product.into_data().assert_approx_eq::<f64>(&expected.into_data(), Tolerance::rel_abs(1e-12, 1e-14));
    }
    check::<Flex>();
    check::<NdArray>();
}

#[test]
fn half_precision_inputs_give_half_precision_products() {
    let (weight, decoded) = coded::<Flex, 2>(Format::Q8, [33, 70]);
    let x: Tensor<Q<Flex>, 2> = Tensor::random([3, 70], Distribution::Default, &Default::default());
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        let product = x.clone().cast(dtype).matmul(weight.clone().transpose());
        assert_eq!(product.dtype(), dtype.into());
        let difference = product.cast(FloatDType::F32) - x.clone().matmul(decoded.clone().transpose());
        let largest: f32 = difference.abs().max().into_scalar().elem();
        // Values are below 1; bf16 keeps 8 bits of them.
        assert!(largest < 0.02 && largest > 0.0, "{largest}");
    }
}

#[test]
fn every_backend_decodes_the_same_bits() {
    fn decoded<B: Backend>(format: Format) -> TensorData {
        let values: Vec<f32> = (0..7 * 45).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1e-3).collect();
        let float = Tensor::<B, 2>::from_data(TensorData::new(values, [7, 45]), &Default::default());
        let coded = QinsTensor::<B>::encode(float.into_primitive().tensor(), format).unwrap();
        Tensor::<Q<B>, 2>::from_primitive(coded.into_primitive()).dequantize().into_data()
    }
    for &format in Format::ALL {
        assert_eq!(decoded::<Flex>(format), decoded::<NdArray>(format));
        assert_eq!(decoded::<Flex>(format), decoded::<Portable>(format));
    }
}

#[test]
fn a_weight_that_is_not_finite_is_named_by_its_path() {
    #[derive(Module, Debug)]
    struct Net<B: Backend> {
        layers: Vec<Linear<B>>,
    }
    let device = Default::default();
    let linear = || LinearConfig::new(4, 3).init(&device);
    let mut net = Net::<Q<Flex>> { layers: vec![linear(), linear()] };
    let mut bad = vec![0.5f32; 12];
    bad[2 * 3 + 1] = f32::NAN;
    net.layers[1].weight = Param::from_data(TensorData::new(bad, [4, 3]), &device);
    let error = Policy::linear(Format::Q8).encode(net).unwrap_err();
    // [in, out] = [2, 1] in Burn's layout is [out, in] = [1, 2].
    assert_eq!(error.to_string(), "layers.1.weight: weight [1, 2] is NaN: only finite weights can be encoded");
}

mod foreign_bytes {
    use super::*;

    fn data() -> TensorData {
        coded::<Flex, 2>(Format::Q8, [3, 40]).0.into_data()
    }

    /// Loads as a QINS tensor; the panic carries the error, because Burn's signature has no other way.
    fn load(data: TensorData) -> String {
        let load = || Tensor::<Q<Flex>, 2>::from_data(data, &Default::default());
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)).unwrap_err();
        *panic.downcast::<String>().unwrap()
    }

    #[test]
    fn whole_bytes_load() {
        let (tensor, decoded) = coded::<Flex, 2>(Format::Q8, [3, 40]);
        let loaded = Tensor::<Q<Flex>, 2>::from_data(tensor.transpose().into_data(), &Default::default());
        assert!(is_coded(&loaded));
        assert_same(loaded.dequantize(), decoded.transpose());
    }

    #[test]
    fn truncated_bytes_and_trailing_bytes_are_refused() {
        let whole = data();
        for n in 0..whole.bytes.len() {
            load(TensorData::from_bytes_vec(whole.bytes[..n].to_vec(), [3, 40], whole.dtype));
        }
        let mut longer = whole.bytes.to_vec();
        longer.push(0);
        let message = load(TensorData::from_bytes_vec(longer, [3, 40], whole.dtype));
        assert!(message.starts_with("expected") && message.contains("bytes of QINS data"), "{message}");
    }

    #[test]
    fn a_newer_version_another_shape_and_huge_sizes_are_refused() {
        let change = |at: usize, with: &[u8]| {
            let mut bytes = data().bytes.to_vec();
            bytes[at..at + with.len()].copy_from_slice(with);
            load(TensorData::from_bytes_vec(bytes, [3, 40], data().dtype))
        };
        assert_eq!(change(4, &[9]), "QINS data of version 9: this program reads versions 1 and 2");
        assert_eq!(change(0, b"GGUF"), "expected a QINS header, found other bytes");
        assert!(change(6, b"q99\0\0\0\0\0").contains("unknown format `q99`"));
        assert!(change(14, &u64::MAX.to_le_bytes()).contains("too large"));
        assert!(change(14, &4u64.to_le_bytes()).contains("does not have the shape"));
        assert!(change(30, &f32::NAN.to_le_bytes()).contains("base scale"));
    }

    #[test]
    fn burns_quantized_data_is_refused_here_and_qins_data_there() {
        let burn = Tensor::<Flex, 2>::random([2, 4], Distribution::Default, &Default::default());
        let burn = burn.quantize_dynamic(&Default::default()).into_data();
        assert!(load(burn).starts_with("expected QINS data"));
        let reads: [fn(); 4] = [
            || drop(Tensor::<Flex, 2>::from_data(data(), &Default::default())),
            || drop(Tensor::<NdArray, 2>::from_data(data(), &Default::default())),
            || drop(data().iter::<f32>().collect::<Vec<_>>()),
            || drop(data().convert::<f32>()),
        ];
        for read in reads {
            assert!(std::panic::catch_unwind(read).is_err(), "codes were read as numbers");
        }
    }
}
