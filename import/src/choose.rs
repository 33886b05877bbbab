//! A format for each tensor of a checkpoint, chosen by what formats lose of its weights; no data is needed.

use crate::{Checkpoint, ImportError, Progress, compare::compare, load::parameters};
use burn::{module::Module, tensor::backend::Backend};
use qins_backend::{Policy, Storage, WeightKind};
use qins_codec::{Deviation, Format, Header, Slice, Weights, encode, matrix_shape, needs_row_bases, sample_rows};
use std::collections::BTreeMap;

/// Weights of a tensor that every format is measured on: evenly spaced rows.
const SAMPLE: usize = 1 << 17;

/// What the choice must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most so many bits a weight, over all tensors of the checkpoint; within that, the least sum over tensors of noise
    /// against signal, so that every layer's output is about as exact as another's.
    Bits(f64),
    /// For each tensor the smallest format whose noise stays so many dB below the signal.
    Sqnr(f64),
}

/// A policy that keeps to a target. Weights of linear layers, convolutions and embeddings that `fixed` has no rule for are
/// chosen for; its rules stand above those chosen.
///
/// # Errors
/// [`ImportError::Target`] if no choice keeps to it, and as [`plan`](crate::plan).
pub fn choose<B: Backend, M: Module<B>>(
    module: &M,
    checkpoint: &Checkpoint,
    fixed: Policy,
    target: Target,
    mut on_progress: impl FnMut(Progress<'_>),
) -> Result<Policy, ImportError> {
    let parameters = parameters::<B, M>(module, Some(&fixed))?;
    compare(&parameters, checkpoint)?;
    let half = checkpoint.half_format();
    let mut free = Vec::new();
    let (mut fixed_bytes, mut weights) = (0, 0);
    for parameter in &parameters {
        let tensor = checkpoint.tensor(&parameter.name)?;
        weights += tensor.shape().iter().product::<usize>();
        let rule = fixed.rule(&parameter.path);
        match parameter.path.weight_kind().filter(|_| rule.is_none()) {
            Some(kind) => {
                let options = options(checkpoint, &parameter.name, half)?;
                free.push(Tensor { pattern: parameter.path.module(), kind, options, chosen: 0 });
            }
            None => {
                let format = rule.and_then(Storage::format);
                fixed_bytes += match format {
                    Some(format) => {
                        stored_bytes(format, tensor.shape(), row_bases(checkpoint, &parameter.name, format)?)
                    }
                    None => tensor.bytes(),
                };
            }
        }
        on_progress(Progress { tensor: &parameter.name, bytes: tensor.bytes() });
    }
    let missed = |reason: String| ImportError::Target { file: checkpoint.path().to_owned(), reason };
    match target {
        Target::Bits(bits) => {
            let bytes = (bits * weights as f64 / 8.0) as usize;
            let least = fixed_bytes + free.iter().map(Tensor::bytes).sum::<usize>();
            if least > bytes {
                let least = least as f64 * 8.0 / weights as f64;
                return Err(missed(format!("expected at most {bits} bits a weight, found at least {least:.3}")));
            }
            spend(&mut free, bytes - least);
        }
        Target::Sqnr(db) => {
            let noise = 10f64.powf(-db / 10.0);
            for tensor in &mut free {
                let enough = tensor.options.iter().position(|option| option.noise <= noise);
                tensor.chosen = enough.ok_or_else(|| {
                    let best = tensor.options.iter().map(|option| option.noise).fold(f64::INFINITY, f64::min);
                    let found = -10.0 * best.log10();
                    missed(format!("{}: expected {db} dB, found at most {found:.1} dB", tensor.pattern))
                })?;
            }
        }
    }
    Ok(policy(&free).then(fixed))
}

/// A weight that is chosen for.
struct Tensor {
    /// Names it in a policy.
    pattern: String,
    kind: WeightKind,
    /// Smallest first, each larger one less noisy.
    options: Vec<Choice>,
    /// Index of an option.
    chosen: usize,
}

impl Tensor {
    fn bytes(&self) -> usize {
        self.options[self.chosen].bytes
    }

    /// The option beyond the chosen one that saves most noise for each byte, and how much that is.
    fn next(&self) -> Option<(usize, f64)> {
        let now = &self.options[self.chosen];
        let saved = |option: &Choice| (now.noise - option.noise) / (option.bytes - now.bytes) as f64;
        let further = self.options.iter().enumerate().skip(self.chosen + 1).map(|(i, option)| (i, saved(option)));
        further.max_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

struct Choice {
    format: Format,
    bytes: usize,
    /// Noise against signal, both squared.
    noise: f64,
}

/// What formats would lose of a tensor; those left out that are larger than another and no better.
fn options(checkpoint: &Checkpoint, name: &str, half: Format) -> Result<Vec<Choice>, ImportError> {
    let tensor = checkpoint.tensor(name)?;
    let cols = tensor.cols();
    let sample = sample_rows(&tensor, SAMPLE);
    let sample = Slice::new(&sample, sample.len().checked_div(cols).unwrap_or(0), cols);
    // The sample may lack the rows that decide. Where no group of 16 lies too low, none of 32 does.
    let by_16 = row_bases(checkpoint, name, Format::Q8h)?;
    let by_32 = by_16 && row_bases(checkpoint, name, Format::Q8)?;
    let mut options: Vec<Choice> = Vec::new();
    for format in [
        Format::Q2,
        Format::Q3,
        Format::Q4,
        Format::Q6,
        Format::Q8,
        Format::Q8h,
        Format::Q12,
        half,
        Format::Fpins2,
        Format::Fpins3,
    ] {
        let encoded = match encode(format, &sample) {
            Ok(encoded) => encoded,
            Err(qins_codec::EncodeError::OutOfRange { .. }) => continue,
            Err(source) => {
                let (file, tensor) = (checkpoint.file_of(name), name.to_owned());
                return Err(ImportError::Encode { file, tensor, source });
            }
        };
        let Deviation { rms, rmse, .. } = Deviation::of(&encoded.matrix(), &sample);
        let noise = if rms > 0.0 { (rmse / rms).powi(2) } else { 0.0 };
        let row_bases = format.allows_row_bases() && if format.group() == 16 { by_16 } else { by_32 };
        let bytes = stored_bytes(format, tensor.shape(), row_bases);
        if options.last().is_none_or(|smaller| noise < smaller.noise && bytes > smaller.bytes) {
            options.push(Choice { format, bytes, noise });
        }
    }
    Ok(options)
}

/// Whether rows of an encoded tensor have bases that the format does not ask for.
fn row_bases(checkpoint: &Checkpoint, name: &str, format: Format) -> Result<bool, ImportError> {
    let found = needs_row_bases(format, &checkpoint.tensor(name)?);
    checkpoint.forget(name);
    found.map_err(|source| ImportError::Encode { file: checkpoint.file_of(name), tensor: name.to_owned(), source })
}

/// Bytes of an encoded tensor in a file.
fn stored_bytes(format: Format, shape: &[usize], row_bases: bool) -> usize {
    let (rows, cols) = matrix_shape(shape).expect("the shape of a tensor in a file");
    let header = Header { format, rows, cols, base: 0.0, k: 0.0, row_bases };
    // Rows of 16-bit floats are not padded there.
    if format.is_raw() { rows * cols * format.code_bits() / 8 } else { header.code_bytes() + header.scale_bytes() }
}

/// Gives bytes to the tensors in which each of them saves most noise, until the next step fits nowhere.
fn spend(tensors: &mut [Tensor], mut bytes: usize) {
    let mut open: Vec<&mut Tensor> = tensors.iter_mut().collect();
    loop {
        let steps =
            open.iter().enumerate().filter_map(|(i, tensor)| tensor.next().map(|(option, saved)| (i, option, saved)));
        let Some((i, option, _)) = steps.max_by(|(.., a), (.., b)| a.total_cmp(b)) else { return };
        let more = open[i].options[option].bytes - open[i].bytes();
        if more <= bytes {
            bytes -= more;
            open[i].chosen = option;
        } else {
            open.remove(i);
        }
    }
}

/// The format that most linear layers have as a rule for all of them, and so for embeddings; the others by name.
fn policy(tensors: &[Tensor]) -> Policy {
    let mut policy = Policy::default();
    for kind in [WeightKind::Linear, WeightKind::Convolution, WeightKind::Embedding] {
        let formats = || tensors.iter().filter(|tensor| tensor.kind == kind).map(|t| (t, t.options[t.chosen].format));
        let mut counts: BTreeMap<&str, (usize, Format)> = BTreeMap::new();
        formats().for_each(|(_, format)| counts.entry(format.name()).or_insert((0, format)).0 += 1);
        let Some((_, &(_, most))) = counts.iter().max_by_key(|(_, (count, _))| *count) else { continue };
        let set = |policy: Policy, pattern: &str, format| policy.set(pattern, format).expect("names are patterns");
        policy = set(policy, kind.word(), most);
        let others = formats().filter(|(_, format)| *format != most);
        policy = others.fold(policy, |policy, (tensor, format)| set(policy, &tensor.pattern, format));
    }
    policy
}
