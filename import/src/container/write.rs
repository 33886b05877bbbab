//! The streaming writer: one tensor in memory at a time, resumed where it was interrupted.

use super::{
    ALIGNMENT, CONTAINER_FILE, CONTAINER_VERSION, CodeConstants, MANIFEST, Manifest, PARTS, SourceFile, TensorInfo,
    hexadecimal,
};
use crate::{Checkpoint, ImportError};
use qins_codec::{Deviation, Encoded, Format, Header, encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Files of a model directory that a container takes over as they are.
const COPIED: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
];

/// Finished tensors, a line of JSON each, after a line that says what is being made.
const JOURNAL: &str = "journal.jsonl";

/// What a tensor shall become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its format; `None` keeps its bits.
    pub format: Option<Format>,
}

/// What a conversion reports.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// So many bytes more of the source were read for its hash.
    Hashed(u64),
    /// An earlier run had finished this tensor.
    Kept(&'a str, &'a TensorInfo),
    /// A tensor is written.
    Wrote(&'a str, &'a TensorInfo),
}

/// What a conversion made.
#[derive(Debug, Clone)]
pub struct Converted {
    /// As the container says it.
    pub manifest: Manifest,
    /// Size of `qins.safetensors`.
    pub bytes: u64,
}

/// A conversion that is about to begin: everything is checked, nothing is written.
#[derive(Debug)]
pub struct Converter<'a> {
    source: &'a Path,
    checkpoint: &'a Checkpoint,
    output: PathBuf,
    policy: String,
    tensors: Vec<Layout>,
    force: bool,
}

/// Where a tensor stands in the file.
#[derive(Debug)]
struct Layout {
    planned: Planned,
    /// As safetensors knows it: name, type, shape, bytes.
    entries: Vec<(String, &'static str, Vec<usize>, usize)>,
    /// Bytes from the start of the data.
    start: usize,
}

impl Layout {
    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.3).sum()
    }
}

/// The first line of the journal: another source, policy or version cannot be resumed.
#[derive(PartialEq, Serialize, Deserialize)]
struct Plan {
    header_sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Finished {
    name: String,
    info: TensorInfo,
}

impl<'a> Converter<'a> {
    /// Plans the conversion of a checkpoint in the directory `source` to the container `output`; `policy` is recorded.
    ///
    /// # Errors
    /// If a planned tensor is missing or no float, or if `output` exists, unless `force` allows to replace it.
    pub fn new(
        source: &'a Path,
        checkpoint: &'a Checkpoint,
        output: &Path,
        planned: Vec<Planned>,
        policy: String,
        force: bool,
    ) -> Result<Self, ImportError> {
        if output.exists() && !force {
            return Err(ImportError::Exists { path: output.to_owned() });
        }
        let mut tensors: Vec<Layout> =
            planned.into_iter().map(|planned| layout(checkpoint, planned)).collect::<Result<_, _>>()?;
        // Coded tensors first, whose lengths are multiples of the alignment; vectors, whose lengths may be odd, last.
        tensors.sort_by_key(|t| (t.entries.len() == 1, t.entries[0].2.len() < 2, t.planned.name.clone()));
        let mut start = 0;
        for tensor in &mut tensors {
            tensor.start = start;
            start += tensor.bytes();
        }
        Ok(Self { source, checkpoint, output: output.to_owned(), policy, tensors, force })
    }

    /// Bytes of all tensors in the container.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes() as u64).sum()
    }

    /// Writes `<output>.partial`, going on where an earlier run of the same conversion was interrupted, and gives it its
    /// name when it is whole. Killed at any moment, it leaves nothing under the name of the output.
    pub fn run(self, mut on_step: impl FnMut(Step<'_>)) -> Result<Converted, ImportError> {
        let sources = self.hash_sources(&mut on_step)?;
        let mut manifest = Manifest {
            version: CONTAINER_VERSION,
            producer: concat!("qins-import ", env!("CARGO_PKG_VERSION")).to_owned(),
            policy: self.policy.clone(),
            sources,
            revision: revision(self.source),
            tensors: BTreeMap::new(),
        };
        // The header's length is that with the longest numbers.
        manifest.tensors = self.tensors.iter().map(|t| (t.planned.name.clone(), self.longest_info(t))).collect();
        let longest = self.header(&manifest);
        let reserved = (size_of::<u64>() + longest.len()).next_multiple_of(ALIGNMENT) - size_of::<u64>();
        manifest.tensors.clear();

        let partial = with_extension(&self.output, "partial");
        fs::create_dir_all(&partial).map_err(write_error(&partial))?;
        let plan = Plan { header_sha256: hexadecimal(Sha256::digest(&longest)) };
        let (mut journal, finished) = open_journal(&partial.join(JOURNAL), &plan)?;
        let data = partial.join(CONTAINER_FILE);
        let failed = write_error(&data);
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&data).map_err(&failed)?;
        let done = &self.tensors[..finished.len().min(self.tensors.len())];
        let start = (size_of::<u64>() + reserved) as u64;
        let end = start + done.iter().map(|t| t.bytes() as u64).sum::<u64>();
        require_space(&partial, start + self.bytes() - end)?;
        file.set_len(end).map_err(&failed)?;
        file.seek(SeekFrom::Start(end)).map_err(&failed)?;
        for Finished { name, info } in finished {
            on_step(Step::Kept(&name, &info));
            manifest.tensors.insert(name, info);
        }
        for tensor in &self.tensors[done.len()..] {
            let info = self.write_tensor(tensor, &mut file, &failed)?;
            file.sync_data().map_err(&failed)?;
            let finished = Finished { name: tensor.planned.name.clone(), info };
            let line = serde_json::to_string(&finished).expect("strings and numbers") + "\n";
            journal.write_all(line.as_bytes()).and_then(|()| journal.sync_data()).map_err(write_error(&partial))?;
            on_step(Step::Wrote(&finished.name, &finished.info));
            manifest.tensors.insert(finished.name, finished.info);
        }

        let mut header = self.header(&manifest);
        assert!(header.len() <= reserved, "the header fits the room reserved for the longest");
        header.resize(reserved, b' ');
        file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        file.write_all(&(reserved as u64).to_le_bytes()).map_err(&failed)?;
        file.write_all(&header).map_err(&failed)?;
        file.sync_all().map_err(&failed)?;
        let bytes = file.metadata().map_err(&failed)?.len();
        copy_files(self.source, &partial)?;
        drop(journal);
        fs::remove_file(partial.join(JOURNAL)).map_err(write_error(&partial))?;
        if self.force {
            remove_directory(&self.output)?;
        }
        fs::rename(&partial, &self.output).map_err(write_error(&self.output))?;
        Ok(Converted { manifest, bytes })
    }

    /// The safetensors header with its metadata.
    fn header(&self, manifest: &Manifest) -> Vec<u8> {
        let manifest = serde_json::to_string(manifest).expect("strings and numbers");
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".to_owned(), json!({ "format": "qins", MANIFEST: manifest }));
        for tensor in &self.tensors {
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
    fn longest_info(&self, tensor: &Layout) -> TensorInfo {
        const LONGEST: f32 = -1.234_567_9e-38;
        let constants = CodeConstants {
            base: LONGEST,
            k: -f64::MIN_POSITIVE,
            planes: vec![8],
            sqnr_db: Some(LONGEST),
            max_abs_error: LONGEST,
        };
        let shape = self.checkpoint.tensor(&tensor.planned.name).map(|t| t.shape().to_vec()).unwrap_or_default();
        let code = tensor.planned.format.is_some_and(|f| !f.is_raw()).then_some(constants);
        TensorInfo { format: format_name(tensor), shape, code, sha256: "0".repeat(64) }
    }

    fn write_tensor(
        &self,
        tensor: &Layout,
        file: &mut File,
        failed: &impl Fn(std::io::Error) -> ImportError,
    ) -> Result<TensorInfo, ImportError> {
        let name = &tensor.planned.name;
        let source = self.checkpoint.tensor(name)?;
        let encoded = |format| {
            encode(format, &source).map_err(|source| ImportError::Encode {
                file: self.checkpoint.file_of(name),
                tensor: name.clone(),
                source,
            })
        };
        let mut hash = Sha256::new();
        let mut write = |bytes: &[u8]| {
            hash.update(bytes);
            file.write_all(bytes).map_err(failed)
        };
        let mut code = None;
        match tensor.planned.format {
            Some(format) if !format.is_raw() => {
                let encoded: Encoded = encoded(format)?;
                for (bytes, entry) in [encoded.codes(), encoded.scales()].into_iter().zip(&tensor.entries) {
                    write(bytes)?;
                    write(&[0; ALIGNMENT][..entry.3 - bytes.len()])?;
                }
                let Deviation { sqnr_db, max_abs_error, .. } = Deviation::of(&encoded.matrix(), &source);
                let &Header { base, k, .. } = encoded.header();
                let (sqnr_db, max_abs_error) = (sqnr_db.map(|db| db as f32), max_abs_error as f32);
                code = Some(CodeConstants { base, k, planes: vec![8], sqnr_db, max_abs_error });
            }
            Some(format) => {
                // Rows are padded to words in memory, and not in the file.
                let encoded: Encoded = encoded(format)?;
                let (row, padded) = (encoded.header().cols * 2, format.code_bytes(encoded.header().cols));
                if row == padded {
                    write(encoded.codes())?;
                } else {
                    encoded.codes().chunks(padded.max(1)).try_for_each(|codes| write(&codes[..row]))?;
                }
            }
            None => {
                self.check_finite(name)?;
                write(source.raw_bytes())?;
            }
        }
        self.checkpoint.forget(name);
        let info = TensorInfo {
            format: format_name(tensor),
            shape: source.shape().to_vec(),
            code,
            sha256: hexadecimal(hash.finalize()),
        };
        Ok(info)
    }

    /// Floats that are kept are checked as those that are encoded.
    fn check_finite(&self, name: &str) -> Result<(), ImportError> {
        let tensor = self.checkpoint.tensor(name)?;
        tensor.require_finite().map_err(|source| ImportError::Encode {
            file: self.checkpoint.file_of(name),
            tensor: name.to_owned(),
            source,
        })
    }

    fn hash_sources(&self, on_step: &mut impl FnMut(Step<'_>)) -> Result<Vec<SourceFile>, ImportError> {
        let hash = |(path, bytes): (&Path, &[u8])| {
            /// Read at a time.
            const BLOCK: usize = 16 << 20;
            let mut hash = Sha256::new();
            for block in bytes.chunks(BLOCK) {
                hash.update(block);
                self.checkpoint.forget_bytes(path, block);
                on_step(Step::Hashed(block.len() as u64));
            }
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            SourceFile { file, bytes: bytes.len() as u64, sha256: hexadecimal(hash.finalize()) }
        };
        Ok(self.checkpoint.files().map(hash).collect())
    }
}

/// Takes over what is no weight.
pub(super) fn copy_files(from: &Path, to: &Path) -> Result<(), ImportError> {
    for name in COPIED {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_file() {
            let bytes = fs::read(&from).map_err(|source| ImportError::Open { file: from, source })?;
            // Not its permissions: a copy that cannot be written could not be written again.
            fs::write(&to, bytes).map_err(write_error(&to))?;
        }
    }
    Ok(())
}

/// Fails where a file system tells that it has less.
pub(super) fn require_space(directory: &Path, needed: u64) -> Result<(), ImportError> {
    match fs4::available_space(directory) {
        Ok(available) if available < needed => {
            Err(ImportError::NoSpace { directory: directory.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

fn layout(checkpoint: &Checkpoint, planned: Planned) -> Result<Layout, ImportError> {
    let tensor = checkpoint.tensor(&planned.name)?;
    let (name, shape) = (&planned.name, tensor.shape().to_vec());
    let entries = match planned.format {
        Some(format) if !format.is_raw() => {
            let [rows, cols] = tensor.matrix_shape();
            let header = Header { format, rows, cols, base: 0.0, k: 0.0 };
            header.validate().map_err(|source| ImportError::Encode {
                file: checkpoint.file_of(name),
                tensor: name.clone(),
                source: source.into(),
            })?;
            let sizes = [header.code_bytes(), header.scale_bytes()].map(|n| n.next_multiple_of(ALIGNMENT));
            let entry = |(part, bytes): (&str, usize)| (format!("{name}{part}"), "U8", vec![bytes], bytes);
            PARTS.into_iter().zip(sizes).map(entry).collect()
        }
        Some(format) => {
            let bytes = shape.iter().product::<usize>() * 2;
            let dtype = if format == Format::F16 { "F16" } else { "BF16" };
            vec![(name.clone(), dtype, shape, bytes)]
        }
        None => vec![(name.clone(), tensor.dtype_name(), shape, tensor.bytes())],
    };
    Ok(Layout { planned, entries, start: 0 })
}

fn format_name(tensor: &Layout) -> String {
    tensor.planned.format.map_or_else(|| tensor.entries[0].1.to_lowercase(), |format| format.name().to_owned())
}

/// The commit in a path of Hugging Face's cache, `.../snapshots/<commit>`.
fn revision(source: &Path) -> Option<String> {
    let source = source.canonicalize().ok()?;
    let parent = source.parent()?.file_name()?;
    (parent == "snapshots").then(|| source.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// Opens the journal for more lines, and reads those of an earlier run of the same plan.
fn open_journal(path: &Path, plan: &Plan) -> Result<(File, Vec<Finished>), ImportError> {
    let failed = write_error(path);
    let mut file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(&failed)?;
    if file.try_lock().is_err() {
        return Err(ImportError::Busy { path: path.to_owned() });
    }
    let mut reader = BufReader::new(&file);
    let mut line = String::new();
    // A line that was cut off does not count.
    let mut next = |line: &mut String| {
        line.clear();
        reader.read_line(line).is_ok_and(|n| n > 0 && line.ends_with('\n'))
    };
    let mut finished: Vec<Finished> = Vec::new();
    let mut whole = 0;
    if next(&mut line) && serde_json::from_str::<Plan>(&line).is_ok_and(|found| found == *plan) {
        whole += line.len();
        while next(&mut line) {
            let Ok(entry) = serde_json::from_str(&line) else { break };
            finished.push(entry);
            whole += line.len();
        }
    }
    file.set_len(whole as u64).map_err(&failed)?;
    file.seek(SeekFrom::End(0)).map_err(&failed)?;
    if whole == 0 {
        let line = serde_json::to_string(plan).expect("a string") + "\n";
        file.write_all(line.as_bytes()).map_err(&failed)?;
    }
    Ok((file, finished))
}

pub(super) fn with_extension(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

pub(super) fn remove_directory(path: &Path) -> Result<(), ImportError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn write_error(path: &Path) -> impl Fn(std::io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Write { path: path.clone(), source }
}
