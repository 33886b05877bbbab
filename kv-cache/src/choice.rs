use crate::QinsKvCache;
use burn::tensor::{Tensor, backend::Backend};
use phi35_model::{DenseKv, KvStore, QueryMask, first_kept};
use qins_codec::kv::{KvFormat, KvLayer};
use std::{fmt, str::FromStr};

/// How keys and values are stored: chosen by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvChoice {
    /// As the backend's floats where they are, by [`DenseKv`]: what stays on a device.
    Dense,
    /// In codes, by [`QinsKvCache`].
    Encoded(KvFormat),
}

impl KvChoice {
    /// Every choice, largest first.
    pub fn all() -> impl Iterator<Item = KvChoice> {
        std::iter::once(KvChoice::Dense).chain(KvFormat::ALL.map(KvChoice::Encoded))
    }

    /// The name used on command lines.
    pub fn name(self) -> &'static str {
        match self {
            KvChoice::Dense => "dense",
            KvChoice::Encoded(format) => format.name(),
        }
    }

    /// An empty store.
    pub fn store<B: Backend>(self) -> ChosenKv<B> {
        match self {
            KvChoice::Dense => ChosenKv::Dense(DenseKv::default()),
            KvChoice::Encoded(format) => ChosenKv::Encoded(QinsKvCache::new(format)),
        }
    }

    /// Tokens that room is taken for when a text has `tokens` tokens, at most: those of whole blocks, from the first that a
    /// sliding window can see. [`DenseKv`] keeps all.
    pub fn stored_tokens(self, tokens: usize, window: Option<usize>) -> usize {
        match self {
            KvChoice::Dense => tokens,
            KvChoice::Encoded(_) => {
                let freed = first_kept(tokens, window) / KvLayer::BLOCK * KvLayer::BLOCK;
                tokens.next_multiple_of(KvLayer::BLOCK) - freed
            }
        }
    }

    /// Bytes of one head's key and value of one token, where heads have `head` dimensions.
    pub fn token_bytes(self, head: usize) -> usize {
        match self {
            KvChoice::Dense => 2 * head * size_of::<f32>(),
            KvChoice::Encoded(format) => format.token_bytes(head),
        }
    }
}

impl fmt::Display for KvChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvChoice {
    type Err = UnknownKv;

    fn from_str(name: &str) -> Result<Self, UnknownKv> {
        Self::all().find(|choice| choice.name() == name).ok_or_else(|| UnknownKv { found: name.to_owned() })
    }
}

/// A name that is no choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown cache `{found}`: expected one of {}", KvChoice::all().map(KvChoice::name).collect::<Vec<_>>().join(", "))]
pub struct UnknownKv {
    /// The name given.
    pub found: String,
}

/// A store of either kind.
#[derive(Debug, Clone)]
pub enum ChosenKv<B: Backend> {
    /// Floats of the backend.
    Dense(DenseKv<B>),
    /// Codes.
    Encoded(QinsKvCache<B>),
}

/// The same call on either kind.
macro_rules! either {
    ($store:expr, $of:ident => $call:expr) => {
        match $store {
            ChosenKv::Dense($of) => $call,
            ChosenKv::Encoded($of) => $call,
        }
    };
}

impl<B: Backend> KvStore<B> for ChosenKv<B> {
    fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>) {
        either!(self, store => store.append(keys, values));
    }

    fn attend(&self, queries: Tensor<B, 4>, mask: &QueryMask<'_, B>) -> Tensor<B, 4> {
        either!(self, store => store.attend(queries, mask))
    }

    fn truncate(&mut self, len: usize) {
        either!(self, store => store.truncate(len));
    }

    fn reserve(&mut self, len: usize) {
        either!(self, store => store.reserve(len));
    }

    fn free_before(&mut self, first: usize) {
        either!(self, store => store.free_before(first));
    }

    fn first(&self) -> usize {
        either!(self, store => store.first())
    }

    fn len(&self) -> usize {
        either!(self, store => store.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_listed() {
        for choice in KvChoice::all() {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let message = "int8".parse::<KvChoice>().unwrap_err().to_string();
        assert_eq!(message, "unknown cache `int8`: expected one of dense, f32, f16, v8, q8, v4");
    }
}
