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

/// The weights of a unit of a row, from `first` on; those behind the row's end mean nothing.
#[cube]
pub(super) fn unit(
    coded: &Coded,
    tables: &Slice<f32>,
    base: f32,
    row: usize,
    unit: usize,
    weights: &mut Array<f32>,
    #[comptime] first: usize,
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
            words[comptime!(plane * unit_words + i)] = coded.codes[at + i];
        }
    }

    let unit_scales = comptime!(if layout.has_scales() { layout.unit_scales() } else { 0 });
    let mut headers = Array::<u32>::new(comptime!(unit_scales.max(1)));
    let mut scales = Array::<f32>::new(comptime!(unit_scales.max(1)));
    #[unroll]
    for i in 0..unit_scales {
        // A unit may have more groups than are left of the row.
        let in_row = comptime!(layout.base_bytes) + unit * unit_codes / comptime!(layout.group) + i;
        let header = byte(&coded.scales, row * coded.scale_bytes + min(in_row, coded.scale_bytes - 1));
        headers[i] = header;
        scales[i] = base * tables[comptime!(layout.values()) + usize::cast_from(header)];
    }

    #[unroll]
    for i in 0..unit_codes {
        let group = comptime!(i / layout.group * usize::from(layout.has_scales()));
        weights[comptime!(first + i)] = match comptime!(layout.law) {
            Law::Table => scales[group] * tables[usize::cast_from(code(&words, i, layout))],
            Law::ChosenTable => {
                let table = (headers[group] & 3) << comptime!(layout.bits as u32);
                scales[group] * tables[usize::cast_from(table + code(&words, i, layout))]
            }
            Law::Cells => scales[group] * centre(&words, tables, i, layout),
            Law::F16 => half(code(&words, i, layout)),
            Law::Bf16 => f32::reinterpret(code(&words, i, layout) << 16),
        };
    }
}

/// Code `i` of the first plane of a unit.
#[cube]
fn code(words: &Array<u32>, #[comptime] i: usize, #[comptime] layout: Layout) -> u32 {
    let bits = comptime!(layout.bits);
    let at = comptime!(i * bits / 32);
    let shift = comptime!((i * bits % 32) as u32);
    let mut code = words[at] >> shift;
    if comptime!(i * bits % 32 + bits > 32) {
        code |= words[comptime!(at + 1)] << comptime!(32 - shift);
    }
    code & comptime!((1u32 << bits) - 1)
}

/// `w/s` of a code of several planes: the centre of its cell, as `qins_codec` has it, in f32.
#[cube]
fn centre(words: &Array<u32>, tables: &Slice<f32>, #[comptime] i: usize, #[comptime] layout: Layout) -> f32 {
    let shift = comptime!((i * 8) as u32);
    let signed = (words[0] >> shift) & 0xFF;
    let mut cell = signed & 0x7F;
    #[unroll]
    for plane in 1..comptime!(layout.planes) {
        cell = (cell << 8) | ((words[plane] >> shift) & 0xFF);
    }
    // At most 24 bits, so that `u` and `1 - u` are exact.
    let u = f32::cast_from(cell * 2 + 1) * comptime!(0.5f32.powi(8 * layout.planes as i32));
    let magnitude = (1.0 - u) / (1.0 + tables[0] * u) * tables[1];
    select(signed > 0x7F, -magnitude, magnitude)
}

/// An IEEE half, by arithmetic: not every device has the type.
#[cube]
pub(super) fn half(code: u32) -> f32 {
    let (exponent, mantissa) = ((code >> 10) & 0x1F, code & 0x3FF);
    let normal = f32::reinterpret(((exponent + 112) << 23) | (mantissa << 13));
    let subnormal = f32::cast_from(mantissa) * comptime!(0.5f32.powi(24));
    let beyond = f32::reinterpret((mantissa << 13) | 0x7F80_0000);
    let magnitude = select(exponent == 0, subnormal, select(exponent == 0x1F, beyond, normal));
    select(code > 0x7FFF, -magnitude, magnitude)
}
