//! How long a changed toy writes what the float one writes, and how far their logits are apart on the same text.

use crate::{
    rules::Rules,
    toy::{Text, Toy},
};
use std::collections::HashSet;

/// Tokens of a window, as in the record.
pub const WINDOW: usize = 100;

/// A toy and what is done to its activations.
pub struct System {
    /// For the tables.
    pub name: String,
    pub toy: Toy,
    pub rules: Rules,
}

/// What the float toy writes.
pub struct Reference {
    prompts: Vec<Vec<u32>>,
    /// Generated ids of each prompt.
    texts: Vec<Vec<u32>>,
    /// Logits that chose them: of a step, then of a text.
    logits: Vec<Vec<Vec<f32>>>,
}

/// How a system compares with float.
#[derive(Debug, Clone)]
pub struct Agreement {
    /// Free-running: share of equal tokens in each window.
    pub windows: Vec<f64>,
    /// Free-running: tokens before the first difference, mean over texts.
    pub identical_prefix: f64,
    /// Free-running: the lead of the float toy's best logit over its second where texts part, median; `None` if none does.
    #[cfg_attr(not(test), allow(dead_code, reason = "the tables have no room for it"))]
    pub first_difference_margin: Option<f64>,
    /// On the float toy's text: share of steps with the same most likely token.
    pub same_top: f64,
    /// The same: shared tokens of the ten most likely.
    pub top_10_overlap: f64,
    /// The same: mean `KL(float || system)`, nats.
    pub kl: f64,
    /// Share of prompts after which the first token is the same: the record's "one step".
    pub first_step_same_top: f64,
}

impl Agreement {
    /// Free-running match over all windows.
    #[cfg(test)]
    pub fn free_running(&self) -> f64 {
        self.windows.iter().sum::<f64>() / self.windows.len() as f64
    }
}

/// Logits of every step, free-running, or on given ids; `steps` of them after each prompt.
fn run(
    toy: &Toy,
    rules: &Rules,
    prompts: &[Vec<u32>],
    steps: usize,
    forced: Option<&[Vec<u32>]>,
    mut see: impl FnMut(usize, &[Vec<f32>]),
) -> Vec<Vec<u32>> {
    let mut texts = vec![Text::default(); prompts.len()];
    let mut logits = Vec::new();
    for i in 0..prompts[0].len() {
        let ids: Vec<u32> = prompts.iter().map(|prompt| prompt[i]).collect();
        logits = toy.step(rules, &mut texts, &ids);
    }
    let mut written = vec![Vec::with_capacity(steps); prompts.len()];
    for step in 0..steps {
        see(step, &logits);
        let chosen: Vec<u32> = logits.iter().map(|logits| top(logits)).collect();
        written.iter_mut().zip(&chosen).for_each(|(text, id)| text.push(*id));
        let next = forced.map_or(chosen, |forced| forced.iter().map(|text| text[step]).collect());
        if step + 1 < steps {
            logits = toy.step(rules, &mut texts, &next);
        }
    }
    written
}

impl Reference {
    /// Writes on from prompts of equal length, always the most likely token.
    pub fn write(toy: &Toy, prompts: Vec<Vec<u32>>, steps: usize) -> Self {
        let mut logits = Vec::with_capacity(steps);
        let texts = run(toy, &Rules::default(), &prompts, steps, None, |_, now| logits.push(now.to_vec()));
        Self { prompts, texts, logits }
    }

    /// Prompts and what was written after them.
    pub fn whole_texts(&self) -> Vec<Vec<u32>> {
        self.prompts.iter().zip(&self.texts).map(|(prompt, text)| [&prompt[..], text].concat()).collect()
    }

    /// Different tokens in the last window, mean over texts: a toy that writes in a circle has few.
    pub fn distinct_at_the_end(&self) -> f64 {
        let distinct = |text: &Vec<u32>| text.iter().rev().take(WINDOW).collect::<HashSet<_>>().len() as f64;
        self.texts.iter().map(distinct).sum::<f64>() / self.texts.len() as f64
    }

    /// Median lead of the best logit over the second.
    pub fn margin(&self) -> f64 {
        median(self.logits.iter().flatten().map(|logits| lead(logits))).expect("some steps")
    }

    /// Runs a system beside what was written.
    pub fn compare(&self, system: &System) -> Agreement {
        let (steps, n) = (self.logits.len(), self.prompts.len());
        let count = (steps * n) as f64;
        let (mut kl, mut overlap) = (0.0, 0.0);
        let forced = run(&system.toy, &system.rules, &self.prompts, steps, Some(&self.texts), |step, logits| {
            for (logits, float) in logits.iter().zip(&self.logits[step]) {
                kl += divergence(float, logits) / count;
                let (a, b) = (first(float, 10), first(logits, 10));
                overlap += a.iter().filter(|id| b.contains(id)).count() as f64 / 10.0 / count;
            }
        });
        let free = run(&system.toy, &system.rules, &self.prompts, steps, None, |_, _| ());
        let same = |written: &[Vec<u32>], steps: std::ops::Range<usize>| {
            let pairs = self.texts.iter().zip(written);
            let same = pairs.flat_map(|(a, b)| a[steps.clone()].iter().zip(&b[steps.clone()])).filter(|(a, b)| a == b);
            same.count() as f64 / (steps.len() * n) as f64
        };
        let prefix = |text: usize| {
            let pairs = self.texts[text].iter().zip(&free[text]);
            pairs.take_while(|(a, b)| a == b).count()
        };
        let differences = (0..n).map(|text| (text, prefix(text))).filter(|(_, step)| *step < steps);
        Agreement {
            windows: (0..steps / WINDOW).map(|w| same(&free, w * WINDOW..(w + 1) * WINDOW)).collect(),
            identical_prefix: (0..n).map(prefix).sum::<usize>() as f64 / n as f64,
            first_difference_margin: median(differences.map(|(text, step)| lead(&self.logits[step][text]))),
            same_top: same(&forced, 0..steps),
            top_10_overlap: overlap,
            kl,
            first_step_same_top: same(&forced, 0..1),
        }
    }
}

/// How far the best logit is above the second.
fn lead(logits: &[f32]) -> f64 {
    let best = first(logits, 2);
    f64::from(logits[best[0]] - logits[best[1]])
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The most likely token; the first of several.
pub fn top(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.expect("a vocabulary").0 as u32
}

/// The `n` most likely tokens, most likely first.
fn first(logits: &[f32], n: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(n + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if found.len() < n || logit > logits[found[n - 1]] {
            found.insert(found.partition_point(|&other| logits[other] >= logit), id);
            found.truncate(n);
        }
    }
    found
}

/// `KL(p || q)` of the distributions that logits stand for, nats.
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_total = |logits: &[f32]| {
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        f64::from(top) + logits.iter().map(|&l| f64::from(l - top).exp()).sum::<f64>().ln()
    };
    let (p_total, q_total) = (log_total(p), log_total(q));
    p.iter()
        .zip(q)
        .map(|(&p, &q)| {
            let log_p = f64::from(p) - p_total;
            log_p.exp() * (log_p - (f64::from(q) - q_total))
        })
        .sum()
}
