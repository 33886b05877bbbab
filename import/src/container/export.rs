//! A container back to a Hugging Face directory, one row in memory at a time.

use super::{Container, Stored, files};
use crate::{
    ImportError,
    output::{Output, require_space, write_error},
};
use half::bf16;
use qins_codec::{Decoder, Weights};
use serde_json::{Map, Value, json};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

/// The type of exported weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exported {
    /// Exactly what the codes stand for.
    F32,
    /// Rounded to the nearest.
    Bf16,
}

impl Exported {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }
}

/// The file of the weights.
const WEIGHTS_FILE: &str = "model.safetensors";

/// Writes a Hugging Face directory `output` of the container in `directory`: weights decoded, in one file; `config.json` with
/// their type; other files as they are. Returns the bytes written. What is not whole stands under `<output>.partial`.
///
/// # Errors
/// If `output` exists, unless `force` allows to replace it and it is a container or an export as it was written
/// ([`ImportError::Refused`]), or cannot be written.
pub fn export(
    container: &Container,
    directory: &Path,
    output: &Path,
    dtype: Exported,
    force: bool,
    mut on_tensor: impl FnMut(&str, usize),
) -> Result<u64, ImportError> {
    let output = Output::check(output, &[directory, container.path()], force)?;
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for (name, info) in &container.manifest().tensors {
        let bytes = info.shape.iter().product::<usize>() * dtype.bytes();
        let entry = json!({ "dtype": dtype.name(), "shape": info.shape, "data_offsets": [at, at + bytes] });
        header.insert(name.clone(), entry);
        at += bytes;
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let bytes = (size_of::<u64>() + header.len() + at) as u64;
    let beside = files::beside_weights(directory)?;
    let names: Vec<&str> = beside.iter().map(String::as_str).chain([WEIGHTS_FILE]).collect();
    let partial = output.begin(&names)?;
    let mut write = |path: &Path| -> Result<(), ImportError> {
        require_space(partial.path(), bytes)?;
        let failed = write_error(path);
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(&failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
        file.write_all(&header).map_err(&failed)?;
        for name in container.names() {
            let written = write_tensor(container, name, dtype, &mut file).map_err(&failed)?;
            container.forget(name);
            on_tensor(name, written);
        }
        file.flush().map_err(&failed)?;
        files::copy(&beside, directory, partial.path(), |name, bytes| match name {
            files::CONFIG => config_of_type(bytes, dtype),
            _ => bytes,
        })
    };
    match write(&partial.path().join(WEIGHTS_FILE)) {
        Ok(()) => partial.finish(None).map(|()| bytes),
        Err(error) => partial.discard().and(Err(error)),
    }
}

/// `config.json` that names the type of the weights, as transformers before and since version 5 calls it. All else stays as
/// it is written, digit by digit.
fn config_of_type(json: Vec<u8>, dtype: Exported) -> Vec<u8> {
    let parse = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
    let Some((mut text, mut fields)) =
        String::from_utf8(json.clone()).ok().and_then(|text| Some((text.clone(), parse(&text)?)))
    else {
        return json;
    };
    let named: Vec<&str> = ["torch_dtype", "dtype"].into_iter().filter(|&key| fields.contains_key(key)).collect();
    let named = if named.is_empty() { vec!["torch_dtype"] } else { named };
    for key in named {
        let old = fields.insert(key.to_owned(), dtype.torch_name().into());
        // The key may stand in an inner object, too, or in a string: the right place is where it makes the right fields.
        let quoted = format!("\"{key}\"");
        let places = text.match_indices(&quoted).map(|(at, found)| at + found.len());
        let changed = places.filter_map(|at| {
            let value = at + text[at..].find(|c: char| c != ':' && !c.is_whitespace())?;
            let end = value + old.as_ref()?.to_string().len();
            Some(format!("{}\"{}\"{}", &text[..value], dtype.torch_name(), text.get(end..)?))
        });
        let added = text.replacen('{', &format!("{{\n  \"{key}\": \"{}\",", dtype.torch_name()), 1);
        let changed = changed.chain([added]).find(|text| parse(text).as_ref() == Some(&fields));
        match changed {
            Some(changed) => text = changed,
            None => return json,
        }
    }
    text.into_bytes()
}

fn write_tensor(container: &Container, name: &str, dtype: Exported, file: &mut impl Write) -> std::io::Result<usize> {
    let mut row_bytes = Vec::new();
    let mut write_row = |values: &[f32]| {
        row_bytes.clear();
        match dtype {
            Exported::F32 => row_bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Exported::Bf16 => row_bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        }
        file.write_all(&row_bytes)
    };
    match container.tensor(name).expect("a name of the container") {
        Stored::Coded(header, codes, scales) => {
            let decoder = Decoder::new(header).expect("checked when opened");
            let matrix = decoder.matrix(codes, scales).expect("checked when opened");
            let mut row = vec![0.0; header.cols];
            for i in 0..header.rows {
                matrix.decode_row(i, &mut row);
                write_row(&row)?;
            }
            Ok(header.rows * header.cols * dtype.bytes())
        }
        Stored::Plain(tensor) => {
            let mut row = vec![0.0; tensor.cols()];
            for i in 0..tensor.rows() {
                tensor.read_row(i, &mut row);
                write_row(&row)?;
            }
            Ok(tensor.rows() * tensor.cols() * dtype.bytes())
        }
    }
}
