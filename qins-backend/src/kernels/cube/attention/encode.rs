//! New keys and values to codes, by the operations of `qins_codec` (`kv/encoding.rs` there) in their order, so that codes are
//! the same on a device that rounds each operation.

use super::room::{LANES, Stored, row_at};
use crate::kv::KvRows;
use cubecl::prelude::*;
use qins_codec::kv::{Encoding, HALF_STEP, LARGEST};

/// Rows of a cube.
pub(super) const ROWS: usize = 16;

/// The bits of infinity: those of magnitudes beyond are no numbers.
const INFINITY: u32 = 0x7F80_0000;

/// The bits of the largest number of half precision.
const LARGEST_HALF: u32 = 0x477F_E000;

/// `keys` and `values [lanes, tokens, head]` to the room's tokens from `at` on. Cubes of the first layer take keys, those
/// of the second values.
#[cube(launch_unchecked)]
pub(super) fn encode<K: Float, V: Float>(
    keys: &Array<K>,
    values: &Array<V>,
    room: &mut Array<u32>,
    at: usize,
    tokens: usize,
    lanes: usize,
    #[comptime] stored: Stored,
    #[define(K, V)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<u32>::new(comptime!(ROWS * LANES));
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let row = cube * ROWS + UNIT_POS_Y as usize;
    let inside = row < lanes * tokens;
    // Rows behind the last are encoded as the last, and not written.
    let row = min(row, lanes * tokens - 1);
    let (lane, token) = (row / tokens, at + row % tokens);
    if CUBE_POS_Z == 0 {
        let (codes, scale) = row_at(lanes, lane, token, stored, false);
        encode_row::<K>(keys, row, room, codes, scale, inside, &mut shared, comptime!(stored.keys));
    } else {
        let (codes, scale) = row_at(lanes, lane, token, stored, true);
        encode_row::<V>(values, row, room, codes, scale, inside, &mut shared, comptime!(stored.values));
    }
}

/// Units of a row take every so many words of it.
#[cube]
fn encode_row<F: Float>(
    from: &Array<F>,
    row: usize,
    room: &mut Array<u32>,
    codes: usize,
    scale_at: usize,
    inside: bool,
    shared: &mut SharedMemory<u32>,
    #[comptime] rows: KvRows,
) {
    let (lane, line) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let head = comptime!(rows.head);
    let first = row * head;
    let is_linear = comptime!(rows.encoding == Encoding::Linear);
    let mut steps = 1.0f32;
    let mut is_zero = false;
    if comptime!(is_linear) {
        let mut largest = 0u32;
        let mut col = lane;
        while col < head {
            largest = max(largest, u32::reinterpret(f32::cast_from(from[first + col])) & 0x7FFF_FFFF);
            col += LANES;
        }
        shared[line * LANES + lane] = largest;
        sync_cube();
        #[unroll]
        for i in 0..LANES {
            largest = max(largest, shared[line * LANES + i]);
        }
        let finite = largest < INFINITY;
        let scale = f32::reinterpret(select(finite, largest, 0)) / LARGEST;
        is_zero = scale < comptime!(f32::MIN_POSITIVE);
        steps = select(is_zero, 1.0f32, comptime!(2.0 * HALF_STEP as f32) * scale);
        if inside && lane == 0 {
            // Not a number: a constant of integers, because not every compiler takes one of floats.
            room[scale_at] = select(finite, select(is_zero, 0u32, u32::reinterpret(scale)), 0x7FC0_0000u32);
        }
    }
    let word_codes = comptime!(rows.word_codes());
    let mut word = lane;
    while word < comptime!(rows.words()) {
        let mut packed = 0u32;
        #[unroll]
        for i in 0..word_codes {
            let col = word * word_codes + i;
            if col < head {
                let x = f32::cast_from(from[first + col]);
                let code = match comptime!(rows.encoding) {
                    Encoding::Full => u32::reinterpret(x),
                    Encoding::Half => half(u32::reinterpret(x)),
                    // Rounding down, of what is not negative.
                    _ => select(is_zero, 0u32, u32::cast_from(clamp(x / steps + 128.0, 0.0f32, 255.0f32)) ^ 0x80),
                };
                packed |= code << comptime!((32 / word_codes * i) as u32);
            }
        }
        if inside {
            room[codes + word] = packed;
        }
        word += LANES;
    }
}

/// The nearest half of a float's bits, of two the even one. Numbers beyond the largest become it.
#[cube]
fn half(bits: u32) -> u32 {
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    let within = min(magnitude, LARGEST_HALF);
    // The exponent is 112 less; what is added before bits are cut off makes it the nearest.
    let normal = (within - min(within, 112 << 23) + 0xFFF + ((within >> 13) & 1)) >> 13;
    // Below 2^-14, in steps of 2^-24. No shift is longer than what is left of a float that small.
    let exponent = max(within >> 23, 102);
    let shift = 126 - min(exponent, 125);
    let mantissa = (within & 0x7F_FFFF) | 0x80_0000;
    let even = (mantissa >> shift) & 1;
    let subnormal = (mantissa + (1u32 << (shift - 1)) - 1 + even) >> shift;
    let subnormal = select(within < (102 << 23), 0u32, subnormal);
    let number = select(within < (113 << 23), subnormal, normal);
    let no_number = 0x7C00 | select(magnitude > INFINITY, 0x200 | ((magnitude >> 13) & 0x3FF), 0u32);
    sign | select(magnitude >= INFINITY, no_number, number)
}
