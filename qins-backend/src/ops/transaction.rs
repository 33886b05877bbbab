use crate::Qins;
use burn_backend::{Backend, ops::TransactionOps};

// The provided method reads each tensor through the operations of this crate.
impl<B: Backend> TransactionOps<Self> for Qins<B> {}
