//! CubeCL devices: codes are decoded in registers, where they are multiplied. No float matrix is built.
//!
//! Plain (`CubeBackend<R, ..>`) and fused (`Fusion<CubeBackend<R, ..>>`) backends run the same kernels. A fused one gets
//! them as custom operations on its stream, in order with what Burn fuses before and after.

mod decode;
mod fused;
mod layout;
mod matvec;

use crate::QinsTensor;
use burn_backend::{Backend, DType, Shape, TensorMetadata, tensor::FloatTensor};
use burn_cubecl::{
    CubeRuntime, fusion::FusionCubeRuntime, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use burn_fusion::FusionTensor;
use cubecl::{CubeCount, CubeDim};
use layout::{CodedLaunch, Law, Layout};
use qins_codec::{Decoder, Header};
use std::any::Any;

/// Cubes in one direction that every device offers.
const MAX_CUBES: usize = 65535;

/// What an operation needs besides its tensors.
#[derive(Debug, Clone)]
struct Product {
    header: Header,
    /// Of the result.
    shape: Shape,
}

/// Inputs `[.., in]`, codes, scale codes, tables.
type Inputs<T> = [T; 4];

/// `None` unless `B` runs on `R`.
pub(super) fn matmul<R: CubeRuntime, B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    let plain = is::<CubeTensor<R>>(x);
    if !plain && !is::<FusionTensor<FusionCubeRuntime<R>>>(x) {
        return None;
    }
    let (mut shape, dtype) = (x.shape(), x.dtype());
    let rank = shape.num_dims();
    let &header = weight.header();
    assert_eq!(shape[rank - 1], header.cols, "the last dimension of the input is not the weight's `in`");
    shape[rank - 1] = header.rows;
    let floats = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    if !floats || shape.num_elements() * header.cols == 0 || header.rows.div_ceil(matvec::ROWS) > MAX_CUBES {
        return None;
    }

    let product = Product { header, shape };
    let tables = weight.tables.get_or_init(|| {
        let tables = tables(&weight.decoder);
        B::float_from_data(burn_backend::TensorData::new(tables.clone(), [tables.len()]), &B::int_device(&weight.codes))
    });
    let inputs: Inputs<&dyn Any> = [x, &weight.codes, &weight.scales, tables];
    let result: Box<dyn Any> = match plain {
        true => Box::new(Some(product.run::<R>(downcast(inputs)))),
        false => Box::new(Some(fused::register::<R>(product, downcast(inputs)))),
    };
    result.downcast::<Option<FloatTensor<B>>>().ok()?.take()
}

fn is<T: 'static>(tensor: &dyn Any) -> bool {
    tensor.is::<T>()
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

impl Product {
    fn run<R: CubeRuntime>(&self, inputs: Inputs<CubeTensor<R>>) -> CubeTensor<R> {
        let [x, codes, scales, tables] = inputs.map(into_contiguous);
        let Header { format, rows, cols, .. } = self.header;
        let layout = Layout::new(&self.header);
        let (client, dtype) = (x.client.clone(), x.dtype);
        let out = empty_device_contiguous_dtype(client.clone(), x.device.clone(), self.shape.clone(), dtype);
        let m = self.shape.num_elements() / rows;
        for first in (0..m).step_by(matvec::INPUTS) {
            let coded = CodedLaunch::new(
                codes.clone().into_array_arg(),
                scales.clone().into_array_arg(),
                tables.clone().into_array_arg(),
                rows,
                cols,
                format.code_bytes(cols) / 4,
                format.scale_bytes(cols),
            );
            // SAFETY: the kernel reads within the lengths that the header gives codes, scale codes and tables, reads
            // columns and inputs and writes rows below their numbers, and codes choose only entries of the tables.
            unsafe {
                matvec::matvec::launch_unchecked(
                    &client,
                    CubeCount::Static(rows.div_ceil(matvec::ROWS) as u32, 1, 1),
                    CubeDim::new_2d(matvec::LANES as u32, matvec::LINES as u32),
                    x.clone().into_array_arg(),
                    coded,
                    out.clone().into_array_arg(),
                    first,
                    matvec::INPUTS.min(m - first),
                    layout,
                    dtype.into(),
                );
            }
        }
        out
    }
}
