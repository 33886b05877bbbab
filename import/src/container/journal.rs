//! The journal of a conversion, by which an interrupted one goes on.

use super::{TensorInfo, layout::Layout};
use crate::{ImportError, output::write_error};
use qins_codec::WorstRow;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::Path,
};

/// Finished tensors, a line of JSON each, after a line that says what is being made.
pub(super) const JOURNAL: &str = "journal.jsonl";

/// The first line of the journal: another source, policy or version cannot be resumed.
#[derive(PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) header_sha256: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) name: String,
    pub(super) info: TensorInfo,
    #[serde(default)]
    pub(super) worst_row: Option<WorstRow>,
}

/// Whether the journal names a finished tensor.
pub(super) fn has_lines(journal: &Path) -> bool {
    fs::read_to_string(journal).is_ok_and(|text| text.lines().count() > 1)
}

/// Opens the journal for more lines, and reads those of an earlier run of the same plan.
pub(super) fn open_journal(path: &Path, plan: &Plan, tensors: &[Layout]) -> Result<(File, Vec<Finished>), ImportError> {
    let failed = write_error(path);
    let mut file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(&failed)?;
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
        for tensor in tensors {
            match serde_json::from_str::<Finished>(if next(&mut line) { &line } else { "" }) {
                Ok(entry) if entry.name == tensor.name => finished.push(entry),
                _ => break,
            }
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
