//! Tensors whose rows differ by more than scale codes reach: on backends with kernels and on one without, in records and in
//! containers.

use burn::{
    module::Param,
    nn::{Linear, LinearConfig},
    tensor::{FloatDType, Int, Tensor, TensorData, TensorPrimitive, backend::Backend},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use qins_backend::{Policy, Qins, QinsFloat, QinsTensor};
use qins_codec::{Encoded, Format, Level, Slice, encode};
use qins_import::{
    Checkpoint, Container, Target, choose,
    container::{
        CONTAINER_FILE, CONTAINER_VERSION, Converted, Converter, Exported, FIRST_CONTAINER_VERSION, Planned, Step,
        Stored, export,
    },
    load_container, save_container,
};
use qins_tests::{Random, Weight, Weights, read_tensor};
use serde_json::Value;
use std::{fs, path::Path};

/// A backend that no kernel knows: everything is decoded in its own operations.
type Portable = Autodiff<Flex>;

const ROWS: usize = 24;

/// Rows a factor of 1000 apart, as often as f32 allows sums of them, and one of zeros.
fn uneven(cols: usize) -> Vec<f32> {
    let mut values = Random(7).weights(ROWS * cols, 0.02);
    for (row, values) in values.chunks_exact_mut(cols).enumerate() {
        let factor = if row == 5 { 0.0 } else { 1000f32.powi(row as i32 % 9 - 4) };
        values.iter_mut().for_each(|w| *w *= factor);
    }
    values
}

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|format| format.allows_row_bases())
}

fn encoded(format: Format, cols: usize) -> Encoded {
    let encoded = encode(format, &Slice::new(&uneven(cols), ROWS, cols)).unwrap();
    assert!(encoded.header().row_bases, "{format}");
    encoded
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().unwrap()
}

/// The same numbers; those that backends decode in their own arithmetic to within its rounding.
fn assert_same(found: &[f32], expected: &[f32], case: &str) {
    assert_eq!(found.len(), expected.len(), "{case}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= expected.abs() * 1e-6, "{case}, weight {i}: {found:e}, not {expected:e}");
    }
}

fn on_backend<B: Backend>(cols: usize) {
    // Products are in f32: what fixed point may lose is the codec's to test.
    Level::detected().in_float().set_current();
    let device = Default::default();
    for format in formats() {
        let case = |name: &str| format!("{name} of {format}, {cols} columns, on {}", B::name(&Default::default()));
        let encoded = encoded(format, cols);
        let decoded = encoded.matrix().decode();
        let matrix = || QinsTensor::<B>::from_encoded(encoded.clone(), &Default::default());
        let codes = || Tensor::<Qins<B>, 2>::from_primitive(matrix().into_primitive());
        let lazy = || codes().dequantize();
        assert_same(&values(lazy() * 1.0), &decoded, &case("decoding"));

        for m in [1, 3, 20] {
            let x = Random(3).weights(m * cols, 1.0);
            let input = Tensor::<Qins<B>, 2>::from_data(TensorData::new(x.clone(), [m, cols]), &device);
            let cached = matrix().transpose().cache_decoded();
            let cached = Tensor::<Qins<B>, 2>::from_primitive(cached.into_primitive()).dequantize();
            let transposed = values(lazy().matmul(input.clone().transpose()).transpose());
            for product in [values(input.clone().matmul(lazy().transpose())), values(input.matmul(cached)), transposed]
            {
                for (i, found) in product.into_iter().enumerate() {
                    let (x, w) = (&x[i / ROWS * cols..][..cols], &decoded[i % ROWS * cols..][..cols]);
                    let terms = || x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
                    let (sum, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                    assert!(
                        (f64::from(found) - sum).abs() <= size * 1e-5,
                        "{}: {found:e}, not {sum:e}",
                        case("a product")
                    );
                }
            }
        }

        let rows_of = |rows: &[usize], first: usize| -> Vec<f32> {
            rows.iter().flat_map(|row| decoded[row * cols + first..(row + 1) * cols].to_vec()).collect()
        };
        let range: Vec<usize> = (3..17).collect();
        assert_same(&values(codes().slice([3..17, 0..cols]).dequantize() * 1.0), &rows_of(&range, 0), &case("rows"));
        let part = lazy().slice([3..17, 32..cols]);
        assert!(
            matches!(part.clone().into_primitive(), TensorPrimitive::Float(QinsFloat::Coded(..))),
            "{}",
            case("part")
        );
        assert_same(&values(part * 1.0), &rows_of(&range, 32), &case("rows and groups"));
        let ids = [23, 0, 5, 8, 8];
        let indices = || Tensor::<Qins<B>, 1, Int>::from_data(ids.map(|id| id as i64), &device);
        assert_same(&values(lazy().select(0, indices()) * 1.0), &rows_of(&ids, 0), &case("selected rows"));
        assert_same(
            &values(codes().select(0, indices()).dequantize() * 1.0),
            &rows_of(&ids, 0),
            &case("selected codes"),
        );
        let reversed: Vec<usize> = (0..ROWS).rev().collect();
        assert_same(&values(codes().flip([0]).dequantize() * 1.0), &rows_of(&reversed, 0), &case("turned rows"));
        let elements: Vec<i64> = (0..cols as i64).map(|col| col * 7 % ROWS as i64).collect();
        let expected: Vec<f32> =
            elements.iter().zip(0..).map(|(&row, col)| decoded[row as usize * cols + col]).collect();
        let elements = Tensor::<Qins<B>, 2, Int>::from_data(TensorData::new(elements, [1, cols]), &device);
        assert_same(&values(lazy().gather(0, elements)), &expected, &case("gathered weights"));

        // What records store.
        let data = codes().into_data();
        assert_eq!((&data.bytes[..4], data.bytes[4]), (&b"QINS"[..], 2), "{}", case("a record"));
        let back = Tensor::<Qins<B>, 2>::from_data(data, &device);
        let TensorPrimitive::QFloat(tensor) = back.clone().into_primitive() else { panic!("codes") };
        assert_eq!(tensor.header(), encoded.header());
        assert_same(&values(back.dequantize() * 1.0), &decoded, &case("a record that was read"));
        let even = QinsTensor::<B>::from_encoded(
            encode(format, &Slice::new(&Random(1).weights(2 * cols, 1.0), 2, cols)).unwrap(),
            &Default::default(),
        );
        let data = Tensor::<Qins<B>, 2>::from_primitive(even.into_primitive()).into_data();
        assert_eq!(data.bytes[4], 1, "what older programs read stays so");

        // Encoded by the backend.
        let float = Tensor::<B, 2>::from_data(TensorData::new(uneven(cols), [ROWS, cols]), &Default::default());
        let found = QinsTensor::<B>::encode(float.into_primitive().tensor(), format).unwrap();
        assert_eq!(found.header(), encoded.header(), "{}", case("encoding"));
        assert_same(
            &values(Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(found.decode(FloatDType::F32)))),
            &decoded,
            &case("encoding"),
        );
    }
}

#[test]
fn backends_compute_with_bases_of_rows() {
    for cols in [96, 45] {
        on_backend::<Flex>(cols);
        on_backend::<NdArray>(cols);
        on_backend::<Portable>(cols);
    }
}

const COLS: usize = 96;

/// A checkpoint of one tensor with outliers, one without, and a vector.
fn checkpoint(directory: &Path) -> Checkpoint {
    let weight = |name: &str, shape: Vec<usize>, values| Weight { name: name.to_owned(), shape, values };
    let weights = Weights(vec![
        weight("even.weight", vec![ROWS, COLS], Random(1).weights(ROWS * COLS, 0.02)),
        weight("uneven.weight", vec![ROWS, COLS], uneven(COLS)),
        weight("vector", vec![5], vec![1.0; 5]),
    ]);
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("model.safetensors"), weights.to_safetensors()).unwrap();
    Checkpoint::open(directory).unwrap()
}

/// Converts the weights among these names to a format.
fn convert(root: &Path, names: &[&str], format: Format, on_step: impl FnMut(Step<'_>) + Send) -> Converted {
    let source = root.join("hf");
    let checkpoint = checkpoint(&source);
    let planned = |name: &&str| Planned { name: (*name).to_owned(), format: Some(format), cached: false };
    let planned = names.iter().map(planned).collect();
    let output = root.join("container");
    Converter::new(&source, &checkpoint, &output, planned, "test".to_owned(), false).unwrap().run(on_step).unwrap()
}

fn manifest(root: &Path) -> (usize, Value) {
    let bytes = fs::read(root.join("container").join(CONTAINER_FILE)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    (length, serde_json::from_str(header["__metadata__"]["qins"].as_str().unwrap()).unwrap())
}

#[test]
fn a_container_says_by_its_version_that_rows_have_bases() {
    for format in formats() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let converted = convert(root, &["even.weight", "uneven.weight"], format, |_| ());
        assert_eq!(converted.manifest.version, CONTAINER_VERSION);
        let (_, json) = manifest(root);
        assert_eq!(json["tensors"]["uneven.weight"]["code"]["row_bases"], true);
        assert!(json["tensors"]["even.weight"]["code"].get("row_bases").is_none());
        let worst = converted.worst_rows["uneven.weight"];
        assert!(worst.row < ROWS && worst.sqnr_db > 35.0, "{format}: {worst:?}");

        let container = Container::open(&root.join("container")).unwrap();
        container.verify(|_, _| ()).unwrap();
        let expected = encoded(format, COLS);
        let Some(Stored::Coded(header, codes, scales)) = container.tensor("uneven.weight") else { panic!("coded") };
        assert_eq!((&header, codes, scales), (expected.header(), expected.codes(), expected.scales()));
        let out = root.join("exported");
        export(&container, &root.join("container"), &out, Exported::F32, false, |_, _| ()).unwrap();
        assert_eq!(read_tensor(&out.join("model.safetensors"), "uneven.weight"), expected.matrix().decode());
    }
}

#[test]
fn a_container_without_outliers_is_what_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let converted = convert(directory.path(), &["even.weight"], Format::Q8, |_| ());
    assert_eq!(converted.manifest.version, FIRST_CONTAINER_VERSION);
    let (length, json) = manifest(directory.path());
    assert!(!json.to_string().contains("row_bases"));
    // Reserved for the longest numbers.
    assert_eq!(length, HEADER_LENGTH);
}

/// As the version before wrote it.
const HEADER_LENGTH: usize = 760;

#[test]
fn a_conversion_with_outliers_resumes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let names = ["even.weight", "uneven.weight"];
    let whole = convert(root, &names, Format::Q12, |_| ());
    let bytes = fs::read(root.join("container").join(CONTAINER_FILE)).unwrap();
    fs::remove_dir_all(root.join("container")).unwrap();
    let mut wrote = 0;
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        convert(root, &names, Format::Q12, |step| {
            wrote += usize::from(matches!(step, Step::Wrote(..)));
            assert!(wrote < 2, "killed here");
        })
    }));
    assert!(stopped.is_err());
    let mut kept = 0;
    let resumed = convert(root, &names, Format::Q12, |step| {
        if let Step::Kept(name, _, worst) = step {
            assert_eq!(worst, whole.worst_rows.get(name).copied());
            kept += 1;
        }
    });
    assert!(kept > 0 && resumed.worst_rows == whole.worst_rows);
    assert!(fs::read(root.join("container").join(CONTAINER_FILE)).unwrap() == bytes);
}

#[test]
fn bases_of_rows_are_no_part_of_the_first_version() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    convert(root, &["uneven.weight"], Format::Q8, |_| ());
    let path = root.join("container").join(CONTAINER_FILE);
    let bytes = fs::read(&path).unwrap();
    let version = br#"\"version\":2"#;
    let at = bytes.windows(version.len()).position(|part| part == version).unwrap();
    let mut older = bytes.clone();
    older[at + version.len() - 1] = b'1';
    fs::write(&path, older).unwrap();
    let error = Container::open(&root.join("container")).unwrap_err().to_string();
    assert!(
        error.contains("uneven.weight: expected no bases of rows in a container of version 1, found them"),
        "{error}"
    );
}

/// A layer of these weights.
fn layer<B: Backend>() -> Linear<B> {
    let mut layer = LinearConfig::new(COLS, ROWS).with_bias(false).init::<B>(&Default::default());
    let weight = Tensor::<B, 2>::from_data(TensorData::new(uneven(COLS), [ROWS, COLS]), &Default::default());
    layer.weight = Param::from_tensor(weight.transpose());
    layer
}

#[test]
fn a_saved_module_keeps_its_bases() {
    let directory = tempfile::tempdir().unwrap();
    let coded = Policy::linear(Format::Q8).encode(layer::<Qins<Flex>>()).unwrap();
    let output = directory.path().join("saved");
    save_container::<Flex, _>(&coded, &output, false).unwrap();
    let container = Container::open(&output).unwrap();
    assert_eq!(container.manifest().version, CONTAINER_VERSION);
    let loaded: Linear<Qins<Flex>> = load_container(layer::<Qins<Flex>>(), &container, |_| ()).unwrap();
    let decoded = |layer: Linear<Qins<Flex>>| values(layer.weight.val().transpose().dequantize() * 1.0);
    assert_eq!(decoded(loaded), decoded(coded));
}

/// A budget counts the bases.
#[test]
fn a_choice_of_formats_keeps_to_its_bits() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let weights = Weights(vec![Weight { name: "weight".to_owned(), shape: vec![ROWS, COLS], values: uneven(COLS) }]);
    fs::create_dir(root.join("hf")).unwrap();
    fs::write(root.join("hf/model.safetensors"), weights.to_safetensors()).unwrap();
    let checkpoint = Checkpoint::open(&root.join("hf")).unwrap();
    let plain = 8.0 + 8.0 / 32.0;
    let bases = 32.0 / COLS as f64;
    for (bits, takes_q8) in [(plain + bases / 2.0, false), (plain + bases + 1e-6, true)] {
        let policy = choose(&layer::<Flex>(), &checkpoint, Policy::default(), Target::Bits(bits), |_| ()).unwrap();
        assert_eq!(policy.to_string().contains("q8"), takes_q8, "{bits} bits: {policy}");
    }
}
