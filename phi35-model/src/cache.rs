//! The key-value cache: what attention needs of earlier tokens.

use crate::{Positions, QueryMask};
use burn::tensor::{Int, Tensor, activation::softmax, backend::Backend};

/// Keys and values of one layer. Another storage (encoded, paged) is another implementation.
pub trait KvStore<B: Backend> {
    /// Appends the keys and values of new tokens, `[batch, kv heads, tokens, head]` each, keys already rotated.
    fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>);

    /// Scaled dot-product attention over everything stored, for the queries of the tokens appended last.
    ///
    /// `queries`: `[batch, heads, tokens, head]`, where `heads` is a multiple of the key-value heads and neighbouring
    /// query heads share one. `mask` says which keys they see. Returns the shape of the queries. Scores are scaled by
    /// `head^-0.5`.
    fn attend(&self, queries: Tensor<B, 4>, mask: &QueryMask<'_, B>) -> Tensor<B, 4>;

    /// Forgets all but the first `len` tokens.
    fn truncate(&mut self, len: usize);

    /// Tells how many tokens will be stored, for stores that can make room at once.
    fn reserve(&mut self, _len: usize) {}

    /// Tells that no later query sees a token before `first`, unless this is truncated first: a store may free them.
    fn free_before(&mut self, _first: usize) {}

    /// The first token that was not freed.
    fn first(&self) -> usize {
        0
    }

    /// Tokens stored, those freed included.
    fn len(&self) -> usize;

    /// Whether no token is stored.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The caches of all layers, and what they need to be computed anew.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend, S = DenseKv<B>> {
    pub(crate) layers: Vec<S>,
    pub(crate) left_padding: Vec<usize>,
    /// Tokens stored, in parts `[batch, tokens]`; kept only where a longer sequence may rotate its keys otherwise.
    ids: Vec<Tensor<B, 2, Int>>,
    /// Length of the sequence that the stored keys are rotated for.
    pub(crate) rotated_for: usize,
    /// Length that the sequence is known to reach.
    pub(crate) expected: usize,
}

impl<B: Backend, S: KvStore<B> + Default> KvCache<B, S> {
    /// Empty caches for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self::with(layers, S::default)
    }
}

/// Tokens that a sliding window has passed and that are kept for a text that goes back a little.
const FREED_LATER: usize = 64;

/// The first token that has to be kept of `tokens`, where queries see a `window`.
pub fn first_kept(tokens: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (tokens + 1).saturating_sub(window.saturating_add(FREED_LATER)))
}

impl<B: Backend, S: KvStore<B>> KvCache<B, S> {
    /// Caches for `layers` layers, each made by `store`.
    pub fn with(layers: usize, store: impl FnMut() -> S) -> Self {
        let layers = std::iter::repeat_with(store).take(layers).collect();
        Self { layers, left_padding: Vec::new(), ids: Vec::new(), rotated_for: 0, expected: 0 }
    }

    /// The stores of all layers.
    pub fn layers(&self) -> &[S] {
        &self.layers
    }

    /// The stores of all layers, to fill them: all with the same number of tokens.
    pub fn layers_mut(&mut self) -> &mut [S] {
        &mut self.layers
    }

    /// Whether the cache can be truncated to `tokens` tokens and go on: the next query of a sliding window finds its keys.
    pub(crate) fn goes_on_from(&self, tokens: usize, window: Option<usize>) -> bool {
        let seen = window.map_or(0, |window| (tokens + 1).saturating_sub(window));
        self.layers.iter().all(|layer| layer.first() <= seen)
    }

    /// Frees what a sliding window has passed.
    pub(crate) fn free_unseen(&mut self, window: Option<usize>) {
        let first = first_kept(self.tokens(), window);
        if first > 0 {
            self.layers.iter_mut().for_each(|layer| layer.free_before(first));
        }
    }

    /// For a batch of sequences of several lengths: each row starts with so many tokens of padding, which nothing sees
    /// and no position counts. To be told before the first token.
    pub fn with_left_padding(self, left_padding: Vec<usize>) -> Self {
        Self { left_padding, ..self }
    }

    /// Tells that the sequence will reach `tokens` tokens, so that a part of it is run as the whole would be: with
    /// longrope, the factors go by the length of the whole.
    pub fn expect(&mut self, tokens: usize) {
        self.expected = tokens;
    }

    /// Makes room for `tokens` tokens at once, so that no later token has to move those before it.
    pub fn reserve(&mut self, tokens: usize) {
        self.layers.iter_mut().for_each(|layer| layer.reserve(tokens));
    }

    /// Forgets all but the first `tokens` tokens, to go on otherwise from there.
    pub fn truncate(&mut self, tokens: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(tokens));
        let mut left = tokens;
        self.ids = std::mem::take(&mut self.ids)
            .into_iter()
            .filter_map(|part| {
                let kept = left.min(part.dims()[1]);
                left -= kept;
                (kept > 0).then(|| part.slice_dim(1, 0..kept))
            })
            .collect();
    }

    /// Notes the ids of new tokens. A part is joined with the one before it only if it is as long, so that a token moves
    /// the logarithm of all tokens' number, and not all of them.
    pub(crate) fn note_ids(&mut self, ids: Tensor<B, 2, Int>) {
        let mut last = ids;
        while let Some(before) = self.ids.pop_if(|before| before.dims()[1] <= last.dims()[1]) {
            last = Tensor::cat(vec![before, last], 1);
        }
        self.ids.push(last);
    }

    /// The ids that were noted, `[batch, tokens]`.
    pub(crate) fn noted_ids(&self) -> Option<Tensor<B, 2, Int>> {
        (!self.ids.is_empty()).then(|| Tensor::cat(self.ids.clone(), 1))
    }

    /// Length of the sequence that the stored keys are rotated for: with longrope, factors go by it.
    pub fn rotated_for(&self) -> usize {
        self.rotated_for
    }

    /// Padding of each row; a single 0 stands for rows without any.
    pub(crate) fn paddings(&self) -> &[usize] {
        if self.left_padding.is_empty() { &[0] } else { &self.left_padding }
    }

    /// Where the next `tokens` tokens of each row stand, in sequences that have `length` tokens with padding.
    pub(crate) fn positions(&self, tokens: usize, length: usize) -> Vec<Positions> {
        let first = self.tokens();
        let of_row = |&padding: &usize| Positions {
            tokens: (first..first + tokens).map(|slot| slot.saturating_sub(padding)).collect(),
            length: length.saturating_sub(padding),
        };
        self.paddings().iter().map(of_row).collect()
    }

    /// Tokens stored, padding included.
    pub fn tokens(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len())
    }
}

/// Keys and values as float tensors with room to grow.
///
/// The tensors hold as many tokens as were [reserved](KvStore::reserve), and are doubled when full. In between, appending writes only the new tokens on backends that assign in place
/// when they hold the only reference: Flex, NdArray and those of CubeCL. Attending reads everything stored. On Flex that
/// is a view; NdArray and CubeCL copy what is stored when it is sliced out of its room, once a layer and token.
#[derive(Debug, Clone)]
pub struct DenseKv<B: Backend> {
    /// Keys and values, `[batch, kv heads, capacity, head]` each.
    room: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
    len: usize,
    /// Capacity of the next allocation at least.
    reserved: usize,
}

impl<B: Backend> Default for DenseKv<B> {
    fn default() -> Self {
        Self { room: None, len: 0, reserved: 0 }
    }
}

/// Tokens that the first allocation holds.
const FIRST_CAPACITY: usize = 64;

impl<B: Backend> KvStore<B> for DenseKv<B> {
    fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>) {
        let end = self.len + keys.dims()[2];
        let place = |room: Option<Tensor<B, 4>>, new: Tensor<B, 4>| {
            let [batch, heads, _, head] = new.dims();
            let capacity = room.as_ref().map_or(0, |room| room.dims()[2]);
            let room = if end <= capacity {
                room.expect("a capacity has a tensor")
            } else {
                let capacity = end.max(2 * capacity).max(self.reserved).max(FIRST_CAPACITY);
                let larger = Tensor::zeros([batch, heads, capacity, head], &new.device());
                match room {
                    Some(room) => {
                        let old = [0..batch, 0..heads, 0..self.len, 0..head];
                        larger.slice_assign(old.clone(), room.slice(old))
                    }
                    None => larger,
                }
            };
            room.slice_assign([0..batch, 0..heads, self.len..end, 0..head], new)
        };
        // Taken out, so that the backend sees the only reference and may write in place.
        let (old_keys, old_values) = self.room.take().unzip();
        self.room = Some((place(old_keys, keys), place(old_values, values)));
        self.len = end;
    }

    fn attend(&self, queries: Tensor<B, 4>, mask: &QueryMask<'_, B>) -> Tensor<B, 4> {
        let Some((keys, values)) = &self.room else { return queries };
        let [batch, heads, tokens, head] = queries.dims();
        let [_, kv_heads, _, _] = keys.dims();
        let stored = |room: &Tensor<B, 4>| room.clone().slice([0..batch, 0..kv_heads, 0..self.len, 0..head]);

        // Query heads that share a key-value head are rows of one product.
        let rows = heads / kv_heads * tokens;
        let queries = queries.reshape([batch, kv_heads, rows, head]) * (head as f64).powf(-0.5);
        let scores = queries.matmul(stored(keys).swap_dims(2, 3)).reshape([batch, heads, tokens, self.len]);
        let scores = match mask.hidden() {
            Some(hidden) => {
                let hidden = hidden.clone().expand([batch, heads, tokens, self.len]);
                scores.mask_fill(hidden, f32::NEG_INFINITY)
            }
            None => scores,
        };
        let weights = softmax(scores, 3).reshape([batch, kv_heads, rows, self.len]);
        weights.matmul(stored(values)).reshape([batch, heads, tokens, head])
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn reserve(&mut self, len: usize) {
        self.reserved = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mask;
    use burn::tensor::{Distribution, Tolerance};
    use burn_flex::Flex;

    /// Attention of one query over the first `seen` keys, by the formula.
    fn one_query(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let scores: Vec<f32> = keys.iter().map(|k| (dot(q, k) / (q.len() as f32).sqrt()).exp()).collect();
        let total: f32 = scores.iter().sum();
        (0..q.len()).map(|d| scores.iter().zip(values).map(|(s, v)| s / total * v[d]).sum()).collect()
    }

    #[test]
    fn what_is_reserved_is_allocated_once() {
        let device = Default::default();
        let token = || Tensor::<Flex, 4>::ones([1, 1, 1, 4], &device);
        let mut store = DenseKv::<Flex>::default();
        store.reserve(200);
        let capacity = |store: &DenseKv<Flex>| store.room.as_ref().unwrap().0.dims()[2];
        for n in 1..=201 {
            store.append(token(), token());
            assert_eq!(capacity(&store), if n <= 200 { 200 } else { 400 });
        }
    }

    #[test]
    fn what_is_truncated_is_forgotten() {
        let device = Default::default();
        let random = |n| Tensor::<Flex, 4>::random([1, 2, n, 4], Distribution::Default, &device);
        let (k, v, q) = (random(70), random(70), random(1));
        let part = |t: &Tensor<Flex, 4>, from, to| t.clone().slice_dim(2, from..to);
        let mut whole = DenseKv::<Flex>::default();
        whole.append(part(&k, 0, 5), part(&v, 0, 5));
        let mut cut = DenseKv::<Flex>::default();
        cut.append(k.clone(), v.clone());
        cut.truncate(3);
        cut.append(part(&k, 3, 5), part(&v, 3, 5));
        cut.truncate(9);
        assert_eq!(cut.len(), 5);
        let rule = Mask::default();
        let mask = rule.queries(1, 5, &device);
        let [a, b] = [whole, cut].map(|store| store.attend(q.clone(), &mask).into_data());
        a.assert_eq(&b, true);
    }

    #[test]
    fn any_split_of_the_tokens_attends_as_the_formula_says() {
        let (heads, kv_heads, head, total) = (6, 2, 4, 150);
        let device = Default::default();
        let random = |h| Tensor::<Flex, 4>::random([1, h, total, head], Distribution::Default, &device);
        let (q, k, v) = (random(heads), random(kv_heads), random(kv_heads));
        let rows = |t: &Tensor<Flex, 4>, h: usize| -> Vec<Vec<f32>> {
            let flat: Vec<f32> = t.to_data().to_vec().unwrap();
            flat.chunks(head).skip(h * total).take(total).map(<[f32]>::to_vec).collect()
        };
        let mut expected = Vec::new();
        for h in 0..heads {
            let (q, k, v) = (rows(&q, h), rows(&k, h / 3), rows(&v, h / 3));
            expected.extend((0..total).flat_map(|t| one_query(&q[t], &k[..=t], &v[..=t])));
        }
        let expected = burn::tensor::TensorData::new(expected, [1, heads, total, head]);
        for split in [vec![150], vec![1, 149], vec![63, 1, 1, 64, 21], vec![1; 150]] {
            let mut store = DenseKv::<Flex>::default();
            let mut start = 0;
            let parts: Vec<_> = split
                .iter()
                .map(|&n| {
                    let part = |t: &Tensor<Flex, 4>| t.clone().slice_dim(2, start..start + n);
                    store.append(part(&k), part(&v));
                    let rule = Mask::default();
                    let attended = store.attend(part(&q), &rule.queries(n, start + n, &device));
                    start += n;
                    attended
                })
                .collect();
            assert_eq!(store.len(), total);
            Tensor::cat(parts, 2).into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-5));
        }
    }
}
