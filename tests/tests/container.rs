//! Containers: the same bytes whatever interrupts the writer, and everything wrong with one told by name.

use burn::module::Module;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use phi35_model::{Config, Phi3};
use qins_backend::{Policy, Qins};
use qins_codec::{Format, Level, Slice, encode};
use qins_import::{
    Checkpoint, Container, ImportError,
    container::{CONTAINER_FILE, Converter, Exported, Step, Stored, export},
    load, load_container, load_encoded, plan,
};
use qins_tests::{Weight, write_model};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Odd sizes: 44 columns, a row tail in every matrix, an odd vector.
fn sizes() -> Value {
    json!({"vocab_size": 51, "hidden_size": 44, "intermediate_size": 70, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64})
}

struct Made {
    directory: TempDir,
    config: Config,
    weights: Vec<Weight>,
}

fn made() -> Made {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("hf")).unwrap();
    let (config, weights) = write_model(&directory.path().join("hf"), sizes());
    Made { directory, config, weights }
}

impl Made {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn model(&self) -> Phi3<Flex> {
        self.config.init(&Default::default()).unwrap()
    }

    fn convert_to(
        &self,
        name: &str,
        force: bool,
        on_step: impl FnMut(Step<'_>) + Send,
    ) -> Result<PathBuf, ImportError> {
        self.convert_by(&Policy::linear(Format::Q8).with_embeddings(Format::F16), name, force, on_step)
    }

    fn convert_by(
        &self,
        policy: &Policy,
        name: &str,
        force: bool,
        on_step: impl FnMut(Step<'_>) + Send,
    ) -> Result<PathBuf, ImportError> {
        let checkpoint = Checkpoint::open(&self.path("hf"))?;
        let planned = plan(&self.model(), &checkpoint, policy)?;
        let (source, output) = (self.path("hf"), self.path(name));
        Converter::new(&source, &checkpoint, &output, planned, policy.to_string(), force)?.run(on_step)?;
        Ok(output)
    }

    fn convert(&self) -> PathBuf {
        self.convert_to("container", false, |_| ()).unwrap()
    }
}

#[test]
fn a_container_holds_what_encoding_on_the_fly_gives() {
    let made = made();
    let container = Container::open(&made.convert()).unwrap();
    container.verify(|_, _| ()).unwrap();
    container.verify_source(&made.path("hf")).unwrap();
    let mut coded = 0;
    for Weight { name, shape, values } in &made.weights {
        match container.tensor(name).unwrap() {
            Stored::Coded(header, codes, scales) => {
                let expected = encode(Format::Q8, &Slice::new(values, shape[0], shape[1])).unwrap();
                assert_eq!(
                    (header, codes, scales),
                    (*expected.header(), expected.codes(), expected.scales()),
                    "{name}"
                );
                coded += 1;
            }
            Stored::Plain(tensor) if name.contains("embed") => {
                let rounded: Vec<f32> = values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect();
                assert_eq!(tensor.to_f32(), rounded);
            }
            Stored::Plain(tensor) => assert_eq!(&tensor.to_f32(), values, "{name}"),
        }
    }
    assert_eq!(coded, 2 * 4 + 1, "four layers in each of two blocks, and the head");

    // Any reader of safetensors can list it, and its data is aligned.
    let file = fs::read(container.path()).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!((header + 8) % 64, 0);
    assert!(metadata.tensors().iter().all(|(name, t)| !name.ends_with(".codes") || t.data_offsets.0 % 64 == 0));
}

#[test]
fn a_model_runs_from_the_map_as_from_memory() {
    // Fixed point would round what differs in the last bit to another integer.
    Level::detected().in_float().set_current();
    let made = made();
    let container = Container::open(&made.convert()).unwrap();
    let checkpoint = Checkpoint::open(&made.path("hf")).unwrap();
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::F16);
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 51).collect();
    macro_rules! logits {
        ($backend:ty, $load:expr) => {{
            let fresh: Phi3<Qins<$backend>> = made.config.init(&Default::default()).unwrap();
            let model = $load(fresh).unwrap();
            model.sequence_logits(&ids).unwrap().into_data().to_vec::<f32>().unwrap()
        }};
    }
    let memory = logits!(Flex, |m| load_encoded::<Flex, _>(m, &checkpoint, &policy, |_| ()));
    assert_eq!(logits!(Flex, |m| load_container::<Flex, _>(m, &container, |_| ())), memory);
    let elsewhere = logits!(NdArray, |m| load_container::<NdArray, _>(m, &container, |_| ()));
    assert!(elsewhere.iter().zip(&memory).all(|(a, b)| (a - b).abs() < 1e-4));
    // The model outlives the container.
    let fresh: Phi3<Qins<Flex>> = made.config.init(&Default::default()).unwrap();
    let model = load_container::<Flex, _>(fresh, &container, |_| ()).unwrap();
    drop(container);
    let later: Vec<f32> = model.sequence_logits(&ids).unwrap().into_data().to_vec().unwrap();
    assert_eq!(later, memory);
}

#[test]
fn an_export_is_the_decoding_bit_for_bit() {
    let made = made();
    let mixed = "linear=q4 embedding=q8 lm_head=q12 model.layers.0.mlp=fpins:2 model.layers.0.self_attn=q3";
    let directory = made.convert_by(&mixed.parse().unwrap(), "mixed", false, |_| ()).unwrap();
    let container = Container::open(&directory).unwrap();
    let formats: BTreeSet<&str> = container.manifest().tensors.values().map(|info| &info.format[..]).collect();
    assert!(formats.is_superset(&["q4", "q8", "q12", "fpins:2", "q3"].into()), "{formats:?}");
    export(&container, &directory, &made.path("exported"), Exported::F32, false, |_, _| ()).unwrap();
    let exported = Checkpoint::open(&made.path("exported")).unwrap();
    for Weight { name, shape, values } in &made.weights {
        let found = exported.tensor(name).unwrap();
        assert_eq!(found.shape(), shape);
        let expected = match container.tensor(name).unwrap() {
            Stored::Coded(header, ..) => {
                encode(header.format, &Slice::new(values, shape[0], shape[1])).unwrap().matrix().decode()
            }
            Stored::Plain(tensor) => tensor.to_f32(),
        };
        assert_eq!(found.to_f32(), expected, "{name}");
    }
    let fresh = made.model();
    load::<Flex, _>(fresh, &exported, |_| ()).unwrap();
    assert!(made.path("exported/config.json").is_file());
    let again = || export(&container, &directory, &made.path("exported"), Exported::Bf16, false, |_, _| ());
    assert!(matches!(again(), Err(ImportError::Exists { .. })));
    export(&container, &directory, &made.path("exported"), Exported::Bf16, true, |_, _| ()).unwrap();
    assert!(!made.path("exported.partial").exists());
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
    };
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(entry).collect();
    files.sort();
    files
}

#[test]
fn a_conversion_resumes_to_the_same_bytes_from_any_cut() {
    let made = made();
    let whole = files(&made.convert());
    let tensors = made.weights.len();
    for kept in 0..=tensors {
        // As if killed after some tensors: stop by a panic, then cut further bytes off the journal and the data.
        let mut finished = 0;
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            made.convert_to("again", false, |step| {
                if matches!(step, Step::Wrote(..)) {
                    finished += 1;
                    assert!(finished <= kept, "killed here");
                }
            })
        }));
        assert_eq!(stopped.is_err(), kept < tensors);
        assert_eq!(made.path("again").exists(), kept == tensors);
        if kept < tensors {
            assert!(Container::open(&made.path("again.partial")).is_err(), "half a container is none");
            let journal = made.path("again.partial/journal.jsonl");
            let text = fs::read(&journal).unwrap();
            fs::write(&journal, &text[..text.len() - kept % 7]).unwrap();
            let mut resumed = 0;
            made.convert_to("again", false, |step| resumed += usize::from(matches!(step, Step::Kept(..)))).unwrap();
            assert!(resumed + 1 >= kept, "{resumed} of {kept} tensors were kept");
        }
        assert!(files(&made.path("again")) == whole, "cut after {kept} tensors");
        assert!(!made.path("again.partial").exists());
        fs::remove_dir_all(made.path("again")).unwrap();
    }
}

#[test]
fn another_source_is_not_resumed_and_an_output_is_not_replaced_unasked() {
    let made = made();
    // A file that only the other source has.
    fs::write(made.path("hf/LICENSE"), "").unwrap();
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        made.convert_to("container", false, |step| assert!(!matches!(step, Step::Wrote(..))))
    }));
    assert!(stopped.is_err());
    fs::write(made.path("container.partial/LICENSE"), "").unwrap();
    fs::remove_file(made.path("hf/LICENSE")).unwrap();
    // One byte of a weight changes.
    let path = made.path("hf/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut kept = 0;
    let output =
        made.convert_to("container", false, |step| kept += usize::from(matches!(step, Step::Kept(..)))).unwrap();
    assert_eq!(kept, 0, "the source is another");
    assert!(!output.join("LICENSE").exists());
    Container::open(&output).unwrap().verify(|_, _| ()).unwrap();
    assert!(matches!(made.convert_to("container", false, |_| ()), Err(ImportError::Exists { .. })));
    made.convert_to("container", true, |_| ()).unwrap();
    assert!(!made.path("container.old").exists() && !made.path("container.partial").exists());
}

/// The container's file with its manifest changed; lengths may change, too.
fn with_manifest(directory: &Path, change: impl FnOnce(&mut Value)) {
    with_header(directory, |header| {
        let text = header["__metadata__"]["qins"].as_str().unwrap();
        let mut manifest: Value = serde_json::from_str(text).unwrap();
        change(&mut manifest);
        header["__metadata__"]["qins"] = manifest.to_string().into();
    });
}

fn with_header(directory: &Path, change: impl FnOnce(&mut Value)) {
    let path = directory.join(CONTAINER_FILE);
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(64), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out.extend(&bytes[8 + length..]);
    fs::write(path, out).unwrap();
}

/// The message of opening a container after a change.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let made = made();
    let directory = made.convert();
    change(&directory);
    Container::open(&directory).unwrap_err().to_string()
}

const WEIGHT: &str = "model.layers.0.mlp.down_proj.weight";

#[test]
fn another_version_is_refused_by_its_number() {
    for version in [0, 3, 7] {
        let message = refusal(|d| with_manifest(d, |m| *m = json!({"version": version, "everything": "else"})));
        assert!(
            message.contains(&format!("container of version {version}: this program reads versions 1 to 2")),
            "{message}"
        );
    }
}

#[test]
fn a_truncated_file_is_refused() {
    for keep in [0, 7, 8, 100, 5000] {
        let message = refusal(|d| {
            let bytes = fs::read(d.join(CONTAINER_FILE)).unwrap();
            fs::write(d.join(CONTAINER_FILE), &bytes[..keep]).unwrap();
        });
        let expected = if keep == 0 { "the file is empty" } else { "not a whole safetensors file" };
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_flipped_byte_is_found_and_its_tensor_named() {
    let made = made();
    let directory = made.convert();
    let path = directory.join(CONTAINER_FILE);
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (entry, name) in [
        (format!("{WEIGHT}.codes"), WEIGHT),
        (format!("{WEIGHT}.scales"), WEIGHT),
        ("model.norm.weight".to_owned(), "model.norm.weight"),
    ] {
        let mut bytes = bytes.clone();
        // The last byte: of codes and scale codes, their padding.
        bytes[8 + length + header[&entry]["data_offsets"][1].as_u64().unwrap() as usize - 1] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        match Container::open(&directory).unwrap().verify(|_, _| ()) {
            Err(ImportError::Checksum { tensor, .. }) => assert_eq!(tensor, name),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_manifest_that_does_not_fit_the_tensors_is_refused_by_name() {
    let tensor = |change: fn(&mut Value)| refusal(|d| with_manifest(d, |m| change(&mut m["tensors"][WEIGHT])));
    for (message, expected) in [
        (tensor(|t| t["format"] = "q99".into()), "unknown format `q99`"),
        (tensor(|t| t["format"] = "bf16".into()), "a bf16 tensor has no codes"),
        (tensor(|t| t["shape"] = json!([44, 200])), "expected"),
        (tensor(|t| t["shape"] = json!([u64::MAX, u64::MAX])), "too large"),
        (tensor(|t| t["shape"] = json!([1u64 << 40, 1u64 << 40])), "too large"),
        (tensor(|t| t["shape"] = json!([])), "at least one dimension"),
        (tensor(|t| t["code"]["planes"] = json!([4, 4])), "expected planes [8], found [4, 4]"),
        (tensor(|t| t["code"]["k"] = json!(-1.0)), "projective shape"),
        (tensor(|t| t["code"]["base"] = json!(1e300)), "base scale"),
        (tensor(|t| *t = json!({"format": "f32", "shape": [1], "sha256": ""})), WEIGHT),
        (refusal(|d| with_manifest(d, |m| drop(m["tensors"].as_object_mut().unwrap().remove(WEIGHT)))), WEIGHT),
        (refusal(|d| with_manifest(d, |m| m["tensors"] = json!(7))), "metadata `qins`"),
        (refusal(|d| with_manifest(d, |m| m["version"] = json!("zero"))), "metadata `qins`"),
        (refusal(|d| with_header(d, |h| h["__metadata__"] = json!({}))), "expected metadata `qins`, found none"),
    ] {
        assert!(message.contains(expected) && message.contains(CONTAINER_FILE), "{expected}: {message}");
    }
}

#[test]
fn a_container_of_another_model_is_refused_by_name() {
    let made = made();
    let container = Container::open(&made.convert()).unwrap();
    let other = |change: fn(&mut Config)| {
        let mut config = made.config.clone();
        change(&mut config);
        let fresh: Phi3<Qins<Flex>> = config.init(&Default::default()).unwrap();
        load_container::<Flex, _>(fresh, &container, |_| ()).map(|model| model.num_params()).unwrap_err().to_string()
    };
    assert!(other(|c| c.intermediate_size = 72).contains("expected shape"));
    assert!(other(|c| c.num_hidden_layers = 3).contains("missing"));
    assert!(other(|c| c.num_hidden_layers = 1).contains("that the model does not have"));
}

#[test]
fn weights_that_are_not_finite_are_named_by_index() {
    for (name, at) in [(WEIGHT, 5), ("model.norm.weight", 3), ("model.embed_tokens.weight", 44)] {
        let made = made();
        let path = made.path("hf/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let start = 8 + length + header[name]["data_offsets"][0].as_u64().unwrap() as usize + 4 * at;
        bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let message = made.convert_to("container", false, |_| ()).unwrap_err().to_string();
        let columns = if name == WEIGHT { 70 } else { 44 };
        let index = format!("[{}, {}] is NaN", at / columns, at % columns);
        assert!(message.contains(name) && message.contains(&index), "{message}");
        assert!(!made.path("container").exists());
    }
}

#[cfg(unix)]
#[test]
fn a_target_that_cannot_be_written_is_named() {
    let made = made();
    fs::write(made.path("file"), "").unwrap();
    let message = made.convert_to("file/container", false, |_| ()).unwrap_err().to_string();
    assert!(message.contains("cannot write") && message.contains("file"), "{message}");
}
