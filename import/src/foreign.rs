//! What people have in place of a model's files, and what to do then.

use crate::ImportError;
use serde_json::Value;
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

/// The first line of a file of git-lfs that stands for another.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// What a file is that should be a configuration, a tokenizer or weights, by its first bytes; `None` if they do not tell.
pub fn of_bytes(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(6..9) == Some(b"\0\0{") {
        // A header of safetensors, whatever its length looks like.
        return None;
    }
    let text = bytes.trim_ascii_start();
    let starts = |start: &[u8]| text.len() >= start.len() && text[..start.len()].eq_ignore_ascii_case(start);
    if text.is_empty() {
        Some("the file is empty: download it again")
    } else if starts(POINTER) {
        Some(
            "a pointer of git-lfs, not the file itself: run `git lfs install` and `git lfs pull` where the model was cloned",
        )
    } else if starts(b"<!doctype") || starts(b"<html") || starts(b"<?xml") {
        Some(
            "a page of a web site, not the file itself: download it again, from the address that the page's download button has",
        )
    } else if starts(b"Entry not found")
        || starts(b"Access to model")
        || starts(b"Invalid username or password")
        || starts(b"Repository not found")
    {
        Some(
            "the answer of a server that did not send the file: download it again, logged in where the model asks for it",
        )
    } else if starts(b"GGUF") {
        Some("a GGUF file, the format of llama.cpp: take the model's safetensors files")
    } else if text.starts_with(b"PK\x03\x04") || text.starts_with(b"\x80\x02") {
        Some(
            "weights that PyTorch saved by pickle: take the model's safetensors files, or save it by transformers' `save_pretrained`",
        )
    } else {
        None
    }
}

/// Fails for a file that is a pointer of git-lfs.
pub(crate) fn require_own(path: &Path) -> Result<(), ImportError> {
    let failed = |source| ImportError::Open { file: path.to_owned(), source };
    let mut start = Vec::new();
    File::open(path).map_err(failed)?.take(POINTER.len() as u64).read_to_end(&mut start).map_err(failed)?;
    match of_bytes(&start) {
        Some(found) if start == POINTER => Err(ImportError::Foreign { file: path.to_owned(), found }),
        _ => Ok(()),
    }
}

/// What a path is that should be a model directory: for one that has no configuration or no weights. `None` if nothing
/// tells.
pub fn of_directory(path: &Path) -> Option<String> {
    if path.is_file() {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Some(format!("a file: give its directory, {}", parent.display()));
    }
    let mut names: Vec<String> =
        fs::read_dir(path).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let has = |name: &str| names.iter().any(|found| found == name);
    let ending = |end: &str| names.iter().find(|name| name.to_lowercase().ends_with(end));
    let starting = |start: &str, end: &str| names.iter().find(|name| name.starts_with(start) && name.ends_with(end));
    if has("adapter_config.json") {
        let base = read_json(&path.join("adapter_config.json"))
            .and_then(|config| Some(format!(", {}", config.get("base_model_name_or_path")?.as_str()?)));
        return Some(format!(
            "a LoRA adapter: merge it into its base model{} first, by peft's `merge_and_unload` and `save_pretrained`",
            base.unwrap_or_default()
        ));
    }
    if let Some(name) = starting("model", ".safetensors").filter(|name| !path.join(name).exists()) {
        return Some(format!("`{name}`, a link to a file that is gone: download the model again"));
    }
    let downloads = path.join(".cache/huggingface/download");
    let is_downloading = fs::read_dir(downloads).into_iter().flatten().flatten();
    let is_downloading =
        is_downloading.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with(".incomplete"));
    if let Some(name) = ending(".incomplete").or(ending(".part")).or(ending(".crdownload")).or(ending(".aria2")) {
        return Some(format!("`{name}`, an unfinished download: let it finish"));
    } else if is_downloading {
        return Some("an unfinished download: let it finish".to_owned());
    }
    if has("snapshots") && has("blobs") {
        let snapshots = fs::read_dir(path.join("snapshots")).into_iter().flatten().flatten();
        let snapshot: Option<PathBuf> = snapshots.map(|entry| entry.path()).max();
        let example = snapshot.map(|path| format!(", {}", path.display())).unwrap_or_default();
        return Some(format!("a folder of Hugging Face's cache: give one of its snapshots{example}"));
    }
    if let Some(name) = starting("pytorch_model", ".bin")
        .or(starting("pytorch_model", ".bin.index.json"))
        .or(starting("consolidated", ".pth"))
    {
        return Some(format!(
            "`{name}`, weights that PyTorch saved by pickle: load the model with transformers and save it by \
             `save_pretrained`, which writes safetensors"
        ));
    }
    if let Some(name) = ending(".gguf") {
        return Some(format!("`{name}`, the format of llama.cpp: take the model's safetensors files"));
    }
    let other = ending(".h5")
        .or(ending(".msgpack"))
        .or(ending(".onnx"))
        .or(ending(".npz"))
        .or(ending(".pt"))
        .or(ending(".ckpt"));
    if let Some(name) = other {
        return Some(format!("`{name}`, another program's format: take the model's safetensors files"));
    }
    // Safetensors of another name, as of diffusion models.
    let other = ending(".safetensors").filter(|_| !has("model.safetensors"));
    other.map(|name| format!("only `{name}`, which no `model.safetensors.index.json` names"))
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// What a `config.json` says that keeps a model from being read: weights that are quantized already, inputs beside text.
pub fn of_config(config: &Value) -> Option<String> {
    let quantization = ["quantization_config", "compression_config", "quantization"]
        .into_iter()
        .filter_map(|field| Some((field, config.get(field)?.as_object().filter(|fields| !fields.is_empty())?)))
        .next();
    if let Some((field, fields)) = quantization {
        let method = fields.get("quant_method").and_then(Value::as_str).map(str::to_owned);
        let method = method.unwrap_or_else(|| match field {
            "quantization" => "mlx".to_owned(),
            "compression_config" => "compressed-tensors".to_owned(),
            _ if fields.keys().any(|key| key.contains("load_in_")) => "bitsandbytes".to_owned(),
            _ => "a method it does not name".to_owned(),
        });
        return Some(format!("`{field}`: {}", quantized(&method)));
    }
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let others = ["vision_config", "img_processor", "audio_config", "audio_processor", "embd_layer", "image_token_id"];
    let is_of_more = ["phi3_v", "phi4mm", "phi4_multimodal"].contains(&kind)
        || others.iter().any(|&field| config.get(field).is_some_and(|value| !value.is_null()));
    is_of_more.then(|| {
        format!("`model_type` is `{kind}`, a multimodal model, which reads images or sound: expected `phi3`, which reads text alone")
    })
}

fn quantized(method: &str) -> String {
    format!("the model is quantized already, by {method}: take the float model that it was made of")
}

/// Ends of the names that tensors have in quantized checkpoints, and who gives them.
const QUANTIZED: [(&str, &str); 14] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_map", "bitsandbytes"),
    (".weight.nested_absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "compressed-tensors or FP8"),
    (".weight_scale_inv", "FP8"),
    (".weight_zero_point", "compressed-tensors"),
    (".scales", "MLX, GPTQ or AWQ"),
    (".W_q", "HQQ"),
    (".input_scale", "FP8"),
];

/// The first tensor whose name tells that the checkpoint is quantized, and by what.
pub(crate) fn quantized_tensor<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<(&'a str, &'static str)> {
    names.find_map(|name| {
        let by_state = name.contains(".weight.quant_state.").then_some("bitsandbytes");
        let by_end = || QUANTIZED.iter().find(|(end, _)| name.ends_with(end)).map(|&(_, method)| method);
        by_state.or_else(by_end).map(|method| (name, method))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_are_told_by_their_first_bytes() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        for (bytes, expected) in [
            (&pointer[..], "git-lfs"),
            (b"<!DOCTYPE html>\n<html>", "web site"),
            (b"\n\n<HTML lang=\"en\">", "web site"),
            (b"Entry not found", "server"),
            (b"GGUF\x03\0\0\0", "llama.cpp"),
            (b"PK\x03\x04\0\0", "PyTorch"),
            (b" \n", "empty"),
            (b"", "empty"),
        ] {
            assert!(of_bytes(bytes).is_some_and(|found| found.contains(expected)), "{expected}");
        }
        for bytes in [&b"{}"[..], b"[1]", b"\x80\x02\0\0\0\0\0\0{\"", b"version 2"] {
            assert_eq!(of_bytes(bytes), None);
        }
    }

    #[test]
    fn directories_are_told_by_their_files() {
        for (files, expected) in [
            (
                &["adapter_config.json", "adapter_model.safetensors"][..],
                "LoRA adapter: merge it into its base model, org/base",
            ),
            (&["pytorch_model.bin", "config.json"], "`pytorch_model.bin`, weights that PyTorch"),
            (&["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "save_pretrained"),
            (&["model.gguf"], "llama.cpp"),
            (&["model.safetensors.incomplete"], "unfinished download"),
            (&["tf_model.h5"], "another program's"),
            (&["weights.safetensors"], "only `weights.safetensors`"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            for file in files {
                fs::write(directory.path().join(file), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
            }
            let found = of_directory(directory.path()).unwrap();
            assert!(found.contains(expected), "{expected}: {found}");
            let found = of_directory(&directory.path().join(files[0])).unwrap();
            assert!(found.contains("a file: give its directory"), "{found}");
        }
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(of_directory(directory.path()), None);
        fs::create_dir_all(directory.path().join("snapshots/0123")).unwrap();
        fs::create_dir(directory.path().join("blobs")).unwrap();
        assert!(of_directory(directory.path()).unwrap().ends_with("snapshots/0123"));
    }

    #[test]
    fn configurations_tell_quantized_and_multimodal_models() {
        for (config, expected) in [
            (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "quantized already, by gptq"),
            (json!({"quantization_config": {"load_in_4bit": true}}), "bitsandbytes"),
            (json!({"quantization": {"bits": 4, "group_size": 64}}), "mlx"),
            (json!({"model_type": "phi3_v", "img_processor": {}}), "`model_type` is `phi3_v`, a multimodal model"),
            (json!({"model_type": "llava", "vision_config": {}}), "`llava`"),
        ] {
            assert!(of_config(&config).is_some_and(|found| found.contains(expected)), "{expected}");
        }
        for config in
            [json!({"model_type": "phi3"}), json!({"quantization_config": null}), json!({"vision_config": null})]
        {
            assert_eq!(of_config(&config), None);
        }
    }
}
