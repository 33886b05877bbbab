//! From arguments to one loaded model, or to two at once, without their types.

use crate::{
    device::Device,
    model::{Loaded, ModelArgs, Run},
    policy::MainFormat,
    source::Source,
};
use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use phi35_model::Phi3;
use qins_eval::{LanguageModel, WithStore};
use qins_kv_cache::KvChoice;
use serde::Serialize;

/// A model, as the output calls it.
#[derive(Serialize)]
pub struct About {
    pub model: String,
    pub weights: usize,
    pub weight_bytes: usize,
    pub bits_per_weight: f64,
    /// How keys and values are stored.
    pub kv: &'static str,
    pub load_s: f64,
}

impl About {
    fn new(source: &Source, kv: KvChoice, loaded: Loaded) -> Self {
        let Loaded { load_s, weights, weight_bytes, .. } = loaded;
        let bits_per_weight = 8.0 * weight_bytes as f64 / weights as f64;
        Self { model: source.to_string(), weights, weight_bytes, bits_per_weight, kv: kv.name(), load_s }
    }
}

/// Loads the model and runs `task` on it.
pub fn one<T>(
    args: &ModelArgs,
    kv: KvChoice,
    task: impl FnOnce(&dyn LanguageModel) -> Result<T>,
) -> Result<(About, T)> {
    struct One<F>(F, KvChoice);
    impl<T, F: FnOnce(&dyn LanguageModel) -> Result<T>> Run for One<F> {
        type Output = (Loaded, T);

        fn run<B: Backend>(self, model: &Phi3<B>, loaded: Loaded) -> Result<(Loaded, T)> {
            let Self(task, kv) = self;
            Ok((loaded, task(&WithStore { model, store: || kv.store() })?))
        }
    }
    let (loaded, output) = args.run(One(task, kv))?;
    Ok((About::new(&args.model, kv, loaded), output))
}

/// A model and what it is compared with.
#[derive(clap::Args)]
pub struct PairArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// How the model stores keys and values: dense (the backend's floats), f32, f16, v8, q8, v4
    #[arg(long, value_name = "FORMAT", default_value_t = KvChoice::Dense)]
    kv: KvChoice,
    /// What it is compared with [default: the model's own files]
    #[arg(long, value_name = "MODEL")]
    reference: Option<Source>,
    /// Format of the reference's linear weights [default: as they are]
    #[arg(long, value_name = "FORMAT")]
    reference_format: Option<MainFormat>,
    /// What computes the reference [default: what computes the model]
    #[arg(long, value_name = "NAME[:DEVICE]")]
    reference_backend: Option<Device>,
    /// How the reference stores keys and values
    #[arg(long, value_name = "FORMAT", default_value_t = KvChoice::Dense)]
    reference_kv: KvChoice,
}

/// Both models, as the output calls them.
#[derive(Serialize)]
pub struct Pair {
    pub model: About,
    pub reference: About,
}

impl PairArgs {
    /// Loads both and runs `task` on them, the model first.
    pub fn run<T>(&self, task: impl FnOnce(&dyn LanguageModel, &dyn LanguageModel) -> Result<T>) -> Result<(Pair, T)> {
        let reference = match &self.reference {
            Some(reference) => reference,
            None if self.model.model.container()?.is_some() => bail!(
                "{}: a container holds no floats to compare with: give its Hugging Face directory after --reference",
                self.model.model
            ),
            None => &self.model.model,
        };
        let run = self.model.run.beside(self.reference_format, self.reference_backend);
        let (model, (reference, output)) = one(&self.model, self.kv, |model| {
            let beside = ModelArgs { model: reference.clone(), run };
            one(&beside, self.reference_kv, |reference| task(model, reference))
        })?;
        Ok((Pair { model, reference }, output))
    }
}
