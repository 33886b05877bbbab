//! Attention: what is computed by whom, and how parts are put together.

use super::KvLayer;
use crate::{
    Level,
    kernels::attention::{DecodedBlock, FEW, Rows, Softmax, TOKENS, Tile, rows, softmax},
};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens that one task attends a few queries to. Fixed, as all splits are: results do not depend on the threads.
const SPAN: usize = 16 * TOKENS;

/// Queries that one task attends to all tokens, where they are many.
const MANY: usize = 128;

/// Products of a query and a key that pay for a task.
const TASK: usize = 1 << 15;

/// The keys that queries see besides that of their own token: those before it, but for what is said here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// Only so many of the last keys, the query's own included.
    pub window: Option<usize>,
    /// Padding at the start of each sequence, which only padding itself sees; empty where there is none.
    pub left_padding: &'a [usize],
}

impl Seen<'_> {
    /// The keys that the query of a token sees.
    fn of(&self, sequence: usize, token: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (token + 1).saturating_sub(window));
        let padding = self.left_padding.get(sequence).copied().unwrap_or(0);
        first.max(padding).min(token)..token + 1
    }
}

impl KvLayer {
    /// Scaled dot-product attention of the queries of the tokens appended last, `[batch, heads, tokens, head]`, over the
    /// keys that they see. Heads are a multiple of the key-value heads, and neighbouring ones share one. The result has
    /// the shape of the queries.
    ///
    /// Bits are the same for any number of threads. Where a key that is seen is not finite, nor is the result.
    ///
    /// # Panics
    /// If the queries do not have that shape, or are of more tokens than there are, or a key that one sees was freed.
    pub fn attend(&self, queries: &[f32], heads: usize, seen: Seen<'_>) -> Vec<f32> {
        self.attend_at(Level::current(), queries, heads, seen)
    }

    /// [`attend`](Self::attend) at a level, to compare.
    ///
    /// # Panics
    /// Besides, if this processor lacks the instructions.
    pub fn attend_at(&self, level: Level, queries: &[f32], heads: usize, seen: Seen<'_>) -> Vec<f32> {
        assert!(level.is_supported(), "this processor lacks {}", level.name());
        let [batch, kv_heads, head] = self.shape();
        let tokens = queries.len() / (batch * heads * head).max(1);
        assert!(
            heads > 0 && heads.is_multiple_of(kv_heads) && queries.len() == batch * heads * tokens * head,
            "{} queries of {heads} heads for a cache of [{batch}, {kv_heads}, tokens, {head}]",
            queries.len()
        );
        assert!(tokens <= self.len(), "queries of {tokens} tokens, and {} are stored", self.len());
        assert!(seen.left_padding.is_empty() || seen.left_padding.len() == batch, "padding of {batch} sequences");
        if tokens == 0 {
            return Vec::new();
        }
        let attention = Attention {
            layer: self,
            level,
            keys: rows(level, self.format().keys(head), head),
            values: rows(level, self.format().values(), head),
            queries,
            seen,
            tokens,
            rows: heads / kv_heads * tokens,
        };
        if attention.rows <= FEW { attention.few() } else { attention.many() }
    }
}

struct Attention<'a> {
    layer: &'a KvLayer,
    level: Level,
    keys: Box<dyn Rows>,
    values: Box<dyn Rows>,
    queries: &'a [f32],
    seen: Seen<'a>,
    /// Queries of a head.
    tokens: usize,
    /// Queries of all heads that share a key-value head.
    rows: usize,
}

/// What a few queries found over a span of tokens.
struct Part {
    softmax: [Softmax; FEW],
    /// `[rows, columns]`, in the order of decoding.
    sums: Vec<f32>,
}

impl Attention<'_> {
    /// What the query in a row sees.
    fn seen(&self, lane: usize, row: usize) -> Range<usize> {
        let [_, kv_heads, _] = self.layer.shape();
        let token = self.layer.len() - self.tokens + row % self.tokens;
        let seen = self.seen.of(lane / kv_heads, token);
        let first = self.layer.first();
        assert!(seen.start >= first, "token {} is seen and was freed: the first kept is {first}", seen.start);
        seen
    }

    fn scale(&self) -> f32 {
        let [_, _, head] = self.layer.shape();
        (head as f32).powf(-0.5)
    }

    /// The queries of a lane, `[rows, head]`.
    fn of_lane(&self, lane: usize) -> &[f32] {
        let [_, _, head] = self.layer.shape();
        &self.queries[lane * self.rows * head..][..self.rows * head]
    }

    /// Tasks are spans of tokens of each lane.
    fn few(&self) -> Vec<f32> {
        let [_, _, head] = self.layer.shape();
        let (lanes, len) = (self.layer.lanes(), self.layer.len());
        let first_span = self.layer.first() / SPAN;
        let spans = len.div_ceil(SPAN) - first_span;
        let part = |task: usize| {
            let first = (first_span + task % spans) * SPAN;
            self.part(task / spans, first..(first + SPAN).min(len))
        };
        let tasks_at_once = (TASK / (self.rows * len.min(SPAN))).max(1);
        let parts: Vec<Part> = (0..lanes * spans).into_par_iter().with_min_len(tasks_at_once).map(part).collect();

        let columns = self.values.columns();
        let mut out = vec![0.0; self.queries.len()];
        for (parts, out) in parts.chunks_exact(spans).zip(out.chunks_exact_mut(self.rows * head)) {
            for (row, out) in out.chunks_exact_mut(head).enumerate() {
                let of_row = row * columns..(row + 1) * columns;
                let mut total = Softmax::default();
                let mut sums = vec![0.0; columns];
                for part in parts {
                    let [before, now] = total.merge(part.softmax[row]);
                    for (sum, &part) in sums.iter_mut().zip(&part.sums[of_row.clone()]) {
                        *sum = *sum * before + part * now;
                    }
                }
                sums.iter_mut().for_each(|sum| *sum /= total.total);
                self.values.in_order(&sums, out);
            }
        }
        out
    }

    /// The queries of a lane over a span of tokens.
    fn part(&self, lane: usize, span: Range<usize>) -> Part {
        let rows = self.rows;
        let columns = self.values.columns();
        let mut part = Part { softmax: [Softmax::default(); FEW], sums: vec![0.0; rows * columns] };
        let seen: Vec<Range<usize>> = (0..rows).map(|row| self.seen(lane, row)).collect();
        let start = seen.iter().map(|seen| seen.start).min().expect("a query").max(span.start);
        let end = seen.iter().map(|seen| seen.end).max().expect("a query").min(span.end);
        if start >= end {
            return part;
        }
        let queries = self.keys.few_queries(self.of_lane(lane), self.scale());
        let mut scores = [[0.0; TOKENS]; FEW];
        let scores = &mut scores[..rows];
        let last = (end - 1) / TOKENS;
        for block in start / TOKENS..=last {
            let first = block * TOKENS;
            let within = |range: &Range<usize>| {
                let start = range.start.clamp(first, first + TOKENS) - first;
                start..(range.end.clamp(first, first + TOKENS) - first).max(start)
            };
            let range = within(&(start..end));
            let [keys, values] = self.layer.block(block, lane);
            self.keys.scores(keys, range.clone(), &queries, scores, values.codes);
            for (row, scores) in scores.iter_mut().enumerate() {
                let factor = softmax(self.level, scores, within(&seen[row]), &mut part.softmax[row]);
                if factor != 1.0 {
                    part.sums[row * columns..][..columns].iter_mut().for_each(|sum| *sum *= factor);
                }
            }
            let next = if block < last { self.layer.block(block + 1, lane)[0].codes } else { &[] };
            self.values.add(values, range, scores, &mut part.sums, next);
        }
        part
    }

    /// Tasks are some of the queries of each lane.
    fn many(&self) -> Vec<f32> {
        let [_, _, head] = self.layer.shape();
        let mut out = vec![0.0; self.queries.len()];
        let tasks = self.rows.div_ceil(MANY);
        let of_lanes = out.par_chunks_exact_mut(self.rows * head).enumerate();
        of_lanes.for_each(|(lane, out)| {
            // Nested, so that chunks do not cross lanes.
            if tasks == 1 {
                self.of_queries(lane, 0, out);
            } else {
                let tasks = out.par_chunks_mut(MANY * head).enumerate();
                tasks.for_each(|(task, out)| self.of_queries(lane, task * MANY, out));
            }
        });
        out
    }

    /// The queries of a lane from row `first` on, as many as `out` has.
    fn of_queries(&self, lane: usize, first: usize, out: &mut [f32]) {
        let [_, _, head] = self.layer.shape();
        let rows = out.len() / head;
        let (lanes, key_columns, value_columns) = (self.keys.tile(), self.keys.columns(), self.values.columns());
        let queries = self.keys.many_queries(&self.of_lane(lane)[first * head..][..rows * head], self.scale());
        let tiles = rows.div_ceil(lanes);
        // Places after the last query see what the last one does.
        let seen: Vec<Range<usize>> =
            (0..tiles * lanes).map(|row| self.seen(lane, first + row.min(rows - 1))).collect();
        let (mut largest, mut total) = (vec![f32::NEG_INFINITY; tiles * lanes], vec![0.0; tiles * lanes]);
        let mut sums = vec![0.0; tiles * value_columns * lanes];
        let mut scores = vec![0.0; TOKENS * lanes];
        let (mut keys, mut values) = (vec![0.0; TOKENS * key_columns], vec![0.0; TOKENS * value_columns]);
        let start = seen.iter().map(|seen| seen.start).min().expect("a query");
        let end = seen.iter().map(|seen| seen.end).max().expect("a query");
        for block in start / TOKENS..end.div_ceil(TOKENS) {
            let first = block * TOKENS;
            let count = TOKENS.min(end - first);
            let stored = self.layer.block(block, lane);
            self.keys.decode(stored[0], count, &mut keys);
            self.values.decode(stored[1], count, &mut values);
            let decoded = DecodedBlock { keys: &keys, values: &values, value_columns, first, count };
            for (i, queries) in queries.chunks_exact(key_columns * lanes).enumerate() {
                let seen = &seen[i * lanes..][..lanes];
                if seen.iter().all(|seen| seen.end <= first || seen.start >= first + count) {
                    continue;
                }
                let of_tile = i * lanes..(i + 1) * lanes;
                let mut tile = Tile {
                    queries,
                    seen,
                    largest: &mut largest[of_tile.clone()],
                    total: &mut total[of_tile],
                    sums: &mut sums[i * value_columns * lanes..][..value_columns * lanes],
                    scores: &mut scores,
                };
                self.keys.many(&decoded, &mut tile);
            }
        }
        let mut row_sums = vec![0.0; value_columns];
        for (row, out) in out.chunks_exact_mut(head).enumerate() {
            let (tile, place) = (row / lanes, row % lanes);
            let sums = sums[tile * value_columns * lanes..][place..].iter().step_by(lanes);
            row_sums.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / total[row]);
            self.values.in_order(&row_sums, out);
        }
    }
}
