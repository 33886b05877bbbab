//! A Hugging Face directory of Phi-3.5 (or any Phi-3) into a container, and one answer from it, by the library alone: what
//! `qins convert` and `qins generate` do.
//!
//!     cargo run --release --example convert_phi35 -- <hf-dir> <output>
//!
//! Without arguments it converts the model that is part of the program.

use burn_flex::Flex;
use phi35_model::{Config, Generation, Phi3, Tokenizer, generate};
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use qins_import::{
    Checkpoint,
    container::{Container, Converter, Step},
    load_container, plan,
};
use std::{
    error::Error,
    io::Write,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qins-cli/demo");
    let (model, output) = match arguments.as_slice() {
        [] => (demo, std::env::temp_dir().join(format!("qins-demo-{}", std::process::id()))),
        [model, output] => (model.clone(), output.clone()),
        _ => return Err("usage: convert_phi35 [<hf-dir> <output>]".into()),
    };

    // Names and shapes are compared with the headers before a weight is read; the model itself is never made in float.
    let config = Config::read(&model.join("config.json"))?;
    let checkpoint = Checkpoint::open(&model)?;
    let policy = Policy::linear(Format::Q8).with_embeddings(checkpoint.half_format());
    let planned = plan(&config.init::<Flex>(&Default::default())?, &checkpoint, &policy)?;
    let converter = Converter::new(&model, &checkpoint, &output, planned, policy.to_string(), false)?;
    let converted = converter.run(|step| {
        if let Step::Wrote(name, info, _) = step {
            println!("{name} {:?} {}", info.shape, info.format);
        }
    })?;
    println!("{}: {} bytes", output.display(), converted.bytes);

    // The weights stay where they are in the mapped file.
    let container = Container::open(&output)?;
    let model: Phi3<Qins<Flex>> = load_container(config.init(&Default::default())?, &container, |_| ())?;
    let tokenizer = Tokenizer::read(&output.join("tokenizer.json"))?;
    let prompt = tokenizer.encode("Once upon a time")?;
    let mut text = tokenizer.stream(&prompt);
    print!("Once upon a time");
    for id in generate(&model, &prompt, Generation { max_new_tokens: 40, ..Default::default() })? {
        print!("{}", text.push(id)?);
        std::io::stdout().flush()?;
    }
    println!();
    if arguments.is_empty() {
        std::fs::remove_dir_all(&output)?;
    }
    Ok(())
}
