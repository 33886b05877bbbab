//! Which keys a query sees.

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};
use std::cell::OnceCell;

/// What is hidden from a query besides later tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mask {
    /// Keys that a query sees, itself included; all of them if `None`.
    pub window: Option<usize>,
    /// Padding tokens at the start of each row; empty where no row has any.
    pub left_padding: Vec<usize>,
}

impl Mask {
    /// `[batch or 1, 1, tokens, len]`, true where the key is hidden from the query; queries are the last `tokens` of
    /// `len` tokens. `None` if nothing is hidden.
    ///
    /// A padding token sees itself, so that its values, which nobody uses, are numbers.
    pub fn hidden<B: Backend>(&self, tokens: usize, len: usize, device: &B::Device) -> Option<Tensor<B, 4, Bool>> {
        let one_sees_all = tokens == 1 && self.window.is_none_or(|w| len <= w);
        if one_sees_all && self.left_padding.iter().all(|&n| n == 0) {
            return None;
        }
        let row = |padding: usize| {
            (len - tokens..len).flat_map(move |query| {
                let first = self.window.map_or(0, |w| (query + 1).saturating_sub(w)).max(padding);
                (0..len).map(move |key| key != query && (key > query || key < first))
            })
        };
        let hidden: Vec<bool> = if self.left_padding.is_empty() {
            row(0).collect()
        } else {
            self.left_padding.iter().flat_map(|&padding| row(padding)).collect()
        };
        let batch = self.left_padding.len().max(1);
        Some(Tensor::from_data(TensorData::new(hidden, [batch, 1, tokens, len]), device))
    }
}

/// The mask of some queries: as a rule, for a store that goes by positions, and as a tensor for one that asks for it.
#[derive(Debug)]
pub struct QueryMask<'m, B: Backend> {
    mask: &'m Mask,
    tokens: usize,
    len: usize,
    device: B::Device,
    /// Made for the first layer that asks, and kept for the others.
    hidden: OnceCell<Option<Tensor<B, 4, Bool>>>,
}

impl Mask {
    /// For the last `tokens` of `len` tokens.
    pub fn queries<B: Backend>(&self, tokens: usize, len: usize, device: &B::Device) -> QueryMask<'_, B> {
        QueryMask { mask: self, tokens, len, device: device.clone(), hidden: OnceCell::new() }
    }
}

impl<B: Backend> QueryMask<'_, B> {
    /// The rule.
    pub fn rule(&self) -> &Mask {
        self.mask
    }

    /// [`Mask::hidden`] of these queries.
    pub fn hidden(&self) -> Option<&Tensor<B, 4, Bool>> {
        self.hidden.get_or_init(|| self.mask.hidden(self.tokens, self.len, &self.device)).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    /// Rows of `x` for hidden keys and `.` for seen ones.
    fn shown(mask: &Mask, tokens: usize, len: usize) -> Vec<String> {
        let hidden = mask.hidden::<Flex>(tokens, len, &Default::default()).unwrap().into_data();
        let hidden: Vec<bool> = hidden.iter::<bool>().collect();
        hidden.chunks(len).map(|row| row.iter().map(|&h| if h { 'x' } else { '.' }).collect()).collect()
    }

    #[test]
    fn later_keys_keys_before_the_window_and_padding_are_hidden() {
        assert_eq!(shown(&Mask::default(), 3, 4), ["..xx", "...x", "...."]);
        let window = Mask { window: Some(2), ..Default::default() };
        assert_eq!(shown(&window, 4, 4), [".xxx", "..xx", "x..x", "xx.."]);
        assert_eq!(shown(&window, 1, 4), ["xx.."]);
        let padded = Mask { window: None, left_padding: vec![0, 2] };
        assert_eq!(shown(&padded, 3, 3), [".xx", "..x", "...", ".xx", "x.x", "xx."]);
    }

    #[test]
    fn one_query_that_sees_everything_needs_no_mask() {
        assert!(Mask::default().hidden::<Flex>(1, 9, &Default::default()).is_none());
        let window = Mask { window: Some(9), left_padding: vec![0, 0] };
        assert!(window.hidden::<Flex>(1, 9, &Default::default()).is_none());
    }
}
