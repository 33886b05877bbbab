//! Attention of a few queries, those of a token being generated: each key and value is read once for all queries of its
//! head, and decoded in registers. Cubes take a span of tokens each, so that a long text fills a device of many; `merge.rs`
//! puts together what they find.

use super::room::{LANES, Room, Seen, Stored, decode, first_seen, padding_of, row_at, scale_of};
use cubecl::prelude::*;

/// Queries of a head at most.
pub(super) const ROWS: usize = 8;

/// Tokens that a cube's units read side by side.
pub(super) const SLOTS: usize = 16;

/// Tokens whose words a unit asks for before it decodes the first.
const AT_ONCE: usize = 2;

/// Tokens of a step.
const STEP: usize = SLOTS * AT_ONCE;

pub(super) const UNITS: usize = LANES * SLOTS;

/// Tokens of a cube at most.
const SPAN: usize = 256;

/// Cubes that fill a large device.
const ENOUGH: usize = 1024;

/// The score of a token that is not seen, below all others.
pub(super) const HIDDEN: f32 = f32::MIN;

/// Tokens of a cube, where `seen` are seen of each of `lanes`.
pub(super) fn span(lanes: usize, seen: usize) -> usize {
    let mut span = SPAN;
    while span > 64 && lanes * seen.div_ceil(span) < ENOUGH {
        span /= 2;
    }
    span
}

/// What of a cube's own memory it takes.
pub(super) fn shared_bytes(stored: &Stored, rows: usize, subgroup: usize) -> usize {
    let words = rows * (SPAN + SLOTS) + 2 * SLOTS + SLOTS * sums_width(stored) + exchange(rows, subgroup);
    words * size_of::<f32>()
}

/// Columns of values that a slot's units have sums of, some behind the head's end.
fn sums_width(stored: &Stored) -> usize {
    stored.values.words_a_lane() * LANES * stored.values.word_codes()
}

/// What units exchange where they have no subgroups.
fn exchange(rows: usize, subgroup: usize) -> usize {
    if subgroup > 1 { 1 } else { rows * SLOTS * (LANES + 1) }
}

/// `queries [lanes, rows, head]` to `out`: sums of values `[lanes, splits, rows, head]`, not yet divided, then the largest
/// score and the sum of weights, `[lanes, splits, rows, 2]`.
#[cube(launch_unchecked)]
pub(super) fn few<F: Float>(
    queries: &Array<F>,
    room: &Room,
    seen: &Seen,
    out: &mut Array<f32>,
    // Tokens of a cube.
    span: usize,
    splits: usize,
    #[comptime] rows: usize,
    // Units of a subgroup; 1 where subgroups are not used.
    #[comptime] subgroup: usize,
    #[comptime] stored: Stored,
    #[define(F)] _dtype: StorageType,
) {
    let (part, slot) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let unit = slot * LANES + part;
    let (split, lane) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let head = comptime!(stored.keys.head);
    let padding = padding_of(room, lane, stored);
    let first = seen.start + split * span;
    let count = min(span, seen.len - first);
    let steps = count.div_ceil(STEP);

    let key_words = comptime!(stored.keys.words_a_lane());
    let key_codes = comptime!(stored.keys.word_codes());
    let key_columns = comptime!(key_words * key_codes);
    let mut query = Array::<f32>::new(comptime!(rows * key_columns));
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for i in 0..key_words {
            #[unroll]
            for j in 0..key_codes {
                let col = (part + comptime!(i * LANES)) * key_codes + j;
                let x = f32::cast_from(queries[(lane * rows + r) * head + min(col, head - 1)]);
                // Codes behind the row's end are no key.
                let scale = comptime!(stored.keys.score_scale());
                query[comptime!(r * key_columns + i * key_codes + j)] = select(col < head, x * scale, 0.0f32);
            }
        }
    }

    let mut scores = SharedMemory::<f32>::new(comptime!(rows * SPAN));
    let mut largest_of = SharedMemory::<f32>::new(comptime!(rows * SLOTS));
    let mut exchanged = SharedMemory::<f32>::new(comptime!(exchange(rows, subgroup)));
    let mut sums = Array::<f32>::new(rows);
    let mut largest = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        largest[r] = f32::new(HIDDEN);
    }
    let mut words = Array::<u32>::new(comptime!(AT_ONCE * key_words));
    let mut scales = Array::<f32>::new(AT_ONCE);
    for step in 0..steps {
        read(room, lane, first, step, count, &mut words, &mut scales, stored, false);
        #[unroll]
        for t in 0..AT_ONCE {
            #[unroll]
            for r in 0..rows {
                sums[r] = 0.0;
            }
            #[unroll]
            for i in 0..key_words {
                #[unroll]
                for j in 0..key_codes {
                    let key = decode(words[comptime!(t * key_words + i)], j, comptime!(stored.keys));
                    #[unroll]
                    for r in 0..rows {
                        sums[r] += key * query[comptime!(r * key_columns + i * key_codes + j)];
                    }
                }
            }
            add_up(&mut sums, &mut exchanged, rows, subgroup);
            let at = step * STEP + t * SLOTS + slot;
            let token = first + at;
            #[unroll]
            for r in 0..rows {
                let query_token = seen.len - seen.tokens + r % seen.tokens;
                let is_seen = token <= query_token && token >= first_seen(seen, query_token, padding);
                let score = select(is_seen && at < count, sums[r] * scales[t], HIDDEN);
                largest[r] = max(largest[r], score);
                if part == 0 {
                    scores[r * SPAN + at] = score;
                }
            }
        }
    }
    if part == 0 {
        #[unroll]
        for r in 0..rows {
            largest_of[r * SLOTS + slot] = largest[r];
        }
    }
    sync_cube();
    #[unroll]
    for r in 0..rows {
        #[unroll]
        for i in 0..SLOTS {
            largest[r] = max(largest[r], largest_of[r * SLOTS + i]);
        }
        let mut at = unit;
        while at < steps * STEP {
            let score = scores[r * SPAN + at];
            scores[r * SPAN + at] = select(score == HIDDEN, 0.0f32, f32::exp(score - largest[r]));
            at += UNITS;
        }
    }
    sync_cube();

    let value_words = comptime!(stored.values.words_a_lane());
    let value_codes = comptime!(stored.values.word_codes());
    let columns = comptime!(value_words * value_codes);
    let mut values = Array::<f32>::new(comptime!(rows * columns));
    let mut weights = Array::<f32>::new(rows);
    let mut totals = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        totals[r] = 0.0;
        #[unroll]
        for i in 0..columns {
            values[comptime!(r * columns + i)] = 0.0;
        }
    }
    let mut words = Array::<u32>::new(comptime!(AT_ONCE * value_words));
    for step in 0..steps {
        read(room, lane, first, step, count, &mut words, &mut scales, stored, true);
        #[unroll]
        for t in 0..AT_ONCE {
            #[unroll]
            for r in 0..rows {
                let weight = scores[r * SPAN + step * STEP + t * SLOTS + slot];
                totals[r] += weight;
                weights[r] = weight * scales[t];
            }
            #[unroll]
            for i in 0..value_words {
                #[unroll]
                for j in 0..value_codes {
                    let value = decode(words[comptime!(t * value_words + i)], j, comptime!(stored.values));
                    #[unroll]
                    for r in 0..rows {
                        values[comptime!(r * columns + i * value_codes + j)] += weights[r] * value;
                    }
                }
            }
        }
    }

    let width = comptime!(sums_width(&stored));
    let mut parts = SharedMemory::<f32>::new(comptime!(SLOTS * sums_width(&stored)));
    let mut total_of = SharedMemory::<f32>::new(SLOTS);
    let states = CUBE_COUNT_Y as usize * splits * rows * head;
    #[unroll]
    for r in 0..rows {
        let row = (lane * splits + split) * rows + r;
        #[unroll]
        for i in 0..value_words {
            #[unroll]
            for j in 0..value_codes {
                let col = (part + comptime!(i * LANES)) * value_codes + j;
                parts[slot * width + col] = values[comptime!(r * columns + i * value_codes + j)];
            }
        }
        if part == 0 {
            total_of[slot] = totals[r];
        }
        sync_cube();
        let mut col = unit;
        while col < head {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..SLOTS {
                sum += parts[i * width + col];
            }
            out[row * head + col] = sum;
            col += UNITS;
        }
        if unit == 0 {
            let mut total = 0.0f32;
            #[unroll]
            for i in 0..SLOTS {
                total += total_of[i];
            }
            out[states + row * 2] = largest[r];
            out[states + row * 2 + 1] = total;
        }
        sync_cube();
    }
}

/// A unit's words and the scales of the tokens of one step, of keys or of values.
#[cube]
fn read(
    room: &Room,
    lane: usize,
    first: usize,
    step: usize,
    count: usize,
    words: &mut Array<u32>,
    scales: &mut Array<f32>,
    #[comptime] stored: Stored,
    #[comptime] values: bool,
) {
    let (part, slot) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let rows = comptime!(if values { stored.values } else { stored.keys });
    let row_words = comptime!(rows.words_a_lane());
    #[unroll]
    for t in 0..AT_ONCE {
        // Tokens behind the last are read as the last, and hidden.
        let token = first - room.before + min(step * STEP + t * SLOTS + slot, count - 1);
        let (codes, scale) = row_at(room.lanes, lane, token, stored, values);
        scales[t] = scale_of(&room.words, scale, rows);
        #[unroll]
        for i in 0..row_words {
            let mut word = part + comptime!(i * LANES);
            if comptime!(!rows.whole()) {
                word = min(word, comptime!(rows.words() - 1));
            }
            words[comptime!(t * row_words + i)] = room.words[codes + word];
        }
    }
}

/// The sums of the units that share a row, to each of them.
#[cube]
fn add_up(
    sums: &mut Array<f32>,
    exchanged: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
    #[comptime] subgroup: usize,
) {
    if comptime!(subgroup > 1) {
        #[unroll]
        for r in 0..rows {
            #[unroll]
            for bit in 0..comptime!(LANES.ilog2()) {
                let other = plane_shuffle_xor(sums[r], comptime!(1u32 << bit));
                sums[r] += other;
            }
        }
    } else {
        let (part, slot) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
        // One more, so that slots read different banks.
        let stride = comptime!(LANES + 1);
        #[unroll]
        for r in 0..rows {
            exchanged[(slot * rows + r) * stride + part] = sums[r];
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..LANES {
                sum += exchanged[(slot * rows + r) * stride + i];
            }
            sums[r] = sum;
        }
        sync_cube();
    }
}
