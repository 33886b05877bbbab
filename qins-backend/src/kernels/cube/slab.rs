//! Products with many inputs, a prompt's, on devices with matrix units: one slab of rows after the other is decoded to the
//! inputs' type and multiplied by the backend's own product, as fast and as exactly as that multiplies floats.

use super::{DevicePart, layout::Layout, rows, tile, traffic};
use burn_backend::{DType, Shape};
use burn_cubecl::{
    CubeRuntime,
    kernel::matmul::{MatmulStrategy, matmul},
    ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use cubecl::{
    client::ComputeClient,
    ir::{ElemType, FloatKind, StorageType},
    zspace::metadata::Metadata,
};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Of a slab at most: it is read back from a large device's second cache (50 MB on an NVIDIA H100 or H200), and CubeCL's pools
/// take no page of 128 MiB for it.
const BYTES: usize = 16 << 20;

/// How graphics devices compute products of more than 8 inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prompts {
    /// By slabs from 33 inputs on, of which tiles would be decoded again, where the device has matrix units that Burn's
    /// product takes for such inputs; else by tiles.
    #[default]
    ByDevice,
    /// Tiles of weights are decoded into a cube's own memory and multiplied there in f32.
    Tiles,
    /// Slabs of rows, at most 16 MiB at a time, are decoded to the inputs' type and multiplied by Burn's own product. Formats of
    /// several planes take tiles, and so do parts of a weight whose columns of the result begin where a device binds nothing.
    Slabs,
}

static PROMPTS: AtomicU8 = AtomicU8::new(Prompts::ByDevice as u8);

/// How graphics devices compute products of many inputs from then on; fused backends, those that they have not run yet.
/// Where Burn's product uses matrix units it rounds f32 inputs and weights to 11 bits of precision (TF32); with
/// [`Prompts::Tiles`] they are multiplied as they are.
pub fn prompts_by(way: Prompts) {
    PROMPTS.store(way as u8, Relaxed);
}

/// Whether Burn's product takes matrix units for floats of a type.
fn has_matrix_units<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> bool {
    let factor: StorageType = match dtype {
        DType::F32 => ElemType::Float(FloatKind::TF32).into(),
        dtype => dtype.into(),
    };
    client.properties().features.matmul.cmma.iter().any(|units| [units.a_type, units.b_type] == [factor; 2])
}

/// Bytes of which a binding begins at a multiple.
fn alignment<R: CubeRuntime>(tensor: &CubeTensor<R>) -> usize {
    tensor.client.properties().memory.alignment as usize
}

/// The same memory as a matrix.
fn as_matrix<R: CubeRuntime>(tensor: &CubeTensor<R>, shape: [usize; 2], strides: [usize; 2]) -> CubeTensor<R> {
    CubeTensor { meta: Box::new(Metadata::new(shape, strides)), ..tensor.clone() }
}

/// Room for one slab.
pub(super) struct Slab<R: CubeRuntime> {
    /// `[rows, in]`
    floats: CubeTensor<R>,
}

impl<R: CubeRuntime> Slab<R> {
    /// For a product of `x [.., in]`. `None` where tiles are to be taken.
    pub(super) fn new(x: &CubeTensor<R>, layout: &Layout, [n, rows, cols]: [usize; 3]) -> Option<Self> {
        let way = PROMPTS.load(Relaxed);
        let by_device = way == Prompts::ByDevice as u8 && n > tile::INPUTS && has_matrix_units(&x.client, x.dtype);
        // Results of the next slab begin where the device binds them.
        let together = tile::ROWS.max(alignment(x) / x.dtype.size());
        let most = BYTES / (cols * x.dtype.size()) / together * together;
        if layout.planes > 1 || most == 0 || !(by_device || way == Prompts::Slabs as u8) {
            return None;
        }
        let shape = Shape::new([rows.min(most), cols]);
        Some(Self { floats: empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, x.dtype) })
    }

    /// `x W^T` to the columns of `out [.., out]` that are the part's rows. `false`, and nothing is done, where the device
    /// does not bind them.
    pub(super) fn multiply(&self, x: &CubeTensor<R>, part: &DevicePart<R>, out: &CubeTensor<R>) -> bool {
        let [all_rows, cols] = [part.header.rows, part.header.cols];
        let n = x.meta.num_elements() / cols;
        let size = out.dtype.size();
        let slab_rows = self.floats.meta.shape()[0];
        let begins = |row: usize| (part.first_row + row) * size;
        let firsts = (0..part.rows).step_by(slab_rows);
        if !firsts.clone().all(|row| begins(row).is_multiple_of(alignment(out))) {
            return false;
        }
        let x = as_matrix(x, [n, cols], [cols, 1]);
        for first in firsts {
            let rows = slab_rows.min(part.rows - first);
            // The slab has no rows before these.
            let to_slab = DevicePart { first_row: 0, ..*part };
            rows::launch(rows::Which::Range { first, n: rows }, &to_slab, &self.floats);
            let mut columns = as_matrix(out, [n, rows], [all_rows, 1]);
            columns.handle = columns.handle.offset_start(begins(first) as u64);
            let weight = as_matrix(&self.floats, [cols, rows], [1, cols]);
            matmul(x.clone(), weight, Some(columns), MatmulStrategy::default(), out.dtype)
                .expect("what Burn multiplies, it multiplies here");
            let read = rows * (part.header.format.code_bytes(cols) + part.header.scale_bytes_of_row());
            let tables = part.tables.handle.size_in_used();
            let slab = rows * cols * size;
            traffic::count([(read + slab) as u64 + tables]);
            traffic::count([(n * cols * size + slab + n * rows * size) as u64]);
        }
        true
    }
}
