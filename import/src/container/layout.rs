//! Where tensors stand in a container's file, and the header that says so.

use super::{
    ALIGNMENT, CONTAINER_VERSION, CodeConstants, FIRST_CONTAINER_VERSION, MANIFEST, Manifest, PARTS, TensorInfo, planes,
};
use qins_codec::{Deviation, Encoded, Format, Header, HeaderError, matrix_shape};
use serde_json::{Value, json};

/// Where a tensor stands in the file.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// `None` for floats as they are.
    pub(crate) format: Option<Format>,
    pub(crate) cached: bool,
    /// Whether rows have bases that the format does not ask for.
    pub(super) row_bases: bool,
    /// As safetensors knows it: name, type, shape, bytes.
    entries: Vec<(String, &'static str, Vec<usize>, usize)>,
    /// Bytes from the start of the data.
    start: usize,
}

impl Layout {
    /// `row_bases`: as the encoded tensor's header says. `plain`: safetensors' name and the bytes of a weight, for a
    /// tensor without a format.
    pub(crate) fn new(
        name: &str,
        shape: &[usize],
        format: Option<Format>,
        row_bases: bool,
        plain: (&'static str, usize),
    ) -> Result<Self, HeaderError> {
        let weights = shape.iter().product::<usize>();
        let entries = match format {
            Some(format) if !format.is_raw() => {
                let (rows, cols) =
                    matrix_shape(shape).ok_or(HeaderError::TooLarge { rows: usize::MAX, cols: usize::MAX })?;
                let header = Header { format, rows, cols, base: 0.0, k: 0.0, row_bases };
                header.validate()?;
                let sizes = [header.code_bytes(), header.scale_bytes()].map(|n| n.next_multiple_of(ALIGNMENT));
                let entry = |(part, bytes): (&str, usize)| (format!("{name}{part}"), "U8", vec![bytes], bytes);
                PARTS.into_iter().zip(sizes).map(entry).collect()
            }
            Some(Format::F16) => vec![(name.to_owned(), "F16", shape.to_vec(), 2 * weights)],
            Some(_) => vec![(name.to_owned(), "BF16", shape.to_vec(), 2 * weights)],
            None => vec![(name.to_owned(), plain.0, shape.to_vec(), plain.1 * weights)],
        };
        Ok(Self { name: name.to_owned(), shape: shape.to_vec(), format, cached: false, row_bases, entries, start: 0 })
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.3).sum()
    }

    /// The tensor in the manifest.
    pub(crate) fn info(&self, code: Option<CodeConstants>, sha256: String) -> TensorInfo {
        let format = self.format.map_or_else(|| self.entries[0].1.to_lowercase(), |format| format.name().to_owned());
        TensorInfo { format, shape: self.shape.clone(), cached: self.cached, code, sha256 }
    }

    /// The bytes of an encoded tensor as they stand in the file.
    pub(crate) fn write_encoded<E>(
        &self,
        encoded: &Encoded,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let &Header { format, cols, .. } = encoded.header();
        if !format.is_raw() {
            for (bytes, entry) in [encoded.codes(), encoded.scales()].into_iter().zip(&self.entries) {
                write(bytes)?;
                write(&[0; ALIGNMENT][..entry.3 - bytes.len()])?;
            }
            return Ok(());
        }
        // Rows are padded to words in memory, and not in the file.
        let (row, padded) = (cols * format.code_bits() / 8, format.code_bytes(cols));
        if row == padded {
            write(encoded.codes())
        } else {
            encoded.codes().chunks(padded.max(1)).try_for_each(|codes| write(&codes[..row]))
        }
    }
}

/// Puts tensors in their order: coded ones first, whose lengths are multiples of the alignment; vectors, whose lengths
/// may be odd, last.
pub(crate) fn arrange(tensors: &mut [Layout]) {
    tensors.sort_by_key(|t| (t.entries.len() == 1, t.shape.len() < 2, t.name.clone()));
    let mut start = 0;
    for tensor in tensors {
        tensor.start = start;
        start += tensor.bytes();
    }
}

/// The version of a container of these tensors.
pub(crate) fn version(tensors: &[Layout]) -> u32 {
    if tensors.iter().any(|tensor| tensor.row_bases) { CONTAINER_VERSION } else { FIRST_CONTAINER_VERSION }
}

/// The constants of a coded tensor for the manifest.
pub(crate) fn constants(header: &Header, deviation: Option<Deviation>) -> CodeConstants {
    CodeConstants {
        base: header.base,
        row_bases: header.row_bases,
        k: header.k,
        planes: planes(header.format),
        sqnr_db: deviation.and_then(|d| d.sqnr_db).map(|db| db as f32),
        max_abs_error: deviation.map(|d| d.max_abs_error as f32),
    }
}

/// The length of a header, padding included, after which data starts at a multiple of the alignment.
pub(crate) fn header_room(length: usize) -> usize {
    (size_of::<u64>() + length).next_multiple_of(ALIGNMENT) - size_of::<u64>()
}

/// The safetensors header with its metadata.
pub(crate) fn header(tensors: &[Layout], manifest: &Manifest) -> Vec<u8> {
    let manifest = serde_json::to_string(manifest).expect("strings and numbers");
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "qins", MANIFEST: manifest }));
    for tensor in tensors {
        let mut at = tensor.start;
        for (name, dtype, shape, bytes) in &tensor.entries {
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes] });
            header.insert(name.clone(), entry);
            at += bytes;
        }
    }
    Value::from(header).to_string().into_bytes()
}

/// With every number as long as it can be.
pub(super) fn longest_info(tensor: &Layout) -> TensorInfo {
    const LONGEST: f32 = -1.234_567_9e-38;
    let constants = CodeConstants {
        base: LONGEST,
        row_bases: tensor.row_bases,
        k: -f64::MIN_POSITIVE,
        planes: vec![u8::MAX; tensor.format.map_or(1, Format::planes)],
        sqnr_db: Some(LONGEST),
        max_abs_error: Some(LONGEST),
    };
    let code = (tensor.entries.len() > 1).then_some(constants);
    tensor.info(code, "0".repeat(64))
}
