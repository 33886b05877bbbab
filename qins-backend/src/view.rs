//! How a tensor of any rank lies over an encoded matrix, so that transposing and reshaping move no code.

use burn_backend::{Shape, Slice};
use std::ops::Range;

/// A row-major array over the matrix's weights, seen with its axes permuted and dimensions of size 1 repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    /// Dimensions in storage order; their product is `rows * cols`.
    stored: Vec<usize>,
    /// Dimension `i` of the tensor is stored dimension `axes[i]`.
    axes: Vec<usize>,
    /// How often dimension `i` repeats its stored dimension; 1 unless that has size 1.
    repeats: Vec<usize>,
}

impl View {
    /// The array as stored.
    pub(crate) fn new(stored: Vec<usize>) -> Self {
        let axes = (0..stored.len()).collect();
        Self { repeats: vec![1; stored.len()], stored, axes }
    }

    /// A view read from a file. `None` unless `axes` is a permutation of the stored dimensions and only dimensions of
    /// size 1 are repeated.
    pub(crate) fn from_parts(stored: Vec<usize>, axes: Vec<usize>, repeats: Vec<usize>) -> Option<Self> {
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        let permuted = sorted.iter().copied().eq(0..stored.len()) && repeats.len() == axes.len();
        let repeated = permuted && axes.iter().zip(&repeats).all(|(&a, &n)| n == 1 || (stored[a] == 1 && n > 1));
        repeated.then_some(Self { stored, axes, repeats })
    }

    pub(crate) fn stored(&self) -> &[usize] {
        &self.stored
    }

    pub(crate) fn axes(&self) -> &[usize] {
        &self.axes
    }

    pub(crate) fn repeats(&self) -> &[usize] {
        &self.repeats
    }

    pub(crate) fn is_expanded(&self) -> bool {
        self.repeats.iter().any(|&n| n > 1)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.axes.iter().zip(&self.repeats).map(|(&a, &n)| self.stored[a] * n).collect::<Vec<_>>().into()
    }

    pub(crate) fn permute(&self, axes: &[usize]) -> Self {
        Self {
            stored: self.stored.clone(),
            axes: axes.iter().map(|&a| self.axes[a]).collect(),
            repeats: axes.iter().map(|&a| self.repeats[a]).collect(),
        }
    }

    pub(crate) fn swap_dims(&self, dim1: usize, dim2: usize) -> Self {
        let mut axes: Vec<_> = (0..self.axes.len()).collect();
        axes.swap(dim1, dim2);
        self.permute(&axes)
    }

    /// The view with another shape over the same weights, where no weight has to move: always as stored; with permuted
    /// axes, if only dimensions of size 1 come or go.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        if self.is_expanded() {
            return (self.shape().as_slice() == shape).then(|| self.clone());
        }
        if self.axes.iter().copied().eq(0..self.axes.len()) {
            return Some(Self::new(shape.to_vec()));
        }
        let kept: Vec<usize> = self.axes.iter().copied().filter(|&a| self.stored[a] != 1).collect();
        if !shape.iter().copied().filter(|&n| n != 1).eq(kept.iter().map(|&a| self.stored[a])) {
            return None;
        }
        // Stored order: the kept dimensions as they were, then the new ones of size 1.
        let mut order = kept.clone();
        order.sort_unstable();
        let mut stored: Vec<usize> = order.iter().map(|&a| self.stored[a]).collect();
        let mut next_kept = kept.iter();
        let mut axes = Vec::with_capacity(shape.len());
        for &n in shape {
            if n == 1 {
                axes.push(stored.len());
                stored.push(1);
            } else {
                let a = next_kept.next().expect("as many dimensions beyond 1 as the shape");
                axes.push(order.iter().position(|o| o == a).expect("a kept dimension"));
            }
        }
        Some(Self { repeats: vec![1; axes.len()], stored, axes })
    }

    /// The view with dimensions of size 1 repeated, and new ones in front. `None` where a dimension of another size
    /// would change, or repeats of repeats would be asked for.
    pub(crate) fn expand(&self, shape: &[usize]) -> Option<Self> {
        let own = self.shape();
        if shape.contains(&0) || shape.len() < own.num_dims() {
            return None;
        }
        let mut wide = vec![1; shape.len() - own.num_dims()];
        wide.extend(own.as_slice());
        let mut view = if wide.len() == own.num_dims() { self.clone() } else { self.reshape(&wide)? };
        for (i, (&from, &to)) in wide.iter().zip(shape).enumerate() {
            if from != to {
                if from != 1 {
                    return None;
                }
                view.repeats[i] = to;
            }
        }
        Some(view)
    }

    /// Whether the last two dimensions are `[in, out]` over a matrix `[out, in]` of `cols` columns, any others being 1:
    /// the right-hand side of a product whose sum runs along the groups.
    pub(crate) fn is_transposed_matrix(&self, cols: usize) -> bool {
        let [leading @ .., input, output] = self.axes.as_slice() else { return false };
        let matrix = &self.repeats[leading.len()..];
        matrix == [1, 1]
            && leading.iter().all(|&a| self.stored[a] == 1)
            && input > output
            && self.stored[*input] == cols
    }

    /// The rows and columns of a `rows x cols` matrix that slices of the tensor show, and the view over them alone.
    /// `None` unless they are a rectangle of the matrix.
    pub(crate) fn slice(
        &self,
        slices: &[Slice],
        rows: usize,
        cols: usize,
    ) -> Option<(Range<usize>, Range<usize>, Self)> {
        let mut ranges: Vec<Range<usize>> = self.stored.iter().map(|&n| 0..n).collect();
        let mut repeats = self.repeats.clone();
        for (i, (slice, &a)) in slices.iter().zip(&self.axes).enumerate() {
            let range = slice.to_range(self.stored[a] * repeats[i]);
            if slice.step != 1 || range.is_empty() {
                return None;
            }
            if repeats[i] > 1 {
                repeats[i] = range.len();
            } else {
                ranges[a] = range;
            }
        }
        let split = Self::new(self.stored.clone()).rows_of_matrix(rows, cols)?;
        let part = |dims: Range<usize>| flat_range(&self.stored[dims.clone()], &ranges[dims]);
        let (row_range, col_range) = (part(0..split)?, part(split..ranges.len())?);
        let stored = ranges.iter().map(|r| r.len()).collect();
        Some((row_range, col_range, Self { stored, axes: self.axes.clone(), repeats }))
    }

    /// How many leading stored dimensions are the rows of a `rows x cols` matrix. `None` where none are, or where
    /// dimensions are repeated.
    pub(crate) fn rows_of_matrix(&self, rows: usize, cols: usize) -> Option<usize> {
        let split = |i: &usize| {
            let (leading, trailing) = self.stored.split_at(*i);
            leading.iter().product::<usize>() == rows && trailing.iter().product::<usize>() == cols
        };
        (0..=self.stored.len()).find(split).filter(|_| !self.is_expanded())
    }

    /// Whether the tensor is the matrix itself, perhaps transposed.
    pub(crate) fn is_matrix(&self, rows: usize, cols: usize) -> bool {
        self.stored == [rows, cols] && !self.is_expanded()
    }

    /// Whether index `i` along `dim` is row `i` of a matrix of `cols` columns.
    pub(crate) fn is_row_axis(&self, dim: usize, cols: usize) -> bool {
        let axis = self.axes[dim];
        !self.is_expanded()
            && self.stored[..axis].iter().all(|&n| n == 1)
            && self.stored[axis + 1..].iter().product::<usize>() == cols
    }

    /// The view after keeping `rows` rows along `dim`, a row axis.
    pub(crate) fn with_rows(&self, dim: usize, rows: usize) -> Self {
        let mut view = self.clone();
        view.stored[self.axes[dim]] = rows;
        view
    }
}

/// The range that a part of a row-major array takes, if it is one run.
fn flat_range(sizes: &[usize], parts: &[Range<usize>]) -> Option<Range<usize>> {
    let (mut start, mut len, mut stride, mut whole) = (0, 1, 1, true);
    for (&size, part) in sizes.iter().zip(parts).rev() {
        if !whole && part.len() != 1 {
            return None;
        }
        start += part.start * stride;
        len *= part.len();
        stride *= size;
        whole &= part.len() == size;
    }
    Some(start..start + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offset of every element of the view, in its own row-major order.
    fn offsets(view: &View) -> Vec<usize> {
        let mut strides = vec![1; view.stored.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * view.stored[i];
        }
        let mut out = vec![0];
        for &a in &view.axes {
            out = out
                .iter()
                .flat_map(|&o| (0..view.stored[a]).map(move |i| (o, i)))
                .map(|(o, i)| o + i * strides[a])
                .collect();
        }
        out
    }

    proptest! {
        #[test]
        fn reshaping_moves_no_weight(
            stored in prop::collection::vec(1usize..4, 1..5),
            seed in any::<u64>(),
            ones in prop::collection::vec(any::<bool>(), 6),
        ) {
            let mut axes: Vec<usize> = (0..stored.len()).collect();
            axes.rotate_left(seed as usize % stored.len());
            let view = View::new(stored).permute(&axes);
            let mut shape: Vec<usize> = view.shape().as_slice().iter().copied().filter(|&n| n != 1).collect();
            for (i, &one) in ones.iter().enumerate() {
                if one {
                    shape.insert(i.min(shape.len()), 1);
                }
            }
            let reshaped = view.reshape(&shape).expect("only dimensions of size 1 changed");
            prop_assert_eq!(reshaped.shape().to_vec(), shape);
            prop_assert_eq!(offsets(&reshaped), offsets(&view));
        }
    }

    #[test]
    fn dimensions_of_size_1_are_repeated_and_others_are_not() {
        let view = View::new(vec![2, 3]).swap_dims(0, 1);
        let expanded = view.expand(&[4, 3, 2]).unwrap();
        assert_eq!((expanded.shape().to_vec(), expanded.is_expanded()), (vec![4, 3, 2], true));
        assert!(expanded.is_transposed_matrix(3) && !expanded.is_row_axis(2, 3));
        assert_eq!(expanded.expand(&[5, 3, 2]), None);
        assert_eq!(expanded.expand(&[2, 4, 3, 2]), None);
        assert_eq!(view.expand(&[6, 2]), None);
        assert_eq!(view.expand(&[0, 3, 2]), None);
        assert_eq!(view.expand(&[3, 2]).unwrap(), view);
        let (rows, cols, part) = expanded.slice(&[Slice::from(1..3), Slice::from(..)], 2, 3).unwrap();
        assert_eq!((rows, cols, part.shape().to_vec()), (0..2, 0..3, vec![2, 3, 2]));
        let View { stored, axes, repeats } = expanded.clone();
        assert_eq!(View::from_parts(stored.clone(), axes.clone(), repeats), Some(expanded));
        assert_eq!(View::from_parts(stored, axes, vec![1, 2, 1]), None, "a dimension beyond 1 cannot repeat");
    }

    #[test]
    fn a_permuted_view_refuses_a_reshape_that_would_move_weights() {
        let transposed = View::new(vec![2, 3]).swap_dims(0, 1);
        assert_eq!(transposed.reshape(&[6]), None);
        assert_eq!(transposed.reshape(&[2, 3]), None);
        assert!(View::new(vec![2, 3]).reshape(&[6]).is_some());
    }

    #[test]
    fn a_slice_is_a_rectangle_of_the_matrix_or_refused() {
        let whole = Slice::from(..);
        let view = View::new(vec![4, 6, 10]).permute(&[2, 0, 1]);
        // Logical [10, 4, 6] over 24 rows of 10.
        let (rows, cols, part) = view.slice(&[Slice::from(2..5), Slice::from(1..3)], 24, 10).unwrap();
        assert_eq!((rows, cols, part.shape().to_vec()), (6..18, 2..5, vec![3, 2, 6]));
        let (rows, cols, _) = view.slice(&[whole, Slice::from(1..2), Slice::from(2..4)], 24, 10).unwrap();
        assert_eq!((rows, cols), (8..10, 0..10));
        assert!(view.slice(&[whole, whole, Slice::from(2..4)], 24, 10).is_none(), "rows with gaps");
        assert!(view.slice(&[Slice::new(0, None, 2)], 24, 10).is_none(), "a step");
        assert!(view.slice(&[Slice::from(3..3)], 24, 10).is_none(), "nothing");
        assert!(View::new(vec![240]).slice(&[Slice::from(0..3)], 24, 10).is_none(), "not the matrix's dimensions");
    }

    #[test]
    fn a_linear_weight_is_a_transposed_matrix_at_any_rank() {
        let weight = View::new(vec![5, 7]).swap_dims(0, 1);
        assert!(weight.is_transposed_matrix(7));
        assert!(weight.reshape(&[1, 1, 7, 5]).unwrap().is_transposed_matrix(7));
        assert!(!View::new(vec![5, 7]).is_transposed_matrix(7));
        assert!(!View::new(vec![2, 5, 7]).swap_dims(1, 2).is_transposed_matrix(7));
    }
}
