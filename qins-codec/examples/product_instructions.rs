//! One product with encoded weights, to count its instructions, which no neighbour changes:
//!
//! ```sh
//! cargo build --release -p qins-codec --example product_instructions
//! valgrind --tool=callgrind --toggle-collect='*matmul_at*' target/release/examples/product_instructions q8 avx2
//! ```
//!
//! Callgrind's sum, divided by what this prints, is instructions for 16 weights. Valgrind knows no AVX-512. A third argument
//! is the number of inputs, else 1.

use qins_codec::{Format, Level, Slice, encode};

const ROWS: usize = 1024;
const COLS: usize = 3072;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next();
    let format: Format = next().expect("a format").parse().expect("a format");
    let level: Level = next().expect("a level").parse().expect("a level of this processor");
    let m: usize = next().map_or(1, |m| m.parse().expect("a number of inputs"));
    let weights: Vec<f32> = (0..ROWS * COLS).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 0.011).cos()).collect();
    let encoded = encode(format, &Slice::new(&weights, ROWS, COLS)).expect("finite weights");
    let x: Vec<f32> = (0..m * COLS).map(|i| (i as f32 * 0.7).sin()).collect();
    // One thread, so that everything is done under the call.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let product = pool.install(|| encoded.matrix().matmul_at(level, &x, m));
    assert!(product.iter().all(|value| value.is_finite()));
    println!("{}", ROWS * COLS / 16);
}
