//! A module's parameters against the tensors of a file.

use crate::{Checkpoint, Container, ImportError, foreign, load::Parameter};
use qins_codec::Weights;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Buffers that models keep in their files and that follow from the configuration, by the last part of their names.
const BUFFERS: [&str; 8] = [
    "inv_freq",
    "original_inv_freq",
    "cos_cached",
    "sin_cached",
    "position_ids",
    "masked_bias",
    "causal_mask",
    "num_batches_tracked",
];

/// Where tensors come from.
pub(crate) trait Tensors {
    /// What errors call it.
    fn path(&self) -> &Path;
    fn file_of(&self, name: &str) -> PathBuf;
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;
    /// `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Result<Vec<usize>, ImportError>>;
    /// The checkpoint, if that is what they are in.
    fn checkpoint(&self) -> Option<&Checkpoint>;
}

impl Tensors for Checkpoint {
    fn path(&self) -> &Path {
        self.path()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.file_of(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.names())
    }

    fn shape(&self, name: &str) -> Option<Result<Vec<usize>, ImportError>> {
        self.contains(name).then(|| Ok(self.tensor(name)?.shape().to_vec()))
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        Some(self)
    }
}

impl Tensors for Container {
    fn path(&self) -> &Path {
        self.path()
    }

    fn file_of(&self, _name: &str) -> PathBuf {
        self.path().to_owned()
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.names())
    }

    fn shape(&self, name: &str) -> Option<Result<Vec<usize>, ImportError>> {
        Some(Ok(self.manifest().tensors.get(name)?.shape.clone()))
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        None
    }
}

/// Compares every parameter with the header. Returns the names of the tensors that are passed over.
pub(crate) fn compare(parameters: &[Parameter], tensors: &dyn Tensors) -> Result<Vec<String>, ImportError> {
    let file = || tensors.path().to_owned();
    if let (Some(checkpoint), Some((tensor, method))) =
        (tensors.checkpoint(), foreign::quantized_tensor(tensors.names()))
    {
        let (file, tensor) = (checkpoint.file_of(tensor), tensor.to_owned());
        return Err(ImportError::Quantized { file, tensor, method });
    }
    let mut missing = Vec::new();
    for Parameter { name, shape: expected, .. } in parameters {
        match tensors.shape(name).transpose()? {
            None => missing.push(name.clone()),
            Some(found) if found != *expected => {
                let (tensor, expected) = (name.clone(), expected.clone());
                return Err(ImportError::Shape { file: tensors.file_of(name), tensor, expected, found });
            }
            Some(_) => (),
        }
    }
    if !missing.is_empty() {
        return Err(ImportError::Missing { file: file(), names: missing });
    }
    let known: BTreeSet<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let (mut passed_over, mut extra) = (Vec::new(), Vec::new());
    for name in tensors.names().filter(|name| !known.contains(name)) {
        let is_known = match tensors.checkpoint() {
            Some(checkpoint) => is_buffer(checkpoint, name) || is_tied_head(checkpoint, name, &known)?,
            None => false,
        };
        if is_known { passed_over.push(name.to_owned()) } else { extra.push(name.to_owned()) }
    }
    if extra.is_empty() { Ok(passed_over) } else { Err(ImportError::Extra { file: file(), names: extra }) }
}

fn is_buffer(checkpoint: &Checkpoint, name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let (last, owner) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    // The mask of causal attention has the name of a bias, and is no float.
    let is_mask = last == "bias" && ["attn", "attention", "self_attn"].contains(&owner) && !checkpoint.is_float(name);
    BUFFERS.contains(&last) || owner == "rotary_emb" || is_mask
}

/// Whether the tensor is a head that the module lacks because its embedding is its head; fails if the two differ.
fn is_tied_head(checkpoint: &Checkpoint, name: &str, known: &BTreeSet<&str>) -> Result<bool, ImportError> {
    let Some(prefix) = name.strip_suffix("lm_head.weight") else { return Ok(false) };
    let embedding = format!("{prefix}model.embed_tokens.weight");
    if !known.contains(embedding.as_str()) {
        return Ok(false);
    }
    let (head, table) = (checkpoint.tensor(name)?, checkpoint.tensor(&embedding)?);
    let is_equal = head.shape() == table.shape() && {
        let (mut a, mut b) = (vec![0.0; head.cols()], vec![0.0; head.cols()]);
        (0..head.rows()).all(|row| {
            head.read_row(row, &mut a);
            table.read_row(row, &mut b);
            a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits())
        })
    };
    checkpoint.forget(name);
    match is_equal {
        true => Ok(true),
        false => Err(ImportError::TiedHead { file: checkpoint.file_of(name), head: name.to_owned(), embedding }),
    }
}
