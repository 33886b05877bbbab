//! Burn's operation traits for `Qins<B>`, one file a trait under Burn's own names.

mod delegate;
mod table;

mod activation;
mod bool_tensor;
mod int_tensor;
mod module;
mod qtensor;
mod tensor;
mod transaction;

#[cfg(test)]
mod tests;
