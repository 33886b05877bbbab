//! Which way operations on encoded weights went, counted: results do not show where a kernel was not used.

use std::cell::Cell;

/// Operations on encoded weights that a thread ran, by the way they took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paths {
    /// Matrix products that a kernel computed on the codes.
    pub products: u64,
    /// Weights, or some of their rows, that a kernel decoded: for an embedding, or for a product without a kernel.
    pub decoded: u64,
    /// Weights, rows or single weights that were decoded by the backend's own operations.
    pub portable: u64,
}

thread_local! {
    static PATHS: Cell<Paths> = const { Cell::new(Paths { products: 0, decoded: 0, portable: 0 }) };
}

/// What this thread asked for so far, of all backends.
pub fn paths() -> Paths {
    PATHS.get()
}

/// A product, if a kernel computed it.
pub(super) fn product<T>(found: Option<T>) -> Option<T> {
    let before = PATHS.get();
    PATHS.set(Paths { products: before.products + u64::from(found.is_some()), ..before });
    found
}

/// Decoded weights: a kernel's, or what the backend's operations give.
pub(super) fn decoded<T>(found: Option<T>, portable: impl FnOnce() -> T) -> T {
    let before = PATHS.get();
    match found {
        Some(found) => {
            PATHS.set(Paths { decoded: before.decoded + 1, ..before });
            found
        }
        None => {
            PATHS.set(Paths { portable: before.portable + 1, ..before });
            portable()
        }
    }
}

/// Products and decoding on the backends of the host's memory take kernels, in every format.
#[cfg(all(test, feature = "flex", feature = "ndarray"))]
mod tests {
    use super::*;
    use crate::{Policy, Qins, QinsTensor};
    use burn::{
        nn::{EmbeddingConfig, LinearConfig},
        tensor::{Int, Tensor, TensorData},
    };
    use burn_autodiff::Autodiff;
    use burn_backend::Backend;
    use burn_flex::Flex;
    use burn_ndarray::NdArray;
    use qins_codec::{Format, Slice, encode};

    const ROWS: usize = 24;
    const COLS: usize = 96;

    /// Weights whose rows have bases of their own if that is asked for and allowed.
    fn weights(format: Format, row_bases: bool) -> Option<Vec<f32>> {
        let mut weights: Vec<f32> = (0..ROWS * COLS).map(|i| (i as f32 * 0.7).sin() * 0.02).collect();
        if row_bases {
            weights[5] = 1e4;
        }
        let encoded = encode(format, &Slice::new(&weights, ROWS, COLS)).ok()?;
        (encoded.header().row_bases == row_bases).then_some(weights)
    }

    /// What an operation was counted as.
    fn counted(operation: impl FnOnce()) -> Paths {
        let before = paths();
        operation();
        let after = paths();
        Paths {
            products: after.products - before.products,
            decoded: after.decoded - before.decoded,
            portable: after.portable - before.portable,
        }
    }

    fn check<B: Backend>(format: Format, weights: &[f32], expected: impl Fn(Paths) -> Paths) {
        let device = Default::default();
        let tensor = |shape: [usize; 2]| {
            Tensor::<Qins<B>, 2>::from_data(TensorData::new(weights.to_vec(), [ROWS, COLS]), &device).reshape(shape)
        };
        let mut layer = LinearConfig::new(COLS, ROWS).init::<Qins<B>>(&device);
        layer.weight = layer.weight.map(|_| tensor([ROWS, COLS]).transpose());
        let layer = Policy::linear(format).encode(layer).unwrap();
        let encoded = encode(format, &Slice::new(weights, ROWS, COLS)).unwrap();
        let weight = || {
            let tensor = QinsTensor::<B>::from_encoded(encoded.clone(), &Default::default());
            Tensor::<Qins<B>, 2>::from_primitive(tensor.into_primitive()).dequantize()
        };
        let one = Paths { products: 1, ..Paths::default() };
        // One input, a few, a prompt.
        for m in [1, 3, 20] {
            let x = || Tensor::<Qins<B>, 2>::ones([m, COLS], &device);
            let case = |name: &str| format!("{name} of {m} inputs in {format} on {}", B::name(&device));
            assert_eq!(counted(|| drop(layer.forward(x()))), expected(one), "{}", case("a linear layer"));
            assert_eq!(counted(|| drop(x().matmul(weight().transpose()))), expected(one), "{}", case("x W^T"));
            assert_eq!(counted(|| drop(weight().matmul(x().transpose()))), expected(one), "{}", case("W x"));
            let batches = || x().reshape([1, m, COLS]).expand([2, m, COLS]);
            let wide = || weight().transpose().unsqueeze::<3>().expand([2, COLS, ROWS]);
            assert_eq!(counted(|| drop(batches().matmul(wide()))), expected(one), "{}", case("batches"));
        }
        let mut table = EmbeddingConfig::new(ROWS, COLS).init::<Qins<B>>(&device);
        table.weight = table.weight.map(|_| tensor([ROWS, COLS]));
        let table = Policy::default().with_embeddings(format).encode(table).unwrap();
        let ids = Tensor::<Qins<B>, 2, Int>::from_data([[3, 0, 23]], &device);
        let decoded = Paths { decoded: 1, ..Paths::default() };
        assert_eq!(counted(|| drop(table.forward(ids))), expected(decoded), "an embedding in {format}");
        assert_eq!(counted(|| drop(weight() * 2.0)), expected(decoded), "decoding {format}");
    }

    #[test]
    fn host_backends_have_kernels_for_everything() {
        let mut with_row_bases = 0;
        for (&format, row_bases) in Format::ALL.iter().flat_map(|format| [(format, false), (format, true)]) {
            let Some(weights) = weights(format, row_bases) else { continue };
            with_row_bases += usize::from(row_bases);
            check::<Flex>(format, &weights, |counted| counted);
            check::<NdArray>(format, &weights, |counted| counted);
        }
        assert_eq!(with_row_bases, 8, "formats whose rows may have bases");
    }

    /// The count is no constant.
    #[test]
    fn a_backend_without_kernels_is_counted_as_such() {
        let weights = weights(Format::Q8, true).expect("rows with bases");
        check::<Autodiff<Flex>>(Format::Q8, &weights, |_| Paths { portable: 1, ..Paths::default() });
    }
}
