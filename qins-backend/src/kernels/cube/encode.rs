//! Floats to codes on the device where they lie, as the encoder of `qins_codec` finds them: the host chooses constants by the
//! largest magnitudes and a sample, kernels of `search.rs` do the rest.

use super::{
    Kind, MAX_CUBES, Operation, is_fused, is_plain,
    layout::Layout,
    search::{self, Floats, MatrixLaunch},
    traffic,
};
use crate::{
    QinsTensor,
    parts::{Part, largest_buffer, ranges},
    tensor::read_f32,
    view::View,
};
use burn_backend::{
    Backend, DType, Shape, Slice, TensorData, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{CubeRuntime, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::{CubeCount, CubeDim};
use qins_codec::{
    Decoder, Format, Header,
    search::{SAMPLE, Search},
};
use std::{any::Any, sync::Arc};

/// A float tensor on its device as the encoded matrix `[rows, cols]`. `None` where there is no kernel and for what only the
/// host encodes: see [`Search::new`].
pub(in super::super) fn encode<R: CubeRuntime, B: Backend>(
    tensor: &FloatTensor<B>,
    format: Format,
    rows: usize,
    cols: usize,
) -> Option<QinsTensor<B>> {
    // Floats are read as whole words.
    let is_read = match tensor.dtype() {
        DType::F32 => true,
        DType::F16 | DType::BF16 => (rows * cols).is_multiple_of(2),
        _ => false,
    };
    if rows * cols == 0 || format.planes() > 1 || !is_read || !(is_plain::<R, B>() || is_fused::<R, B>()) {
        return None;
    }
    let device = B::float_device(tensor);
    let matrix = B::float_reshape(tensor.clone(), Shape::new([rows, cols]));
    let place = |kind, header, n: usize, inputs: Vec<&dyn Any>| {
        let operation = Operation { kind, header, parts: Vec::new(), shape: Shape::new([n]), dtype: DType::U32 };
        operation.place::<R, B, IntTensor<B>>(inputs)
    };

    let whole = Header { format, rows, cols, base: 1.0, k: 0.0, row_bases: false };
    let magnitudes = place(Kind::Magnitudes, whole, 2 * rows, vec![&matrix])?;
    let magnitudes =
        burn_backend::read_sync(B::int_into_data(magnitudes)).expect("a tensor can be read from its device");
    let magnitudes: Vec<f32> = magnitudes.as_slice::<u32>().ok()?.iter().copied().map(f32::from_bits).collect();
    let (largest, least_of_groups) = magnitudes.split_at(rows);
    let step = (rows * cols).div_ceil(SAMPLE);
    let sampled = || B::float_slice(matrix.clone(), &[Slice::new(0, None, step as isize), Slice::full()]);
    let Search { header, bases, tables, length } =
        Search::new(format, [rows, cols], largest, least_of_groups, || read_f32::<B>(sampled()))?;
    let floats = |values: Vec<f32>| {
        let n = values.len();
        B::float_from_data(TensorData::new(values, [n]), &device)
    };
    let (bases, tables) = (floats(bases), floats(tables));
    let no_scales = || B::int_from_data(TensorData::new(vec![0u32], [1]), &device);

    let parts = ranges(&header, largest_buffer::<B>(&device)).map(|range| {
        let (first_row, rows) = (range.start, range.len());
        let of_part = Header { rows, ..header };
        let scales = match of_part.scale_bytes().div_ceil(size_of::<u32>()) {
            0 => no_scales(),
            n => place(Kind::Scales { first_row, length }, of_part, n, vec![&matrix, &bases, &tables])?,
        };
        let n = of_part.code_bytes() / size_of::<u32>();
        let inputs: Vec<&dyn Any> = vec![&matrix, &bases, &tables, &scales];
        let codes = place(Kind::Codes { first_row, length }, of_part, n, inputs)?;
        Some(Part { codes, scales, first_row, rows })
    });
    let parts = parts.collect::<Option<_>>()?;
    traffic::count_encoded();
    let decoder = Decoder::new(header).expect("constants that an encoder chose");
    Some(QinsTensor::from_parts(parts, Arc::new(decoder), View::new(vec![rows, cols])))
}

/// Launches a kernel. The header is that of a part, whose rows are some of the floats'.
pub(super) fn run<R: CubeRuntime>(operation: &Operation, inputs: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let (client, device) = (inputs[0].client.clone(), inputs[0].device.clone());
    let out = empty_device_contiguous_dtype(client.clone(), device, operation.shape.clone(), operation.dtype);
    let (Header { format, rows, cols, .. }, layout) = (operation.header, Layout::new(&operation.header));
    let strides = inputs[0].meta.strides().to_vec();
    let floats = match inputs[0].dtype {
        DType::F16 => Floats::F16,
        DType::BF16 => Floats::Bf16,
        _ => Floats::F32,
    };
    let matrix = |first_row| MatrixLaunch::new(first_row, rows, cols, strides[0], strides[1]);
    let cubes = |units: usize| {
        let cubes = units.div_ceil(search::UNITS);
        let across = cubes.min(MAX_CUBES);
        CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1)
    };
    let dim = CubeDim::new_1d(search::UNITS as u32);
    let n = operation.shape.num_elements();
    let mut inputs = inputs.into_iter().map(CubeTensor::into_array_arg);
    let mut next = || inputs.next().expect("floats, bases, tables, scale codes");
    let result = out.clone().into_array_arg();
    // SAFETY: rows, groups and columns are below their numbers where they are read and written, and places are clamped to the
    // tables.
    unsafe {
        match operation.kind {
            Kind::Scales { first_row, length } => search::scales::launch_unchecked(
                &client,
                cubes(n),
                dim,
                next(),
                matrix(first_row),
                next(),
                next(),
                result,
                length,
                operation.header.scale_bytes_of_row(),
                layout,
                floats,
            ),
            Kind::Codes { first_row, length } => search::codes::launch_unchecked(
                &client,
                cubes(n / layout.unit_words),
                dim,
                next(),
                matrix(first_row),
                next(),
                next(),
                next(),
                result,
                length,
                operation.header.scale_bytes_of_row(),
                format.code_bytes(cols) / size_of::<u32>() / layout.unit_words,
                layout,
                floats,
            ),
            _ => {
                // Neighbouring units read neighbouring floats.
                let units = if strides[0] < strides[1] { 1 } else { search::UNITS };
                search::magnitudes::launch_unchecked(
                    &client,
                    cubes(rows * units),
                    dim,
                    next(),
                    matrix(0),
                    result,
                    units,
                    layout.group,
                    floats,
                )
            }
        }
    }
    out
}
