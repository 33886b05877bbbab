//! Floats to codes of `q8`, by the search of `qins_codec` (`cells.rs` there), operation by operation, so that codes are the
//! same on a device that rounds each operation.

use super::{Kind, MAX_CUBES, Operation, is_fused, is_plain, traffic};
use crate::{
    QinsTensor,
    parts::{Part, largest_buffer},
    tensor::read_f32,
    view::View,
};
use burn_backend::{
    Backend, DType, Shape, Slice, TensorData, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{CubeRuntime, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::prelude::*;
use qins_codec::{
    Decoder, Format, Header,
    search::{SAMPLE, Search, q8_header},
};
use std::{any::Any, sync::Arc};

/// Units of a cube.
const UNITS: usize = 64;

/// Weights of a group.
const GROUP: usize = 32;

/// Groups of a unit: their scale codes are a word.
const GROUPS: usize = 4;

/// Scale codes tried.
const LANES: usize = 16;

/// The first of them, below the one that is nearest to the largest magnitude.
const REACH: i32 = 9;

/// Places of an octave from one scale code to the next.
const STEP: usize = 16;

/// The scale code of zeros.
const ZERO_GROUP: usize = 255;

/// A float tensor on its device as the encoded matrix `[rows, cols]`. `None` where there is no kernel, for values that are no
/// numbers or all zeros, and for codes beyond one buffer: the host encodes those.
pub(in super::super) fn encode<R: CubeRuntime, B: Backend>(
    tensor: &FloatTensor<B>,
    format: Format,
    rows: usize,
    cols: usize,
) -> Option<QinsTensor<B>> {
    if format != Format::Q8 || tensor.dtype() != DType::F32 || !(is_plain::<R, B>() || is_fused::<R, B>()) {
        return None;
    }
    let device = B::float_device(tensor);
    let header = Header { format, rows, cols, base: 1.0, k: 0.0 };
    let (code_words, scale_words) = (header.code_bytes() / 4, header.scale_bytes().div_ceil(4));
    let bytes = (code_words + scale_words) * size_of::<u32>();
    let cubes = rows.max(scale_words).div_ceil(UNITS);
    if rows * cols == 0 || cubes > MAX_CUBES || bytes > largest_buffer::<B>(&device).unwrap_or(usize::MAX) {
        return None;
    }
    let matrix = B::float_reshape(tensor.clone(), Shape::new([rows, cols]));
    let operation = |kind, header, n: usize| Operation {
        kind,
        header,
        parts: Vec::new(),
        shape: Shape::new([n]),
        dtype: DType::U32,
    };
    let largest: IntTensor<B> = operation(Kind::Largest, header, rows).place::<R, B, _>(vec![&matrix as &dyn Any])?;
    let largest = burn_backend::read_sync(B::int_into_data(largest)).expect("a tensor can be read from its device");
    let largest = f32::from_bits(largest.as_slice::<u32>().ok()?.iter().copied().max()?);
    if !largest.is_finite() || largest == 0.0 {
        return None;
    }
    let step = (rows * cols).div_ceil(SAMPLE).max(1);
    let sample = B::float_slice(matrix.clone(), &[Slice::new(0, None, step as isize), Slice::full()]);
    let header = q8_header(rows, cols, largest, &read_f32::<B>(sample));
    let search = Search::q8(header.k)?;
    let kind = Kind::Encode { length: search.length, below: search.below };
    let codes = search.codes.iter().map(|&code| f32::from(code));
    let tables: Vec<f32> =
        search.values.iter().copied().chain(codes).chain(search.midpoints).chain(search.scales).collect();
    let n = tables.len();
    let tables = B::float_from_data(TensorData::new(tables, [n]), &device);
    let words: IntTensor<B> =
        operation(kind, header, code_words + scale_words).place::<R, B, _>(vec![&matrix as &dyn Any, &tables])?;
    let codes = B::int_slice(words.clone(), &[Slice::from(0..code_words)]);
    let scales = B::int_slice(words, &[Slice::from(code_words..code_words + scale_words)]);
    let decoder = Decoder::new(header).expect("constants that an encoder chose");
    let parts = vec![Part::whole(&header, codes, scales)];
    Some(QinsTensor::from_parts(parts, Arc::new(decoder), View::new(vec![rows, cols])))
}

/// Launches [`largest`] or [`codes`].
pub(super) fn run<R: CubeRuntime>(operation: &Operation, inputs: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let (client, device) = (inputs[0].client.clone(), inputs[0].device.clone());
    let out = empty_device_contiguous_dtype(client.clone(), device, operation.shape.clone(), operation.dtype);
    let Header { format, rows, cols, base, .. } = operation.header;
    let units = match operation.kind {
        Kind::Encode { .. } => operation.header.scale_bytes().div_ceil(GROUPS),
        _ => rows,
    };
    let (count, dim) = (CubeCount::Static(units.div_ceil(UNITS) as u32, 1, 1), CubeDim::new_1d(UNITS as u32));
    let mut inputs = inputs.into_iter().map(CubeTensor::into_array_arg);
    let mut next = || inputs.next().expect("floats, then tables");
    // SAFETY: rows, groups and columns are below their numbers where they are read and written, and places are clamped to the
    // tables.
    unsafe {
        match operation.kind {
            Kind::Encode { length, below } => {
                traffic::count_encoded();
                let (weights, tables) = (next(), TablesLaunch::new(next(), length, below));
                let words = format.code_bytes(cols) / 4;
                codes::launch_unchecked(
                    &client,
                    count,
                    dim,
                    weights,
                    tables,
                    out.clone().into_array_arg(),
                    base,
                    rows,
                    cols,
                    words,
                );
            }
            _ => largest::launch_unchecked(&client, count, dim, next(), out.clone().into_array_arg(), rows, cols),
        }
    }
    out
}

/// The largest magnitude of each row as bits, which for infinities and NaN are beyond those of every number.
#[cube(launch_unchecked)]
fn largest(weights: &Array<f32>, out: &mut Array<u32>, rows: usize, cols: usize) {
    let row = ABSOLUTE_POS;
    if row < rows {
        let mut largest = 0u32;
        for col in 0..cols {
            largest = max(largest, u32::reinterpret(weights[row * cols + col]) & 0x7FFF_FFFF);
        }
        out[row] = largest;
    }
}

/// What the search needs, as one buffer of the device: values, their codes, midpoints and scales follow each other.
#[derive(CubeType, CubeLaunch)]
struct Tables {
    all: Array<f32>,
    /// Entries of a phase of the values.
    length: usize,
    /// Scale codes from the lowest place to that of 1.
    below: usize,
}

/// `weights [rows, cols]` to codes, `[rows, words]`, and then scale codes, four to a word.
#[cube(launch_unchecked)]
fn codes(
    weights: &Array<f32>,
    tables: &Tables,
    out: &mut Array<u32>,
    base: f32,
    rows: usize,
    cols: usize,
    row_words: usize,
) {
    let groups = cols.div_ceil(GROUP);
    let first = ABSOLUTE_POS * GROUPS;
    if first < rows * groups {
        let mut header = 0u32;
        for i in 0..GROUPS {
            let at = first + i;
            if at < rows * groups {
                let scale_code = group(weights, tables, out, base, at / groups, at % groups, cols, row_words);
                header |= scale_code << (u32::cast_from(i) * 8);
            }
        }
        out[rows * row_words + ABSOLUTE_POS] = header;
    }
}

/// Writes the codes of one group; gives its scale code.
#[cube]
fn group(
    weights: &Array<f32>,
    tables: &Tables,
    out: &mut Array<u32>,
    base: f32,
    row: usize,
    index: usize,
    cols: usize,
    row_words: usize,
) -> u32 {
    let length = tables.length;
    let guesses = length * STEP;
    let midpoints = guesses * 2;
    let scales = midpoints + 129;

    let first = index * GROUP;
    let count = min(cols - first, GROUP);
    let mut x = Array::<f32>::new(GROUP);
    let mut negative = Array::<u32>::new(GROUP);
    // Places, shifted to be positive, of which scale codes and phases are the quotient and the rest.
    let mut places = Array::<i32>::new(GROUP);
    let mut largest = i32::new(-1_000_000);
    for i in 0..GROUP {
        let mut weight = 0.0f32;
        if i < count {
            weight = weights[row * cols + first + i];
        }
        negative[i] = select(weight < 0.0, 128u32, 0u32);
        x[i] = min(f32::abs(weight) / base, 1e15f32);
        places[i] = place(x[i]);
        largest = max(largest, places[i]);
    }
    let mut found = u32::cast_from(ZERO_GROUP);
    if largest >= -51200 {
        let start = clamp((8 - largest) >> 4, 0, 254) - REACH;
        let mut best = 0xFFFF_FFFFu32;
        for lane in 0..LANES {
            let code = start + i32::cast_from(lane);
            if clamp(code, 0, 254) == code {
                let scale = tables.all[scales + usize::cast_from(code)];
                let mut even = 0.0f32;
                let mut odd = 0.0f32;
                for i in 0..GROUP {
                    if i < count {
                        let along = clamp(
                            (places[i] >> 4) + start + i32::cast_from(tables.below),
                            0,
                            i32::cast_from(length - LANES),
                        );
                        let at = usize::cast_from(places[i] & 15) * length + usize::cast_from(along) + lane;
                        let difference = tables.all[at] * scale - x[i];
                        if i % 2 == 0 {
                            even += difference * difference;
                        } else {
                            odd += difference * difference;
                        }
                    }
                }
                best = min(best, ((u32::reinterpret(even + odd) >> 4) << 4) | u32::cast_from(lane));
            }
        }
        found = u32::cast_from(clamp(start + i32::cast_from(best & 15), 0, 254));
        let inverse = 1.0f32 / tables.all[scales + usize::cast_from(found)];
        for word in 0..comptime!(GROUP / 4) {
            let mut packed = 0u32;
            for byte in 0..4usize {
                let i = word * 4 + byte;
                if i < count {
                    let along = clamp(
                        (places[i] >> 4) + i32::cast_from(found) + i32::cast_from(tables.below),
                        0,
                        i32::cast_from(length - 1),
                    );
                    let at = usize::cast_from(places[i] & 15) * length + usize::cast_from(along);
                    let guess = u32::cast_from(tables.all[guesses + at]);
                    let value = x[i] * inverse;
                    let above = tables.all[midpoints + usize::cast_from(guess)];
                    let below = tables.all[midpoints + usize::cast_from(guess) + 1];
                    // The middle of a place is at most one cell off.
                    let code = guess + select(below > value, 1u32, 0u32) - select(above <= value, 1u32, 0u32);
                    packed |= (code | negative[i]) << (u32::cast_from(byte) * 8);
                }
            }
            if index * comptime!(GROUP / 4) + word < row_words {
                out[row * row_words + index * comptime!(GROUP / 4) + word] = packed;
            }
        }
    } else {
        for word in 0..comptime!(GROUP / 4) {
            if index * comptime!(GROUP / 4) + word < row_words {
                out[row * row_words + index * comptime!(GROUP / 4) + word] = 0u32;
            }
        }
    }
    found
}

/// `log2(x)` in places of 512 an octave, rounded to the nearest.
#[cube]
fn place(x: f32) -> i32 {
    let bits = u32::reinterpret(x);
    let exponent = i32::cast_from(bits >> 23) - 127;
    let t = f32::reinterpret((bits & 0x7F_FFFF) | 0x3F80_0000) - 1.0;
    let log2 = t + t * (1.0 - t) * (0.438_725_33 + t * (t * 0.082_128_88 - 0.239_056_35));
    let places = (f32::cast_from(exponent) + log2) * 512.0;
    // Where an f32 of this size has steps of 1: the sum rounds.
    i32::cast_from(u32::reinterpret(places + 12_582_912.0)) - 0x4B40_0000
}
