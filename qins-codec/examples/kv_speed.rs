//! One token of attention at full size over a filled cache, and what memory it reads.
//!
//! `cargo run --release -p qins-codec --example kv_speed -- [--layers N] [--threads N] [--level NAME] [--runs N]
//! [--format NAME] [CONTEXT ...]`
//!
//! Each layer has 32 heads of 96. Layers stand for those of a model: no cache of the processor holds them all.

use qins_codec::{
    Level,
    kv::{KvFormat, KvLayer, Seen},
};
use std::time::Instant;

const HEADS: usize = 32;
const HEAD: usize = 96;

fn main() {
    // The best of the runs counts.
    let (mut layers, mut runs, mut formats, mut contexts) = (32, 15, KvFormat::ALL.to_vec(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value after an option");
        match argument.as_str() {
            "--layers" => layers = value().parse().expect("a number of layers"),
            "--runs" => runs = value().parse().expect("a number of runs"),
            "--format" => formats = vec![value().parse().expect("a format")],
            "--threads" => {
                let threads = value().parse().expect("a number of threads");
                rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("no threads yet");
            }
            "--level" => {
                let name = value();
                let level = Level::ALL.into_iter().find(|level| level.name() == name);
                level.expect("the name of a level").set_current();
            }
            context => contexts.push(context.parse::<usize>().expect("a number of tokens").max(2)),
        }
    }
    if contexts.is_empty() {
        contexts.push(4096);
    }
    println!("{} layers, {} threads, {}", layers, rayon::current_num_threads(), Level::current().name());
    println!("format  context  MB read  append ms  token ms   GB/s  of the first");
    for context in contexts {
        let mut of_first = None;
        for &format in &formats {
            // The last token comes anew in each run.
            let mut cache = filled(format, layers, context - 1);
            let (queries, new) = (random(HEADS * HEAD, 1), random(HEADS * HEAD, 2));
            let (mut appended, mut attended) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                let start = Instant::now();
                cache.iter_mut().for_each(|layer| layer.append(&new, &new));
                appended.push(start.elapsed().as_secs_f64());
                let start = Instant::now();
                for layer in &cache {
                    std::hint::black_box(layer.attend(&queries, HEADS, Seen::default()));
                }
                attended.push(start.elapsed().as_secs_f64());
                cache.iter_mut().for_each(|layer| layer.truncate(context - 1));
            }
            let best = |seconds: Vec<f64>| seconds.into_iter().fold(f64::INFINITY, f64::min);
            let (appended, attended) = (best(appended), best(attended));
            let bytes = (layers * HEADS * context * format.token_bytes(HEAD)) as f64;
            let ratio = *of_first.get_or_insert(attended) / attended;
            println!(
                "{:<6} {context:>8} {:>8.1} {:>10.3} {:>9.2} {:>6.2} {ratio:>6.2} x",
                format.name(),
                bytes / 1e6,
                appended * 1e3,
                attended * 1e3,
                bytes / attended / 1e9,
            );
        }
    }
}

/// Layers that hold `context` random tokens.
fn filled(format: KvFormat, layers: usize, context: usize) -> Vec<KvLayer> {
    const PART: usize = 64;
    let (keys, values) = (random(HEADS * PART * HEAD, 3), random(HEADS * PART * HEAD, 4));
    let mut layer = KvLayer::new(format, 1, HEADS, HEAD);
    while layer.len() < context {
        layer.append(&keys, &values);
    }
    layer.truncate(context);
    vec![layer; layers]
}

/// Numbers in (-1, 1) from a fixed generator.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(draw).take(n).collect()
}
