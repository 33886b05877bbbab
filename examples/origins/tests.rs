//! The rows of `docs/origins.md` that an inequality can hold.
