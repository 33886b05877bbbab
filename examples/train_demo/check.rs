//! What a trained model is worth: samples sentences, parses them, and looks them up in the training text.

use crate::{
    corpus::Document,
    grammar::{Grammar, sentences},
};
use burn_flex::Flex;
use phi35_model::{Config, Generation, GenerationConfig, Sampling, Tokenizer, generate};
use qins_import::{Checkpoint, load};
use std::{collections::HashSet, error::Error, fmt, path::Path};

/// Of so many sampled sentences.
pub struct Report {
    /// All of them.
    pub sentences: usize,
    /// The grammar writes so many.
    pub parsed: usize,
    /// So many parse and are not in the training text.
    pub new: usize,
    /// Some that do not parse.
    pub wrong: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |n: usize| 100.0 * n as f64 / self.sentences as f64;
        writeln!(f, "{} sentences sampled at temperature 0.7", self.sentences)?;
        writeln!(f, "{:5.1} % parse under the grammar", share(self.parsed))?;
        write!(f, "{:5.1} % parse and were not in the training text", share(self.new))?;
        self.wrong.iter().try_for_each(|sentence| write!(f, "\ndoes not parse: {sentence}"))
    }
}

/// Samples texts from their beginning at temperature 0.7, and counts their sentences.
pub fn check(directory: &Path, grammar: &Grammar, documents: &[Document], n: usize) -> Result<Report, Box<dyn Error>> {
    let config = Config::read(&directory.join("config.json"))?;
    let tokenizer = Tokenizer::read(&directory.join("tokenizer.json"))?;
    let stop_ids = GenerationConfig::read(&directory.join("generation_config.json"))?.eos_token_id.0;
    let checkpoint = Checkpoint::open(directory)?;
    let model = load::<Flex, _>(config.init(&Default::default())?, &checkpoint, |_| ())?;
    let known: HashSet<&str> = documents
        .iter()
        .flat_map(|document| document.text().split("<|"))
        .flat_map(|part| sentences(part.split_once("|>").map_or(part, |(_, text)| text)))
        .collect();

    let mut report = Report { sentences: 0, parsed: 0, new: 0, wrong: Vec::new() };
    for seed in 0.. {
        let sampling = Sampling { temperature: 0.7, seed, ..Default::default() };
        let options = Generation {
            max_new_tokens: config.max_position_embeddings - 1,
            stop_ids: stop_ids.clone(),
            sampling,
            ..Default::default()
        };
        let ids: Vec<u32> = generate(&model, &tokenizer.encode("")?, options)?.collect();
        for sentence in sentences(&tokenizer.decode(&ids)?) {
            if report.sentences == n {
                return Ok(report);
            }
            report.sentences += 1;
            if !grammar.accepts("sentence", sentence) {
                report.wrong.push(sentence.to_owned());
                continue;
            }
            report.parsed += 1;
            report.new += usize::from(!known.contains(sentence));
        }
    }
    unreachable!("seeds do not end before the sentences are enough")
}
