//! Several texts at once: each has its own cache, and all share one reading of the weights a token.

use crate::{
    DenseKv, Generate, Generation, KvCache, KvStore, Phi3, Prefix, PromptError, QueryMask, StopReason, resume,
};
use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Texts that are generated side by side, each with its own prompt, options, seed and cache, of its own length, without
/// padding.
///
/// On float weights a text is what it would be alone, except for the order of sums. On coded weights products of 1 input,
/// of 2 to 12 and of more round their inputs differently on processors with fixed-point kernels, so that logits
/// differ from those of the text alone by about the error that `docs/performance.md` gives for each, and a near-tie
/// between two tokens may fall the other way. In f32 (`Level::in_float`) only the order of sums remains.
///
/// Rows join with [`add`](Self::add), also while others are being written, and leave when they end: then their cache is
/// dropped, and a step costs what those left cost. Prompts are run a row at a time, new tokens all rows at once.
///
/// ```
/// use burn_flex::Flex;
/// use phi35_model::{Batch, Config, Generation, Prefix};
///
/// let config: Config = serde_json::from_str(
///     r#"{"model_type": "phi3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
///         "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
/// )?;
/// let model = config.init::<Flex>(&Default::default())?;
/// let mut batch = Batch::new(&model);
/// for (prompt, n) in [(&[1, 2, 3][..], 4), (&[7], 2)] {
///     batch.add(Prefix::new(&model), prompt, Generation { max_new_tokens: n, ..Default::default() })?;
/// }
/// let mut texts = [Vec::new(), Vec::new()];
/// while let Some(tokens) = batch.step() {
///     tokens.into_iter().for_each(|(row, id)| texts[row].push(id));
/// }
/// assert_eq!(texts.map(|text| text.len()), [4, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch<'m, B: Backend, S = DenseKv<B>> {
    model: &'m Phi3<B>,
    rows: Vec<Row<'m, B, S>>,
}

#[derive(Debug)]
enum Row<'m, B: Backend, S> {
    Written(Box<Generate<'m, B, S>>),
    /// By itself, or by [`Batch::end`].
    Ended(Option<StopReason>),
}

impl<'m, B: Backend, S: KvStore<B>> Batch<'m, B, S> {
    /// No rows yet.
    pub fn new(model: &'m Phi3<B>) -> Self {
        Self { model, rows: Vec::new() }
    }

    /// Adds a text that goes on from a prompt, as [`resume`] does. Returns its row: rows are counted from 0, and keep
    /// their number.
    pub fn add(&mut self, prefix: Prefix<B, S>, prompt: &[u32], options: Generation) -> Result<usize, PromptError> {
        self.rows.push(Row::Written(Box::new(resume(self.model, prefix, prompt, options)?)));
        Ok(self.rows.len() - 1)
    }

    /// Rows that have not ended.
    pub fn written(&self) -> usize {
        self.rows.iter().filter(|row| matches!(row, Row::Written(_))).count()
    }

    /// Ends a row and drops its cache.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn end(&mut self, row: usize) {
        if let Row::Written(_) = self.rows[row] {
            self.rows[row] = Row::Ended(None);
        }
    }

    /// Why a row ended by itself.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn stop_reason(&self, row: usize) -> Option<StopReason> {
        match &self.rows[row] {
            Row::Written(text) => text.stop_reason(),
            Row::Ended(reason) => *reason,
        }
    }

    /// The next token of every row, with the row's number; rows that end have none. `None` when all have ended.
    pub fn step(&mut self) -> Option<Vec<(usize, u32)>> {
        let mut found = Vec::new();
        let mut together = Vec::new();
        for (i, row) in self.rows.iter_mut().enumerate() {
            let Row::Written(text) = row else { continue };
            if !text.goes_on() {
                continue;
            }
            if text.last_token().is_some() {
                together.push((i, &mut **text));
            } else {
                let logits = text.next_logits();
                found.extend(text.choose(&logits).map(|id| (i, id)));
            }
        }
        let logits = next_logits(self.model, &mut together);
        for ((i, text), logits) in together.into_iter().zip(logits.chunks_exact(self.model.config().vocab_size)) {
            found.extend(text.choose(logits).map(|id| (i, id)));
        }
        for row in &mut self.rows {
            if let Row::Written(text) = row
                && !text.goes_on()
            {
                *row = Row::Ended(text.stop_reason());
            }
        }
        found.sort_unstable();
        (!found.is_empty() || self.written() > 0).then_some(found)
    }
}

/// Logits of the token that follows each text, `[rows, vocabulary]`.
fn next_logits<B: Backend, S: KvStore<B>>(model: &Phi3<B>, texts: &mut [(usize, &mut Generate<'_, B, S>)]) -> Vec<f32> {
    if texts.is_empty() {
        return Vec::new();
    }
    let last = texts.iter_mut().map(|(_, text)| text.last_token().expect("one token is left to run"));
    let (ids, mut caches): (Vec<i64>, Vec<&mut KvCache<B, S>>) = last.map(|(id, cache)| (i64::from(id), cache)).unzip();
    let ids = TensorData::new(ids, [caches.len(), 1]);
    let hidden = model.hidden_rows(Tensor::from_data(ids, &model.model.norm.gamma.device()), &mut caches);
    model.logits(hidden).into_data().convert::<f32>().into_vec().expect("just converted to f32")
}

/// One layer's stores of some rows, as a layer sees them: one.
pub(crate) struct Rows<'a, B: Backend, S> {
    stores: Vec<&'a mut S>,
    /// What the query of each row sees. They differ in length, so that none is that of all.
    masks: &'a [QueryMask<'a, B>],
}

impl<'a, B: Backend, S> Rows<'a, B, S> {
    pub(crate) fn new(stores: Vec<&'a mut S>, masks: &'a [QueryMask<'a, B>]) -> Self {
        Self { stores, masks }
    }
}

fn row<B: Backend>(tensor: &Tensor<B, 4>, row: usize) -> Tensor<B, 4> {
    tensor.clone().slice_dim(0, row..row + 1)
}

impl<B: Backend, S: KvStore<B>> KvStore<B> for Rows<'_, B, S> {
    fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>) {
        for (i, store) in self.stores.iter_mut().enumerate() {
            store.append(row(&keys, i), row(&values, i));
        }
    }

    fn attend(&self, queries: Tensor<B, 4>, _: &QueryMask<'_, B>) -> Tensor<B, 4> {
        let rows = self.stores.iter().zip(self.masks).enumerate();
        Tensor::cat(rows.map(|(i, (store, mask))| store.attend(row(&queries, i), mask)).collect(), 0)
    }

    fn truncate(&mut self, len: usize) {
        self.stores.iter_mut().for_each(|store| store.truncate(len));
    }

    /// Of the longest row.
    fn len(&self) -> usize {
        self.stores.iter().map(|store| store.len()).max().unwrap_or(0)
    }
}
