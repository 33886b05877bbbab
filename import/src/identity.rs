//! Which weights a model computes with, as one hash: for files that are valid for those weights only.

use crate::{Checkpoint, Container};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;

impl Checkpoint {
    /// SHA-256 over the SHA-256 of every file. Reads all of them, side by side.
    pub fn sha256(&self) -> [u8; 32] {
        let files: Vec<_> = self.files().collect();
        let hashes: Vec<_> = files.into_par_iter().map(|(path, bytes)| self.hash_file(path, bytes, |_| ())).collect();
        hashes.iter().fold(Sha256::new(), |all, hash| all.chain_update(hash)).finalize().into()
    }

    /// SHA-256 of a file of [`files`](Self::files), whose pages are dropped behind the reader. `on_block` is called with
    /// the bytes of each block read.
    pub(crate) fn hash_file(&self, path: &Path, bytes: &[u8], mut on_block: impl FnMut(u64)) -> [u8; 32] {
        /// Read at a time.
        const BLOCK: usize = 16 << 20;
        let mut hash = Sha256::new();
        for block in bytes.chunks(BLOCK) {
            hash.update(block);
            self.forget_bytes(path, block);
            on_block(block.len() as u64);
        }
        hash.finalize().into()
    }
}

impl Container {
    /// SHA-256 over names, formats, constants and checksums of all tensors as the manifest records them, and over the
    /// formats that they are read in ([`Container::at_depth`]). Reads no tensor.
    pub fn sha256(&self) -> [u8; 32] {
        let formats: Vec<String> = self.formats().map(|format| format.to_string()).collect();
        let text = json!({ "tensors": self.manifest().tensors, "formats": formats }).to_string();
        Sha256::digest(text).into()
    }
}
