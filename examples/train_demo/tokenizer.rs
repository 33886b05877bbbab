//! A byte-level BPE tokenizer, learned from the training text.

use crate::corpus::{Document, END_OF_TEXT};
use std::error::Error;
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

/// Tokens, bytes and special ones included.
pub const VOCABULARY: usize = 1024;

/// In the order of their ids.
pub const SPECIAL: [&str; 6] = [END_OF_TEXT, "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// Learns the merges. `<s>` is put before a text that is encoded with special tokens.
pub fn train(documents: &[Document]) -> Result<Tokenizer, Box<dyn Error + Send + Sync>> {
    let special = SPECIAL.map(|token| AddedToken::from(token, true));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
    let without_special =
        |document: &Document| SPECIAL.iter().fold(document.text().to_owned(), |text, token| text.replace(token, ""));
    tokenizer.train(&mut trainer, documents.iter().map(without_special))?;
    let begin = TemplateProcessing::builder()
        .try_single("<s> $A")?
        .try_pair("<s> $A <s> $B")?
        .special_tokens(vec![("<s>", 1)])
        .build()?;
    tokenizer.with_post_processor(Some(begin));
    Ok(tokenizer)
}

/// The ids of each document.
pub fn encode(tokenizer: &Tokenizer, documents: &[Document]) -> Result<Vec<Vec<u32>>, Box<dyn Error + Send + Sync>> {
    let encode = |document: &Document| {
        let begin = matches!(document, Document::Stories(_));
        Ok(tokenizer.encode_fast(document.text(), begin)?.get_ids().to_vec())
    };
    documents.iter().map(encode).collect()
}
