//! Any bytes as `config.json`, `generation_config.json` and `tokenizer_config.json`: read or refused.
//!
//!     cargo +nightly fuzz run config fuzz/corpus/config fuzz/seeds/config -- -max_total_time=600
#![no_main]

use libfuzzer_sys::fuzz_target;
use phi35_model::{ChatTemplate, Config, GenerationConfig, Message};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("config.json");
    if let Ok(config) = Config::from_json(data, path) {
        let _ = (config.head_size(), config.rotary_dim(), config.original_length());
    }
    let _ = GenerationConfig::from_json(data, path);
    if let Ok(template) = ChatTemplate::from_json(data, path) {
        let _ = template.render(&[Message::new("user", "hello")], true);
    }
});
