use super::*;
use serde_json::json;

fn minimal() -> Map<String, Value> {
    let json = json!({"model_type": "phi3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "eos_token_id": [2, 7]});
    json.as_object().unwrap().clone()
}

/// The configuration with these fields in addition, or the message it is refused with.
fn with(more: Value) -> Result<Config, String> {
    let mut json = minimal();
    json.extend(more.as_object().unwrap().clone());
    Config::from_json(Value::from(json).to_string().as_bytes(), Path::new("config.json")).map_err(|e| e.to_string())
}

fn factors() -> Value {
    json!({"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 2.0]})
}

/// With more or other fields in `rope_scaling`.
fn scaled(more: Value) -> Result<Config, String> {
    let mut scaling = factors();
    scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with(json!({"rope_scaling": scaling, "original_max_position_embeddings": 16}))
}

#[test]
fn absent_fields_have_hugging_faces_defaults() {
    let config = with(json!({})).unwrap();
    assert_eq!((config.key_value_heads(), config.head_size(), config.rotary_dim()), (4, 4, 4));
    assert_eq!(config.eos_token_id, TokenIds(vec![2, 7]));
    assert!(!config.tie_word_embeddings);
    // As `Phi3Config()` of transformers 4.57 and 5.24.
    let config = Config::from_json(br#"{"model_type": "phi3"}"#, Path::new("config.json")).unwrap();
    assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (32064, 3072, 8192));
    assert_eq!((config.num_hidden_layers, config.num_attention_heads, config.key_value_heads()), (32, 32, 32));
    assert_eq!((config.max_position_embeddings, config.original_length()), (4096, 4096));
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.partial_rotary_factor), (1e-5, 10000.0, 1.0));
    assert_eq!((config.sliding_window, &config.rope_scaling), (None, &None));
    for name in minimal().keys().filter(|name| *name != "model_type") {
        let mut json = minimal();
        json.insert(name.clone(), Value::Null);
        let null = Config::try_from(json.clone()).unwrap();
        json.remove(name);
        assert_eq!(Config::try_from(json).unwrap(), null, "`{name}`: null");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let json = [b"\xef\xbb\xbf", Value::from(minimal()).to_string().as_bytes()].concat();
    assert!(Config::from_json(&json, Path::new("config.json")).is_ok());
}

#[test]
fn both_layouts_of_the_rope_are_read() {
    let plain = with(json!({})).unwrap();
    for none in [json!({}), json!(null), json!({"type": "default"}), json!({"rope_type": "default", "factor": null})] {
        assert_eq!(with(json!({"rope_scaling": none})).unwrap(), plain, "{none}");
        assert_eq!(with(json!({"rope_parameters": none})).unwrap(), plain, "{none}");
    }
    assert_eq!(with(json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}})).unwrap(), plain);

    let long = json!({"rope_type": "longrope", "type": "longrope", "rope_theta": 500.0, "short_factor": [1.0],
        "long_factor": [2.0], "original_max_position_embeddings": 16, "partial_rotary_factor": 0.5});
    let long = with(json!({"rope_theta": null, "rope_parameters": long})).unwrap();
    assert_eq!((long.rope_theta, long.original_length(), long.rotary_dim()), (500.0, 16, 2));
    assert_eq!(long.rope_scaling.unwrap().long_factor, [2.0]);
}

#[test]
fn longrope_has_the_names_it_had_in_2024() {
    let expected = scaled(json!({})).unwrap();
    for (first, then) in [("su", None), ("yarn", None), ("su", Some("longrope")), ("yarn", Some("su"))] {
        assert_eq!(scaled(json!({"type": first, "rope_type": then})).unwrap(), expected, "{first}, {then:?}");
        assert_eq!(scaled(json!({"type": then, "rope_type": first})).unwrap(), expected, "{first}, {then:?}");
    }
    // A yarn proper is another rope.
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    assert!(with(json!({"rope_scaling": yarn})).unwrap_err().contains("`yarn`"));
}

/// Values of transformers 5.24: `ROPE_INIT_FUNCTIONS["longrope"](config)[1]`.
#[test]
fn the_attention_factor_is_that_of_transformers() {
    for (more, expected) in [
        (json!({}), 1.224_744_871_391_589),
        (json!({"factor": 8.0}), 1.322_875_655_532_295_2),
        (json!({"factor": 0.5}), 1.0),
        (json!({"attention_factor": 1.7}), 1.7),
        (json!({"attention_factor": 1.7, "factor": 8.0}), 1.7),
        (json!({"attention_factor": null, "factor": null}), 1.224_744_871_391_589),
    ] {
        let found = scaled(more.clone()).unwrap().attention_factor();
        assert!((found - expected).abs() < 1e-12, "{more}: {found}");
    }
    assert_eq!(with(json!({})).unwrap().attention_factor(), 1.0);
}

#[test]
fn what_would_change_the_numbers_is_refused_by_name() {
    for (more, named) in [
        (json!({"model_type": "llama"}), "config: `model_type` is `llama`: expected `phi3`"),
        (json!({"hidden_act": "gelu"}), "`hidden_act` is `gelu`"),
        (json!({"attention_bias": true}), "`attention_bias` is true: expected false"),
        (json!({"mlp_bias": true}), "`mlp_bias`"),
        (json!({"final_logit_softcapping": 30.0}), "`final_logit_softcapping` is 30.0: expected none"),
        (json!({"residual_multiplier": 0.5}), "`residual_multiplier`"),
        (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "`quantization_config` is \"gptq\""),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "`layer_types` is `sliding_attention`"),
        (json!({"sliding_window": 8, "layer_types": ["full_attention", "full_attention"]}), "`layer_types`"),
        (json!({"sliding_window": 8, "use_sliding_window": false}), "`use_sliding_window`"),
        (json!({"hidden_size": "16"}), "`hidden_size` is \"16\""),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "`linear`"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}), "`dynamic`"),
        (json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}), "`llama3`"),
        (json!({"rope_scaling": {"factor": 2.0}}), "`rope_scaling.factor` is 2.0"),
        (
            json!({"rope_scaling": {"short_factor": [1.0, 1.0], "long_factor": [1.0, 2.0]}}),
            "`rope_scaling` is `no type`",
        ),
        (json!({"rope_scaling": {"type": "longrope", "rope_type": "default"}}), "contradict"),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "`rope_parameters.full_attention`"),
        (json!({"rope_parameters": {"rope_theta": 500.0}}), "`rope_parameters.rope_theta` is 500.0: expected 10000.0"),
    ] {
        let message = with(more.clone()).unwrap_err();
        assert!(message.starts_with("config.json: ") && message.contains(named), "{more}: {message}");
    }
    for (more, named) in [
        (json!({"long_mscale": 1.2}), "`rope_scaling.long_mscale` is 1.2"),
        (json!({"beta_fast": 32}), "`rope_scaling.beta_fast`"),
        (json!({"short_factor": [1.0]}), "`rope_scaling.short_factor` is 1 numbers: expected 2"),
        (json!({"long_factor": [1.0, -1.0]}), "`rope_scaling.long_factor`"),
        (json!({"attention_factor": 0.0}), "`rope_scaling.attention_factor`"),
        (json!({"factor": -2.0}), "`rope_scaling.factor`"),
        (json!({"original_max_position_embeddings": 32}), "`rope_scaling.original_max_position_embeddings` is 32"),
    ] {
        let message = scaled(more.clone()).unwrap_err();
        assert!(message.contains(named), "{more}: {message}");
    }
}

#[test]
fn what_changes_nothing_is_passed_over() {
    let plain = with(json!({})).unwrap();
    for more in [
        json!({"attention_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "use_cache": false}),
        json!({"auto_map": {"AutoConfig": "x"}, "torch_dtype": "bfloat16", "dtype": "bfloat16", "pad_token_id": 0}),
        json!({"attention_bias": false, "quantization_config": null, "layer_types": null, "logits_scaling": 1.0}),
        json!({"layer_types": ["full_attention", "full_attention"], "pruned_heads": {}, "use_sliding_window": false}),
    ] {
        assert_eq!(with(more.clone()).unwrap(), plain, "{more}");
    }
    assert_eq!(with(json!({"hidden_act": "swish"})).unwrap().hidden_act, "swish");
}

#[test]
fn sizes_that_make_no_model_are_refused() {
    for (field, value) in [
        ("num_attention_heads", 3),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("num_attention_heads", 0),
        ("vocab_size", 0),
        ("sliding_window", 0),
        ("hidden_size", 1u64 << 40),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 5000),
    ] {
        assert!(with(json!({field: value})).is_err(), "{field} = {value}");
    }
    assert!(with(json!({"partial_rotary_factor": 0.3})).is_err());
    assert!(with(json!({"rope_theta": 0.0})).is_err());
}

#[test]
fn a_generation_config_says_how_to_sample() {
    let sampling = |json: Value| {
        GenerationConfig::from_json(json.to_string().as_bytes(), Path::new("generation_config.json"))
            .map(|config| config.sampling())
    };
    assert_eq!(sampling(json!({"eos_token_id": 2, "repetition_penalty": 1.1})).unwrap(), None);
    let greedy = sampling(json!({"do_sample": false, "temperature": 0.6})).unwrap().unwrap();
    assert_eq!(greedy.temperature, 0.0);
    let defaults = sampling(json!({"do_sample": true})).unwrap().unwrap();
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p, defaults.min_p), (1.0, 50, 1.0, 0.0));
    let named = json!({"temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.2});
    let named = sampling(named).unwrap().unwrap();
    assert_eq!((named.temperature, named.top_k, named.top_p, named.min_p), (0.6, 0, 0.9, 0.1));
    assert_eq!(named.repetition_penalty, 1.2);
    let message = sampling(json!({"top_p": 1.5})).unwrap_err().to_string();
    assert!(message.contains("generation_config.json") && message.contains("`top_p` is 1.5"), "{message}");

    let json =
        br#"{"typical_p": 0.9, "num_beams": 1, "no_repeat_ngram_size": 3, "suppress_tokens": [], "top_h": null}"#;
    let config = GenerationConfig::from_json(json, Path::new("generation_config.json")).unwrap();
    assert_eq!(config.not_implemented(), ["typical_p", "no_repeat_ngram_size"]);
}
