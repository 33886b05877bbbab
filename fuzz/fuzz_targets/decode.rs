//! Any bytes as codes, scale codes and constants of any format: refused, or decoded within their bounds.
//!
//!     cargo +nightly fuzz run decode -- -max_total_time=600
#![no_main]

use libfuzzer_sys::fuzz_target;
use qins_codec::{Decoder, Format, Header};

fuzz_target!(|data: &[u8]| {
    let Some((&[format, row_bases, rows, cols, base @ ..], rest)) = data.split_first_chunk::<8>() else { return };
    let Some((k, bytes)) = rest.split_first_chunk::<8>() else { return };
    let header = Header {
        format: Format::ALL[usize::from(format) % Format::ALL.len()],
        rows: usize::from(rows) % 9,
        cols: usize::from(cols),
        base: f32::from_le_bytes(base),
        k: f64::from_le_bytes(*k),
        row_bases: row_bases % 2 == 1,
    };
    let Ok(decoder) = Decoder::new(header) else { return };
    // Buffers end where they must: a read beyond them is seen by the sanitizer.
    let (codes, scales) = bytes.split_at(bytes.len().min(header.code_bytes()));
    let exact = |bytes: &[u8], length: usize| {
        let mut exact = bytes.to_vec();
        exact.resize(length, 0xA5);
        exact.into_boxed_slice()
    };
    assert!(codes.len() == header.code_bytes() || decoder.matrix(codes, scales).is_err());
    let (codes, scales) = (exact(codes, header.code_bytes()), exact(scales, header.scale_bytes()));
    let matrix = decoder.matrix(&codes, &scales).expect("lengths are the header's");
    let decoded = matrix.decode();
    assert_eq!(decoded.len(), header.rows * header.cols);
    let x = vec![1.0; 2 * header.cols];
    assert_eq!(matrix.matmul(&x, 2).len(), 2 * header.rows);
});
