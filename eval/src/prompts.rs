use crate::EvalError;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// `n` pieces of `tokens` tokens, from places of a text that the seed draws.
pub fn drawn_prompts(text: &[u32], n: usize, tokens: usize, seed: u64) -> Result<Vec<Vec<u32>>, EvalError> {
    if tokens == 0 {
        return Err(EvalError::Nothing("token of a prompt"));
    }
    let Some(places) = (text.len() + 1).checked_sub(tokens).filter(|&places| places > 0) else {
        return Err(EvalError::TextTooShort { found: text.len(), expected: tokens });
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || (random.next_u64() % places as u64) as usize;
    Ok((0..n).map(|_| draw()).map(|start| text[start..start + tokens].to_vec()).collect())
}

/// `n` prompts of `tokens` ids below `vocabulary`, drawn by the seed.
pub fn random_prompts(vocabulary: usize, n: usize, tokens: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || (random.next_u64() % vocabulary as u64) as u32;
    (0..n).map(|_| (0..tokens).map(|_| draw()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_pieces_of_the_text() {
        let text: Vec<u32> = (0..20).collect();
        let prompts = drawn_prompts(&text, 50, 4, 1).unwrap();
        assert!(prompts.iter().all(|prompt| prompt.len() == 4 && prompt.windows(2).all(|pair| pair[1] == pair[0] + 1)));
        assert_ne!(prompts, drawn_prompts(&text, 50, 4, 2).unwrap());
        assert_eq!(drawn_prompts(&text, 2, 20, 1).unwrap(), [text.clone(), text.clone()]);
        let error = drawn_prompts(&text, 1, 21, 1).unwrap_err();
        assert!(matches!(error, EvalError::TextTooShort { found: 20, expected: 21 }));
        let ids = random_prompts(7, 30, 3, 1);
        assert!(ids.iter().flatten().all(|&id| id < 7) && ids.iter().flatten().any(|&id| id == 6));
    }
}
