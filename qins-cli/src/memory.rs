//! What the program says when a graphics device has no memory left.

use anyhow::{Result, bail};
use qins_backend::NoDeviceMemory;
use qins_import::ImportError;
use std::{
    panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind},
    process::exit,
    sync::{
        Once,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

/// What CubeCL's threads say when they panic for want of memory, on `wgpu` and on CUDA. Their panics carry text alone.
const SIGNS: [&str; 2] = ["Out of Memory", "BufferTooBig"];

/// While weights are loaded.
const LOADING: usize = usize::MAX;

static WEIGHT_BYTES: AtomicUsize = AtomicUsize::new(LOADING);
static FULL: AtomicBool = AtomicBool::new(false);

/// Loads weights.
///
/// # Errors
/// What went wrong, in place of the panics of a device without memory for them.
pub fn loading<T>(load: impl FnOnce() -> Result<T, ImportError>) -> Result<T> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !is_told(panic) {
                other(panic)
            }
        }));
    });
    WEIGHT_BYTES.store(LOADING, Relaxed);
    FULL.store(false, Relaxed);
    match catch_unwind(AssertUnwindSafe(load)) {
        Ok(Err(error)) => Err(error.into()),
        _ if FULL.load(Relaxed) => {
            bail!("the device has no memory for the weights: take a format of fewer bits, or another device")
        }
        Ok(Ok(loaded)) => Ok(loaded),
        Err(panic) => resume_unwind(panic),
    }
}

/// So many bytes of weights are loaded. Should the device have no memory for what is computed with them, the program ends:
/// Burn would go on without the tensor.
pub fn loaded(weight_bytes: usize) {
    WEIGHT_BYTES.store(weight_bytes, Relaxed);
}

/// Whether a panic is told in other words.
fn is_told(panic: &PanicHookInfo<'_>) -> bool {
    let text = panic.payload_as_str().unwrap_or_default();
    let is_sign = panic.payload().is::<NoDeviceMemory>() || SIGNS.iter().any(|sign| text.contains(sign));
    if is_sign {
        FULL.store(true, Relaxed);
        let weights = WEIGHT_BYTES.load(Relaxed);
        if weights != LOADING {
            eprintln!(
                "qins: the device has no memory left beside {:.1} MB of weights, for keys and values or for results: take a \
                 shorter text, --kv or weights of fewer bits, or another device",
                weights as f64 / 1e6
            );
            exit(1);
        }
    }
    // What panics after the first does so for want of what that had to give.
    is_sign || FULL.load(Relaxed)
}
