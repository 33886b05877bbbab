//! Panels in f32.

use super::*;

/// Weights and inputs as they are.
pub(in super::super) struct Float<V>(PhantomData<fn() -> V>);

/// A row's piece, from the start of a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in super::super) struct Row(pub(super) Piece);

impl<V: Vector> Arithmetic for Float<V> {
    type V = V;
    const LEVEL: Level = V::LEVEL;
    type Row = Row;
    /// Vectors of the columns, one after the other.
    type Part = CacheLine;
    const PARTS: usize = COLS * V::LANES / LINE;

    fn no_row() -> Row {
        Row([0.0; COLS])
    }

    fn no_part() -> CacheLine {
        CacheLine([0.0; LINE])
    }

    #[inline(always)]
    unsafe fn put(x: &Piece, count: usize, lane: usize, lines: &mut [CacheLine]) {
        for (place, &x) in x[..count].iter().enumerate() {
            let at = place * V::LANES + lane;
            lines[at / LINE].0[at % LINE] = x;
        }
    }

    #[inline(always)]
    unsafe fn add(
        rows: &[Row],
        x: &[CacheLine],
        vectors: usize,
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) -> usize {
        // SAFETY: as the caller promises.
        unsafe {
            match (vectors, V::SUMS) {
                (1, 24..) => tiles::<Self, 24, 1>(rows, x, count, out, stride),
                (1, _) => tiles::<Self, 12, 1>(rows, x, count, out, stride),
                (_, 24..) => tiles::<Self, 12, 2>(rows, x, count, out, stride),
                (_, _) => tiles::<Self, 6, 2>(rows, x, count, out, stride),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const R: usize, const N: usize>(rows: &[Row; R], x: *const CacheLine, count: usize) -> [[V; N]; R] {
        let (weights, x): (*const f32, *const f32) = (rows.as_ptr().cast(), x.cast());
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [[V::zero(); N]; R];
            for k in 0..count {
                let x: [V; N] = std::array::from_fn(|n| V::load(x.add((n * COLS + k) * V::LANES)));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(weights.add(r * COLS + k));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = weight.mul_add(x, *sum);
                    }
                }
            }
            sums
        }
    }
}

impl<B: Block> Decode<Float<B::V>> for Blocks<'_, B> {
    #[inline(always)]
    unsafe fn decode(&self, row: usize, first: usize, count: usize, out: &mut Row) {
        // SAFETY: as the caller promises.
        unsafe { self.decode(row, first, &mut out.0[..count]) };
    }
}
