//! How keys and values lie on a device, as kernels see it.

use super::super::decode::half as decode_half;
use crate::kv::{BLOCK, KvLayout, KvRows};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;
use qins_codec::kv::{Encoding, HALF_STEP};

/// Units that share a row: neighbours read neighbouring words.
pub(super) const LANES: usize = 8;

/// What of a room is a constant of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) keys: KvRows,
    pub(super) values: KvRows,
    /// Whether sequences start with padding.
    pub(super) padded: bool,
}

impl Stored {
    pub(super) fn new(layout: &KvLayout, padded: bool) -> Self {
        Self { keys: layout.keys(), values: layout.values(), padded }
    }
}

impl KvRows {
    /// Codes of a word.
    pub(super) fn word_codes(&self) -> usize {
        match self.encoding {
            Encoding::Full => 1,
            Encoding::Half => 2,
            Encoding::Linear => 4,
            Encoding::Shaped => unreachable!("the host's alone"),
        }
    }

    /// Words of a row that each of [`LANES`] units reads.
    pub(super) fn words_a_lane(&self) -> usize {
        self.words().div_ceil(LANES)
    }

    /// Whether that are all of a row.
    pub(super) fn whole(&self) -> bool {
        self.words().is_multiple_of(LANES)
    }

    fn has_scale(&self) -> bool {
        self.scale_words() > 0
    }

    /// What scores are multiplied by.
    pub(super) fn score_scale(&self) -> f32 {
        (self.head as f32).powf(-0.5)
    }
}

/// A room.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Room {
    pub(super) words: Array<u32>,
    /// Tokens of padding of each sequence.
    pub(super) padding: Array<u32>,
    /// Key-value heads of all sequences.
    pub(super) lanes: usize,
    pub(super) kv_heads: usize,
    /// Tokens before the first that it has.
    pub(super) before: usize,
}

/// Which tokens queries see.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Seen {
    /// Tokens stored.
    pub(super) len: usize,
    /// The last of them have queries.
    pub(super) tokens: usize,
    pub(super) window: usize,
    /// The first that any query sees.
    pub(super) start: usize,
}

/// The first token that the query of a token sees, itself if it is padding.
#[cube]
pub(super) fn first_seen(seen: &Seen, token: usize, padding: usize) -> usize {
    let passed = token + 1;
    let first = select(passed > seen.window, passed - min(passed, seen.window), 0);
    min(max(first, padding), token)
}

/// Tokens of padding of a sequence.
#[cube]
pub(super) fn padding_of(room: &Room, lane: usize, #[comptime] stored: Stored) -> usize {
    let mut padding = 0usize;
    if comptime!(stored.padded) {
        padding = usize::cast_from(room.padding[lane / room.kv_heads]);
    }
    padding
}

/// Where a row's codes start, of keys or of values, and where its scale is, if it has one.
#[cube]
pub(super) fn row_at(
    lanes: usize,
    lane: usize,
    token: usize,
    #[comptime] stored: Stored,
    #[comptime] values: bool,
) -> (usize, usize) {
    let words = comptime!(if values { stored.values.words() } else { stored.keys.words() });
    let block = token / BLOCK * comptime!(row_words(stored.keys) + row_words(stored.values));
    let before = comptime!(if values { row_words(stored.keys) } else { 0 });
    let first = (block + before) * lanes * BLOCK;
    let row = lane * BLOCK + token % BLOCK;
    (first + row * words, first + lanes * comptime!(BLOCK * words) + row)
}

/// Words of a row, its scale included.
fn row_words(rows: KvRows) -> usize {
    rows.words() + rows.scale_words()
}

/// What a row's codes are multiplied by.
#[cube]
pub(super) fn scale_of(words: &Array<u32>, at: usize, #[comptime] rows: KvRows) -> f32 {
    let mut scale = 1.0f32;
    if comptime!(rows.has_scale()) {
        scale = f32::reinterpret(words[at]);
    }
    scale
}

/// Code `i` of a word as a number, in units of the row's scale.
#[cube]
pub(super) fn decode(word: u32, #[comptime] i: usize, #[comptime] rows: KvRows) -> f32 {
    match comptime!(rows.encoding) {
        Encoding::Full => f32::reinterpret(word),
        Encoding::Half => decode_half((word >> comptime!(16 * i as u32)) & 0xFFFF),
        // The byte is the upper one of a 32-bit integer, an odd number of half steps.
        _ => {
            let upper = (word << comptime!(24 - 8 * i as u32)) & 0xFF00_0000u32;
            f32::cast_from(i32::reinterpret(upper) + HALF_STEP)
        }
    }
}

const UNITS: usize = 256;

/// Words of `from`, from `first` on, to the start of `to`.
pub(super) fn copy<R: CubeRuntime>(from: &CubeTensor<R>, to: &CubeTensor<R>, first: usize, count: usize) {
    let cubes = count.div_ceil(UNITS);
    if cubes == 0 {
        return;
    }
    let across = cubes.min(super::MAX_CUBES);
    // SAFETY: `count` words from `first` on are in the one, and as many in the other.
    unsafe {
        words::launch_unchecked(
            &from.client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            from.clone().into_array_arg(),
            to.clone().into_array_arg(),
            first,
            count,
        );
    }
}

#[cube(launch_unchecked)]
fn words(from: &Array<u32>, to: &mut Array<u32>, first: usize, count: usize) {
    if ABSOLUTE_POS < count {
        to[ABSOLUTE_POS] = from[first + ABSOLUTE_POS];
    }
}
