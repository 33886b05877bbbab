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

/// The same for tasks whose products go to many inputs, each of which is a page of memory or more away from the next: the more rows
/// a task has, the more it writes to one page before it turns to another.
const SCATTERED_TASK: usize = 512 << 10;

/// So many tasks a thread are enough to share, even where threads are not equally fast.
const TASKS_A_THREAD: usize = 8;

/// Partial sums of a dot product; fixed, so that a result does not depend on the machine.
const LANES: usize = 16;

impl Matrix<'_> {
    /// `x W^T`: `x` is `[m, in]`, the result `[m, out]`, both row-major.
    ///
    /// Bits are the same for any number of threads; between levels the last ones differ, as sums are taken in another
    /// order and products rounded once or twice, and [`Level::Avx2Fixed`] and [`Level::Avx512Fixed`] round what they multiply.
    /// Where an input is not finite, nor is the result; kernels multiply sums over groups by their scales, so that inputs
    /// above 1e33 may overflow too.
    ///
    /// # Panics
    /// If `x` does not hold `m` rows of `in` values, or the results cannot be addressed.
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
        assert_eq!(
            Some(x.len()),
            m.checked_mul(cols),
            "{m} inputs of {cols} values expected, {} values found",
            x.len()
        );
        if m == 0 || rows == 0 || cols == 0 {
            return vec![0.0; rows.checked_mul(m).expect("results that can be addressed")];
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
        let rows_of = |bytes: usize| (bytes / (header.code_bytes() / rows)).max(1).next_multiple_of(at_once);
        let mut out = vec![0.0; rows * m];
        if stride == 1 {
            let rows_a_task = rows_of(TASK);
            let tasks = out.par_chunks_mut(rows_a_task).enumerate();
            tasks.for_each(|(task, out)| work(task * rows_a_task, out));
            return out;
        }
        let shared = rows / (TASKS_A_THREAD * rayon::current_num_threads());
        let rows_a_task = shared.next_multiple_of(at_once).clamp(rows_of(TASK), rows_of(SCATTERED_TASK));
        // A task owns its rows of every input's products, and puts them there while they are in a cache.
        let mut tasks: Vec<_> = (0..rows.div_ceil(rows_a_task)).map(|_| Vec::with_capacity(m)).collect();
        for of_input in out.chunks_exact_mut(rows) {
            tasks.iter_mut().zip(of_input.chunks_mut(rows_a_task)).for_each(|(task, out)| task.push(out));
        }
        tasks.into_par_iter().enumerate().for_each(|(task, mut out)| {
            let mut products = vec![0.0; out[0].len() * stride];
            work(task * rows_a_task, &mut products);
            for (first, out) in out.chunks_mut(SQUARE).enumerate() {
                for (rows, products) in products.chunks(SQUARE * stride).enumerate() {
                    put_square(out, rows * SQUARE, &products[first * SQUARE..], stride);
                }
            }
        });
        out
    }
}

/// Inputs and rows that are put in order together: a cache line of each.
const SQUARE: usize = 16;

/// Puts products `[rows, stride]` of some inputs into what they have from a row on.
fn put_square(out: &mut [&mut [f32]], first_row: usize, products: &[f32], stride: usize) {
    let mut square = [[0.0; SQUARE]; SQUARE];
    for (row, products) in products.chunks(stride).take(SQUARE).enumerate() {
        match products.first_chunk::<SQUARE>() {
            Some(products) => (0..SQUARE).for_each(|i| square[i][row] = products[i]),
            None => square.iter_mut().zip(products).for_each(|(of_input, &product)| of_input[row] = product),
        }
    }
    for (out, of_input) in out.iter_mut().zip(&square) {
        match out[first_row..].first_chunk_mut() {
            Some(out) => *out = *of_input,
            None => out[first_row..].iter_mut().zip(of_input).for_each(|(out, &product)| *out = product),
        }
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
