//! Arithmetic on the logits of one position.

/// `ln(sum(exp(logits)))` in f64: infinite or NaN where a logit is.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = largest(logits);
    let total: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    largest + total.ln()
}

fn largest(logits: &[f32]) -> f64 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max).into()
}

/// The divergence KL(p || q) in nats of the distributions that two rows of logits stand for, and each one's
/// [`log_sum_exp`].
pub fn divergence(p: &[f32], q: &[f32]) -> (f64, f64, f64) {
    let (largest, q_log) = (largest(p), log_sum_exp(q));
    let (mut total, mut difference) = (0.0, 0.0);
    for (&p, &q) in p.iter().zip(q) {
        let likelihood = (f64::from(p) - largest).exp();
        total += likelihood;
        difference += likelihood * (f64::from(p) - f64::from(q));
    }
    let p_log = largest + total.ln();
    // Rounding may put it below zero.
    ((difference / total + q_log - p_log).max(0.0), p_log, q_log)
}

/// The ids of the `k` largest logits, largest first, equal ones by id; all if there are fewer.
pub fn top(logits: &[f32], k: usize) -> Vec<u32> {
    let before = |a: u32, b: u32| logits[a as usize].total_cmp(&logits[b as usize]).reverse().then(a.cmp(&b));
    let mut top: Vec<u32> = Vec::with_capacity(k + 1);
    for id in 0..logits.len() as u32 {
        // Most ids are not among them, which one comparison tells.
        if top.len() < k || top.last().is_some_and(|&last| before(id, last).is_lt()) {
            let place = top.partition_point(|&other| before(other, id).is_lt());
            top.insert(place, id);
            top.truncate(k);
        }
    }
    top
}

/// How many ids two lists have in common.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().filter(|id| b.contains(id)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_logits_do_not_overflow() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-9);
        assert!((log_sum_exp(&[-1000.0, -2000.0]) + 1000.0).abs() < 1e-9);
        for bad in [[0.0, f32::NAN], [0.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
            assert!(!log_sum_exp(&bad).is_finite(), "{bad:?}");
        }
    }

    #[test]
    fn divergence_is_that_of_the_formula() {
        let p = [0.5f64, 0.3, 0.2];
        let q = [0.1f64, 0.6, 0.3];
        let expected: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        // Any shift of the logits is the same distribution.
        let logits = |p: [f64; 3], shift: f64| p.map(|p| (p.ln() + shift) as f32);
        let (found, p_log, q_log) = divergence(&logits(p, 3.0), &logits(q, -5.0));
        assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
        assert!((p_log - 3.0).abs() < 1e-6 && (q_log + 5.0).abs() < 1e-6);
        assert_eq!(divergence(&logits(p, 3.0), &logits(p, 3.0)).0, 0.0);
    }

    #[test]
    fn the_top_is_that_of_a_full_sort() {
        let logits: Vec<f32> = (0..300u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as f32 - 128.0).collect();
        let mut sorted: Vec<u32> = (0..300).collect();
        sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        for k in [0, 1, 5, 50, 300, 400] {
            assert_eq!(top(&logits, k), sorted[..k.min(300)]);
        }
        assert_eq!(common(&[1, 2, 3], &[3, 4, 1]), 2);
    }
}
