//! Does it pay to encode a model's head with an eye on the order of its logits? Encodings of the same bytes, all read by the
//! ordinary decoder, differ in how their codes were searched.
//!
//!     cargo run --release --example ranking_head -- [<hf-dir> [<calibration.txt> <test.txt>]]
//!
//! Without texts the model writes them itself, each with other seeds; without a model it is that of the program.
//!
//! With `h` the state before the head at a position of the calibration text, `e_v` the error of row `v` of the head, and
//! so `e_v h` that of its logit, the searches look for the least
//!
//! - plain: squared error of the weights, as `qins_codec::encode` does;
//! - weighted: that error times the mean of `h_j^2`, by the scale and the table of each group;
//! - every logit: sum of `(e_v h)^2` over all rows and positions, by coordinate descent over codes from there;
//! - ranking: sum of `(e_u h - e_v h)^2` over the pairs of the first 11 logits at each position, row after row from there:
//!   their order stays if all are wrong by the same. Every row is also held at all positions, as in the line above but with
//!   the weight of only as many positions as `h` has numbers, since most rows are seldom among the first.

mod judge;
mod search;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use judge::{HEADING, Judge, Scores};
use phi35_model::{Config, DenseKv, Generation, Phi3, Sampling, Tokenizer, generate};
use qins_backend::{Policy, Qins};
use qins_codec::{Encoded, Format, Slice, encode};
use qins_import::{Checkpoint, load};
use search::Draft;
use std::{
    error::Error,
    path::{Path, PathBuf},
};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// Tokens that are run together, from an empty cache.
const WINDOW: usize = 256;

/// Windows of a text at most, evenly spaced.
const WINDOWS: usize = 64;

/// Logits whose order is judged. The search also looks at the next one, which is to stay behind them.
const TOP: usize = 10;

/// The search that the others are compared with, and the one that is on trial.
const PLAIN: &str = "plain";
const RANKING: &str = "ranking";

fn tensor(values: &[f32], cols: usize) -> Tensor<Flex, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / cols, cols]), &Default::default())
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("the backends compute in f32")
}

/// Logits of states, one state after the other.
fn logits(states: &[f32], head: &[f32], cols: usize) -> Vec<f32> {
    values(tensor(states, cols).matmul(tensor(head, cols).transpose()))
}

/// The sum of `h h^T` over states.
fn moments(states: &[f32], cols: usize) -> Vec<f32> {
    let states = tensor(states, cols);
    values(states.clone().transpose().matmul(states))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Ids of the `n` largest logits, largest first.
fn first(logits: &[f32], n: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(n + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if found.len() < n || logit > logits[found[n - 1]] {
            found.insert(found.partition_point(|&other| logits[other] >= logit), id);
            found.truncate(n);
        }
    }
    found
}

/// Windows of a text, or of what the model writes with seeds from `seed` on.
fn windows(model: &Phi3<Flex>, tokenizer: &Tokenizer, text: Option<&PathBuf>, seed: u64) -> Fallible<Vec<Vec<u32>>> {
    if let Some(text) = text {
        let ids = tokenizer.encode(&std::fs::read_to_string(text)?)?;
        let all: Vec<&[u32]> = ids.chunks_exact(WINDOW).collect();
        if all.len() < 2 {
            return Err(format!("{}: {} tokens: expected two windows of {WINDOW}", text.display(), ids.len()).into());
        }
        let n = all.len().min(WINDOWS);
        return Ok((0..n).map(|i| all[i * all.len() / n].to_vec()).collect());
    }
    let start = tokenizer.encode("")?;
    let write = |seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Default::default() };
        let options = Generation { max_new_tokens: WINDOW - start.len(), sampling, ..Default::default() };
        Ok(start.iter().copied().chain(generate(model, &start, options)?).collect())
    };
    (seed..seed + WINDOWS as u64).map(write).collect()
}

/// The states before the head, one after the other.
fn states<B: Backend>(model: &Phi3<B>, windows: &[Vec<u32>]) -> Vec<f32> {
    let run = |ids: &Vec<u32>| {
        let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let input: Tensor<B, 2, Int> = Tensor::from_data(TensorData::new(ids, [1, WINDOW]), &Default::default());
        values(model.hidden(input, &mut model.cache::<DenseKv<B>>()))
    };
    windows.iter().flat_map(run).collect()
}

/// A head to be judged.
struct Head {
    name: String,
    bits: f64,
    weights: Vec<f32>,
}

impl Head {
    fn new(search: &str, encoded: &Encoded) -> Self {
        let header = encoded.header();
        let name = format!("`{}` {search}", header.format);
        Self { name, bits: header.bits_per_weight(), weights: encoded.matrix().decode() }
    }
}

/// Every search in every format.
fn heads(head: &[f32], calibration: &[f32], cols: usize) -> Fallible<Vec<Head>> {
    let rows = head.len() / cols;
    let all = moments(calibration, cols);
    let squares: Vec<f32> = all.iter().step_by(cols + 1).copied().collect();
    let ranking: Vec<Vec<usize>> =
        logits(calibration, head, cols).chunks(rows).map(|logits| first(logits, TOP + 1)).collect();

    let mut heads = Vec::new();
    for format in [Format::Q12, Format::Q8, Format::Q6, Format::Q4] {
        let plain = encode(format, &Slice::new(head, rows, cols))?;
        heads.push(Head::new(PLAIN, &plain));
        let mut draft = Draft::new(head, &plain);
        draft.weigh(&squares);
        heads.push(Head::new("weighted", &draft.encoded()?));
        (0..rows).for_each(|row| draft.descend(row, &all, &vec![0.0; cols]));
        heads.push(Head::new("every logit", &draft.encoded()?));
        draft.rank(calibration, &ranking, &all);
        heads.push(Head::new(RANKING, &draft.encoded()?));
    }
    Ok(heads)
}

/// Prints a table; the first head is the mark, and heads of the same bytes are compared one with the next.
fn table(judge: &Judge, states: &[f32], heads: &[Head]) {
    println!("{HEADING}");
    let scores: Vec<Scores> = heads.iter().map(|head| judge.scores(states, &head.weights)).collect();
    for (i, head) in heads.iter().enumerate() {
        let is_same_bytes = i > 0 && head.bits == heads[i - 1].bits;
        let above = is_same_bytes.then(|| &scores[i - 1]);
        println!("| {} | {:.2} | {}", head.name, head.bits, scores[i].line(&scores[0], above));
    }
}

fn main() -> Fallible<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qins-cli/demo");
    let (directory, texts) = match arguments.as_slice() {
        [] => (&demo, [None, None]),
        [directory] => (directory, [None, None]),
        [directory, calibration, test] => (directory, [Some(calibration), Some(test)]),
        _ => return Err("usage: ranking_head [<hf-dir> [<calibration.txt> <test.txt>]]".into()),
    };
    let (config, checkpoint) = (Config::read(&directory.join("config.json"))?, Checkpoint::open(directory)?);
    let model: Phi3<Flex> = load(config.init(&Default::default())?, &checkpoint, |_| ())?;
    let tokenizer = Tokenizer::read(&directory.join("tokenizer.json"))?;
    let calibration = states(&model, &windows(&model, &tokenizer, texts[0], 0)?);
    let text = windows(&model, &tokenizer, texts[1], WINDOWS as u64)?;
    let test = states(&model, &text);

    let (rows, cols) = (config.vocab_size, config.hidden_size);
    let head = values(match &model.lm_head {
        Some(head) => head.weight.val().transpose(),
        None => model.model.embed_tokens.weight.val(),
    });
    let [n, m] = [&calibration, &test].map(|states| states.len() / cols);
    println!("head of {rows} x {cols}, {n} positions of calibration, {m} of test\n\nbody in float:\n");
    let (judge, mut heads) = (Judge::new(&test, &head, cols), heads(&head, &calibration, cols)?);
    table(&judge, &test, &heads);

    // What the head is worth where the body is encoded, too.
    let body: Phi3<Qins<Flex>> = load(config.init(&Default::default())?, &checkpoint, |_| ())?;
    let test = states(&Policy::linear(Format::Q8).encode(body)?, &text);
    heads.retain(|head| head.name.ends_with(PLAIN) || head.name.ends_with(RANKING));
    heads.truncate(4);
    heads.push(Head { name: "in float".to_owned(), bits: 32.0, weights: head });
    println!("\nbody in `q8`:\n");
    table(&judge, &test, &heads);
    Ok(())
}
