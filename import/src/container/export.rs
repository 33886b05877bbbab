//! A container back to a Hugging Face directory, one row in memory at a time.

use super::{
    Container, Stored,
    write::{copy_files, put_in_place, remove_directory, require_space, with_extension, write_error},
};
use crate::ImportError;
use half::bf16;
use qins_codec::{Decoder, Weights};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
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

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }
}

/// Writes a Hugging Face directory `output` of the container in `directory`: weights decoded, other files as they are.
/// Returns the bytes written. What is not whole stands under `<output>.partial`.
///
/// # Errors
/// If `output` exists, unless `force` allows to replace it, or cannot be written.
pub fn export(
    container: &Container,
    directory: &Path,
    output: &Path,
    dtype: Exported,
    force: bool,
    mut on_tensor: impl FnMut(&str, usize),
) -> Result<u64, ImportError> {
    if output.exists() && !force {
        return Err(ImportError::Exists { path: output.to_owned() });
    }
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

    let partial = with_extension(output, "partial");
    remove_directory(&partial)?;
    fs::create_dir_all(&partial).map_err(write_error(&partial))?;
    let bytes = (size_of::<u64>() + header.len() + at) as u64;
    require_space(&partial, bytes)?;
    let path = partial.join("model.safetensors");
    let failed = write_error(&path);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(&failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
    file.write_all(&header).map_err(&failed)?;
    for name in container.names() {
        let written = write_tensor(container, name, dtype, &mut file).map_err(&failed)?;
        container.forget(name);
        on_tensor(name, written);
    }
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(&failed)?;
    copy_files(directory, &partial)?;
    put_in_place(&partial, output)?;
    Ok(bytes)
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
