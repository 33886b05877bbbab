//! Encodings searched by more than the squared error of weights, through nothing but the codec's public interface.

use crate::{dot, moments};
use qins_codec::{Decoder, Encoded, LayoutError};
use std::cmp::Reverse;

/// Times that a row's codes are gone through at most.
const SWEEPS: usize = 30;

/// The entries of a table, ascending, with their codes.
type Ladder = Vec<(f32, u16)>;

fn nearest(ladder: &Ladder, x: f32) -> (f32, u16) {
    let above = ladder.partition_point(|entry| entry.0 < x).min(ladder.len() - 1);
    let below = above.saturating_sub(1);
    if x - ladder[below].0 <= ladder[above].0 - x { ladder[below] } else { ladder[above] }
}

/// An encoding whose scales and codes are being chosen.
pub struct Draft<'w> {
    weights: &'w [f32],
    decoder: Decoder,
    ladders: Vec<Ladder>,
    scales: Vec<u8>,
    codes: Vec<u16>,
}

impl<'w> Draft<'w> {
    /// Starts from an encoding of the weights.
    pub fn new(weights: &'w [f32], encoded: &Encoded) -> Self {
        let (decoder, _, scales) = encoded.clone().into_parts();
        let ladder = |table: &[f32]| {
            let mut ladder: Ladder = table.iter().copied().zip(0..).collect();
            ladder.sort_by(|a, b| a.0.total_cmp(&b.0));
            ladder
        };
        let ladders = decoder.values().chunks(1 << decoder.header().format.code_bits()).map(ladder).collect();
        let mut draft = Self { weights, decoder, ladders, scales, codes: vec![0; weights.len()] };
        for (i, weight) in encoded.matrix().decode().into_iter().enumerate() {
            let (scale, shape) = draft.scale(i / draft.cols(), i % draft.cols());
            draft.codes[i] = if scale == 0.0 { 0 } else { nearest(&draft.ladders[shape], weight / scale).1 };
        }
        draft
    }

    fn cols(&self) -> usize {
        self.decoder.header().cols
    }

    /// Where the scale code of a weight is, and the base it is a multiple of.
    fn scale_code(&self, row: usize, col: usize) -> (usize, f32) {
        let header = self.decoder.header();
        let start = row * header.scale_bytes_of_row();
        let base = self.scales[start..start + header.base_bytes()].try_into().map_or(1.0, f32::from_le_bytes);
        (start + header.base_bytes() + col / header.format.group(), base)
    }

    /// The scale of a weight, and which table its code indexes.
    fn scale(&self, row: usize, col: usize) -> (f32, usize) {
        let (at, base) = self.scale_code(row, col);
        let code = self.scales[at];
        (base * self.decoder.scales()[usize::from(code)], self.decoder.header().format.shape(code))
    }

    /// Decoded less true weights of a row.
    fn error(&self, row: usize) -> Vec<f32> {
        let (cols, bits) = (self.cols(), self.decoder.header().format.code_bits());
        let table = self.decoder.values();
        let error = |col: usize| {
            let ((scale, shape), i) = (self.scale(row, col), row * cols + col);
            scale * table[(shape << bits) + usize::from(self.codes[i])] - self.weights[i]
        };
        (0..cols).map(error).collect()
    }

    /// Chooses the scale code of each group anew, of those within 0.4 octaves, and the codes nearest to the weights.
    pub fn weigh(&mut self, importance: &[f32]) {
        let (format, cols, scales) = (self.decoder.header().format, self.cols(), *self.decoder.scales());
        for start in (0..self.weights.len()).filter(|i| i % cols % format.group() == 0) {
            let (row, col) = (start / cols, start % cols);
            let (at, base) = self.scale_code(row, col);
            let n = format.group().min(cols - col);
            let group = &self.weights[start..start + n];
            let cost = |&code: &u8| {
                let (scale, ladder) = (base * scales[usize::from(code)], &self.ladders[format.shape(code)]);
                let error = |w: f32| scale * nearest(ladder, w / scale).0 - w;
                group.iter().zip(&importance[col..]).map(|(&w, m)| m * error(w).powi(2)).sum::<f32>()
            };
            let present = scales[usize::from(self.scales[at])].abs();
            let is_near = |&code: &u8| (0.75..1.35).contains(&(scales[usize::from(code)].abs() / present));
            let Some((_, best)) =
                (0..=255).filter(is_near).map(|code| (cost(&code), code)).min_by(|a, b| a.0.total_cmp(&b.0))
            else {
                continue; // A group of zeros.
            };
            self.scales[at] = best;
            for i in start..start + n {
                let (scale, shape) = self.scale(row, i % cols);
                self.codes[i] = nearest(&self.ladders[shape], self.weights[i] / scale).1;
            }
        }
    }

    /// Moves codes of a row, each to the best one while the others stay, until `e A e - 2 b e` falls no more.
    pub fn descend(&mut self, row: usize, a: &[f32], b: &[f32]) {
        let cols = self.cols();
        let mut error = self.error(row);
        let mut slope: Vec<f32> = a.chunks_exact(cols).zip(b).map(|(a, b)| dot(a, &error) - b).collect();
        for _ in 0..SWEEPS {
            let mut moved = false;
            for col in 0..cols {
                let (at, curvature) = (row * cols + col, a[col * cols + col]);
                let (scale, shape) = self.scale(row, col);
                if scale == 0.0 || curvature <= 0.0 {
                    continue;
                }
                let goal = self.weights[at] + error[col] - slope[col] / curvature;
                let (entry, code) = nearest(&self.ladders[shape], goal / scale);
                if code != self.codes[at] {
                    let change = scale * entry - self.weights[at] - error[col];
                    error[col] += change;
                    slope.iter_mut().zip(&a[col * cols..]).for_each(|(slope, a)| *slope += change * a);
                    self.codes[at] = code;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }

    /// The search of "ranking"; `all` are the moments of all states.
    pub fn rank(&mut self, states: &[f32], ranking: &[Vec<usize>], all: &[f32]) {
        let (cols, rows) = (self.cols(), self.decoder.header().rows);
        // Which positions and places each row has, and the errors of the logits there.
        let mut places = vec![Vec::new(); rows];
        let mut errors: Vec<Vec<f32>> = ranking.iter().map(|ids| vec![0.0; ids.len()]).collect();
        for (position, ids) in ranking.iter().enumerate() {
            ids.iter().enumerate().for_each(|(place, &id)| places[id].push((position, place)));
        }
        let state = |position: usize| &states[position * cols..][..cols];
        let update = |errors: &mut [Vec<f32>], places: &[(usize, usize)], error: &[f32]| {
            places.iter().for_each(|&(position, place)| errors[position][place] = dot(error, state(position)));
        };
        (0..rows).for_each(|row| update(&mut errors, &places[row], &self.error(row)));

        let mut order: Vec<usize> = (0..rows).filter(|&row| !places[row].is_empty()).collect();
        order.sort_by_key(|&row| Reverse(places[row].len()));
        let share = cols as f32 / ranking.len() as f32;
        for row in order {
            let at: Vec<f32> = places[row].iter().flat_map(|&(position, _)| state(position)).copied().collect();
            let mut a = moments(&at, cols);
            a.iter_mut().zip(all).for_each(|(a, all)| *a += share * all);
            // At each position the best error is the mean of the others'.
            let mut b = vec![0.0; cols];
            for &(position, place) in &places[row] {
                let others = &errors[position];
                let mean = (others.iter().sum::<f32>() - others[place]) / (others.len() - 1) as f32;
                b.iter_mut().zip(state(position)).for_each(|(b, h)| *b += mean * h);
            }
            self.descend(row, &a, &b);
            update(&mut errors, &places[row], &self.error(row));
        }
    }

    /// The encoding as the decoder reads it.
    pub fn encoded(&self) -> Result<Encoded, LayoutError> {
        let header = self.decoder.header();
        let (bits, row_bytes) = (header.format.code_bits(), header.format.code_bytes(header.cols));
        let mut bytes = vec![0; header.code_bytes()];
        for (i, code) in self.codes.iter().enumerate() {
            let first = i / header.cols * row_bytes * 8 + i % header.cols * bits;
            for (n, bit) in (first..first + bits).enumerate() {
                bytes[bit / 8] |= ((code >> n & 1) as u8) << (bit % 8);
            }
        }
        Encoded::from_parts(self.decoder.clone(), bytes, self.scales.clone())
    }
}
