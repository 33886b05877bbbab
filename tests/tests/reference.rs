//! The codec against the normative reference (python3 with numpy), and against its floors on trained weights.

use qins_codec::{Decoder, Encoded, Format, Header, K_GRID, OCTAVES, Slice, encode};
use qins_import::Checkpoint;
use qins_tests::{Random, shared, skip};
use std::{path::Path, process::Command};

/// Decodes with the reference, and encodes with it for comparison: prints its squared error of every row. The reference has no
/// equal steps: of them, the rule stands here.
const SCRIPT: &str = r#"
import sys, json, numpy as np
sys.path.insert(0, sys.argv[1])
import qins_reference as ref
h = json.load(open(sys.argv[2] + "/header.json"))
load = lambda name, t: np.fromfile(sys.argv[2] + "/" + name, t)
name, rows, cols, group, bits = h["format"], h["rows"], h["cols"], h["group"], h["bits"]
groups, half, planes = -(-cols // group), 1 << (bits - 1), h["planes"]
codes = np.unpackbits(load("codes", np.uint8).reshape(planes * rows, -1), axis=1, bitorder="little")[:, :cols * bits]
codes = (codes.reshape(planes * rows, cols, bits).astype(np.int64) << np.arange(bits)).sum(2)
codes = np.pad(codes, ((0, 0), (0, groups * group - cols))).reshape(planes, rows, groups, group)
scales = load("scales", np.uint8).reshape(rows, -1)
codes = codes if planes > 1 else codes[0]
base = np.float32(h["base"])
if h["row_bases"]:
    base, scales = scales[:, :4].copy().view(np.float32), scales[:, 4:]
scales = scales.astype(np.int64)
steps = (127 - np.arange(128)) / 128
shaped = {"q6": ref.U6, "q4": ref.U4, "q3": ref.U3, "q2": ref.U2}
if name in shaped:
    base, head = scales[:, :4].astype(np.uint8).view(np.float32)[:, 0], scales[:, 4:]
    out = ref.decode_shaped(base, 1 - 2 * (head >> 7), head >> 2 & 31, head & 3, codes, shaped[name], cols)
elif planes > 1:
    out = ref.decode_fpins(base, scales, [codes[0] & 127, *codes[1:]], codes[0] >= 128, cols, h["k"])
elif name == "lin8":
    s = np.where(scales == 255, np.float32(0), ref.scale(base, scales, 1 / 32))
    out = ref.ungrouped(s[..., None] * (((codes ^ 128) - 128) / 128).astype(np.float32), cols)
else:
    table = ref.log_table(h["k"], 128) if name == "log8" else ref.projective_table(h["k"], half)
    out = ref.decode_signed(base, scales, codes & (half - 1), codes >= half, table, cols)
out.astype(np.float32).tofile(sys.argv[2] + "/decoded")
w = load("weights", np.float32).reshape(-1, cols).astype(np.float64)
trip = ref.FORMATS.get(name) or (ref.fpins(1) if name != "lin8" else lambda w: ref.best_signed(w, [steps], 32))
print(json.dumps(((trip(w) - w) ** 2).sum(1).tolist() if h["encode"] else []))
"#;

/// The formats that the script decodes.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|&format| !format.is_raw())
}

/// Writes codes for the reference to decode; returns its decoding and the squared errors of its own encoding, by row.
/// With no weights it only decodes.
fn reference(
    root: &Path,
    header: &Header,
    codes: &[u8],
    scales: &[u8],
    weights: &[f32],
) -> Option<(Vec<f32>, Vec<f64>)> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    // f32 to f64 is exact, so JSON carries the base exactly.
    let &Header { format, rows, cols, base, k, row_bases } = header;
    let json = serde_json::json!({"format": format.name(), "rows": rows, "cols": cols, "group": format.group(),
        "bits": format.code_bits(), "planes": format.planes(), "base": f64::from(base), "row_bases": row_bases, "k": k, "encode": !weights.is_empty()});
    write("header.json", json.to_string().as_bytes());
    write("codes", codes);
    write("scales", scales);
    write("weights", &weights.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
    let output = Command::new("python3").args(["-c", SCRIPT]).args([root, directory.path()]).output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("No module named 'numpy'") => {
            skip("python3 has no numpy");
            return None;
        }
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            skip("no python3");
            return None;
        }
    };
    let decoded = std::fs::read(directory.path().join("decoded")).unwrap();
    let (values, _) = decoded.as_chunks::<4>();
    let errors = serde_json::from_slice(&output.stdout).unwrap();
    Some((values.iter().map(|&v| f32::from_le_bytes(v)).collect(), errors))
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

#[test]
fn decoding_equals_the_reference_bit_for_bit_and_encoding_is_no_worse() {
    let Some(root) = shared("reference") else { return };
    let mut random = Random(3);
    for (rows, cols) in [(64, 512), (63, 512), (7, 172), (6, 172), (5, 31), (1, 1), (40, 33)] {
        let mut weights = random.weights(rows * cols, 0.02);
        // A zero row, an outlier, subnormal numbers: then rows have bases.
        weights[..cols].fill(0.0);
        if rows > 3 {
            weights[2 * cols] = 3.0;
        }
        if rows > 3 && rows % 2 == 1 {
            weights[3 * cols..4 * cols].iter_mut().for_each(|w| *w *= 1e-40);
        }
        for format in formats() {
            let encoded = encode(format, &Slice::new(&weights, rows, cols)).unwrap();
            let decoded = encoded.matrix().decode();
            let (header, codes, scales) = (encoded.header(), encoded.codes(), encoded.scales());
            let Some((expected, reference_errors)) = reference(&root, header, codes, scales, &weights) else { return };
            assert_eq!(decoded.len(), expected.len());
            for (i, (d, e)) in decoded.iter().zip(&expected).enumerate() {
                assert_eq!(d.to_bits(), e.to_bits(), "{format}, weight {i} of {rows} x {cols}: {d} against {e}");
            }
            // The reference fits a row's scales to its largest weight. Here those of 6 bits and less lie on one grid: worse
            // for a weight far above all others, the same for the rest. Where rows of other formats have bases, the law is
            // that of the other rows.
            let has_bases = header.base_bytes() > 0;
            // Among columns that are no whole groups, one weight may be a group, and as small as any.
            let expected = format.tables() > 1 || (rows > 3 && rows % 2 == 1);
            assert!(cols % 32 > 0 || has_bases == expected, "{format}, {rows} rows");
            let rows = || (0..rows).filter(|&row| !has_bases || row != 2);
            let of_row = |row: usize| squared_error(&decoded[row * cols..][..cols], &weights[row * cols..][..cols]);
            let (error, reference): (f64, f64) = (rows().map(of_row).sum(), rows().map(|r| reference_errors[r]).sum());
            // And scales of several planes are chosen by what the first loses.
            let is_otherwise = has_bases || format.planes() > 1;
            // Where rows have bases besides, so is `k`: for every row, the one with the outlier too.
            let tolerance = match (format.planes() > 1 && header.row_bases, is_otherwise) {
                (true, _) => 1.1,
                (_, true) => 1.02,
                _ => 1.0001,
            };
            if !is_otherwise || decoded.len() > 30_000 {
                assert!(error <= reference * tolerance, "{format}, {cols} columns: {error:e} against {reference:e}");
            }
        }
    }
}

#[test]
fn every_code_and_scale_code_decodes_as_in_the_reference() {
    let Some(root) = shared("reference") else { return };
    for format in formats() {
        let all = 1 << format.code_bits();
        let constants: Vec<f64> = match format {
            Format::Log8 => OCTAVES.to_vec(),
            Format::Q8 | Format::Q8h | Format::Fpins1 => K_GRID.to_vec(),
            Format::Q12 | Format::Fpins2 | Format::Fpins3 => vec![0.0, 0.5, 2.0],
            _ => vec![0.0],
        };
        for (k, row_bases) in constants.into_iter().flat_map(|k| [(k, false), (k, true)]) {
            // A row a scale code, each with all codes, every table.
            let (rows, cols) = (256, all);
            let header = Header { format, rows, cols, base: 0.123_456, k, row_bases };
            if header.validate().is_err() {
                continue;
            }
            let (row, scale_row) = (format.code_bytes(cols), header.scale_bytes_of_row());
            // Further planes hold anything.
            let mut codes: Vec<u8> = (0..header.code_bytes()).map(|i| ((i * 97) >> 3) as u8).collect();
            codes[..rows * row].fill(0);
            for bit in 0..cols * format.code_bits() {
                let code = bit / format.code_bits();
                let set = (code >> (bit % format.code_bits()) & 1) as u8;
                (0..rows).for_each(|r| codes[r * row + bit / 8] |= set << (bit % 8));
            }
            let mut scales = vec![0u8; header.scale_bytes()];
            for (r, scales) in scales.chunks_exact_mut(scale_row).enumerate() {
                let (base, own) = scales.split_at_mut(header.base_bytes());
                base.copy_from_slice(&0.123_456f32.to_le_bytes()[..base.len()]);
                own.fill(r as u8);
            }
            let decoded = Decoder::new(header).unwrap().matrix(&codes, &scales).unwrap().decode();
            let Some((expected, _)) = reference(&root, &header, &codes, &scales, &[]) else { return };
            assert_eq!(decoded.len(), expected.len());
            for (i, (d, e)) in decoded.iter().zip(&expected).enumerate() {
                let (scale, code) = (i / cols, i % cols);
                assert_eq!(d.to_bits(), e.to_bits(), "{format}, k {k}, scale code {scale}, code {code}: {d} and {e}");
            }
        }
    }
}

fn at_depth_1(encoded: Encoded) -> Encoded {
    let (decoder, mut codes, scales) = encoded.into_parts();
    let header = Header { format: decoder.header().format.at_depth(1), ..*decoder.header() };
    codes.truncate(header.code_bytes());
    Encoded::from_parts(Decoder::new(header).unwrap(), codes, scales).unwrap()
}

#[test]
fn formats_reach_their_floors_on_trained_weights() {
    let Some(directory) = shared("models/docs-lm") else { return };
    let checkpoint = Checkpoint::open(&directory).unwrap();
    // Of all tensors together, and of every tensor, in dB.
    for (format, mean_floor, floor) in [
        (Format::Q8, 46.3, 45.8),
        (Format::Q8h, 47.55, 47.0),
        (Format::Q12, 70.4, 69.9),
        (Format::Q6, 35.7, 35.2),
        (Format::Q4, 23.8, 23.5),
        (Format::Q3, 17.8, 17.4),
        (Format::Q2, 11.5, 11.1),
        (Format::Log8, 40.8, 40.4),
        (Format::Lin8, 45.0, 44.5),
        (Format::Fpins1, 46.3, 45.8),
        (Format::Fpins2, 93.0, 92.5),
        (Format::Fpins3, 138.0, 137.5),
    ] {
        let mut sqnr = Vec::new();
        for name in checkpoint.names().filter(|name| name.contains("proj")) {
            let tensor = checkpoint.tensor(name).unwrap();
            let weights = tensor.to_f32();
            let encoded = encode(format, &tensor).unwrap();
            let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
            let db = |encoded: Encoded| 10.0 * (signal / squared_error(&weights, &encoded.matrix().decode())).log10();
            if format.planes() > 1 {
                let first = db(at_depth_1(encoded.clone()));
                assert!(first >= 45.0, "{format} at depth 1, {name}: {first:.2} dB");
            }
            let db = db(encoded);
            assert!(db >= floor, "{format}, {name}: {db:.2} dB");
            sqnr.push(db);
        }
        let mean = sqnr.iter().sum::<f64>() / sqnr.len() as f64;
        println!("{format}: {mean:.2} dB");
        assert!(sqnr.len() == 32 && mean >= mean_floor, "{format}: {mean:.2} dB over {} tensors", sqnr.len());
    }
}
