//! QINS data where no decorator is: other backends, burn-store's files. It must be read right, or be refused at once.

use burn::{
    module::Module,
    nn::{Linear, LinearConfig},
    record::{BinBytesRecorder, FullPrecisionSettings, Recorder},
    tensor::{Distribution, Tensor, TensorData, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use burn_store::{BurnpackStore, ModuleSnapshot, SafetensorsStore};
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use qins_backend::{Policy, Qins, QinsTensor, is_qins_type, lazy_float};
use qins_codec::Format;
use qins_tests::has_gpu;
use std::{
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
};

type Q = Qins<Flex>;

/// The ways in which someone could read foreign data: each must panic or give an error.
fn refuses<B: Backend>(data: &TensorData) {
    let name = std::any::type_name::<B>();
    let device = B::Device::default();
    let refused = |what: &str, read: &dyn Fn()| {
        assert!(catch_unwind(AssertUnwindSafe(read)).is_err(), "{name} read codes as numbers: {what}");
    };
    let read = |tensor: Tensor<B, 2>| drop(tensor.dequantize().into_data());
    refused("from_data", &|| read(Tensor::from_data(data.clone(), &device)));
    refused("from_data of a type", &|| read(Tensor::from_data(data.clone(), (&device, burn::tensor::DType::F32))));
    refused("convert", &|| drop(data.clone().convert::<f32>()));
    refused("iter", &|| drop(data.iter::<f32>().collect::<Vec<_>>()));
    refused("to_vec", &|| drop(data.to_vec::<f32>().unwrap()));
    refused("to_vec of bytes", &|| drop(data.to_vec::<i8>().unwrap()));
    refused("print", &|| drop(data.to_string()));
    refused("compare", &|| data.assert_approx_eq::<f32>(data, Default::default()));
}

/// A coded layer's record, loaded into a layer of another backend.
fn refuses_record<B: Backend>() {
    let device = Default::default();
    let linear = Policy::linear(Format::Q8).encode(LinearConfig::new(64, 32).init::<Q>(&device)).unwrap();
    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    let bytes = Recorder::<Q>::record(&recorder, linear.into_record(), ()).unwrap();
    let load = || {
        let record = recorder.load(bytes, &B::Device::default()).unwrap();
        let linear: Linear<B> = LinearConfig::new(64, 32).init(&Default::default()).load_record(record);
        let x = Tensor::<B, 2>::random([2, 64], Distribution::Default, &Default::default());
        linear.forward(x).into_data()
    };
    assert!(catch_unwind(AssertUnwindSafe(load)).is_err(), "{} read a record of codes", std::any::type_name::<B>());
}

fn coded_data() -> Vec<TensorData> {
    let shapes = [[64, 96], [3, 40], [300, 500], [1, 33]];
    let cases = shapes.into_iter().flat_map(|shape| Format::ALL.iter().map(move |&format| (shape, format)));
    let data = cases.map(|(shape, format)| {
        let float = Tensor::<Flex, 2>::random(shape, Distribution::Normal(0.0, 0.02), &Default::default());
        let tensor = QinsTensor::<Flex>::encode(float.into_primitive().tensor(), format).unwrap();
        Tensor::<Q, 2>::from_primitive(tensor.into_primitive()).into_data()
    });
    data.collect()
}

#[test]
fn other_backends_refuse_codes_in_every_way() {
    for data in coded_data() {
        assert!(is_qins_type(data.dtype));
        refuses::<Flex>(&data);
        refuses::<NdArray>(&data);
    }
    refuses_record::<Flex>();
    refuses_record::<NdArray>();
}

#[test]
fn graphics_devices_refuse_codes_in_every_way() {
    if !has_gpu() {
        return;
    }
    for data in coded_data() {
        refuses::<CubeBackend<WgpuRuntime, f32, i32, u32>>(&data);
        refuses::<Wgpu>(&data);
    }
    refuses_record::<CubeBackend<WgpuRuntime, f32, i32, u32>>();
    refuses_record::<Wgpu>();
}

fn layer(format: Format) -> Linear<Q> {
    Policy::linear(format).encode(LinearConfig::new(48, 70).init(&Default::default())).unwrap()
}

fn output(linear: &Linear<Q>) -> TensorData {
    let x = Tensor::<Q, 1, burn::tensor::Int>::arange(0..96, &Default::default()).float().reshape([2, 48]) / 96.0;
    linear.forward(x).into_data()
}

#[test]
fn burnpack_files_hold_codes() {
    let directory = tempfile::tempdir().unwrap();
    for &format in Format::ALL {
        let path = directory.path().join(format!("{format}.bpk"));
        let linear = layer(format);
        linear.save_into(&mut BurnpackStore::from_file(&path)).unwrap();
        let mut loaded: Linear<Q> = LinearConfig::new(48, 70).init(&Default::default());
        loaded.load_from(&mut BurnpackStore::from_file(&path)).unwrap();
        assert!(is_qins_type(loaded.weight.val().dtype()));
        assert_eq!(output(&loaded), output(&linear));
        let bytes = std::fs::metadata(&path).unwrap().len();
        // Less than floats, but for the file's own header.
        assert!(bytes < 48 * 70 * 4 + 1024, "{format}: {bytes} bytes");

        // Without the decorator: a panic or an error, not numbers. After a panic burn-store 0.21 leaves a module that
        // must not be dropped.
        let mut plain: ManuallyDrop<Linear<Flex>> =
            ManuallyDrop::new(LinearConfig::new(48, 70).init(&Default::default()));
        let load = || plain.load_from(&mut BurnpackStore::from_file(&path)).map(|_| ()).map_err(|e| e.to_string());
        assert!(!matches!(catch_unwind(AssertUnwindSafe(load)), Ok(Ok(()))), "codes were read as numbers");
    }
}

#[test]
fn safetensors_files_refuse_codes_and_take_lazy_floats() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("linear.safetensors");
    let linear = layer(Format::Q8);
    // The words are burn-store's.
    let error = linear.save_into(&mut SafetensorsStore::from_file(&path)).unwrap_err().to_string();
    assert!(error.contains("data type"), "{error}");
    assert!(!path.exists(), "a refused file is not left behind");

    let expected = output(&linear);
    lazy_float(linear).save_into(&mut SafetensorsStore::from_file(&path)).unwrap();
    let mut loaded: Linear<Q> = LinearConfig::new(48, 70).init(&Default::default());
    loaded.load_from(&mut SafetensorsStore::from_file(&path)).unwrap();
    let difference = output(&loaded);
    difference.assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::rel_abs(1e-4, 1e-5));
}
