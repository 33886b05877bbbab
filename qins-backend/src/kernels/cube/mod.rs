//! CubeCL devices: codes are decoded in registers, where they are multiplied, or for matrix units a slab of
//! rows at a time. No float matrix is built.
//!
//! Plain (`CubeBackend<R, ..>`) and fused (`Fusion<CubeBackend<R, ..>>`) backends run the same kernels. A fused one gets
//! them as custom operations on its stream, in order with what Burn fuses before and after. Of a matrix in parts, each part
//! is a launch of its own, which writes its rows of the one result.

mod attention;
mod decode;
mod encode;
mod fused;
mod layout;
mod matvec;
mod rows;
mod search;
mod slab;
mod tile;
mod traffic;

pub(super) use attention::{append, attend, keeps, runs};
pub(super) use encode::encode;
pub use slab::{Prompts, prompts_by};
pub use traffic::{Traffic, traffic};

use crate::{DeviceMemory, QinsTensor};
use burn_backend::{
    Backend, DType, FloatDType, Shape, TensorData, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{
    CubeRuntime, fusion::FusionCubeRuntime, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use burn_fusion::FusionTensor;
use cubecl::{CubeCount, CubeDim, client::ComputeClient, features::Plane};
use layout::{CodedLaunch, Law, Layout};
use qins_codec::{Decoder, Header};
use rows::Which;
use slab::Slab;
use std::{
    any::{Any, TypeId},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Cubes in one direction that every device offers.
const MAX_CUBES: usize = 65535;

static SUBGROUPS: AtomicBool = AtomicBool::new(true);

/// Whether products of few inputs may add up by subgroups where a graphics device has them; they do from the start. For drivers
/// that get them wrong.
pub fn allow_subgroups(allowed: bool) {
    SUBGROUPS.store(allowed, Relaxed);
}

/// Units of a subgroup of a device, if it has no others and a kernel can use so many; else 1.
fn subgroup<R: CubeRuntime>(client: &ComputeClient<R>, usable: impl Fn(usize) -> bool) -> usize {
    let properties = client.properties();
    let [least, most] = [properties.hardware.plane_size_min, properties.hardware.plane_size_max].map(|n| n as usize);
    let fits = least == most && most > 1 && usable(most);
    let allowed = SUBGROUPS.load(Relaxed) && properties.features.plane.contains(Plane::Ops);
    if fits && allowed { most } else { 1 }
}

/// What runs on the tensors of a device: at once, or in its turn on a stream.
trait OnDevice: std::fmt::Debug + Send + Sync + 'static {
    /// Of the result.
    fn shape(&self) -> Shape;

    /// Of the result.
    fn dtype(&self) -> DType;

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> CubeTensor<R>;
}

/// What an operation needs besides its tensors.
#[derive(Debug, Clone)]
struct Operation {
    kind: Kind,
    header: Header,
    /// Rows of each part of the matrix.
    parts: Vec<usize>,
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
    /// Of each row of floats the largest magnitude, and the least of those of its groups that are not zeros, as bits.
    Magnitudes,
    /// Bases and scale codes of some rows of floats, by tables of a search with phases of this length.
    Scales { first_row: usize, length: usize },
    /// Codes of some rows of floats.
    Codes { first_row: usize, length: usize },
}

/// Bytes that a device of `R` binds in one piece.
pub(super) fn largest_buffer<R: CubeRuntime, B: Backend>(device: &B::Device) -> Option<usize> {
    let device = (device as &dyn Any).downcast_ref::<R::Device>()?;
    Some(R::client(device).properties().memory.max_page_size.try_into().unwrap_or(usize::MAX))
}

/// What a device of `R` holds.
pub(super) fn memory<R: CubeRuntime, B: Backend>(device: &B::Device) -> Option<DeviceMemory> {
    let device = (device as &dyn Any).downcast_ref::<R::Device>()?;
    let usage = R::client(device).memory_usage().ok()?;
    Some(DeviceMemory { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
}

/// Rows of a matrix that lie together on a device: all, or those of one part.
struct DevicePart<'a, R: CubeRuntime> {
    codes: &'a CubeTensor<R>,
    scales: &'a CubeTensor<R>,
    tables: &'a CubeTensor<R>,
    rows: usize,
    /// Rows of the matrix before these.
    first_row: usize,
    /// Of the matrix.
    header: &'a Header,
}

impl<R: CubeRuntime> DevicePart<'_, R> {
    /// What kernels are given besides the codes.
    fn coded(&self) -> CodedLaunch<R> {
        let &Header { format, rows, cols, .. } = self.header;
        let [scales, tables] = [self.scales, self.tables].map(|tensor| tensor.clone().into_array_arg());
        let (row_words, scale_bytes) = (format.code_bytes(cols) / 4, self.header.scale_bytes_of_row());
        CodedLaunch::new(scales, tables, self.rows, self.first_row, rows, cols, row_words, scale_bytes)
    }
}

/// All functions are `None` unless `B` runs on `R`, and its kernels do what is asked.
pub(super) fn matmul<R: CubeRuntime, B: Backend>(x: &FloatTensor<B>, weight: &QinsTensor<B>) -> Option<FloatTensor<B>> {
    let (mut shape, dtype) = (x.shape(), x.dtype());
    let rank = shape.num_dims();
    let &header = weight.header();
    assert_eq!(shape[rank - 1], header.cols, "the last dimension of the input is not the weight's `in`");
    shape[rank - 1] = header.rows;
    Operation::new(Kind::Product, weight, shape, dtype).on::<R, B>(x, weight)
}

pub(super) fn decode_rows<R: CubeRuntime, B: Backend>(
    tensor: &QinsTensor<B>,
    indices: &IntTensor<B>,
    dtype: FloatDType,
) -> Option<FloatTensor<B>> {
    let shape = Shape::new([indices.shape()[0], tensor.header().cols]);
    Operation::new(Kind::Rows, tensor, shape, dtype.into()).on::<R, B>(indices, tensor)
}

pub(super) fn decode<R: CubeRuntime, B: Backend>(tensor: &QinsTensor<B>, dtype: FloatDType) -> Option<FloatTensor<B>> {
    let &Header { rows, cols, .. } = tensor.header();
    Operation::new(Kind::Decode, tensor, Shape::new([rows, cols]), dtype.into())
        .on::<R, B>(&tensor.parts[0].codes, tensor)
}

fn is_plain<R: CubeRuntime, B: Backend>() -> bool {
    TypeId::of::<FloatTensor<B>>() == TypeId::of::<CubeTensor<R>>()
}

fn is_fused<R: CubeRuntime, B: Backend>() -> bool {
    TypeId::of::<FloatTensor<B>>() == TypeId::of::<FusionTensor<FusionCubeRuntime<R>>>()
}

fn downcast<T: Clone + 'static>(tensors: Vec<&dyn Any>) -> Vec<T> {
    let tensor = |tensor: &dyn Any| tensor.downcast_ref::<T>().expect("all tensors of a device have one type").clone();
    tensors.into_iter().map(tensor).collect()
}

/// The tables of a decoder as kernels read them: see [`Layout::values`].
fn tables(decoder: &Decoder) -> Vec<f32> {
    let &Header { k, .. } = decoder.header();
    let layout = Layout::new(decoder.header());
    let mut tables = match layout.law {
        Law::F16 | Law::Bf16 => return vec![0.0],
        Law::Cells => vec![k as f32, ((1.0 + k / 256.0) / (1.0 - 1.0 / 256.0)) as f32],
        Law::Integers => Vec::new(),
        Law::Table | Law::ChosenTable => decoder.values().into_owned(),
    };
    tables.extend(decoder.scales());
    assert_eq!(tables.len(), layout.tables());
    tables
}

impl Operation {
    fn new<B: Backend>(kind: Kind, coded: &QinsTensor<B>, shape: Shape, dtype: DType) -> Self {
        let parts = coded.parts.iter().map(|part| part.rows).collect();
        Self { kind, header: *coded.header(), parts, shape, dtype }
    }

    /// Runs it, or puts it on the stream of a fused backend.
    fn on<R: CubeRuntime, B: Backend>(self, given: &dyn Any, coded: &QinsTensor<B>) -> Option<FloatTensor<B>> {
        if !(is_plain::<R, B>() || is_fused::<R, B>()) || !self.has_kernel() {
            return None;
        }
        let tables = coded.tables.get_or_init(|| {
            let tables = tables(&coded.decoder);
            let n = tables.len();
            B::float_from_data(TensorData::new(tables, [n]), &coded.device())
        });
        let mut inputs: Vec<&dyn Any> = vec![given, tables];
        coded.parts.iter().for_each(|part| inputs.extend([&part.codes as &dyn Any, &part.scales]));
        self.place::<R, B, _>(inputs)
    }

    /// `T` is the type of all of `B`'s tensors.
    fn place<R: CubeRuntime, B: Backend, T: 'static>(self, inputs: Vec<&dyn Any>) -> Option<T> {
        let mut result: Box<dyn Any> = match is_plain::<R, B>() {
            true => Box::new(Some(self.run::<R>(downcast(inputs)))),
            false => Box::new(Some(fused::register::<R, _>(self, downcast(inputs)))),
        };
        result.downcast_mut::<Option<T>>()?.take()
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
            && rows.div_ceil(matvec::LINES) <= MAX_CUBES
            && self.rows() <= MAX_CUBES * tile::INPUTS
    }

    /// Inputs of a product, rows of the result.
    fn rows(&self) -> usize {
        self.shape.num_elements() / self.shape.as_slice().last().expect("matrices have dimensions")
    }

    /// `inputs`: what the operation is given, tables if it needs any, then codes and scale codes of each part.
    fn launch_all<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> CubeTensor<R> {
        if matches!(self.kind, Kind::Magnitudes | Kind::Scales { .. } | Kind::Codes { .. }) {
            return encode::run(self, inputs);
        }
        let inputs: Vec<CubeTensor<R>> = inputs.into_iter().map(into_contiguous).collect();
        let [given, tables, words @ ..] = inputs.as_slice() else { unreachable!("`on` gives as many") };
        let out =
            empty_device_contiguous_dtype(tables.client.clone(), tables.device.clone(), self.shape.clone(), self.dtype);
        let is_prompt = self.kind == Kind::Product && self.rows() > matvec::INPUTS;
        let rows = self.parts.iter().copied().max().unwrap_or(0);
        let slab = if is_prompt {
            Slab::new(given, &Layout::new(&self.header), [self.rows(), rows, self.header.cols])
        } else {
            None
        };
        let mut first_row = 0;
        for (words, &rows) in words.chunks_exact(2).zip(&self.parts) {
            let part =
                DevicePart { codes: &words[0], scales: &words[1], tables, rows, first_row, header: &self.header };
            if !slab.as_ref().is_some_and(|slab| slab.multiply(given, &part, &out)) {
                self.launch(given, &part, &out);
            }
            first_row += rows;
        }
        out
    }

    fn launch<R: CubeRuntime>(&self, given: &CubeTensor<R>, part: &DevicePart<R>, out: &CubeTensor<R>) {
        let layout = Layout::new(&self.header);
        let (client, n) = (&out.client, self.rows());
        if self.kind == Kind::Product {
            let bound = [given, part.codes, part.scales, part.tables, out];
            traffic::count(bound.map(|tensor| tensor.handle.size_in_used()));
        }
        let given_type = given.dtype.into();
        let [x, codes, to] = [given, part.codes, out].map(|tensor| tensor.clone().into_array_arg());
        // SAFETY: kernels read within the lengths that the header gives codes, scale codes and tables; columns, rows and inputs
        // are below their numbers where they are read and where they are written; and any code chooses an entry of its table.
        unsafe {
            match self.kind {
                Kind::Product if n <= matvec::INPUTS => {
                    let shared_bytes = client.properties().hardware.max_shared_memory_size;
                    let shape = [part.rows, self.header.cols];
                    let subgroup = subgroup(client, |units| matvec::LANES.is_multiple_of(units));
                    let division = matvec::Division::new(&layout, shape, n, subgroup, shared_bytes);
                    matvec::matvec::launch_unchecked(
                        client,
                        CubeCount::Static(part.rows.div_ceil(division.rows()) as u32, 1, 1),
                        CubeDim::new_2d(matvec::LANES as u32, matvec::LINES as u32),
                        division.width,
                        x,
                        codes,
                        part.coded(),
                        to,
                        division,
                        layout,
                        given_type,
                    );
                }
                Kind::Product => tile::tile::launch_unchecked(
                    client,
                    CubeCount::Static(part.rows.div_ceil(tile::ROWS) as u32, n.div_ceil(tile::INPUTS) as u32, 1),
                    CubeDim::new_2d(tile::UNITS[0] as u32, tile::UNITS[1] as u32),
                    x,
                    codes,
                    part.coded(),
                    to,
                    n,
                    layout,
                    given_type,
                ),
                Kind::Rows => rows::launch(Which::Selected(given), part, out),
                Kind::Decode => rows::launch(Which::Range { first: 0, n: part.rows }, part, out),
                Kind::Magnitudes | Kind::Scales { .. } | Kind::Codes { .. } => unreachable!("no operation on codes"),
            }
        }
    }
}

impl OnDevice for Operation {
    fn shape(&self) -> Shape {
        self.shape.clone()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> CubeTensor<R> {
        self.launch_all(inputs)
    }
}
