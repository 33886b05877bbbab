//! What containers and exports take over beside the weights, and what they replace.

use burn::nn::{Linear, LinearConfig};
use burn_flex::Flex;
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use qins_import::{
    Checkpoint, Container, ImportError,
    container::{Converter, Exported, LIST_FILE, export},
    plan, save_container,
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Files that other programs read, files that they do not, and weights of one linear layer.
const KEPT: [&str; 14] = [
    "LICENSE",
    "NOTICE.md",
    "README.md",
    "added_tokens.json",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "configuration_phi3.py",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
const LEFT: [&str; 4] = ["notes.txt", "optimizer.pt", ".gitattributes", "additional_chat_templates/notes.txt"];
const CONFIG: &str =
    "{\n  \"model\": {\"torch_dtype\": \"float16\"},\n  \"eps\": 1e-05, \"torch_dtype\": \"float16\"\n}\n";

fn source() -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("hf");
    fs::create_dir_all(source.join("additional_chat_templates")).unwrap();
    for name in KEPT.iter().chain(&LEFT) {
        fs::write(source.join(name), format!("text of {name}")).unwrap();
    }
    fs::write(source.join("config.json"), CONFIG).unwrap();
    let bytes: Vec<u8> = (0..8 * 4).flat_map(|i| (i as f32 / 64.0).to_le_bytes()).collect();
    let weight = TensorView::new(Dtype::F32, vec![8, 4], &bytes).unwrap();
    let bias = TensorView::new(Dtype::F32, vec![8], &bytes[..32]).unwrap();
    safetensors::serialize_to_file([("weight", weight), ("bias", bias)], None, &source.join("model.safetensors"))
        .unwrap();
    (place, source)
}

fn net() -> Linear<Flex> {
    LinearConfig::new(4, 8).init(&Default::default())
}

fn convert(source: &Path, output: &Path, force: bool) -> Result<(), ImportError> {
    let checkpoint = Checkpoint::open(source)?;
    let policy = Policy::linear(Format::Q8);
    let planned = plan(&net(), &checkpoint, &policy)?;
    Converter::new(source, &checkpoint, output, planned, policy.to_string(), force)?.run(|_| ()).map(drop)
}

fn names(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name().into_string().unwrap())).unwrap();
        match entry.is_dir() {
            true => names.extend(self::names(&entry).into_iter().map(|inner| format!("{name}/{inner}"))),
            false => drop(names.insert(name)),
        }
    }
    names
}

#[test]
fn what_other_programs_read_is_kept() {
    let (place, source) = source();
    let (container, exported) = (place.path().join("container"), place.path().join("exported"));
    convert(&source, &container, false).unwrap();
    let opened = Container::open(&container).unwrap();
    export(&opened, &container, &exported, Exported::Bf16, false, |_, _| ()).unwrap();
    let kept: BTreeSet<String> = KEPT.iter().chain(&["config.json", LIST_FILE]).map(|&name| name.to_owned()).collect();
    for (directory, weights) in [(&container, "qins.safetensors"), (&exported, "model.safetensors")] {
        let expected: BTreeSet<String> = kept.iter().cloned().chain([weights.to_owned()]).collect();
        assert_eq!(names(directory), expected);
        for name in KEPT {
            assert_eq!(fs::read(directory.join(name)).unwrap(), fs::read(source.join(name)).unwrap(), "{name}");
        }
    }
    // The type is that of the weights; nothing else changes, to the digit and the blank.
    assert_eq!(fs::read_to_string(container.join("config.json")).unwrap(), CONFIG);
    let expected =
        CONFIG.replace("\"eps\": 1e-05, \"torch_dtype\": \"float16\"", "\"eps\": 1e-05, \"torch_dtype\": \"bfloat16\"");
    assert_eq!(fs::read_to_string(exported.join("config.json")).unwrap(), expected);
    let file = fs::read(exported.join("model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt", "transformers reads no other");
    assert!(metadata.tensors().values().all(|tensor| tensor.dtype == Dtype::BF16));
}

#[test]
fn the_type_of_an_export_is_named_however_the_configuration_is_written() {
    let (place, source) = source();
    let exported = place.path().join("exported");
    for (config, field) in [
        (r#"{"dtype": "bfloat16", "a": "dtype"}"#, "dtype"),
        (r#"{"a": "\"torch_dtype\": 1", "torch_dtype" : null}"#, "torch_dtype"),
        (r#"{"a": 1}"#, "torch_dtype"),
    ] {
        fs::write(source.join("config.json"), config).unwrap();
        let container = place.path().join("container");
        convert(&source, &container, true).unwrap();
        export(&Container::open(&container).unwrap(), &container, &exported, Exported::F32, true, |_, _| ()).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(exported.join("config.json")).unwrap()).unwrap();
        let mut expected: Value = serde_json::from_str(config).unwrap();
        expected[field] = "float32".into();
        assert_eq!(json, expected);
    }
}

#[test]
fn a_saved_module_replaces_only_what_this_crate_wrote() {
    let (place, source) = source();
    let net: Linear<Qins<Flex>> = Policy::linear(Format::Q8).encode(net_of_qins()).unwrap();
    let output = place.path().join("net");
    save_container(&net, &output, false).unwrap();
    save_container(&net, &output, true).unwrap();
    convert(&source, &output, true).unwrap();
    save_container(&net, &output, true).unwrap();
    assert_eq!(names(&output), [LIST_FILE, "qins.safetensors"].map(str::to_owned).into());
    assert_eq!(names(place.path()).iter().filter(|name| !name.starts_with("hf/")).count(), 2, "nothing is left beside");
    fs::write(output.join("notes.txt"), "mine").unwrap();
    for refused in [&output, &source, place.path()] {
        assert!(matches!(save_container(&net, refused, true), Err(ImportError::Refused { .. })));
    }
    assert!(output.join("notes.txt").exists() && source.join("model.safetensors").exists());
}

fn net_of_qins() -> Linear<Qins<Flex>> {
    LinearConfig::new(4, 8).init(&Default::default())
}

#[test]
fn a_container_of_a_version_before_lists_is_known_by_its_names() {
    let (place, source) = source();
    let output = place.path().join("container");
    for name in KEPT.iter().filter(|name| !["LICENSE", "tokenizer.json"].contains(name)) {
        fs::remove_file(source.join(name)).unwrap();
    }
    convert(&source, &output, false).unwrap();
    fs::remove_file(output.join(LIST_FILE)).unwrap();
    convert(&source, &output, true).unwrap();
    fs::remove_file(output.join(LIST_FILE)).unwrap();
    fs::write(output.join("tokenizer.model"), "mine").unwrap();
    let message = convert(&source, &output, true).unwrap_err().to_string();
    assert!(message.contains("it holds `tokenizer.model`, which this program did not write"), "{message}");
}
