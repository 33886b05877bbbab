//! The codec against the normative reference (python3 with numpy), and against its floors on trained weights.

use qins_codec::{Decoder, Format, Header, K_GRID, Slice, ZERO_GROUP, encode};
use qins_import::Checkpoint;
use qins_tests::{Random, shared, skip};
use std::{path::Path, process::Command};

/// Decodes with the reference, and encodes with it for comparison: prints the reference's squared error.
const SCRIPT: &str = r#"
import sys, json, numpy as np
sys.path.insert(0, sys.argv[1])
import qins_reference as ref
h = json.load(open(sys.argv[2] + "/header.json"))
load = lambda name, t: np.fromfile(sys.argv[2] + "/" + name, t)
rows, cols, groups = h["rows"], h["cols"], -(-h["cols"] // 32)
codes = load("codes", np.uint8).reshape(rows, -1)[:, :cols]
codes = np.pad(codes, ((0, 0), (0, groups * 32 - cols))).reshape(rows, groups, 32).astype(np.int64)
e = load("scales", np.uint8).reshape(rows, groups).astype(np.int64)
table = ref.projective_table(h["k"], 128)
out = ref.decode_signed(np.float32(h["base"]), e, codes & 127, codes >> 7 == 1, table, cols)
out.astype(np.float32).tofile(sys.argv[2] + "/decoded")
w = load("weights", np.float32).reshape(rows, cols).astype(np.float64)
best = ref.best_signed(w, [ref.projective_table(k, 128) for k in ref.K_GRID], 32)
print(float(((best - w) ** 2).sum()))
"#;

/// Writes codes for the reference to decode; returns its decoding and the squared error of its own encoding.
fn reference(root: &Path, header: &Header, codes: &[u8], scales: &[u8], weights: &[f32]) -> Option<(Vec<f32>, f64)> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    // f32 to f64 is exact, so JSON carries the base exactly.
    let json =
        serde_json::json!({"rows": header.rows, "cols": header.cols, "base": f64::from(header.base), "k": header.k});
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
    let error = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    Some((values.iter().map(|&v| f32::from_le_bytes(v)).collect(), error))
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

#[test]
fn decoding_equals_the_reference_bit_for_bit_and_encoding_is_no_worse() {
    let Some(root) = shared("reference") else { return };
    let mut random = Random(3);
    for (rows, cols) in [(64, 512), (7, 172), (5, 31), (1, 1), (40, 33)] {
        let mut weights = random.weights(rows * cols, 0.02);
        // A zero row, an outlier, subnormal numbers.
        weights[..cols].fill(0.0);
        if rows > 3 {
            weights[2 * cols] = 3.0;
            weights[3 * cols..4 * cols].iter_mut().for_each(|w| *w *= 1e-40);
        }
        let encoded = encode(Format::Q8, &Slice::new(&weights, rows, cols)).unwrap();
        let decoded = encoded.matrix().decode();
        let (header, codes, scales) = (encoded.header(), encoded.codes(), encoded.scales());
        let Some((expected, reference_error)) = reference(&root, header, codes, scales, &weights) else { return };
        assert_eq!(decoded.len(), expected.len());
        for (i, (d, e)) in decoded.iter().zip(&expected).enumerate() {
            assert_eq!(d.to_bits(), e.to_bits(), "weight {i} of {rows} x {cols}: {d} against {e}");
        }
        let error = squared_error(&decoded, &weights);
        assert!(error <= reference_error * 1.0001, "{rows} x {cols}: {error:e} against {reference_error:e}");
    }
}

#[test]
fn every_code_and_scale_code_decodes_as_in_the_reference() {
    let Some(root) = shared("reference") else { return };
    // A row a scale code, each with all 256 codes, for every k.
    for k in K_GRID {
        let (rows, cols) = (256, 256);
        let header = Header { format: Format::Q8, rows, cols, base: 0.123_456, k };
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i % 256) as u8).collect();
        let scales: Vec<u8> = (0..rows * 8).map(|i| (i / 8) as u8).collect();
        let decoded = Decoder::new(header).unwrap().matrix(&codes, &scales).unwrap().decode();
        let Some((expected, _)) = reference(&root, &header, &codes, &scales, &decoded) else { return };
        for (i, (d, e)) in decoded.iter().zip(&expected).enumerate() {
            let scale = (i / 256) as u8;
            assert_eq!(d.to_bits(), e.to_bits(), "k {k}, scale code {scale} of {ZERO_GROUP}, code {}", i % 256);
        }
    }
}

#[test]
fn q8_reaches_its_floor_on_trained_weights() {
    let Some(directory) = shared("models/docs-lm") else { return };
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let mut sqnr = Vec::new();
    for name in checkpoint.names().filter(|name| name.contains("proj")) {
        let tensor = checkpoint.tensor(name).unwrap();
        let weights = tensor.to_f32();
        let decoded = encode(Format::Q8, &tensor).unwrap().matrix().decode();
        let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
        let db = 10.0 * (signal / squared_error(&weights, &decoded)).log10();
        assert!(db >= 45.8, "{name}: {db:.2} dB");
        sqnr.push(db);
    }
    let mean = sqnr.iter().sum::<f64>() / sqnr.len() as f64;
    assert!(sqnr.len() == 32 && mean >= 46.3, "{mean:.2} dB over {} tensors", sqnr.len());
}
