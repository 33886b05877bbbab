//! What kernels are given, counted.

use std::sync::Mutex;

/// Launches of products on codes on graphics devices, and the bytes that they were given. Of each part of a weight there
/// is one launch, of each slab (see [`Prompts`](crate::Prompts)) one that decodes and one that multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Launches of kernels.
    pub launches: u64,
    /// Bytes of the buffers that were bound: codes, scale codes, tables, inputs and outputs, each time whole; of slabs, what
    /// they read and write.
    pub bytes: u64,
    /// Matrices that were encoded on a device.
    pub encoded: u64,
    /// Bytes of keys and values in codes that attention read on a device, scales among them.
    pub cache_bytes: u64,
    /// Rooms that were made for keys and values: the first, larger ones, and those of clones that are appended to.
    pub cache_rooms: u64,
}

static TRAFFIC: Mutex<Traffic> =
    Mutex::new(Traffic { launches: 0, bytes: 0, encoded: 0, cache_bytes: 0, cache_rooms: 0 });

/// What this process launched so far, on all devices. A fused backend launches when it must, at the latest when a result
/// is read.
pub fn traffic() -> Traffic {
    *TRAFFIC.lock().expect("nothing panics while it is held")
}

pub(super) fn count_encoded() {
    TRAFFIC.lock().expect("nothing panics while it is held").encoded += 1;
}

pub(super) fn count_cache_bytes(bytes: usize) {
    TRAFFIC.lock().expect("nothing panics while it is held").cache_bytes += bytes as u64;
}

pub(super) fn count_cache_room() {
    TRAFFIC.lock().expect("nothing panics while it is held").cache_rooms += 1;
}

/// One launch with buffers of so many bytes.
pub(super) fn count(bytes: impl IntoIterator<Item = u64>) {
    let mut traffic = TRAFFIC.lock().expect("nothing panics while it is held");
    traffic.launches += 1;
    traffic.bytes += bytes.into_iter().sum::<u64>();
}
