//! Matrix products on encoded weights that never build the float matrix: one row is decoded at a time into a buffer
//! that stays in the first-level cache, and is used for every input before the next.

use crate::Matrix;
use rayon::prelude::*;

/// Rows that one task decodes: enough work to pay for the task, enough tasks to share.
const ROWS_PER_TASK: usize = 16;

/// Partial sums of a dot product; fixed, so that a result does not depend on the machine.
const LANES: usize = 16;

impl Matrix<'_> {
    /// `x W^T`: `x` is `[m, in]`, the result `[m, out]`, both row-major.
    ///
    /// Bits are the same for any number of threads.
    ///
    /// # Panics
    /// If `x` does not hold `m` rows of `in` values.
    pub fn matmul(&self, x: &[f32], m: usize) -> Vec<f32> {
        let (rows, cols) = (self.header().rows, self.header().cols);
        assert_eq!(x.len(), m * cols, "{m} inputs of {cols} values expected");
        // [out, m] first: each task owns whole rows of it.
        let mut transposed = vec![0.0; rows * m];
        if m == 0 || rows == 0 || cols == 0 {
            return transposed;
        }
        transposed.par_chunks_mut(ROWS_PER_TASK * m).enumerate().for_each_init(
            || vec![0.0; cols],
            |weights, (task, out)| {
                for (i, out) in out.chunks_exact_mut(m).enumerate() {
                    self.decode_row(task * ROWS_PER_TASK + i, weights);
                    for (o, x) in out.iter_mut().zip(x.chunks_exact(cols)) {
                        *o = dot(x, weights);
                    }
                }
            },
        );
        if m == 1 {
            return transposed;
        }
        let mut out = vec![0.0; rows * m];
        for (row, values) in transposed.chunks_exact(m).enumerate() {
            for (i, &value) in values.iter().enumerate() {
                out[i * rows + row] = value;
            }
        }
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
