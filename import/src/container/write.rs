//! The streaming writer: one tensor in memory at a time, resumed where it was interrupted.

use super::{
    CONTAINER_FILE, CodeConstants, Manifest, PRODUCER, SourceFile, TensorInfo, files, hexadecimal,
    journal::{Finished, JOURNAL, Plan, has_lines, open_journal},
    layout::{Layout, arrange, constants, header, header_room, longest_info, version},
};
use crate::{
    Checkpoint, ImportError,
    output::{Output, require_space, write_error},
};
use qins_codec::{Deviation, EncodeError, Encoded, Format, WorstRow, encode, needs_row_bases};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::mpsc,
};

/// What a tensor shall become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its format; `None` keeps its bits.
    pub format: Option<Format>,
    /// Whether it is kept decoded, too, when the container is loaded.
    pub cached: bool,
}

/// What a conversion reports.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// So many bytes more of the source were read for its hash.
    Hashed(u64),
    /// An earlier run had finished this tensor, whose worst row was this.
    Kept(&'a str, &'a TensorInfo, Option<WorstRow>),
    /// A tensor is written, whose worst row is this.
    Wrote(&'a str, &'a TensorInfo, Option<WorstRow>),
}

/// What a conversion made.
#[derive(Debug, Clone)]
pub struct Converted {
    /// As the container says it.
    pub manifest: Manifest,
    /// Size of `qins.safetensors`.
    pub bytes: u64,
    /// The worst row of each tensor that lost anything.
    pub worst_rows: BTreeMap<String, WorstRow>,
}

/// A conversion that is about to begin: everything is checked, nothing is written.
#[derive(Debug)]
pub struct Converter<'a> {
    source: &'a Path,
    checkpoint: &'a Checkpoint,
    output: Output,
    policy: String,
    tensors: Vec<Layout>,
}

/// A tensor about to be written.
struct Made {
    /// `None` for one that keeps its bits.
    encoded: Option<Encoded>,
    code: Option<CodeConstants>,
    worst_row: Option<WorstRow>,
}

impl<'a> Converter<'a> {
    /// Plans the conversion of a checkpoint in the directory `source` to the container `output`; `policy` is recorded. Weights
    /// are read once, because their range decides how many bytes they take.
    ///
    /// # Errors
    /// If a planned tensor is missing, no float or holds weights that cannot be encoded, or if `output` exists, unless
    /// `force` allows to replace it: a container or an export that is as it was written, which does not hold the source
    /// ([`ImportError::Refused`]).
    pub fn new(
        source: &'a Path,
        checkpoint: &'a Checkpoint,
        output: &Path,
        planned: Vec<Planned>,
        policy: String,
        force: bool,
    ) -> Result<Self, ImportError> {
        let inputs: Vec<&Path> = [source].into_iter().chain(checkpoint.files().map(|(path, _)| path)).collect();
        let output = Output::check(output, &inputs, force)?;
        let layout = |Planned { name, format, cached }: Planned| {
            let tensor = checkpoint.tensor(&name)?;
            let plain = (tensor.dtype_name(), tensor.bytes() / tensor.shape().iter().product::<usize>().max(1));
            let layout = || {
                let row_bases = format.map_or(Ok(false), |format| needs_row_bases(format, &tensor))?;
                checkpoint.forget(&name);
                let mut layout = Layout::new(&name, tensor.shape(), format, row_bases, plain)?;
                layout.cached = cached;
                Ok(layout)
            };
            layout().map_err(|source: EncodeError| {
                let (file, tensor) = (checkpoint.file_of(&name), name.clone());
                ImportError::Encode { file, tensor, source }
            })
        };
        let mut tensors: Vec<Layout> = planned.into_iter().map(layout).collect::<Result<_, _>>()?;
        arrange(&mut tensors);
        Ok(Self { source, checkpoint, output, policy, tensors })
    }

    /// Bytes of all tensors in the container.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes() as u64).sum()
    }

    /// Where it is written until it is whole: `<output>.partial`.
    pub fn partial(&self) -> PathBuf {
        self.output.partial()
    }

    /// Writes `<output>.partial`, going on where an earlier run of the same conversion was interrupted, and gives it its
    /// name when it is whole. Killed at any moment, it leaves nothing under the name of the output but what was there.
    pub fn run(self, mut on_step: impl FnMut(Step<'_>)) -> Result<Converted, ImportError> {
        let beside = files::beside_weights(self.source)?;
        let sources = self.hash_sources(&mut on_step);
        let names: Vec<&str> = beside.iter().map(String::as_str).chain([CONTAINER_FILE, JOURNAL]).collect();
        let partial = self.output.begin(&names)?;
        match self.write_to(partial.path(), &beside, sources, on_step) {
            Ok(converted) => {
                partial.finish(Some(JOURNAL))?;
                Ok(converted)
            }
            // What is finished is kept for the next run, where there is anything to go on with.
            Err(error @ ImportError::Write { .. }) if has_lines(&partial.path().join(JOURNAL)) => Err(error),
            Err(error) => {
                partial.discard()?;
                Err(error)
            }
        }
    }

    fn write_to(
        &self,
        partial: &Path,
        beside: &[String],
        sources: Vec<SourceFile>,
        mut on_step: impl FnMut(Step<'_>),
    ) -> Result<Converted, ImportError> {
        let mut manifest = Manifest {
            version: version(&self.tensors),
            producer: PRODUCER.to_owned(),
            policy: self.policy.clone(),
            sources,
            revision: revision(self.source),
            tensors: BTreeMap::new(),
        };
        // The header's length is that with the longest numbers.
        manifest.tensors = self.tensors.iter().map(|t| (t.name.clone(), longest_info(t))).collect();
        let longest = header(&self.tensors, &manifest);
        let reserved = header_room(longest.len());
        manifest.tensors.clear();

        let plan = Plan { header_sha256: hexadecimal(Sha256::digest(&longest)) };
        let (mut journal, finished) = open_journal(&partial.join(JOURNAL), &plan, &self.tensors)?;
        let data = partial.join(CONTAINER_FILE);
        let failed = write_error(&data);
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&data).map_err(&failed)?;
        let done = &self.tensors[..finished.len()];
        let start = (size_of::<u64>() + reserved) as u64;
        let end = start + done.iter().map(|t| t.bytes() as u64).sum::<u64>();
        require_space(partial, start + self.bytes() - end)?;
        file.set_len(end).map_err(&failed)?;
        file.seek(SeekFrom::Start(end)).map_err(&failed)?;
        let mut worst_rows = BTreeMap::new();
        for Finished { name, info, worst_row } in finished {
            on_step(Step::Kept(&name, &info, worst_row));
            worst_rows.extend(worst_row.map(|row| (name.clone(), row)));
            manifest.tensors.insert(name, info);
        }
        let (converter, remaining) = (self, &self.tensors[done.len()..]);
        // A tensor is written while the next is encoded.
        std::thread::scope(|scope| {
            let (hand_over, made) = mpsc::sync_channel(0);
            scope.spawn(move || {
                for tensor in remaining {
                    if hand_over.send(converter.make(tensor)).is_err() {
                        break;
                    }
                }
            });
            for tensor in remaining {
                let made = made.recv().expect("one for each tensor")?;
                let worst_row = made.worst_row;
                let info = self.write(tensor, made, &mut file).map_err(&failed)?;
                file.sync_data().map_err(&failed)?;
                let finished = Finished { name: tensor.name.clone(), info, worst_row };
                let line = serde_json::to_string(&finished).expect("strings and numbers") + "\n";
                journal.write_all(line.as_bytes()).and_then(|()| journal.sync_data()).map_err(write_error(partial))?;
                on_step(Step::Wrote(&finished.name, &finished.info, worst_row));
                worst_rows.extend(worst_row.map(|row| (finished.name.clone(), row)));
                manifest.tensors.insert(finished.name, finished.info);
            }
            Ok::<(), ImportError>(())
        })?;

        let mut header = header(&self.tensors, &manifest);
        assert!(header.len() <= reserved, "the header fits the room reserved for the longest");
        header.resize(reserved, b' ');
        file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        file.write_all(&(reserved as u64).to_le_bytes()).map_err(&failed)?;
        file.write_all(&header).map_err(&failed)?;
        file.sync_all().map_err(&failed)?;
        let bytes = file.metadata().map_err(&failed)?.len();
        files::copy(beside, self.source, partial, |_, bytes| bytes)?;
        Ok(Converted { manifest, bytes, worst_rows })
    }

    /// Encodes a tensor, or checks one that keeps its bits.
    fn make(&self, tensor: &Layout) -> Result<Made, ImportError> {
        let source = self.checkpoint.tensor(&tensor.name)?;
        let made = match tensor.format {
            Some(format) => encode(format, &source).map(|encoded| {
                let measured = (!format.is_raw()).then(|| Deviation::of(&encoded.matrix(), &source));
                Made {
                    code: measured.map(|measured| constants(encoded.header(), Some(measured))),
                    worst_row: measured.and_then(|measured| measured.worst_row),
                    encoded: Some(encoded),
                }
            }),
            None => source.require_finite().map(|()| Made { encoded: None, code: None, worst_row: None }),
        };
        let (file, name) = (self.checkpoint.file_of(&tensor.name), tensor.name.clone());
        let made = match made {
            Ok(made) => made,
            Err(source) => return Err(ImportError::Encode { file, tensor: name, source }),
        };
        match &made.encoded {
            // Room was planned by the same rule.
            Some(encoded) if encoded.header().row_bases != tensor.row_bases => {
                Err(ImportError::Changed { file, tensor: name })
            }
            _ => Ok(made),
        }
    }

    fn write(&self, tensor: &Layout, made: Made, file: &mut File) -> std::io::Result<TensorInfo> {
        let mut hash = Sha256::new();
        let mut write = |bytes: &[u8]| {
            hash.update(bytes);
            file.write_all(bytes)
        };
        match &made.encoded {
            Some(encoded) => tensor.write_encoded(encoded, write)?,
            None => write(self.checkpoint.tensor(&tensor.name).expect("made before").raw_bytes())?,
        }
        self.checkpoint.forget(&tensor.name);
        Ok(tensor.info(made.code, hexadecimal(hash.finalize())))
    }

    /// The files of the source, read side by side. Progress is reported on the thread that calls.
    fn hash_sources(&self, on_step: &mut impl FnMut(Step<'_>)) -> Vec<SourceFile> {
        let (sender, hashed) = mpsc::channel();
        let hash = |sender: &mut mpsc::Sender<u64>, (path, bytes): (&Path, &[u8])| {
            let sha256 = self.checkpoint.hash_file(path, bytes, |read| {
                // Nobody receives once the callback has panicked.
                let _ = sender.send(read);
            });
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            SourceFile { file, bytes: bytes.len() as u64, sha256: hexadecimal(sha256) }
        };
        let files: Vec<_> = self.checkpoint.files().collect();
        std::thread::scope(|scope| {
            let hashes = scope.spawn(|| files.into_par_iter().map_with(sender, hash).collect());
            hashed.iter().for_each(|bytes| on_step(Step::Hashed(bytes)));
            hashes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The commit in a path of Hugging Face's cache, `.../snapshots/<commit>`.
fn revision(source: &Path) -> Option<String> {
    let source = source.canonicalize().ok()?;
    let parent = source.parent()?.file_name()?;
    (parent == "snapshots").then(|| source.file_name().unwrap_or_default().to_string_lossy().into_owned())
}
