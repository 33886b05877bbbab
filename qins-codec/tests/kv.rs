//! The key-value cache: attention over encoded keys and values is attention over what they decode to.

use proptest::prelude::*;
use qins_codec::kv::{KvFormat, KvLayer, Seen};

#[allow(dead_code)]
mod draws;
mod levels;
use draws::Draws;
use levels::levels;

#[derive(Debug, Clone)]
struct Case {
    format: KvFormat,
    batch: usize,
    kv_heads: usize,
    repeats: usize,
    head: usize,
    len: usize,
    tokens: usize,
    window: Option<usize>,
    padding: Vec<usize>,
}

fn cases() -> impl Strategy<Value = Case> {
    let format = prop::sample::select(KvFormat::ALL.to_vec());
    let tokens = prop_oneof![1usize..4, 4usize..150];
    (format, 1usize..3, 1usize..4, 1usize..4, 1usize..100, 1usize..300, tokens, any::<[bool; 2]>()).prop_flat_map(
        |(format, batch, kv_heads, repeats, head, len, tokens, [window, padding])| {
            let tokens = tokens.min(len);
            let window = if window { (1..=len).prop_map(Some).boxed() } else { Just(None).boxed() };
            let padding = prop::collection::vec(0..len, if padding { batch } else { 0 });
            (window, padding).prop_map(move |(window, padding)| Case {
                format,
                batch,
                kv_heads,
                repeats,
                head,
                len,
                tokens,
                window,
                padding,
            })
        },
    )
}

impl Case {
    fn rows(&self, heads: usize, tokens: usize, seed: u64) -> Vec<f32> {
        let mut draws = Draws::new(seed);
        (0..self.batch * heads * tokens * self.head).map(|_| draws.normal() as f32).collect()
    }

    /// A cache filled by parts of `part` tokens.
    fn layer(&self, part: usize) -> KvLayer {
        let (keys, values) = (self.rows(self.kv_heads, self.len, 1), self.rows(self.kv_heads, self.len, 2));
        let mut layer = KvLayer::new(self.format, self.batch, self.kv_heads, self.head);
        for first in (0..self.len).step_by(part) {
            let tokens = |all: &[f32]| -> Vec<f32> {
                let of_heads = all.chunks(self.len * self.head);
                of_heads.flat_map(|all| all.chunks(self.head).skip(first).take(part)).flatten().copied().collect()
            };
            layer.append(&tokens(&keys), &tokens(&values));
        }
        layer
    }

    fn queries(&self) -> Vec<f32> {
        self.rows(self.kv_heads * self.repeats, self.tokens, 3)
    }

    /// By the formula, in f64, over decoded keys and values.
    fn expected(&self, layer: &KvLayer) -> Vec<f32> {
        let heads = self.kv_heads * self.repeats;
        let queries = self.queries();
        let mut out = Vec::new();
        for (i, query) in queries.chunks(self.head).enumerate() {
            let (sequence, head, token) =
                (i / (heads * self.tokens), i / self.tokens % heads, self.len - self.tokens + i % self.tokens);
            let padding = self.padding.get(sequence).copied().unwrap_or(0);
            let is_seen = |key: usize| {
                key == token || key < token && key >= padding && self.window.is_none_or(|w| token - key < w)
            };
            let seen: Vec<usize> = (0..self.len).filter(|&key| is_seen(key)).collect();
            let scores = seen.iter().map(|&key| {
                let key = layer.key(sequence, head / self.repeats, key);
                let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(k)).sum();
                (dot / (self.head as f64).sqrt()).exp()
            });
            let scores: Vec<f64> = scores.collect();
            let total: f64 = scores.iter().sum();
            let mut sums = vec![0f64; self.head];
            for (score, &key) in scores.iter().zip(&seen) {
                let value = layer.value(sequence, head / self.repeats, key);
                sums.iter_mut().zip(value).for_each(|(sum, v)| *sum += score / total * f64::from(v));
            }
            out.extend(sums.iter().map(|&sum| sum as f32));
        }
        out
    }

    fn seen(&self) -> Seen<'_> {
        Seen { window: self.window, left_padding: &self.padding }
    }
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 2e-5, "{what}: {found} at {i}, expected {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_level_attends_as_the_formula_says(case in cases()) {
        let layer = case.layer(64);
        let expected = case.expected(&layer);
        let (queries, heads) = (case.queries(), case.kv_heads * case.repeats);
        for level in levels() {
            let found = layer.attend_at(level, &queries, heads, case.seen());
            assert_close(&found, &expected, level.name());
        }
    }

    #[test]
    fn parts_of_any_size_store_the_same(case in cases(), part in 1usize..90) {
        let (whole, parts) = (case.layer(case.len), case.layer(part));
        prop_assert_eq!(whole.len(), parts.len());
        prop_assert_eq!(whole.bytes(), parts.bytes());
        let (queries, heads) = (case.queries(), case.kv_heads * case.repeats);
        let [a, b] = [whole, parts].map(|layer| layer.attend(&queries, heads, case.seen()));
        prop_assert_eq!(a, b);
    }

    #[test]
    fn what_a_window_has_passed_can_be_freed(case in cases()) {
        let window = case.window.unwrap_or(case.len).max(1);
        let case = Case { window: Some(window), ..case };
        let whole = case.layer(case.len);
        let mut freed = whole.clone();
        freed.free_before((case.len - case.tokens + 1).saturating_sub(window));
        prop_assert!(freed.bytes() <= whole.bytes());
        let (queries, heads) = (case.queries(), case.kv_heads * case.repeats);
        let [a, b] = [whole, freed].map(|layer| layer.attend(&queries, heads, case.seen()));
        prop_assert_eq!(a, b);
    }
}

fn case(format: KvFormat, len: usize, tokens: usize) -> Case {
    Case { format, batch: 1, kv_heads: 2, repeats: 2, head: 96, len, tokens, window: None, padding: Vec::new() }
}

#[test]
fn a_cut_cache_goes_on_as_one_that_never_went_further() {
    for format in KvFormat::ALL {
        let case = case(format, 150, 1);
        let whole = case.layer(150);
        let mut cut = case.layer(150);
        cut.truncate(70);
        assert_eq!((cut.len(), cut.bytes()), (70, 2 * 64 * 2 * format.token_bytes(96)));
        let rows = |seed| {
            let all = case.rows(2, 150, seed);
            all.chunks(150 * 96).flat_map(|all| all[70 * 96..].to_vec()).collect::<Vec<_>>()
        };
        cut.append(&rows(1), &rows(2));
        let [a, b] = [whole, cut].map(|layer| layer.attend(&case.queries(), 4, Seen::default()));
        assert_eq!(a, b);
        let mut none = case.layer(150);
        none.truncate(0);
        assert_eq!((none.len(), none.bytes()), (0, 0));
    }
}

#[test]
#[should_panic(expected = "was freed")]
fn what_was_freed_is_never_read() {
    let case = case(KvFormat::Q8, 200, 1);
    let mut layer = case.layer(200);
    layer.free_before(100);
    assert_eq!(layer.first(), 64);
    layer.attend(&case.queries(), 4, Seen::default());
}

#[test]
fn results_do_not_depend_on_the_threads() {
    for (len, tokens) in [(2100, 1), (2100, 2), (400, 300)] {
        for format in KvFormat::ALL {
            let case = case(format, len, tokens);
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.layer(len).attend(&case.queries(), 4, Seen::default()))
            };
            let one = run(1);
            assert!([2, 3, 5].into_iter().all(|threads| run(threads) == one), "{format}, {tokens} of {len} tokens");
        }
    }
}

/// Relative error of the output, for keys, values and queries of a normal distribution.
#[test]
fn attention_is_as_exact_as_the_format() {
    for (format, most) in
        [(KvFormat::F32, 5e-6), (KvFormat::F16, 5e-4), (KvFormat::V8, 7e-3), (KvFormat::Q8, 9e-3), (KvFormat::V4, 7e-2)]
    {
        let case = case(format, 300, 300);
        let (keys, values, queries) = (case.rows(2, 300, 1), case.rows(2, 300, 2), case.queries());
        let found = case.layer(300).attend(&queries, 4, Seen::default());
        let (mut error, mut size) = (0.0, 0.0);
        for (i, query) in queries.chunks(96).enumerate() {
            let (head, token) = (i / 300 / 2, i % 300);
            let row = |all: &[f32], token: usize| all[(head * 300 + token) * 96..][..96].to_vec();
            let dot = |key: Vec<f32>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>();
            let weights: Vec<f32> = (0..=token).map(|key| (dot(row(&keys, key)) / 96f32.sqrt()).exp()).collect();
            let total: f32 = weights.iter().sum();
            for (column, &found) in found[i * 96..][..96].iter().enumerate() {
                let expected: f32 =
                    weights.iter().enumerate().map(|(key, w)| w / total * row(&values, key)[column]).sum();
                error += f64::from(found - expected).powi(2);
                size += f64::from(expected).powi(2);
            }
        }
        let relative = (error / size).sqrt();
        println!("{format}: {relative:.5}");
        assert!(relative < most, "{format}: {relative}");
    }
}

#[test]
fn what_is_not_finite_spoils_only_those_who_see_it() {
    for format in KvFormat::ALL {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut layer = KvLayer::new(format, 1, 1, 40);
            for token in 0..3 {
                let mut row = vec![0.5; 40];
                row[7] = if token == 1 { bad } else { 0.1 };
                layer.append(&row, &row);
            }
            for level in levels() {
                let attend = |window| layer.attend_at(level, &[1.0; 40], 1, Seen { window, left_padding: &[] });
                assert!(attend(Some(1)).iter().all(|x| x.is_finite()), "{format} {}", level.name());
                assert!(attend(None).iter().any(|x| !x.is_finite()), "{format} {}", level.name());
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in KvFormat::ALL {
        let mut layer = KvLayer::new(format, 1, 1, 40);
        layer.append(&[0.0; 40], &[0.0; 40]);
        assert_eq!((layer.key(0, 0, 0), layer.value(0, 0, 0)), (vec![0.0; 40], vec![0.0; 40]));
        assert_eq!(layer.attend(&[1.0; 40], 1, Seen::default()), [0.0; 40]);
    }
}
