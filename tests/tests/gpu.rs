//! Kernels of a graphics device, plain and fused, against the scalar decoder; and what they take of the device's memory.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend, module::embedding};
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use cubecl::Runtime;
use proptest::prelude::*;
use qins_backend::{Qins, QinsTensor};
use qins_codec::{Encoded, Format, Slice, encode};
use qins_tests::{Random, has_gpu};
use std::sync::Mutex;

type Unfused = CubeBackend<WgpuRuntime, f32, i32, u32>;

/// One test at a time: each has the device's memory for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// Random weights, and how they are encoded. Some groups are all zeros.
fn weights(format: Format, rows: usize, cols: usize, random: &mut Random) -> Encoded {
    let mut values = random.weights(rows * cols, 0.02);
    values.chunks_mut(37).step_by(11).for_each(|part| part.fill(0.0));
    encode(format, &Slice::new(&values, rows, cols)).unwrap()
}

fn inputs(m: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    (0..m * cols).map(|_| random.draw()).collect()
}

fn tensor<B: Backend, const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

/// The weight of a linear layer, `[in, out]`.
fn weight<B: Backend>(encoded: &Encoded) -> Tensor<Qins<B>, 2> {
    let weight = QinsTensor::<B>::from_encoded(encoded.clone(), &Default::default());
    Tensor::<Qins<B>, 2>::from_primitive(weight.into_primitive()).dequantize().transpose()
}

/// `x W^T` and, for each result, the sum of what its products are in magnitude.
fn expected(x: &[f32], encoded: &Encoded) -> Vec<(f64, f64)> {
    let (cols, decoded) = (encoded.header().cols, encoded.matrix().decode());
    let pairs = x.chunks(cols).flat_map(|x| decoded.chunks(cols).map(move |row| (x, row)));
    let sums = pairs.map(|(x, row)| {
        let products = x.iter().zip(row).map(|(&x, &w)| f64::from(x) * f64::from(w));
        products.fold((0.0, 0.0), |(sum, magnitudes), product| (sum + product, magnitudes + product.abs()))
    });
    sums.collect()
}

/// Within `precision` of what is summed.
fn assert_product(found: TensorData, x: &[f32], encoded: &Encoded, precision: f64) {
    let expected = expected(x, encoded);
    let found: Vec<f64> = found.iter::<f64>().collect();
    assert_eq!(found.len(), expected.len());
    for (i, (found, (sum, magnitudes))) in found.into_iter().zip(expected).enumerate() {
        let off = (found - sum).abs();
        assert!(off <= precision * magnitudes + 1e-30, "{:?}: element {i}: {found}, not {sum}", encoded.header());
    }
}

/// Every way in which a product meets a weight, on one backend.
fn products<B: Backend>(format: Format, rows: usize, cols: usize, m: usize, seed: u64) {
    let mut random = Random(seed);
    let encoded = weights(format, rows, cols, &mut random);
    let x = inputs(m, cols, &mut random);
    let weight = weight::<B>(&encoded);

    let plain = tensor::<Qins<B>, 2>(&x, [m, cols]);
    let product = plain.clone().matmul(weight.clone());
    assert_eq!(product.dims(), [m, rows]);
    assert_product(product.into_data(), &x, &encoded, 1e-6);
    // The inputs as a view with strides; operations around that a fused backend has not run yet.
    let strided = (tensor::<Qins<B>, 2>(&x, [m, cols]).transpose().reshape([cols, m]) * 2.0).transpose();
    let product = strided.matmul(weight.clone()) * 0.5;
    assert_product(product.into_data(), &x, &encoded, 1e-6);
    // One weight for every batch.
    let batches = tensor::<Qins<B>, 3>(&x, [m, 1, cols]).matmul(weight.clone().reshape([1, cols, rows]));
    assert_eq!(batches.dims(), [m, 1, rows]);
    assert_product(batches.into_data(), &x, &encoded, 1e-6);
    let expanded = weight.clone().reshape([1, cols, rows]).expand([m as i64, cols as i64, rows as i64]);
    let batches = tensor::<Qins<B>, 3>(&x, [m, 1, cols]).matmul(expanded);
    assert_product(batches.into_data(), &x, &encoded, 1e-6);
    // W x^T
    let product = weight.clone().transpose().matmul(plain.clone().transpose());
    assert_eq!(product.dims(), [rows, m]);
    assert_product(product.transpose().into_data(), &x, &encoded, 1e-6);
    // In half precision, of what that holds of the inputs. Sums are of f32.
    let half = plain.cast(DType::F16);
    let x: Vec<f32> = half.clone().into_data().iter::<f32>().collect();
    let product = half.matmul(weight);
    assert_eq!(product.dtype(), DType::F16);
    assert_product(product.into_data(), &x, &encoded, 1e-3);
}

/// Decoded weights are the scalar decoder's, bit for bit; of several planes, whose law is arithmetic, where the device has
/// f64.
fn decoded<B: Backend>(format: Format, rows: usize, cols: usize, seed: u64) {
    let encoded = weights(format, rows, cols, &mut Random(seed));
    let expected = encoded.matrix().decode();
    let assert_same = |found: TensorData, expected: &[f32]| {
        let found: Vec<f32> = found.convert::<f32>().into_vec().unwrap();
        assert_eq!(found.len(), expected.len());
        for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let near = format.planes() > 1 && (found - expected).abs() <= 1e-6 * expected.abs();
            assert!(found == expected || near, "{:?}: weight {i}: {found}, not {expected}", encoded.header());
        }
    };
    let weight = weight::<B>(&encoded);
    assert_same((weight.clone() + 0.0).transpose().into_data(), &expected);
    let indices = [rows - 1, 0, rows / 2, rows - 1];
    let at = Tensor::<Qins<B>, 2, Int>::from_data([indices.map(|i| i as i64)], &Default::default());
    let found = embedding(weight.transpose(), at);
    assert_eq!(found.dims(), [1, 4, cols]);
    let expected: Vec<f32> = indices.iter().flat_map(|&i| &expected[i * cols..][..cols]).copied().collect();
    assert_same(found.into_data(), &expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_those_of_the_scalar_decoder(
        format in prop::sample::select(Format::ALL), rows in 1usize..90, cols in 1usize..300, m in 1usize..50, seed: u64,
    ) {
        let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if has_gpu() {
            products::<Unfused>(format, rows, cols, m, seed);
            products::<Wgpu>(format, rows, cols, m, seed);
            decoded::<Unfused>(format, rows, cols, seed);
            decoded::<Wgpu>(format, rows, cols, seed);
        }
    }
}

/// Rows of whole units, rows that end within one, few inputs and many: each has a kernel of its own.
#[test]
fn every_format_has_its_products() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        for &format in Format::ALL {
            products::<Unfused>(format, 19, 1152, 1, 5);
            products::<Wgpu>(format, 8, 96, 33, 6);
            products::<Wgpu>(format, 21, 172, 3, 7);
            products::<Unfused>(format, 70, 45, 9, 8);
            decoded::<Unfused>(format, 21, 172, 9);
            decoded::<Wgpu>(format, 8, 96, 10);
        }
    }
}

/// Bytes in use and bytes reserved on the device, by this thread.
fn memory() -> [u64; 2] {
    let usage = WgpuRuntime::client(&Default::default()).memory_usage().unwrap();
    [usage.bytes_in_use, usage.bytes_reserved]
}

/// A weight's codes are all that lies on the device: neither beside them nor for a moment, as reserved memory shows, are
/// there its floats.
fn no_floats<B: Backend>() {
    let (rows, cols) = (8192, 4096);
    let (codes, floats) = ((rows * cols) as u64, (rows * cols * 4) as u64);
    let mut random = Random(3);
    let some = weights(Format::Q8, 64, cols, &mut random);
    // The same rows over and over: encoding as many different ones takes longer and shows no more.
    let (decoder, some_codes, some_scales) = some.into_parts();
    let header = qins_codec::Header { rows, ..*decoder.header() };
    let decoder = qins_codec::Decoder::new(header).unwrap();
    let encoded = Encoded::from_parts(decoder, some_codes.repeat(rows / 64), some_scales.repeat(rows / 64)).unwrap();

    let [in_use_before, reserved_before] = memory();
    let weight = weight::<B>(&encoded);
    let x = inputs(1, cols, &mut random);
    let product = tensor::<Qins<B>, 2>(&x, [1, cols]).matmul(weight.clone());
    assert_product(product.clone().into_data(), &x, &encoded, 1e-6);
    let [in_use, reserved] = memory();
    let (in_use, reserved) = (in_use - in_use_before, reserved - reserved_before);
    // Codes, scale codes, tables, input and output: what the kernel is given, and no more.
    println!("codes {codes} bytes, in use {in_use}, reserved {reserved}");
    assert!(in_use >= codes, "{in_use} bytes in use are not this thread's");
    assert!(in_use as f64 <= 1.05 * codes as f64, "{in_use} bytes for {codes} of codes");
    assert!(reserved < floats, "{reserved} bytes were reserved; the weight's floats take {floats}");
    drop((weight, product));
}

#[test]
fn a_coded_weight_takes_no_more_of_the_device_than_its_codes() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        no_floats::<Unfused>();
        no_floats::<Wgpu>();
    }
}
