use crate::{
    files::{Replace, Target},
    ids,
    kv::KvArgs,
    model::{Loaded, ModelArgs, Run},
    output,
};
use anyhow::Result;
use burn::tensor::backend::Backend;
use phi35_model::Phi3;
use qins_import::Checkpoint;
use safetensors::{Dtype, tensor::TensorView};
use serde::Serialize;
use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, as 1,2,3
    #[arg(long, required_unless_present = "ids_file", conflicts_with = "ids_file")]
    ids: Option<String>,
    /// A file with a JSON array of token ids
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
    #[command(flatten)]
    kv: KvArgs,
    /// File to write: a tensor `logits` [tokens, vocabulary] in f32
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an existing file of logits; any other file is left alone
    #[arg(long)]
    force: bool,
    /// Print one JSON object about the run
    #[arg(long)]
    json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Report<'a> {
    output: &'a Path,
    tokens: usize,
    vocabulary: usize,
    load_s: f64,
    run_s: f64,
    peak_rss_bytes: Option<u64>,
}

pub fn run(args: Args) -> Result<()> {
    let ids = match (&args.ids, &args.ids_file) {
        (_, Some(file)) => ids::read(file)?,
        (ids, None) => ids::parse(ids.as_deref().unwrap_or_default())?,
    };
    let target = Target::new(&args.output, &Replace::by_force(args.force, "a file of logits alone", &is_logits))?;
    let logits = args.model.in_float().run(Task { ids, kv: args.kv })?;
    let bytes: Vec<u8> = logits.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, logits.shape.to_vec(), &bytes)?;
    let file = safetensors::serialize([("logits", view)], None)?;
    target.write(|to| Ok(to.write_all(&file)?))?;
    if args.json {
        output::json(&Report {
            output: &args.output,
            tokens: logits.shape[0],
            vocabulary: logits.shape[1],
            load_s: logits.load_s,
            run_s: logits.run_s,
            peak_rss_bytes: output::peak_rss_bytes(),
        })?;
    }
    Ok(())
}

/// Whether a file holds a tensor of this command's, and no other.
fn is_logits(path: &Path) -> bool {
    Checkpoint::open_file(path).is_ok_and(|file| file.names().eq(["logits"]) && file.is_float("logits"))
}

struct Task {
    ids: Vec<u32>,
    kv: KvArgs,
}

struct Logits {
    values: Vec<f32>,
    shape: [usize; 2],
    load_s: f64,
    run_s: f64,
}

impl Run for Task {
    type Output = Logits;

    fn run<B: Backend>(self, model: &Phi3<B>, loaded: Loaded) -> Result<Logits> {
        let start = Instant::now();
        let cache = model.cache_with(|| self.kv.store());
        let logits = model.sequence_logits_with(&self.ids, cache, self.kv.chunk())?;
        let shape = logits.dims();
        let values = logits.into_data().convert::<f32>().into_vec().expect("just converted to f32");
        Ok(Logits { values, shape, load_s: loaded.load_s, run_s: start.elapsed().as_secs_f64() })
    }
}
