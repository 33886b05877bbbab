//! Matrix products on encoded weights that never build the float matrix.
//!
//! The kernels of `kernels` keep decoded weights in registers, or for many inputs in the cache. Where there is none, one
//! row is decoded at a time into a buffer that stays in the first-level cache, and is used for every input before the next.

use crate::{
    Level, Matrix,
    kernels::{self, Products},
};
use rayon::prelude::*;

/// Bytes of codes that one task reads at least: enough work to pay for the task, enough tasks to share.
const TASK: usize = 32 << 10;

/// Inputs and rows whose products are put in order together: a cache line of them.
const INPUTS: usize = 16;

/// Partial sums of a dot product; fixed, so that a result does not depend on the machine.
const LANES: usize = 16;

impl Matrix<'_> {
    /// `x W^T`: `x` is `[m, in]`, the result `[m, out]`, both row-major.
    ///
    /// Bits are the same for any number of threads; between levels the last ones differ, as sums are taken in another
    /// order and products rounded once or twice, and [`Level::Avx2Fixed`] rounds inputs. Where an input is not finite, nor
    /// is the result; kernels multiply sums over groups by their scales, so that inputs above 1e34 may overflow too.
    ///
    /// # Panics
    /// If `x` does not hold `m` rows of `in` values.
    pub fn matmul(&self, x: &[f32], m: usize) -> Vec<f32> {
        self.matmul_at(Level::current(), x, m)
    }

    /// [`matmul`](Self::matmul) at a level, to compare.
    ///
    /// # Panics
    /// Besides, if this processor lacks the instructions.
    pub fn matmul_at(&self, level: Level, x: &[f32], m: usize) -> Vec<f32> {
        assert!(level.is_supported(), "this processor lacks {}", level.name());
        let (rows, cols) = (self.header().rows, self.header().cols);
        assert_eq!(x.len(), m * cols, "{m} inputs of {cols} values expected");
        if m == 0 || rows == 0 || cols == 0 {
            return vec![0.0; rows * m];
        }
        if let Some(products) = Products::new(level, *self, x, m) {
            return self.by_rows(m, products.stride(), products.rows(), |first, out| products.of_rows(first, out));
        }
        let decode = |first: usize, out: &mut [f32]| {
            let mut weights = vec![0.0; cols];
            for (i, out) in out.chunks_exact_mut(m).enumerate() {
                self.decode_row(first + i, &mut weights);
                for (o, x) in out.iter_mut().zip(x.chunks_exact(cols)) {
                    *o = dot(x, &weights);
                }
            }
        };
        self.by_rows(m, m, kernels::ROWS, decode)
    }

    /// Shares rows among threads, so many or a multiple at once; `work` fills zeros, `[rows, stride]`, from a first row on.
    fn by_rows(&self, m: usize, stride: usize, at_once: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
        let header = self.header();
        let rows = header.rows;
        let rows_a_task = (TASK / (header.code_bytes() / rows)).max(1).next_multiple_of(at_once);
        // [out, m] first: each task owns whole rows of it.
        let mut transposed = vec![0.0; rows * stride];
        if rows <= rows_a_task {
            work(0, &mut transposed);
        } else {
            let tasks = transposed.par_chunks_mut(rows_a_task * stride).enumerate();
            tasks.for_each(|(task, out)| work(task * rows_a_task, out));
        }
        if stride == 1 {
            return transposed;
        }
        let mut out = vec![0.0; rows * m];
        let some_inputs = out.par_chunks_mut(rows * INPUTS).enumerate();
        some_inputs.for_each(|(i, out)| {
            let count = out.len() / rows;
            for (first, values) in transposed.chunks(stride * INPUTS).enumerate() {
                // Whole cache lines are written: rows of a power of two would meet in few sets of the cache.
                let mut square = [[0.0; INPUTS]; INPUTS];
                for (row, values) in values.chunks_exact(stride).enumerate() {
                    for (of_input, &value) in square[..count].iter_mut().zip(&values[i * INPUTS..]) {
                        of_input[row] = value;
                    }
                }
                for (out, of_input) in out.chunks_exact_mut(rows).zip(&square) {
                    let out = &mut out[first * INPUTS..];
                    let some = out.len().min(INPUTS);
                    out[..some].copy_from_slice(&of_input[..some]);
                }
            }
        });
        out
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_tail) = a.as_chunks::<LANES>();
    let (b_lanes, b_tail) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}
