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
    /// # Errors
    /// [`NotFinite`] if one of the logits is no number or is infinite, or if all of them forbid their token (-∞).
    pub fn choose(&mut self, logits: &[f32], text: &[u32]) -> Result<u32, NotFinite> {
        NotFinite::check(logits)?;
        let mut ranking = self.sampling.ranking(logits, text);
        if self.sampling.temperature <= 0.0 {
            return Ok(ranking.best());
        }
        let (kept, total) = self.sampling.kept(&mut ranking);
        // 53 random bits, in [0, 1).
        let drawn = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = drawn * total;
        for rank in 0..kept {
            left -= ranking.likelihood(rank);
            if left < 0.0 {
                return Ok(ranking.id(rank));
            }
        }
        Ok(ranking.id(kept - 1))
    }
}

/// Logits that no token can be chosen by.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the logit of token {id} is {logit}: expected a finite number, or -inf for some tokens")]
pub struct NotFinite {
    /// The first such token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}

impl NotFinite {
    /// A mask may forbid tokens by -∞, but not all.
    fn check(logits: &[f32]) -> Result<(), Self> {
        let wrong = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY);
        let wrong = wrong.or_else(|| (!logits.iter().any(|logit| logit.is_finite())).then_some(0));
        match wrong {
            Some(id) => Err(Self { id: id as u32, logit: logits.get(id).copied().unwrap_or(f32::NAN) }),
            None => Ok(()),
        }
    }
}

impl Sampling {
    /// The ids that a token is drawn from after `text`, most likely first, and their probabilities.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn distribution(&self, logits: &[f32], text: &[u32]) -> Vec<(u32, f64)> {
        let mut ranking = self.ranking(logits, text);
        if self.temperature <= 0.0 {
            return vec![(ranking.best(), 1.0)];
        }
        let (kept, total) = self.kept(&mut ranking);
        (0..kept).map(|rank| (ranking.id(rank), ranking.likelihood(rank) / total)).collect()
    }

    fn ranking(&self, logits: &[f32], text: &[u32]) -> Ranking {
        let mut logits = logits.to_vec();
        self.penalize(&mut logits, text);
        Ranking::new(logits, self.temperature)
    }

    /// How many of the tokens, most likely first, the filters keep: at least one; and the sum of their likelihoods.
    fn kept(&self, ranking: &mut Ranking) -> (usize, f64) {
        let most = if self.top_k > 0 { self.top_k.min(ranking.len()) } else { ranking.len() };
        let all = if self.top_k > 0 { (0..most).map(|rank| ranking.likelihood(rank)).sum() } else { ranking.total() };
        if self.top_p >= 1.0 && self.min_p <= 0.0 {
            return (most, all);
        }
        let (mut kept, mut sum, mut reached) = (0, 0.0, 0.0);
        while kept < most {
            let likelihood = ranking.likelihood(kept);
            if kept > 0 && likelihood < f64::from(self.min_p) {
                break;
            }
            kept += 1;
            sum += likelihood;
            reached += likelihood / all;
            if self.top_p < 1.0 && reached >= f64::from(self.top_p) {
                break;
            }
        }
        (kept, sum)
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
}

/// Tokens, most likely first, and equal ones by id. They are put in order as far as they are asked for.
struct Ranking {
    logits: Vec<f32>,
    temperature: f64,
    ids: Vec<u32>,
    /// So many of `ids` are in order, and before all others.
    sorted: usize,
}

/// Tokens that are put in order first; then four times as many, and so on.
const FIRST_SORTED: usize = 64;

impl Ranking {
    fn new(logits: Vec<f32>, temperature: f32) -> Self {
        assert!(!logits.is_empty(), "no logits");
        let ids = (0..logits.len() as u32).collect();
        Self { logits, temperature: f64::from(temperature), ids, sorted: 0 }
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    /// The first, without putting others in order.
    fn best(&self) -> u32 {
        let logit = |id: u32| self.logits[id as usize];
        let best = self.ids.iter().copied().reduce(|best, id| if logit(id) > logit(best) { id } else { best });
        best.expect("not empty")
    }

    fn id(&mut self, rank: usize) -> u32 {
        while rank >= self.sorted {
            let order = |a: &u32, b: &u32| {
                let logit = |id: u32| self.logits[id as usize];
                logit(*b).total_cmp(&logit(*a)).then(a.cmp(b))
            };
            let rest = &mut self.ids[self.sorted..];
            let more = (4 * self.sorted).max(FIRST_SORTED).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable_by(more, order);
            }
            rest[..more].sort_unstable_by(order);
            self.sorted += more;
        }
        self.ids[rank]
    }

    /// Relative to the first.
    fn likelihood(&mut self, rank: usize) -> f64 {
        let (first, id) = (self.id(0), self.id(rank));
        self.relative(self.logits[first as usize], self.logits[id as usize])
    }

    /// The sum of all likelihoods.
    fn total(&mut self) -> f64 {
        let first = self.id(0);
        let first = self.logits[first as usize];
        self.logits.iter().map(|&logit| self.relative(first, logit)).sum()
    }

    fn relative(&self, first: f32, logit: f32) -> f64 {
        (f64::from(logit - first) / self.temperature).exp()
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
            counts[sampler.choose(&logits, &[]).unwrap() as usize] += 1.0 / 20000.0;
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
        assert_eq!(sampler.choose(&[1.0, 3.0, 2.0], &[]).unwrap(), 1);
        assert_eq!(sampler.choose(&[1.0, 3.0, 2.0], &[1, 1]).unwrap(), 2, "once, however often it came");
        assert_eq!(sampler.choose(&[-1.0, -1.5], &[0]).unwrap(), 1, "negative logits fall");
        assert_eq!(sampler.choose(&[1.0, 3.0], &[7]).unwrap(), 1, "ids beyond the logits do not matter");
    }

    #[test]
    fn a_seed_draws_the_same_tokens_everywhere() {
        let logits = [0.0f32; 1000];
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed: 42, ..Default::default() });
        let drawn: Vec<u32> = (0..5).map(|_| sampler.choose(&logits, &[]).unwrap()).collect();
        // As first drawn: a change here changes every user's texts.
        assert_eq!(drawn, [681, 950, 427, 627, 288]);
    }

    /// All in order at once, as the filters of Hugging Face are written.
    fn by_sorting(sampling: &Sampling, logits: &[f32], drawn: f64) -> u32 {
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if sampling.top_k > 0 {
            ids.truncate(sampling.top_k);
        }
        let likelihood = |id: usize| (f64::from(logits[id] - logits[ids[0]]) / f64::from(sampling.temperature)).exp();
        let likelihoods: Vec<f64> = ids.iter().map(|&id| likelihood(id)).collect();
        let total: f64 = likelihoods.iter().sum();
        let mut reached = 0.0;
        let mut kept = 0;
        while kept < ids.len() && (kept == 0 || likelihoods[kept] >= f64::from(sampling.min_p)) {
            reached += likelihoods[kept] / total;
            kept += 1;
            if sampling.top_p < 1.0 && reached >= f64::from(sampling.top_p) {
                break;
            }
        }
        let mut left = drawn * likelihoods[..kept].iter().sum::<f64>();
        for (&id, likelihood) in ids[..kept].iter().zip(&likelihoods) {
            left -= likelihood;
            if left < 0.0 {
                return id as u32;
            }
        }
        ids[kept - 1] as u32
    }

    #[test]
    fn partial_order_chooses_as_the_whole_order_does() {
        // Few different values, so that many are equal, and more tokens than are put in order at once.
        let logits: Vec<f32> = (0..3000u32).map(|i| ((i * i * 79 + i * 1047) % 97) as f32 / 9.0).collect();
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (500, 1.0, 0.0),
            (0, 0.9, 0.0),
            (0, 1.0, 0.05),
            (0, 0.95, 0.001),
            (70, 0.5, 0.2),
            (0, 0.99, 0.0),
        ] {
            let sampling = Sampling { temperature: 1.3, top_k, top_p, min_p, seed: 11, ..Default::default() };
            let mut sampler = Sampler::new(sampling.clone());
            let mut random = ChaCha8Rng::seed_from_u64(11);
            for _ in 0..200 {
                let drawn = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                assert_eq!(
                    sampler.choose(&logits, &[]).unwrap(),
                    by_sorting(&sampling, &logits, drawn),
                    "{sampling:?}"
                );
            }
        }
    }

    #[test]
    fn logits_that_are_no_numbers_choose_nothing() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(Sampling { temperature, ..Default::default() });
            for (logits, id) in [(vec![1.0, nan], 1), (vec![inf, 1.0], 0), (vec![nan; 3], 0), (vec![-inf; 2], 0)] {
                assert_eq!(sampler.choose(&logits, &[]).unwrap_err().id, id, "{logits:?}");
            }
            assert_eq!(sampler.choose(&[-inf, 2.0, -inf], &[]), Ok(1), "a mask");
        }
    }
}
