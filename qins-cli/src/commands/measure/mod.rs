mod plot;

use crate::{
    files::{self, Replace, Target},
    model::{Threads, progress_bar},
    output,
    source::Source,
};
use anyhow::{Result, bail};
use qins_codec::{Deviation, Format, WorstRow, encode};
use qins_import::Checkpoint;
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, path::PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file, a Hugging Face model directory, or `demo`
    model: PathBuf,
    /// Formats to measure, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    formats: Vec<Format>,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Draw signal to noise against bits, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Replace an existing picture of this program; any other file is left alone
    #[arg(long, requires = "plot")]
    force: bool,
    /// Print comma-separated values, a line for each tensor and format
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// What a format would lose.
#[derive(Serialize)]
struct Loss {
    bits_per_weight: f64,
    /// Null where nothing would be lost.
    sqnr_db: Option<f64>,
    rmse: f64,
    max_abs_error: f64,
    mean_relative_error: f64,
}

impl Loss {
    fn line(&self, format: &str, worst: &str) -> String {
        let db = self.sqnr_db.map_or("exact".to_owned(), |db| format!("{db:.2} dB"));
        let (bits, largest) = (self.bits_per_weight, self.max_abs_error);
        format!("  {format:<7} {bits:>6.2} bits {db:>11}   largest error {largest:.1e}{worst}\n")
    }
}

/// What it would lose of a tensor.
#[derive(Serialize)]
struct Measured<'a> {
    name: &'a str,
    shape: &'a [usize],
    format: &'static str,
    #[serde(flatten)]
    loss: Loss,
    /// The row of least signal to noise; null where nothing would be lost.
    worst_row: Option<usize>,
    worst_row_sqnr_db: Option<f64>,
}

impl Measured<'_> {
    fn line(&self) -> String {
        let worst = self.worst_row.zip(self.worst_row_sqnr_db);
        let worst = worst.map_or(String::new(), |(row, db)| format!("   worst row {row}: {db:.2} dB"));
        self.loss.line(self.format, &worst)
    }
}

/// Sums over tensors of one format.
#[derive(Default)]
struct Sums {
    weights: f64,
    bits: f64,
    signal: f64,
    noise: f64,
    largest: f64,
    relative: f64,
}

impl Sums {
    fn add(&mut self, weights: f64, bits_per_weight: f64, deviation: &Deviation) {
        self.weights += weights;
        self.bits += weights * bits_per_weight;
        self.signal += weights * deviation.rms.powi(2);
        self.noise += weights * deviation.rmse.powi(2);
        self.largest = self.largest.max(deviation.max_abs_error);
        self.relative += weights * deviation.mean_relative_error;
    }

    fn total(&self) -> Loss {
        Loss {
            bits_per_weight: self.bits / self.weights,
            sqnr_db: (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10()),
            rmse: (self.noise / self.weights).sqrt(),
            max_abs_error: self.largest,
            mean_relative_error: self.relative / self.weights,
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    args.threads.set()?;
    let replace = Replace::by_force(args.force, "a picture as this program drew it", &files::is_signed);
    let target = args.plot.as_ref().map(|path| Target::new(path, &replace)).transpose()?;
    let checkpoint = if args.model.is_file() {
        Checkpoint::open_file(&args.model)?
    } else {
        args.model.display().to_string().parse::<Source>()?.checkpoint()?
    };
    let formats = if args.formats.is_empty() { Format::ALL } else { &args.formats };
    // Norms and biases have one dimension and are never encoded unasked.
    let (floats, others): (Vec<&str>, Vec<&str>) = checkpoint.names().partition(|name| checkpoint.is_float(name));
    if !others.is_empty() {
        eprintln!("not measured, for they are no F32, F16 or BF16: {}", in_words(&checkpoint, &others));
    }
    let tensors = floats.into_iter().map(|name| Ok((name, checkpoint.tensor(name)?))).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<_> = tensors.into_iter().filter(|(_, tensor)| tensor.shape().len() > 1).collect();
    if tensors.is_empty() {
        bail!("{}: expected a float tensor of two dimensions or more, found none", args.model.display());
    }

    let bar = progress_bar(tensors.iter().map(|(_, tensor)| tensor.bytes()).sum());
    bar.set_prefix("measuring");
    let mut measured = Vec::new();
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    for (name, tensor) in &tensors {
        for &format in formats {
            let encoded = encode(format, tensor)
                .map_err(|error| anyhow::anyhow!("{}: {name} as {format}: {error}", checkpoint.path().display()))?;
            let deviation = Deviation::of(&encoded.matrix(), tensor);
            let bits_per_weight = encoded.header().bits_per_weight();
            let weights = (encoded.header().rows * encoded.header().cols) as f64;
            sums.entry(format.name()).or_default().add(weights, bits_per_weight, &deviation);
            let Deviation { sqnr_db, max_abs_error, rmse, mean_relative_error, worst_row, .. } = deviation;
            let (worst_row, worst_row_sqnr_db) = worst_row.map(|WorstRow { row, sqnr_db }| (row, sqnr_db)).unzip();
            let loss = Loss { bits_per_weight, sqnr_db, rmse, max_abs_error, mean_relative_error };
            let (shape, format) = (tensor.shape(), format.name());
            measured.push(Measured { name, shape, format, loss, worst_row, worst_row_sqnr_db });
        }
        bar.inc(tensor.bytes() as u64);
    }
    bar.finish_and_clear();

    let total: BTreeMap<&str, Loss> = sums.iter().map(|(&format, sums)| (format, sums.total())).collect();
    if let Some(target) = target {
        let line = |format: &Format| plot::Line {
            name: format.name(),
            bits_per_weight: total[format.name()].bits_per_weight,
            total_db: total[format.name()].sqnr_db,
            tensors_db: measured.iter().filter(|m| m.format == format.name()).filter_map(|m| m.loss.sqnr_db).collect(),
        };
        let subject = args.model.file_name().unwrap_or(args.model.as_os_str());
        let lines: Vec<_> = formats.iter().map(line).collect();
        let picture = files::signed(plot::svg(&subject.to_string_lossy(), tensors.len(), &lines), "</svg>\n");
        target.write(|file| Ok(file.write_all(picture.as_bytes())?))?;
    }
    if args.json {
        return output::json(&serde_json::json!({ "tensors": measured, "total": total }));
    }
    if args.csv {
        let mut text = "name,shape,format,bits_per_weight,sqnr_db,rmse,max_abs_error,mean_relative_error,worst_row,\
                        worst_row_sqnr_db\n"
            .to_owned();
        for Measured { name, shape, format, loss, worst_row, worst_row_sqnr_db } in &measured {
            let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
            let Loss { bits_per_weight, sqnr_db, rmse, max_abs_error, mean_relative_error } = loss;
            let text_of = |db: &Option<f64>| db.map_or(String::new(), |db| db.to_string());
            let (db, worst_db) = (text_of(sqnr_db), text_of(worst_row_sqnr_db));
            let worst = worst_row.map_or(String::new(), |row| row.to_string());
            writeln!(
                text,
                "{name},{shape},{format},{bits_per_weight},{db},{rmse},{max_abs_error},{mean_relative_error},{worst},{worst_db}"
            )?;
        }
        return output::text(&text);
    }
    let mut text = String::new();
    for tensor in measured.chunks(formats.len()) {
        writeln!(text, "{} {:?}", tensor[0].name, tensor[0].shape)?;
        text.extend(tensor.iter().map(Measured::line));
    }
    writeln!(text, "all {} tensors", tensors.len())?;
    text.extend(formats.iter().map(|format| total[format.name()].line(format.name(), "")));
    output::text(&text)
}

/// The first few of some tensors, with their types.
fn in_words(checkpoint: &Checkpoint, names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let word = |name: &&str| {
        let kind = checkpoint.describe(name).map_or(String::new(), |(_, kind, _)| kind);
        format!("{name} ({kind})")
    };
    let mut text = names.iter().take(SHOWN).map(word).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
