//! CubeCL devices: codes are decoded in registers, where they are multiplied. No float matrix is built.
//!
//! Plain (`CubeBackend<R, ..>`) and fused (`Fusion<CubeBackend<R, ..>>`) backends run the same kernels. A fused one gets
//! them as custom operations on its stream, in order with what Burn fuses before and after.

mod decode;
mod fused;
mod layout;
mod matvec;
mod rows;
mod tile;

use crate::QinsTensor;
use burn_backend::{
    Backend, DType, FloatDType, Shape, TensorData, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{
    CubeRuntime, fusion::FusionCubeRuntime, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use burn_fusion::FusionTensor;
use cubecl::{CubeCount, CubeDim};
use layout::{CodedLaunch, Law, Layout};
use qins_codec::{Decoder, Header};
use std::any::{Any, TypeId};

/// Cubes in one direction that every device offers.
const MAX_CUBES: usize = 65535;

/// What an operation needs besides its tensors.
#[derive(Debug, Clone)]
struct Operation {
    kind: Kind,
    header: Header,
    /// Of the result.
    shape: Shape,
    /// Of the result.
    dtype: DType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With inputs `[.., in]`.
    Product,
    /// Rows given by indices `[n]`.
    Rows,
    /// All rows.
    Decode,
}

/// What the operation is given, then codes, scale codes and tables.
type Inputs<T> = [T; 4];

/// All functions are `None` unless `B` runs on `R`, and its kernels do what is asked.
pub(super) fn matmul<R: CubeRuntime, B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    let (mut shape, dtype) = (x.shape(), x.dtype());
    let rank = shape.num_dims();
    let &header = weight.header();
    assert_eq!(shape[rank - 1], header.cols, "the last dimension of the input is not the weight's `in`");
    shape[rank - 1] = header.rows;
    Operation { kind: Kind::Product, header, shape, dtype }.on::<R, B>(x, weight)
}

pub(super) fn decode_rows<R: CubeRuntime, B: Backend>(
    tensor: &QinsTensor<B>,
    indices: &IntTensor<B>,
    dtype: FloatDType,
) -> Option<FloatTensor<B>> {
    let &header = tensor.header();
    let shape = Shape::new([indices.shape()[0], header.cols]);
    Operation { kind: Kind::Rows, header, shape, dtype: dtype.into() }.on::<R, B>(indices, tensor)
}

pub(super) fn decode<R: CubeRuntime, B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> Option<FloatTensor<B>> {
    let &header = tensor.header();
    let shape = Shape::new([header.rows, header.cols]);
    Operation { kind: Kind::Decode, header, shape, dtype: dtype.into() }.on::<R, B>(&tensor.codes, tensor)
}

fn downcast<T: Clone + 'static>(tensors: Inputs<&dyn Any>) -> Inputs<T> {
    tensors.map(|tensor| tensor.downcast_ref::<T>().expect("all tensors of a device have one type").clone())
}

/// The tables of a decoder as kernels read them: see [`Layout::values`].
fn tables(decoder: &Decoder) -> Vec<f32> {
    let &Header { k, .. } = decoder.header();
    let layout = Layout::new(decoder.header());
    let mut tables = match layout.law {
        Law::F16 | Law::Bf16 => return vec![0.0],
        Law::Cells => vec![k as f32, ((1.0 + k / 256.0) / (1.0 - 1.0 / 256.0)) as f32],
        Law::Table | Law::ChosenTable => decoder.values().into_owned(),
    };
    tables.extend(decoder.scales());
    assert_eq!(tables.len(), layout.tables());
    tables
}

impl Operation {
    /// Runs it, or puts it on the stream of a fused backend.
    fn on<R: CubeRuntime, B: Backend>(self, given: &dyn Any, coded: &QinsTensor<B>) -> Option<FloatTensor<B>> {
        let plain = TypeId::of::<FloatTensor<B>>() == TypeId::of::<CubeTensor<R>>();
        let fused = TypeId::of::<FloatTensor<B>>() == TypeId::of::<FusionTensor<FusionCubeRuntime<R>>>();
        if !(plain || fused) || !self.has_kernel() {
            return None;
        }
        let tables = coded.tables.get_or_init(|| {
            let tables = tables(&coded.decoder);
            let n = tables.len();
            B::float_from_data(TensorData::new(tables, [n]), &B::int_device(&coded.codes))
        });
        let inputs: Inputs<&dyn Any> = [given, &coded.codes, &coded.scales, tables];
        let mut result: Box<dyn Any> = match plain {
            true => Box::new(Some(self.run::<R>(downcast(inputs)))),
            false => Box::new(Some(fused::register::<R>(self, downcast(inputs)))),
        };
        result.downcast_mut::<Option<FloatTensor<B>>>()?.take()
    }

    fn has_kernel(&self) -> bool {
        let Header { format, rows, cols, .. } = self.header;
        // Products may round a weight in the last place; decoding several planes is left to a device's f64, if it has them.
        let exact = self.kind == Kind::Product || format.planes() == 1;
        let is_float = matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16);
        // No element, or a sum of none.
        let is_empty = self.shape.num_elements() == 0 || cols == 0;
        exact
            && is_float
            && !is_empty
            && rows.div_ceil(matvec::ROWS) <= MAX_CUBES
            && self.rows() <= MAX_CUBES * tile::INPUTS
    }

    /// Inputs of a product, rows of the result.
    fn rows(&self) -> usize {
        self.shape.num_elements() / self.shape.as_slice().last().expect("matrices have dimensions")
    }

    fn run<R: CubeRuntime>(&self, inputs: Inputs<CubeTensor<R>>) -> CubeTensor<R> {
        let [given, codes, scales, tables] = inputs.map(into_contiguous);
        let Header { format, rows, cols, .. } = self.header;
        let layout = Layout::new(&self.header);
        let client = codes.client.clone();
        let out = empty_device_contiguous_dtype(client.clone(), codes.device.clone(), self.shape.clone(), self.dtype);
        let coded = || {
            CodedLaunch::new(
                codes.clone().into_array_arg(),
                scales.clone().into_array_arg(),
                tables.clone().into_array_arg(),
                rows,
                cols,
                format.code_bytes(cols) / 4,
                format.scale_bytes(cols),
            )
        };
        let n = self.rows();
        let given_type = given.dtype.into();
        let (given, result) = (given.into_array_arg(), out.clone().into_array_arg());
        // SAFETY: kernels read within the lengths that the header gives codes, scale codes and tables; columns, rows and inputs
        // are below their numbers where they are read and where they are written, whatever indices say; and any code
        // chooses an entry of its table.
        unsafe {
            match self.kind {
                Kind::Product if n <= matvec::INPUTS => matvec::matvec::launch_unchecked(
                    &client,
                    CubeCount::Static(rows.div_ceil(matvec::ROWS) as u32, 1, 1),
                    CubeDim::new_2d(matvec::LANES as u32, matvec::LINES as u32),
                    given,
                    coded(),
                    result,
                    n,
                    layout,
                    given_type,
                ),
                Kind::Product => tile::tile::launch_unchecked(
                    &client,
                    CubeCount::Static(rows.div_ceil(tile::ROWS) as u32, n.div_ceil(tile::INPUTS) as u32, 1),
                    CubeDim::new_2d(tile::UNITS[0] as u32, tile::UNITS[1] as u32),
                    given,
                    coded(),
                    result,
                    n,
                    layout,
                    given_type,
                ),
                Kind::Rows | Kind::Decode => {
                    let cubes = (n * cols.div_ceil(layout.unit_codes())).div_ceil(rows::UNITS);
                    let across = cubes.min(MAX_CUBES);
                    rows::rows::launch_unchecked(
                        &client,
                        CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1),
                        CubeDim::new_1d(rows::UNITS as u32),
                        given,
                        coded(),
                        result,
                        n,
                        self.kind == Kind::Rows,
                        layout,
                        [self.dtype.into(), given_type],
                    );
                }
            }
        }
        out
    }
}
