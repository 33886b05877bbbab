//! Arguments for every operation, by operation and argument name, and the comparison of results.

use crate::{Qins, QinsFloat, QinsTensor};
use burn_backend::{
    Backend, BoolDType, DType, Distribution, FloatDType, IntDType, Scalar, Shape, Slice, TensorData,
    ops::{
        AttentionModuleOptions, ConvOptions, ConvTransposeOptions, DeformConv2dBackward, DeformConvOptions,
        FloatTensorOps, GridSampleOptions, InterpolateMode, InterpolateOptions, MaxPool1dBackward,
        MaxPool1dWithIndices, MaxPool2dBackward, MaxPool2dWithIndices, UnfoldOptions,
    },
    read_sync,
    tensor::{BoolTensor, FloatTensor, IndexingUpdateOp, IntTensor},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use qins_codec::{Format, encode, matrix_shape};
use std::{marker::PhantomData, ops::Range};

/// Which float arguments are given as codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Coded {
    None,
    Only(usize),
    All,
}

impl Coded {
    pub(super) fn next(self, floats: usize) -> Option<Self> {
        match self {
            Self::None if floats > 0 => Some(Self::Only(0)),
            Self::Only(i) if i + 1 < floats => Some(Self::Only(i + 1)),
            Self::Only(_) if floats > 1 => Some(Self::All),
            _ => None,
        }
    }
}

/// A backend under test: how a sampled float tensor reaches it.
pub(super) trait SampleBackend: Backend {
    fn float(values: TensorData, coded: bool) -> FloatTensor<Self>;
}

fn encoded<B: Backend>(values: TensorData) -> QinsTensor<B> {
    QinsTensor::encode(B::float_from_data(values, &Default::default()), Format::Q8).unwrap()
}

macro_rules! inner {
    ($backend:ty) => {
        impl SampleBackend for $backend {
            /// The oracle: what the codes stand for, by the codec's scalar decoder.
            fn float(mut values: TensorData, coded: bool) -> FloatTensor<Self> {
                if coded {
                    let (rows, cols) = matrix_shape(values.shape.as_slice()).unwrap();
                    let weights = values.to_vec::<f32>().unwrap();
                    let decoded =
                        encode(Format::Q8, &qins_codec::Slice::new(&weights, rows, cols)).unwrap().matrix().decode();
                    values = TensorData::new(decoded, values.shape);
                }
                Self::float_from_data(values, &Default::default())
            }
        }
    };
}

inner!(Flex);
inner!(NdArray);

impl<B: SampleBackend> SampleBackend for Qins<B> {
    fn float(values: TensorData, coded: bool) -> FloatTensor<Self> {
        if coded {
            QinsFloat::Coded(encoded(values), FloatDType::F32)
        } else {
            QinsFloat::Dense(B::float(values, false))
        }
    }
}

/// What varies between the runs of one operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    /// Width of matrices: with and without a row tail.
    pub(super) width: usize,
    /// Whether float tensors of two or more dimensions are views with their last two dimensions exchanged.
    pub(super) strided: bool,
    /// Whether the values are zeros but for a few.
    pub(super) sparse: bool,
}

/// The arguments of one call.
pub(super) struct Samples<K> {
    pub(super) operation: &'static str,
    /// Float arguments given so far.
    pub(super) floats: usize,
    coded: Coded,
    pub(super) variant: Variant,
    backend: PhantomData<K>,
}

impl<K: SampleBackend> Samples<K> {
    pub(super) fn new(coded: Coded, variant: Variant) -> Self {
        Self { operation: "", floats: 0, coded, variant, backend: PhantomData }
    }

    pub(super) fn float(&mut self, argument: &str) -> FloatTensor<K> {
        let mut shape = float_shape(self.operation, argument, self.variant.width);
        let index = self.floats;
        self.floats += 1;
        let n: usize = shape.iter().product();
        // Within (-1, 1), all different, no order.
        let value = |i: usize| ((i * 7919 + index * 131 + 17) % 2003) as f32 / 1001.5 - 1.0;
        let values =
            (0..n).map(|i| if self.variant.sparse && i % 67 != 1 { 0.0 } else { value(i) }).collect::<Vec<_>>();
        let coded = self.coded == Coded::All || self.coded == Coded::Only(index);
        let rank = shape.len();
        if !self.variant.strided || rank < 2 {
            return K::float(TensorData::new(values, shape), coded);
        }
        shape.swap(rank - 2, rank - 1);
        K::float_swap_dims(K::float(TensorData::new(values, shape), coded), rank - 2, rank - 1)
    }

    pub(super) fn int(&mut self, argument: &str) -> IntTensor<K> {
        let (shape, range) = int_sample(self.operation, argument, self.variant.width as i64);
        let n: usize = shape.iter().product();
        let width = range.end - range.start;
        let values = (0..n as i64).map(|i| range.start + (i * 5 + 1) % width);
        // The indices of a pooling layer have the type that the layer itself returns.
        let dtype = match self.operation {
            op if op.starts_with("max_pool") => IntDType::I64,
            _ => burn_backend::get_device_settings::<K>(&Default::default()).int_dtype,
        };
        let data = TensorData::new(values.collect::<Vec<i64>>(), shape).convert_dtype(dtype.into());
        K::int_from_data(data, &Default::default())
    }

    pub(super) fn bool(&mut self, argument: &str) -> BoolTensor<K> {
        let shape = match (self.operation, argument) {
            ("attention", "mask") => vec![1, 2, 5, 5],
            _ => vec![3, self.variant.width],
        };
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| i % 3 == 1).collect::<Vec<_>>();
        K::bool_from_data(TensorData::new(values, shape), &Default::default())
    }
}

fn float_shape(operation: &str, argument: &str, width: usize) -> Vec<usize> {
    let image = vec![1, 2, 8, 8];
    match (operation, argument) {
        ("float_matmul", "rhs") | ("linear" | "linear_x_backward", "weight") => vec![width, 6],
        ("linear", "x") => vec![2, 3, width],
        ("linear", "bias") => vec![6],
        (op, "output_grad") if op.starts_with("linear") => vec![3, 6],
        ("float_expand", _) => vec![1, width],
        ("float_scatter_add" | "float_select_add", "value") => vec![3, 5],
        ("float_scatter_nd", "values") => vec![2, width],
        ("float_slice_assign", "value") => vec![2, 14],
        ("float_grid_sample_2d", "grid") => vec![1, 4, 4, 2],
        ("float_grid_sample_2d", _) => image,
        ("embedding" | "embedding_backward", "weights") => vec![5, width],
        ("embedding_backward", "output_grad") => vec![2, 3, width],
        ("layer_norm", "gamma" | "beta") => vec![width],
        ("attention", "attn_bias") => vec![1, 2, 5, 5],
        ("attention", _) => vec![1, 2, 5, 8],
        ("rfft", _) => vec![3, 32],
        ("irfft", _) => vec![3, 17],
        ("ctc_loss" | "ctc_loss_backward", "log_probs") => vec![6, 2, 5],
        ("ctc_loss_backward", "grad_loss") => vec![2],

        ("deform_conv2d" | "deform_conv2d_backward", argument) => match argument {
            "x" => vec![1, 4, 6, 6],
            "offset" => vec![1, 18, 6, 6],
            "weight" => vec![2, 4, 3, 3],
            "mask" => vec![1, 9, 6, 6],
            "bias" => vec![2],
            _ => vec![1, 2, 6, 6],
        },
        (op, argument) if op.starts_with("conv") => match (op.contains("transpose"), dimensions(op), argument) {
            (_, 1, "x") => vec![2, 4, 10],
            (_, 2, "x") => vec![2, 4, 8, 8],
            (_, 3, "x") => vec![1, 2, 5, 5, 5],
            (false, 1, "weight") => vec![6, 4, 3],
            (false, 2, "weight") => vec![6, 4, 3, 3],
            (false, 3, "weight") => vec![3, 2, 3, 3, 3],
            (true, 1, "weight") => vec![4, 6, 3],
            (true, 2, "weight") => vec![4, 6, 3, 3],
            (true, 3, "weight") => vec![2, 3, 3, 3, 3],
            (_, 3, "bias") => vec![3],
            (_, _, "bias") => vec![6],
            (_, 1, _) => vec![2, 6, 10],
            (_, 2, _) => vec![2, 6, 8, 8],
            _ => vec![1, 3, 5, 5, 5],
        },
        ("adaptive_avg_pool2d_backward" | "interpolate_backward", "grad") => vec![1, 2, 4, 4],
        ("adaptive_avg_pool1d_backward", "grad") => vec![1, 2, 4],
        ("adaptive_avg_pool1d" | "adaptive_avg_pool1d_backward", _) => vec![1, 2, 8],
        (op, _) if op.contains("pool1d") => vec![1, 2, 10],
        (op, _) if op.contains("pool2d") || op.starts_with("interpolate") || op == "unfold4d" => image,
        _ => vec![3, width],
    }
}

/// 1, 2 or 3, from a name such as `conv2d_x_backward`.
fn dimensions(operation: &str) -> u32 {
    operation.chars().find_map(|c| c.to_digit(10)).expect("the name has a digit")
}

/// Shape and range of values.
fn int_sample(operation: &str, argument: &str, width: i64) -> (Vec<usize>, Range<i64>) {
    match (operation, argument) {
        ("float_gather" | "float_scatter_add", _) => (vec![3, 5], 0..width),
        ("float_select" | "float_select_add", _) => (vec![5], 0..width),
        ("float_scatter_nd", _) => (vec![2, 1], 0..3),
        ("float_gather_nd", _) => (vec![2, 2], 0..3),
        ("embedding" | "embedding_backward", _) => (vec![2, 3], 0..5),
        ("ctc_loss" | "ctc_loss_backward", "targets") => (vec![2, 3], 1..5),
        ("ctc_loss" | "ctc_loss_backward", "input_lengths") => (vec![2], 6..7),
        ("ctc_loss" | "ctc_loss_backward", "target_lengths") => (vec![2], 3..4),
        ("max_pool1d_with_indices_backward", _) => (vec![1, 2, 10], 0..10),
        ("max_pool2d_with_indices_backward", _) => (vec![1, 2, 8, 8], 0..64),
        _ => (vec![3, width as usize], 0..4),
    }
}

/// Arguments that are no tensors.
pub(super) trait Sample {
    fn sample(operation: &str, argument: &str, width: usize) -> Self;
}

impl Sample for usize {
    fn sample(operation: &str, argument: &str, _: usize) -> Self {
        match (operation, argument) {
            ("float_cross", "dim") | ("float_swap_dims", "dim1") | (_, "blank") => 0,
            (_, "k" | "times" | "kernel_size" | "step") => 3,
            (_, "size") => 5,
            (_, "output_size") => 4,
            _ => 1,
        }
    }
}

impl Sample for [usize; 2] {
    fn sample(operation: &str, argument: &str, width: usize) -> Self {
        [usize::sample(operation, argument, width); 2]
    }
}

impl Sample for Shape {
    fn sample(operation: &str, _: &str, width: usize) -> Self {
        if operation == "float_reshape" { Shape::new([width, 3]) } else { Shape::new([3, width]) }
    }
}

macro_rules! samples {
    ($($type:ty => $value:expr),* $(,)?) => {$(
        impl Sample for $type {
            fn sample(_: &str, _: &str, _: usize) -> Self {
                $value
            }
        }
    )*};
}

samples! {
    bool => true,
    f64 => 1e-5,
    Option<usize> => None,
    Scalar => 0.5f32.into(),
    &[usize] => &[1, 0],
    &[Slice] => &const { [Slice { start: 0, end: Some(2), step: 1 }, Slice { start: 3, end: Some(17), step: 1 }] },
    FloatDType => FloatDType::F32,
    IntDType => IntDType::I64,
    BoolDType => BoolDType::Native,
    Distribution => Distribution::Default,
    TensorData => TensorData::new(vec![0.5f32, -0.25], [2]),
    IndexingUpdateOp => IndexingUpdateOp::Add,
    GridSampleOptions => GridSampleOptions::default(),
    ConvOptions<1> => ConvOptions::new([1], [1], [1], 1),
    ConvOptions<2> => ConvOptions::new([1; 2], [1; 2], [1; 2], 1),
    ConvOptions<3> => ConvOptions::new([1; 3], [1; 3], [1; 3], 1),
    ConvTransposeOptions<1> => ConvTransposeOptions::new([1], [1], [0], [1], 1),
    ConvTransposeOptions<2> => ConvTransposeOptions::new([1; 2], [1; 2], [0; 2], [1; 2], 1),
    ConvTransposeOptions<3> => ConvTransposeOptions::new([1; 3], [1; 3], [0; 3], [1; 3], 1),
    DeformConvOptions<2> => DeformConvOptions::new([1; 2], [1; 2], [1; 2], 1, 1),
    UnfoldOptions => UnfoldOptions::new([1; 2], [0; 2], [1; 2]),
    InterpolateOptions => InterpolateOptions::new(InterpolateMode::Nearest),
    AttentionModuleOptions => AttentionModuleOptions::default(),
}

pub(super) fn read_float<K: Backend>(tensor: FloatTensor<K>) -> TensorData {
    read_sync(K::float_into_data(tensor)).unwrap()
}

pub(super) fn read_int<K: Backend>(tensor: IntTensor<K>) -> TensorData {
    read_sync(K::int_into_data(tensor)).unwrap()
}

pub(super) fn read_bool<K: Backend>(tensor: BoolTensor<K>) -> TensorData {
    read_sync(K::bool_into_data(tensor)).unwrap()
}

pub(super) fn text(value: &impl std::fmt::Debug) -> TensorData {
    let text = format!("{value:?}").into_bytes();
    let n = text.len();
    TensorData::new(text, [n])
}

/// The tensors of a result that Burn types by backend.
pub(super) trait Fields {
    fn fields(self) -> Vec<TensorData>;
}

macro_rules! fields {
    ($name:ident, $this:ident => $all:expr) => {
        impl<K: Backend> Fields for $name<K> {
            fn fields(self) -> Vec<TensorData> {
                let $this = self;
                $all
            }
        }
    };
}

fields!(MaxPool1dBackward, this => vec![read_float::<K>(this.x_grad)]);
fields!(MaxPool2dBackward, this => vec![read_float::<K>(this.x_grad)]);
fields!(MaxPool1dWithIndices, this => vec![read_float::<K>(this.output), read_int::<K>(this.indices)]);
fields!(MaxPool2dWithIndices, this => vec![read_float::<K>(this.output), read_int::<K>(this.indices)]);
fields!(DeformConv2dBackward, this => {
    let optional = [this.mask_grad, this.bias_grad].into_iter().flatten();
    [this.x_grad, this.offset_grad, this.weight_grad].into_iter().chain(optional).map(read_float::<K>).collect()
});

/// Compares results: exactly, or floats within `tolerance`, absolute below 1 and relative above.
pub(super) fn equal(expected: &[TensorData], found: &[TensorData], tolerance: f32) -> Result<(), String> {
    if expected.len() != found.len() {
        return Err(format!("{} results, expected {}", found.len(), expected.len()));
    }
    for (e, f) in expected.iter().zip(found) {
        if e.shape != f.shape || e.dtype != f.dtype {
            return Err(format!("{:?} {:?}, expected {:?} {:?}", f.dtype, f.shape, e.dtype, e.shape));
        }
        let same = if tolerance > 0.0 && e.dtype == DType::F32 {
            let (e, f) = (e.to_vec::<f32>().unwrap(), f.to_vec::<f32>().unwrap());
            e.iter().zip(&f).all(|(e, f)| e == f || (e - f).abs() <= tolerance * (1.0 + e.abs()))
        } else {
            e.bytes == f.bytes
        };
        if !same {
            return Err(format!("found {f}, expected {e}"));
        }
    }
    Ok(())
}
