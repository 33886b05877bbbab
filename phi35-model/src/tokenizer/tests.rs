use super::*;
use serde_json::{Value, json};

fn read(json: Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap()
}

/// Bytes are tokens, written as GPT-2 writes them; those that are letters and blanks here.
fn bytes(pre_tokenizer: Value) -> Value {
    let letters = ('a'..='z').chain(['Ġ', 'Ċ', '.']);
    let vocabulary: serde_json::Map<String, Value> =
        letters.enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": {"type": "ByteLevel",
        "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
}

#[test]
fn truncation_and_padding_of_the_file_do_not_count() {
    let mut json = bytes(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false}));
    json["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1,
        "pad_type_id": 0, "pad_token": "b"});
    let tokenizer = read(json);
    assert_eq!(tokenizer.encode("abcdef").unwrap(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(tokenizer.encode_chat("a").unwrap(), [0]);
    assert_eq!(tokenizer.encode_with_ends("abcde").unwrap().0.len(), 5);
}

/// A file may begin with a byte order mark.
#[test]
fn a_mark_before_the_file_is_passed_over() {
    let json = bytes(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false}));
    let marked = [b"\xef\xbb\xbf", json.to_string().as_bytes()].concat();
    assert!(Tokenizer::from_json(&marked, Path::new("tokenizer.json")).is_ok());
}

/// Words of GPT-2 and words as they were later, with all that looks ahead.
#[test]
fn a_long_run_of_blanks_loses_nothing() {
    let later = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let bytes_alone =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    for (behavior, invert) in [("Isolated", false), ("Removed", true)] {
        let split = json!({"type": "Split", "pattern": {"Regex": later}, "behavior": behavior, "invert": invert});
        for words in [
            json!({"type": "Sequence", "pretokenizers": [split, bytes_alone]}),
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true}),
        ] {
            let tokenizer = read(bytes(words));
            let text = format!("hello there.{}bye.", " ".repeat(1_100_000));
            let ids = tokenizer.encode(&text).unwrap();
            assert_eq!(ids.len(), text.len());
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}

/// Cut here and by `tokenizers` itself.
#[test]
fn words_are_cut_as_the_library_cuts_them() {
    let later = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let gpt2 = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true});
    let split = |behavior: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": later}, "behavior": behavior, "invert": invert});
    for words in [
        gpt2(false),
        gpt2(true),
        split("Isolated", false),
        split("Removed", true),
        split("MergedWithPrevious", false),
        json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, gpt2(false)]}),
        json!({"type": "Whitespace"}),
    ] {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};
        let ours: WordSplitter = serde_json::from_value(words.clone()).unwrap();
        let theirs: PreTokenizerWrapper = serde_json::from_value(words.clone()).unwrap();
        for text in ["", "a", "It's  late:\r\n\n 1234 people,  don't   go.  ", " \u{3000}é漢字 99.5%", "\n\n\nx"] {
            let cut = |splitter: &dyn PreTokenizer| {
                let mut text = PreTokenizedString::from(text);
                splitter.pre_tokenize(&mut text).unwrap();
                let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
                splits.into_iter().map(|(word, offsets, _)| (word.to_owned(), offsets)).collect::<Vec<_>>()
            };
            assert_eq!(cut(&ours), cut(&theirs), "{words} of {text:?}");
        }
    }
}

/// Tokens of bytes, as tokenizers of SentencePiece have them: what is no text is shown as U+FFFD.
fn byte_fallback() -> Tokenizer {
    let bytes = ["<0xC3>", "<0xA9>", "<0xFF>", "a", "b", "\u{fffd}"];
    let vocabulary: serde_json::Map<String, Value> =
        bytes.iter().enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    read(json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
        {"id": 6, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": true}}))
}

#[test]
fn a_stream_gives_out_all_of_its_text() {
    let tokenizer = byte_fallback();
    let pieces = |ids: &[u32]| {
        let mut stream = tokenizer.stream(&[]);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    };
    assert_eq!(pieces(&[3, 0, 1, 4]), ["a", "", "é", "b", ""], "a character comes whole");
    assert_eq!(pieces(&[3, 5]), ["a", "", "\u{fffd}"], "a character like any other, at the end");
    assert_eq!(pieces(&[3, 0]), ["a", "", "\u{fffd}"], "half of one");
    assert_eq!(pieces(&[5, 4, 6]), ["", "\u{fffd}b", "", ""]);
    assert_eq!(pieces(&[0, 1, 2]), ["", "é", "", "\u{fffd}"], "what follows makes no text of what was given out");
    assert_eq!(pieces(&[2, 2, 2, 2, 2]).concat(), "\u{fffd}".repeat(5));
}

#[test]
fn tokens_have_ids_and_some_are_special() {
    let tokenizer = byte_fallback();
    assert_eq!(
        (tokenizer.token_id("<|end|>"), tokenizer.token_id("a"), tokenizer.token_id("x")),
        (Some(6), Some(3), None)
    );
    assert_eq!(tokenizer.special_tokens(), [(6, "<|end|>".to_owned())]);
    assert_eq!(tokenizer.vocabulary(), 7);
    let unknown = tokenizer.decode(&[3, 7]).unwrap_err();
    assert!(matches!(unknown, TokenizerError::UnknownId { found: 7, vocabulary: 7 }), "{unknown}");
}
