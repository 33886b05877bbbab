//! A Hugging Face directory of a trained model.

use crate::{
    corpus::{CHAT_TEMPLATE, END_OF_TEXT},
    tokenizer::SPECIAL,
};
use burn_flex::Flex;
use burn_store::{
    BurnToPyTorchAdapter, HalfPrecisionAdapter, KeyRemapper, ModuleAdapter, ModuleSnapshot, SafetensorsStore,
};
use phi35_model::Phi3;
use serde_json::{Value, json};
use std::{error::Error, path::Path};
use tokenizers::Tokenizer;

/// Writes weights in f16, configuration and tokenizer.
pub fn write(
    directory: &Path,
    config: &Value,
    tokenizer: &Tokenizer,
    model: &Phi3<Flex>,
) -> Result<(), Box<dyn Error>> {
    let mut store = SafetensorsStore::from_file(directory.join("model.safetensors"))
        .overwrite(true)
        .clear_metadata()
        .metadata("format", "pt")
        .with_to_adapter(BurnToPyTorchAdapter.chain(HalfPrecisionAdapter::new()))
        .remap(KeyRemapper::new().add_pattern(r"gamma$", "weight")?);
    model.save_into(&mut store)?;

    let id = |token: &str| SPECIAL.iter().position(|special| *special == token).expect("a special token");
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": false,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    });
    let generation_config = json!({
        "bos_token_id": id("<s>"),
        "eos_token_id": [id("<|end|>"), id(END_OF_TEXT)],
        "pad_token_id": id(END_OF_TEXT),
    });
    tokenizer.save(directory.join("tokenizer.json"), false).map_err(|e| e as Box<dyn Error>)?;
    for (name, value) in [
        ("config.json", config),
        ("tokenizer_config.json", &tokenizer_config),
        ("generation_config.json", &generation_config),
    ] {
        std::fs::write(directory.join(name), serde_json::to_string_pretty(value)? + "\n")?;
    }
    Ok(())
}
