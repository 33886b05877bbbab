//! How the next token is chosen. Source of the filters and their order: Hugging Face `generation/logits_process`.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// How the next token is chosen from the logits. The default takes the most likely one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the so many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this likely beside the most likely one; 0 for all.
    pub min_p: f32,
    /// Divides positive logits of tokens already in the text and multiplies negative ones; 1 for no change.
    pub repetition_penalty: f32,
    /// The same seed draws the same numbers on every machine.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Chooses tokens, one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    /// Pinned by name: its numbers never change.
    random: ChaCha8Rng,
}

impl Sampler {
    /// Starts from the seed.
    pub fn new(sampling: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Self { sampling, random }
    }

    /// The next token, by `logits [vocabulary]` and the tokens of the text so far.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn choose(&mut self, logits: &[f32], text: &[u32]) -> u32 {
        let (ids, likelihoods) = self.sampling.candidates(logits, text);
        if self.sampling.temperature <= 0.0 {
            return ids[0];
        }
        // 53 random bits, in [0, 1).
        let drawn = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = drawn * likelihoods.iter().sum::<f64>();
        for (id, likelihood) in ids.iter().zip(&likelihoods) {
            left -= likelihood;
            if left < 0.0 {
                return *id;
            }
        }
        ids[ids.len() - 1]
    }
}

impl Sampling {
    /// The ids that a token is drawn from after `text`, most likely first, and their probabilities.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn distribution(&self, logits: &[f32], text: &[u32]) -> Vec<(u32, f64)> {
        let (ids, likelihoods) = self.candidates(logits, text);
        let total: f64 = likelihoods.iter().sum();
        ids.into_iter().zip(likelihoods.into_iter().map(|likelihood| likelihood / total)).collect()
    }

    /// The ids that the filters keep, most likely first, and how likely they are relative to the first.
    fn candidates(&self, logits: &[f32], text: &[u32]) -> (Vec<u32>, Vec<f64>) {
        let mut logits = logits.to_vec();
        self.penalize(&mut logits, text);
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: u32| logits[id as usize];
        if self.temperature <= 0.0 {
            let best = ids.into_iter().reduce(|best, id| if logit(id) > logit(best) { id } else { best });
            return (vec![best.expect("logits")], vec![1.0]);
        }
        // Equal ones by id, so that the order is total.
        ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        if self.top_k > 0 {
            ids.truncate(self.top_k);
        }
        let likelihood = |&id: &u32| (f64::from(logit(id) - logit(ids[0])) / f64::from(self.temperature)).exp();
        let mut likelihoods: Vec<f64> = ids.iter().map(likelihood).collect();
        let kept = self.kept(&likelihoods);
        ids.truncate(kept);
        likelihoods.truncate(kept);
        (ids, likelihoods)
    }

    fn penalize(&self, logits: &mut [f32], text: &[u32]) {
        let penalty = self.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let mut seen: Vec<usize> = text.iter().map(|&id| id as usize).filter(|&id| id < logits.len()).collect();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            logits[id] = if logits[id] > 0.0 { logits[id] / penalty } else { logits[id] * penalty };
        }
    }

    /// How many of the tokens, most likely first and relative to it, `top_p` and `min_p` keep: at least one.
    fn kept(&self, likelihoods: &[f64]) -> usize {
        let total: f64 = likelihoods.iter().sum();
        let mut reached = 0.0;
        let by_top_p = likelihoods
            .iter()
            .position(|likelihood| {
                reached += likelihood / total;
                reached >= f64::from(self.top_p)
            })
            .map_or(likelihoods.len(), |last| last + 1);
        let by_min_p = likelihoods.iter().take_while(|&&l| l >= f64::from(self.min_p)).count();
        by_top_p.min(by_min_p).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose softmax is 0.5, 0.3, 0.15, 0.05, in another order.
    const PROBABILITIES: [f32; 4] = [0.15, 0.5, 0.05, 0.3];

    /// How often each token comes in 20000 draws.
    fn shares(sampling: Sampling) -> [f64; 4] {
        let logits = PROBABILITIES.map(f32::ln);
        let mut sampler = Sampler::new(sampling);
        let mut counts = [0.0; 4];
        for _ in 0..20000 {
            counts[sampler.choose(&logits, &[]) as usize] += 1.0 / 20000.0;
        }
        counts
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, seed: 5, ..Default::default() }
    }

    #[track_caller]
    fn assert_shares(sampling: Sampling, expected: [f64; 4]) {
        let found = shares(sampling);
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.015 && (e > 0.0 || *f == 0.0)), "{found:?}");
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        assert_shares(warm(), [0.15, 0.5, 0.05, 0.3]);
        // Squared and normalised: 0.25, 0.09, 0.0225, 0.0025 of 0.365.
        assert_shares(Sampling { temperature: 0.5, ..warm() }, [0.0616, 0.6849, 0.0068, 0.2466]);
    }

    #[test]
    fn filters_keep_the_likely_tokens_and_at_least_one() {
        assert_shares(Sampling { top_k: 2, ..warm() }, [0.0, 0.625, 0.0, 0.375]);
        assert_shares(Sampling { top_p: 0.79, ..warm() }, [0.0, 0.625, 0.0, 0.375]);
        assert_shares(Sampling { top_p: 0.81, ..warm() }, [0.1579, 0.5263, 0.0, 0.3158]);
        assert_shares(Sampling { min_p: 0.29, ..warm() }, [0.1579, 0.5263, 0.0, 0.3158]);
        for strict in [
            Sampling { top_k: 1, ..warm() },
            Sampling { top_p: 0.0, ..warm() },
            Sampling { min_p: 1.0, ..warm() },
            Sampling { temperature: 0.0, ..warm() },
        ] {
            assert_shares(strict, [0.0, 1.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn a_penalty_makes_repeated_tokens_less_likely() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Default::default() });
        assert_eq!(sampler.choose(&[1.0, 3.0, 2.0], &[]), 1);
        assert_eq!(sampler.choose(&[1.0, 3.0, 2.0], &[1, 1]), 2, "once, however often it came");
        assert_eq!(sampler.choose(&[-1.0, -1.5], &[0]), 1, "negative logits fall");
        assert_eq!(sampler.choose(&[1.0, 3.0], &[7]), 1, "ids beyond the logits do not matter");
    }

    #[test]
    fn a_seed_draws_the_same_tokens_everywhere() {
        let logits = [0.0f32; 1000];
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed: 42, ..Default::default() });
        let drawn: Vec<u32> = (0..5).map(|_| sampler.choose(&logits, &[])).collect();
        // As first drawn: a change here changes every user's texts.
        assert_eq!(drawn, [681, 950, 427, 627, 288]);
    }
}
