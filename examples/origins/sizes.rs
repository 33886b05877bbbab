//! What the record says of Phi-3.5-mini's size, by arithmetic from its shape.

use phi35_model::Config;
use serde_json::json;

/// Phi-3.5-mini's shape, as its published `config.json` has it.
pub fn phi35_mini() -> Config {
    let config = json!({
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    });
    serde_json::from_value(config).expect("all fields are there")
}

/// Parameters of a Phi-3 whose head is not its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Linear layers, the head among them.
    pub linear_layers: usize,
    /// Their weights.
    pub linear: usize,
    pub embedding: usize,
    pub norms: usize,
    /// Key and value elements of a token.
    pub cache_per_token: usize,
}

impl Sizes {
    /// By arithmetic.
    pub fn of(config: &Config) -> Self {
        let (width, inner, head) = (config.hidden_size, config.intermediate_size, config.head_size());
        let (heads, kv_heads) = (config.num_attention_heads, config.key_value_heads());
        let attention = (heads + 2 * kv_heads) * head * width + heads * head * width;
        let layer = attention + 2 * inner * width + inner * width;
        let layers = config.num_hidden_layers;
        Self {
            linear_layers: 4 * layers + 1,
            linear: layers * layer + config.vocab_size * width,
            embedding: config.vocab_size * width,
            norms: (2 * layers + 1) * width,
            cache_per_token: 2 * layers * kv_heads * head,
        }
    }

    /// All parameters.
    pub fn parameters(&self) -> usize {
        self.linear + self.embedding + self.norms
    }

    /// Bytes where linear weights, embeddings and norms take so many bits each.
    pub fn bytes(&self, [linear, embedding, norms]: [f64; 3]) -> f64 {
        (self.linear as f64 * linear + self.embedding as f64 * embedding + self.norms as f64 * norms) / 8.0
    }
}

/// Prints what the record's figures are measured against.
pub fn print() {
    let sizes = Sizes::of(&phi35_mini());
    let float = sizes.bytes([32.0; 3]);
    println!("## Phi-3.5-mini by arithmetic\n\n| | |\n|---|---|");
    println!("| linear layers, with the head | {} |", sizes.linear_layers);
    println!("| parameters | {} |", sizes.parameters());
    println!("| f32 | {:.2} GB |", float / 1e9);
    println!("| bf16 | {:.2} GB |", sizes.bytes([16.0; 3]) / 1e9);
    println!("| embeddings in 16 bits | {:.0} MB |", sizes.embedding as f64 * 2.0 / 1e6);
    for (name, bits) in [
        ("the record's log codec: u8 code, i8 sign; embeddings in f32", [16.0, 32.0, 32.0]),
        ("the record's log codec on everything", [16.0, 16.0, 32.0]),
        ("`q8`, embeddings in 16 bits", [8.25, 16.0, 32.0]),
        ("`q8` on everything", [8.25, 8.25, 32.0]),
        ("8 bits and nothing else", [8.0, 8.0, 32.0]),
    ] {
        let bytes = sizes.bytes(bits);
        println!("| {name} | {:.2} GB, {:.2}x under f32 |", bytes / 1e9, float / bytes);
    }
    let token = sizes.cache_per_token as f64;
    println!("| cache in f16, a token | {:.0} bytes |", 2.0 * token);
    println!("| cache in f16, 8192 tokens | {:.2} GB |", 2.0 * token * 8192.0 / 1e9);
    println!(
        "| cache, K in f16 and V in 8.25 bits | {:.1} % less than f16 |",
        100.0 * (1.0 - (2.0 + 8.25 / 8.0) / 4.0)
    );
    println!("| cache, K in f16 and V as u8 code and i8 sign | 0.0 % less than f16 |\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use burn_flex::Flex;

    #[test]
    fn the_formula_counts_what_a_model_has() {
        let mut config = crate::source::config(3, 64, 96);
        config.num_key_value_heads = Some(4);
        let model = config.init::<Flex>(&Default::default()).unwrap();
        assert_eq!(Sizes::of(&config).parameters(), model.num_params());
    }

    /// 133 linear layers in the record, and sizes of 7.6 GB (f32), 640 MB (embeddings) and 200 MB (cache at 8192 tokens).
    #[test]
    fn phi35_mini_has_the_sizes_of_its_shape() {
        let sizes = Sizes::of(&phi35_mini());
        assert_eq!(sizes.linear_layers, 129);
        assert_eq!(sizes.parameters(), 3_821_079_552);
        assert!((sizes.bytes([32.0; 3]) / 1e9 - 15.28).abs() < 0.01);
        assert!((sizes.bytes([16.0; 3]) / 1e9 - 7.64).abs() < 0.01);
        assert_eq!(2 * sizes.embedding, 197_001_216);
        assert_eq!(2 * sizes.cache_per_token, 393_216);
        assert_eq!(2 * sizes.cache_per_token * 8192, 3_221_225_472);
    }

    /// 3.95x in the record. Eight bits a weight and not one for scales would be just under 4x.
    #[test]
    fn no_eight_bit_format_is_3_95_times_smaller_with_embeddings_kept() {
        let sizes = Sizes::of(&phi35_mini());
        let ratio = |bits| sizes.bytes([32.0; 3]) / sizes.bytes(bits);
        assert!(ratio([16.0, 16.0, 32.0]) < 2.01, "the record's own storage");
        assert!(ratio([8.25, 8.25, 32.0]) < 3.9 && ratio([8.25, 16.0, 32.0]) < 3.8);
    }
}
