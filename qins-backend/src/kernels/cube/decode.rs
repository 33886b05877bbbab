//! Codes to weights in registers.

use super::layout::{Coded, Law, Layout};
use cubecl::prelude::*;

/// Byte `index` of packed words.
#[cube]
pub(super) fn byte(words: &Array<u32>, index: usize) -> u32 {
    (words[index / 4] >> (u32::cast_from(index % 4) * 8)) & 0xFF
}

/// The base that a row has of its own; else 1.
#[cube]
pub(super) fn base(coded: &Coded, row: usize, #[comptime] layout: Layout) -> f32 {
    let mut base = 1.0f32;
    if comptime!(layout.base_bytes > 0) {
        let at = row * coded.scale_bytes;
        let low = byte(&coded.scales, at) | (byte(&coded.scales, at + 1) << 8);
        let high = (byte(&coded.scales, at + 2) << 16) | (byte(&coded.scales, at + 3) << 24);
        base = f32::reinterpret(low | high);
    }
    base
}

/// The weights of a unit of a row; those behind the row's end mean nothing.
#[cube]
pub(super) fn unit(
    codes: &Array<u32>,
    coded: &Coded,
    tables: &Slice<f32>,
    base: f32,
    row: usize,
    unit: usize,
    weights: &mut Array<f32>,
    #[comptime] layout: Layout,
) {
    let unit_words = comptime!(layout.unit_words);
    let unit_codes = comptime!(layout.unit_codes());
    let mut words = Array::<u32>::new(comptime!(layout.planes * layout.unit_words));
    #[unroll]
    for plane in 0..comptime!(layout.planes) {
        let at = (plane * coded.rows + row) * coded.row_words + unit * unit_words;
        #[unroll]
        for i in 0..unit_words {
            words[comptime!(plane * unit_words + i)] = codes[at + i];
        }
    }

    let unit_scales = comptime!(layout.scales(layout.unit_codes()));
    let mut headers = Array::<u32>::new(unit_scales);
    let mut scales = Array::<f32>::new(unit_scales);
    #[unroll]
    for i in 0..unit_scales {
        headers[i] = scale_code(coded, row, unit * unit_codes, i, layout);
        scales[i] = scale(tables, base, headers[i], 1usize, layout);
    }
    #[unroll]
    for i in 0..unit_codes {
        let group = comptime!(i * unit_scales / unit_codes);
        let table = table(headers[group], 1usize, layout);
        weights[i] = scales[group] * value(&words, tables, table, 0usize, i, unit_words, 1usize, layout);
    }
}

/// The scale code of the group that lies `i` groups after that of column `col`.
#[cube]
pub(super) fn scale_code(
    coded: &Coded,
    row: usize,
    col: usize,
    #[comptime] i: usize,
    #[comptime] layout: Layout,
) -> u32 {
    let mut code = 0u32;
    if comptime!(layout.has_scales()) {
        // A unit may have more groups than are left of the row.
        let in_row = comptime!(layout.base_bytes + i) + col / comptime!(layout.group);
        code = byte(&coded.scales, row * coded.scale_bytes + min(in_row, coded.scale_bytes - 1));
    }
    code
}

/// The scale of a scale code; 1 where there are none. `tables` have so many copies of each value before the scales.
#[cube]
pub(super) fn scale(
    tables: &Slice<f32>,
    base: f32,
    header: u32,
    #[comptime] copies: usize,
    #[comptime] layout: Layout,
) -> f32 {
    let mut scale = 1.0f32;
    if comptime!(layout.has_scales()) {
        scale = base * tables[comptime!(layout.values() * copies) + usize::cast_from(header)];
    }
    scale
}

/// Where the table that a scale code chooses begins.
#[cube]
pub(super) fn table(header: u32, #[comptime] copies: usize, #[comptime] layout: Layout) -> u32 {
    let mut table = 0u32;
    if comptime!(layout.law == Law::ChosenTable) {
        table = (header & 3) * comptime!((copies << layout.bits) as u32);
    }
    table
}

/// `w/s` of code `i` of the words from `first` on, so many a plane. Of so many copies of each value, that one is looked up at
/// which `table` begins.
#[cube]
pub(super) fn value(
    words: &Array<u32>,
    tables: &Slice<f32>,
    table: u32,
    #[comptime] first: usize,
    #[comptime] i: usize,
    #[comptime] plane_words: usize,
    #[comptime] copies: usize,
    #[comptime] layout: Layout,
) -> f32 {
    match comptime!(layout.law) {
        Law::Table | Law::ChosenTable => tables[usize::cast_from(table | code(words, first, i, copies, layout))],
        Law::Integers => (f32::cast_from(code(words, first, i, 1usize, layout) ^ 0x80) - 128.0) / 128.0,
        Law::Cells => centre(words, tables, first, i, plane_words, layout),
        Law::F16 => half(code(words, first, i, 1usize, layout)),
        Law::Bf16 => f32::reinterpret(code(words, first, i, 1usize, layout) << 16),
    }
}

/// Code `i` of the first plane of the words from `first` on, times `copies`.
#[cube]
fn code(
    words: &Array<u32>,
    #[comptime] first: usize,
    #[comptime] i: usize,
    #[comptime] copies: usize,
    #[comptime] layout: Layout,
) -> u32 {
    let bits = comptime!(layout.bits);
    let at = comptime!(first + i * bits / 32);
    let shift = comptime!((i * bits % 32) as u32);
    // Shifted once, to where it is to lie.
    let up = comptime!(copies.ilog2());
    let mut code = if comptime!(shift >= up) {
        words[at] >> comptime!(shift.max(up) - up)
    } else {
        words[at] << comptime!(up.max(shift) - shift)
    };
    if comptime!(i * bits % 32 + bits > 32) {
        code |= words[comptime!(at + 1)] << comptime!(32 - shift + up);
    }
    code & comptime!(((1u32 << bits) - 1) << up)
}

/// `w/s` of a code of several planes: the centre of its cell, as `qins_codec` has it, in f32.
#[cube]
fn centre(
    words: &Array<u32>,
    tables: &Slice<f32>,
    #[comptime] first: usize,
    #[comptime] i: usize,
    #[comptime] plane_words: usize,
    #[comptime] layout: Layout,
) -> f32 {
    let shift = comptime!((i * 8 % 32) as u32);
    let at = comptime!(first + i * 8 / 32);
    let signed = (words[at] >> shift) & 0xFF;
    let mut cell = signed & 0x7F;
    #[unroll]
    for plane in 1..comptime!(layout.planes) {
        cell = (cell << 8) | ((words[comptime!(at + plane * plane_words)] >> shift) & 0xFF);
    }
    // At most 24 bits, so that `u` and `1 - u` are exact.
    let u = f32::cast_from(cell * 2 + 1) * comptime!(0.5f32.powi(8 * layout.planes as i32));
    let magnitude = (1.0 - u) / (1.0 + tables[0] * u) * tables[1];
    select(signed > 0x7F, -magnitude, magnitude)
}

/// An IEEE half, by arithmetic: not every device has the type.
#[cube]
pub(super) fn half(code: u32) -> f32 {
    let bits = (code & 0x7FFF) << 13;
    let normal = f32::reinterpret(bits + comptime!(112u32 << 23));
    // Subnormal ones have no leading 1: it is taken away, exactly.
    let subnormal = normal * 2.0 - comptime!(0.5f32.powi(14));
    let beyond = f32::reinterpret(bits | 0x7F80_0000);
    let finite = select(bits < comptime!(1u32 << 23), subnormal, normal);
    let magnitude = select(bits < comptime!(31u32 << 23), finite, beyond);
    f32::reinterpret(u32::reinterpret(magnitude) | ((code & 0x8000) << 16))
}
