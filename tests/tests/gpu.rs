//! Kernels of a graphics device, plain and fused, against the scalar decoder; and what they take of the device's memory.

use burn::{
    module::Param,
    nn::{Linear, LinearConfig},
    tensor::{DType, Int, Tensor, TensorData, TensorPrimitive, backend::Backend, module::embedding},
};
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use cubecl::Runtime;
use proptest::prelude::*;
use qins_backend::{
    BufferError, Policy, Prompts, Qins, QinsTensor, allow_subgroups, check_buffers, limit_buffers, prompts_by, traffic,
    weight_bytes,
};
use qins_codec::{EncodeError, Encoded, Format, Slice, encode};
use qins_import::{Checkpoint, load_encoded};
use qins_tests::{Random, has_gpu, write_model};
use serde_json::json;
use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Mutex,
};

type Unfused = CubeBackend<WgpuRuntime, f32, i32, u32>;

/// One test at a time: each has the device's memory for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// Random weights, and how they are encoded. Some groups are all zeros.
fn weights(format: Format, rows: usize, cols: usize, random: &mut Random) -> Encoded {
    let mut values = random.weights(rows * cols, 0.02);
    values.chunks_mut(37).step_by(11).for_each(|part| part.fill(0.0));
    if random.draw() > 0.0 {
        // So that rows of formats that allow it have bases of their own. Larger rows, because results of smaller ones would be
        // subnormal in f16.
        values.chunks_mut(cols).step_by(3).flatten().for_each(|w| *w *= 1000.0);
    }
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
    matrix::<B>(encoded, usize::MAX).dequantize().transpose()
}

/// The encoded matrix, moved to a device that holds `limit` bytes in one piece.
fn matrix<B: Backend>(encoded: &Encoded, limit: usize) -> Tensor<Qins<B>, 2> {
    let tensor = within(limit, || QinsTensor::<B>::from_encoded(encoded.clone(), &Default::default()));
    assert!(tensor.largest_piece() <= limit, "{} bytes, of {limit}: {:?}", tensor.largest_piece(), encoded.header());
    Tensor::from_primitive(tensor.into_primitive())
}

/// What `work` does while the device holds `limit` bytes in one piece.
fn within<T>(limit: usize, work: impl FnOnce() -> T) -> T {
    limit_buffers(limit);
    let result = catch_unwind(AssertUnwindSafe(work));
    limit_buffers(usize::MAX);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// A limit at which a matrix lies in parts of so many rows.
fn limit_for(encoded: &Encoded, rows: usize) -> usize {
    let header = encoded.header();
    rows * header.format.planes() * header.format.code_bytes(header.cols)
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
    products_in_parts::<B>(format, rows, cols, m, seed, rows);
}

/// Of a weight in parts of so many rows.
fn products_in_parts<B: Backend>(format: Format, rows: usize, cols: usize, m: usize, seed: u64, part: usize) {
    let mut random = Random(seed);
    let encoded = weights(format, rows, cols, &mut random);
    let x = inputs(m, cols, &mut random);
    let weight = matrix::<B>(&encoded, limit_for(&encoded, part)).dequantize().transpose();

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
    decoded_in_parts::<B>(format, rows, cols, seed, rows);
}

/// Of a weight in parts of so many rows.
fn decoded_in_parts<B: Backend>(format: Format, rows: usize, cols: usize, seed: u64, part: usize) {
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
    let weight = matrix::<B>(&encoded, limit_for(&encoded, part)).dequantize().transpose();
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

/// What stays coded and what is read back is the same of a weight in parts as of one in one piece, bit for bit.
fn same_in_parts<B: Backend>(format: Format, rows: usize, cols: usize, part: usize) {
    let encoded = weights(format, rows, cols, &mut Random(11));
    let limit = limit_for(&encoded, part);
    let (whole, parts) = (matrix::<B>(&encoded, usize::MAX), matrix::<B>(&encoded, limit));
    let same = |case: &str, op: &dyn Fn(Tensor<Qins<B>, 2>) -> TensorData| {
        let [expected, found] = [&whole, &parts].map(|tensor| op(tensor.clone()));
        assert_eq!(found.bytes, expected.bytes, "{case}: {:?}, parts of {part} rows", encoded.header());
    };
    same("data", &|tensor| tensor.into_data());
    same("transposed", &|tensor| tensor.transpose().into_data());
    let back = |tensor: Tensor<Qins<B>, 2>| -> Tensor<Qins<B>, 2> {
        within(limit, || Tensor::from_data(tensor.into_data(), &Default::default()))
    };
    same("data and back", &|tensor| back(tensor).into_data());
    let device = Default::default();
    same("another device", &|tensor| within(limit, || tensor.to_device(&device)).into_data());
    for range in [0..part, part - 1..part + 1, 1..rows, part..part + 1, rows - 1..rows, 0..rows] {
        same("rows", &|tensor| tensor.slice([range.clone()]).into_data());
    }
    let group = format.group().max(32);
    same("rows and groups", &|tensor| tensor.slice([part - 1..rows, group..cols]).into_data());
    let range = part - 1..rows;
    same("rows, decoded", &|tensor| (tensor.slice([range.clone()]).dequantize() * 1.0).into_data());
    let ids = Tensor::from_data([rows - 1, part, 0, part - 1, part].map(|i| i as i64), &device);
    same("selected", &|tensor| tensor.select(0, ids.clone()).into_data());
    same("selected, decoded", &|tensor| tensor.dequantize().select(0, ids.clone()).into_data());
    let elements: Vec<i64> = (0..2 * cols).map(|i| (i * 5 % rows) as i64).collect();
    let elements = Tensor::<Qins<B>, 2, Int>::from_data(TensorData::new(elements, [2, cols]), &device);
    same("gathered", &|tensor| tensor.dequantize().gather(0, elements.clone()).into_data());
}

/// Floats of the device, encoded there, against the host's encoder: as rows, as a linear weight whose rows are its columns, and
/// in parts of so many rows.
fn encoded_there<B: Backend>(format: Format, values: &[f32], rows: usize, cols: usize, part: usize, dtype: DType) {
    let floats = tensor::<B, 2>(values, [rows, cols]).cast(dtype);
    // What the type holds of them.
    let values: Vec<f32> = floats.clone().into_data().convert::<f32>().into_vec().unwrap();
    let expected = encode(format, &Slice::new(&values, rows, cols)).unwrap();
    // Of short rows, bases and scale codes take more than the codes.
    let limit = limit_for(&expected, part).max(part * expected.header().scale_bytes_of_row().next_multiple_of(4));
    let before = traffic().encoded;
    let across: Vec<f32> = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect();
    let transposed = tensor::<B, 2>(&across, [cols, rows]).cast(dtype).transpose();
    for floats in [floats, transposed] {
        let primitive = floats.into_primitive().tensor();
        let found = within(limit, || QinsTensor::<B>::encode(primitive, format)).unwrap();
        assert!(found.largest_piece() <= limit);
        let found = found.to_encoded().unwrap();
        let case = format!("{rows} x {cols} in {format} of {dtype:?}");
        assert_eq!(found.header(), expected.header(), "{case}");
        let differ = |found: &[u8], expected: &[u8]| found.iter().zip(expected).filter(|(a, b)| a != b).count();
        assert_eq!(differ(found.scales(), expected.scales()), 0, "scale codes of {case}");
        assert_eq!(differ(found.codes(), expected.codes()), 0, "codes of {case}");
    }
    // Halves are read as whole words.
    let is_searched_there = u64::from(format.planes() == 1 && (dtype == DType::F32 || values.len().is_multiple_of(2)));
    assert_eq!(traffic().encoded - before, 2 * is_searched_there, "{rows} x {cols} in {format} of {dtype:?}");
}

/// Groups of zeros, of tiny weights beside large ones, and with one weight far beyond the others.
fn uneven_weights(n: usize, random: &mut Random) -> Vec<f32> {
    let mut values = random.weights(n, 0.02);
    values.chunks_mut(37).step_by(11).for_each(|part| part.fill(0.0));
    values.chunks_mut(41).step_by(7).for_each(|part| part.iter_mut().for_each(|w| *w *= 1e-6));
    values.iter_mut().step_by(501).for_each(|w| *w *= 30.0);
    values
}

/// Bit for bit, on a device that rounds each operation as processors do, as that of software does.
#[test]
fn a_device_encodes_as_the_host_does() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let mut random = Random(4);
    for &format in Format::ALL {
        for (rows, cols, part) in [(1, 1, 1), (3, 32, 3), (7, 45, 2), (64, 96, 64), (130, 172, 64)] {
            let values = uneven_weights(rows * cols, &mut random);
            encoded_there::<Unfused>(format, &values, rows, cols, part, DType::F32);
            encoded_there::<Wgpu>(format, &values, rows, cols, part, DType::F32);
            encoded_there::<Wgpu>(format, &values, rows, cols, part, DType::F16);
        }
        encoded_there::<Wgpu>(format, &[0.0; 66], 2, 33, 2, DType::F32);
        if !format.is_raw() {
            encoded_there::<Wgpu>(format, &[f32::MAX, -3.3e38, 1.0, -1e-40], 2, 2, 2, DType::F32);
        }
        let not_finite = tensor::<Wgpu, 2>(&[1.0, 2.0, 3.0, f32::NAN], [2, 2]).into_primitive().tensor();
        let error = QinsTensor::<Wgpu>::encode(not_finite, format).unwrap_err();
        assert!(matches!(error, EncodeError::NotFinite { row: 1, col: 1, .. }), "{error}");
    }
    // More than the sample.
    let values = uneven_weights(300 * 512, &mut random);
    encoded_there::<Wgpu>(Format::Q8, &values, 300, 512, 300, DType::F32);
    // Halves of every size, those below the normal ones too.
    let values: Vec<f32> = (0..4096u32).map(|i| f32::from_bits((0x3200_0000 + i * 0x15_3333) | (i << 31))).collect();
    let values: Vec<f32> = values.into_iter().filter(|value| value.abs() < 65000.0).collect();
    encoded_there::<Unfused>(Format::F16, &values, 1, values.len(), 1, DType::F32);
    encoded_there::<Unfused>(Format::Bf16, &values, 1, values.len(), 1, DType::F32);
    let too_large = tensor::<Wgpu, 2>(&[1.0, 1e6], [1, 2]).into_primitive().tensor();
    let error = QinsTensor::<Wgpu>::encode(too_large, Format::F16).unwrap_err();
    assert!(matches!(error, EncodeError::OutOfRange { row: 0, col: 1, .. }), "{error}");
}

/// Modules and Burn's quantization are encoded where their weights lie.
#[test]
fn modules_are_encoded_on_their_device() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let values = uneven_weights(70 * 45, &mut Random(5));
    let before = traffic().encoded;
    let mut layer = LinearConfig::new(45, 70).with_bias(false).init::<Qins<Wgpu>>(&Default::default());
    layer.weight = Param::from_tensor(tensor::<Qins<Wgpu>, 2>(&values, [70, 45]).transpose());
    let coded = Policy::linear(Format::Q4).encode(layer).unwrap();
    let quantized = tensor::<Qins<Wgpu>, 2>(&values, [70, 45]).quantize_dynamic(&Default::default());
    assert_eq!(traffic().encoded - before, 2);
    for (found, format) in [(coded.weight.val().transpose(), Format::Q4), (quantized, Format::Q8)] {
        let TensorPrimitive::QFloat(found) = found.into_primitive() else { panic!("not coded") };
        let (found, expected) = (found.to_encoded().unwrap(), encode(format, &Slice::new(&values, 70, 45)).unwrap());
        assert!(found.codes() == expected.codes() && found.scales() == expected.scales(), "{format}");
    }
}

/// Sums by subgroups, where the device has them, and by its cubes' own memory.
#[test]
fn sums_need_no_subgroups() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        for allowed in [false, true] {
            allow_subgroups(allowed);
            for (format, m) in [(Format::Q8, 1), (Format::Q4, 8), (Format::Q12, 3), (Format::F16, 5)] {
                products::<Unfused>(format, 19, 1152, m, 5);
                products::<Wgpu>(format, 21, 172, m, 6);
            }
        }
    }
}

/// What `work` does while products of many inputs are computed in one way.
fn by<T>(way: Prompts, work: impl FnOnce() -> T) -> T {
    prompts_by(way);
    let result = catch_unwind(AssertUnwindSafe(work));
    prompts_by(Prompts::ByDevice);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// By tiles and by slabs, whichever the device would choose: whole rows and others, in one piece, in parts that begin where
/// a device binds results, and in parts that do not.
#[test]
fn prompts_need_no_matrix_units() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let both_ways = || {
        for &format in Format::ALL {
            products::<Unfused>(format, 70, 45, 9, 8);
            products::<Wgpu>(format, 8, 96, 33, 6);
            products::<Wgpu>(format, 131, 172, 12, 7);
            products_in_parts::<Unfused>(format, 300, 96, 10, 8, 128);
            products_in_parts::<Wgpu>(format, 70, 45, 9, 8, 33);
        }
    };
    [Prompts::Tiles, Prompts::Slabs].into_iter().for_each(|way| by(way, both_ways));
}

/// One product of `x [m, in]` and its launches.
fn prompt<B: Backend>(encoded: &Encoded, m: usize, way: Prompts) -> u64 {
    let x = inputs(m, encoded.header().cols, &mut Random(13));
    let weight = weight::<B>(encoded);
    let before = traffic().launches;
    let product = by(way, || tensor::<Qins<B>, 2>(&x, [m, encoded.header().cols]).matmul(weight).into_data());
    assert_product(product, &x, encoded, 1e-6);
    traffic().launches - before
}

/// Each slab is decoded and multiplied once; few inputs and several planes take none. Of rows so long some 200 make a slab.
#[test]
fn slabs_follow_each_other() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        let encoded = weights(Format::Q8, 300, 20004, &mut Random(12));
        assert_eq!(prompt::<Unfused>(&encoded, 9, Prompts::Slabs), 4);
        assert_eq!(prompt::<Wgpu>(&encoded, 9, Prompts::Slabs), 4);
        assert_eq!(prompt::<Wgpu>(&encoded, 9, Prompts::Tiles), 1);
        assert_eq!(prompt::<Wgpu>(&encoded, 8, Prompts::Slabs), 1);
        let encoded = weights(Format::Fpins2, 30, 96, &mut Random(12));
        assert_eq!(prompt::<Wgpu>(&encoded, 9, Prompts::Slabs), 1);
    }
}

/// Parts of whole tiles and of a few rows, of rows that are whole units and of others.
#[test]
fn a_weight_beyond_the_limit_lies_in_parts() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        for &format in Format::ALL {
            products_in_parts::<Unfused>(format, 19, 288, 1, 5, 7);
            products_in_parts::<Wgpu>(format, 150, 96, 33, 6, 64);
            products_in_parts::<Wgpu>(format, 21, 172, 3, 7, 5);
            products_in_parts::<Unfused>(format, 70, 45, 9, 8, 33);
            decoded_in_parts::<Unfused>(format, 21, 172, 9, 10);
            decoded_in_parts::<Wgpu>(format, 9, 96, 10, 1);
            same_in_parts::<Unfused>(format, 21, 172, 5);
            same_in_parts::<Wgpu>(format, 13, 160, 6);
        }
    }
}

#[test]
fn what_a_device_cannot_hold_is_named() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !has_gpu() {
        return;
    }
    let message = |work: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(|| within(4096, work))).expect_err("beyond the limit");
        panic.downcast_ref::<String>().expect("a text").clone()
    };
    let encoded = weights(Format::Q8, 64, 96, &mut Random(2));
    let weight = matrix::<Wgpu>(&encoded, 4096).dequantize();
    // Parts hold it, its floats do not lie anywhere.
    let found = message(&|| drop((weight.clone() * 1.0).into_data()));
    assert_eq!(
        found,
        "a result 64 x 96 in F32 of a weight 64 x 96 in q8 takes 24576 bytes in one piece, of which the device holds 4096"
    );
    let x = inputs(17, 96, &mut Random(3));
    let product = || tensor::<Qins<Wgpu>, 2>(&x, [17, 96]).matmul(weight.clone().transpose());
    let found = message(&|| drop(product().into_data()));
    assert!(found.starts_with("a result 17 x 64 in F32"), "{found}");
    assert_product(product().into_data(), &x, &encoded, 1e-6);

    let device = Default::default();
    let check = |layer: &Linear<Qins<Wgpu>>| within(4096, || check_buffers(layer, &device));
    let layer = LinearConfig::new(96, 64).with_bias(false).init::<Qins<Wgpu>>(&device);
    let error = BufferError { tensor: "weight".to_owned(), bytes: 96 * 64 * 4, limit: 4096 };
    assert_eq!(check(&layer), Err(error));
    let coded = within(4096, || Policy::linear(Format::Q8).encode(layer)).unwrap();
    assert_eq!(check(&coded), Ok(()));
    // Its last row alone is beyond the limit.
    let long = LinearConfig::new(8192, 2).with_bias(false).init::<Qins<Wgpu>>(&device);
    let long = within(4096, || Policy::linear(Format::Q8).encode(long)).unwrap();
    assert_eq!(check(&long), Err(BufferError { tensor: "weight".to_owned(), bytes: 8192, limit: 4096 }));
}

/// Bytes in use and bytes reserved on the device, by this thread.
fn memory() -> [u64; 2] {
    // A fused backend gives up what was dropped when it is used again.
    tensor::<Wgpu, 1>(&[0.0], [1]).into_data();
    let usage = WgpuRuntime::client(&Default::default()).memory_usage().unwrap();
    [usage.bytes_in_use, usage.bytes_reserved]
}

/// A weight's codes are all that lies on the device: neither beside them nor for a moment, as reserved memory shows, are
/// there its floats. Slabs are gone with their product.
fn no_floats<B: Backend>(m: usize) {
    let (rows, cols) = (8192, 4096);
    let (codes, floats) = ((rows * cols) as u64, (rows * cols * 4) as u64);
    let mut random = Random(3);
    let some = weights(Format::Q8, 64, cols, &mut random);
    // The same rows over and over: encoding as many different ones takes longer and shows no more.
    let (decoder, some_codes, some_scales) = some.clone().into_parts();
    let header = qins_codec::Header { rows, ..*decoder.header() };
    let decoder = qins_codec::Decoder::new(header).unwrap();
    let encoded = Encoded::from_parts(decoder, some_codes.repeat(rows / 64), some_scales.repeat(rows / 64)).unwrap();

    let [in_use_before, reserved_before] = memory();
    let weight = weight::<B>(&encoded);
    let x = inputs(m, cols, &mut random);
    let product = tensor::<Qins<B>, 2>(&x, [m, cols]).matmul(weight.clone());
    assert_product(product.clone().slice([0..m, rows - 64..rows]).into_data(), &x, &some, 1e-6);
    let [in_use, reserved] = memory();
    let (in_use, reserved) = (in_use - in_use_before, reserved - reserved_before);
    // Codes, scale codes, tables, input and output: what the kernel is given, and no more.
    println!("codes {codes} bytes, in use {in_use}, reserved {reserved}");
    assert!(in_use >= codes, "{in_use} bytes in use are not this thread's");
    assert!(in_use as f64 <= 1.05 * codes as f64, "{in_use} bytes for {codes} of codes");
    assert!(reserved < floats, "{reserved} bytes were reserved; the weight's floats take {floats}");
    drop((weight, product));
}

/// A token of a model reads codes, scale codes and next to nothing else, in one launch a layer's weight; and its weights lie on
/// the device as they were stored.
fn token<B: Backend>() {
    let directory = tempfile::tempdir().unwrap();
    let layers = 4;
    let sizes = json!({"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": layers,
        "num_attention_heads": 8, "max_position_embeddings": 64});
    let (config, tensors) = write_model(directory.path(), sizes);
    let matrices = |name: &str| name.contains("proj") || name.contains("lm_head");
    let codes: usize = tensors.iter().filter(|t| matrices(&t.name)).map(|t| t.values.len()).sum();
    drop(tensors);

    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::F16);
    let [in_use_before, reserved_before] = memory();
    let model = config.init::<Qins<B>>(&Default::default()).unwrap();
    let model = load_encoded::<B, _>(model, &checkpoint, &policy, |_| ()).unwrap();
    let before = traffic();
    let logits = model.sequence_logits(&[3]).unwrap();
    assert_eq!(logits.clone().into_data().num_elements(), 2048);
    let (launches, bytes) = (traffic().launches - before.launches, traffic().bytes - before.bytes);
    let [in_use, reserved] = memory();
    let (in_use, reserved) = (in_use - in_use_before, reserved - reserved_before);
    let weights = weight_bytes(&model);
    println!(
        "{codes} codes: {launches} launches bound {bytes} bytes; weights {weights}, in use {in_use}, reserved {reserved}"
    );
    assert_eq!(launches, 4 * layers + 1);
    assert!(bytes as usize >= codes && bytes as f64 <= 1.05 * codes as f64, "{bytes} bytes for {codes} codes");
    assert!(in_use as f64 <= 1.05 * weights as f64, "{in_use} bytes for {weights} of weights");
    assert!((reserved as usize) < weights + codes * size_of::<f32>(), "{reserved} bytes were reserved");
}

#[test]
fn a_token_reads_each_code_once() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        token::<Unfused>();
        token::<Wgpu>();
    }
}

#[test]
fn a_coded_weight_takes_no_more_of_the_device_than_its_codes() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        no_floats::<Unfused>(1);
        no_floats::<Wgpu>(1);
        by(Prompts::Slabs, || no_floats::<Unfused>(9));
        by(Prompts::Slabs, || no_floats::<Wgpu>(9));
    }
}
