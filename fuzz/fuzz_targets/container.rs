//! Any bytes as a container's file: opened, verified, and every tensor decoded, or refused.
//!
//!     cargo +nightly fuzz run container fuzz/corpus/container fuzz/seeds/container -- -max_total_time=600
#![no_main]

use libfuzzer_sys::fuzz_target;
use qins_codec::{Decoder, Weights};
use qins_import::container::{Container, Stored};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let bytes = bytes::Bytes::copy_from_slice(data);
    let Ok(container) = Container::from_bytes(bytes, Path::new("container")) else { return };
    let _ = container.verify(|_, _| ());
    for name in container.names() {
        match container.tensor(name).expect("a name of the container") {
            Stored::Coded(header, codes, scales) => {
                let decoder = Decoder::new(header).expect("checked when opened");
                let matrix = decoder.matrix(codes, scales).expect("checked when opened");
                let mut row = vec![0.0; header.cols];
                (0..header.rows.min(16)).for_each(|i| matrix.decode_row(i, &mut row));
            }
            Stored::Plain(tensor) => assert_eq!(tensor.to_f32().len(), tensor.rows() * tensor.cols()),
        }
    }
});
