//! The quantization scheme that a QINS tensor reports to Burn.
//!
//! Burn's list of schemes is closed, so QINS borrows one that Burn can name and that NdArray, Flex and CubeCL all refuse
//! to read: codes that reach one of them without the decorator fail loudly. What the codes mean stands in the header of
//! the bytes; all that Burn itself does with the scheme is to compute from it and from the shape how many bytes the data
//! has (burn-store's Burnpack writes them into its index). So the block size is chosen to make that sum come out at the
//! true length or a little more, and the bytes end in zeros.

use burn_backend::{
    DType,
    quantization::{QuantLevel, QuantMode, QuantParam, QuantScheme, QuantStore, QuantValue},
};

/// Without a tensor at hand.
pub(crate) const BASE: QuantScheme = QuantScheme {
    value: QuantValue::Q8S,
    param: QuantParam::F32,
    store: QuantStore::PackedNative(0),
    level: QuantLevel::Tensor,
    mode: QuantMode::Symmetric,
};

/// Burn counts a scale for each block. A block has at most so many elements along each of at most so many dimensions.
const LARGEST_BLOCK: usize = u8::MAX as usize;
const BLOCK_DIMENSIONS: usize = 5;

/// Whether data of this type is QINS data. No other backend writes such a type.
pub fn is_qins_type(dtype: DType) -> bool {
    matches!(dtype, DType::QFloat(QuantScheme { store: QuantStore::PackedNative(0), mode: QuantMode::Symmetric, .. }))
}

/// The scheme by which Burn computes the least length of `bytes` or more for a tensor of this shape.
///
/// Where no scheme gives so much (fewer than some 30 weights) it is the one that gives most, or any for an empty tensor.
pub(crate) fn covering(shape: &[usize], bytes: usize) -> QuantScheme {
    if shape.contains(&0) {
        return BASE;
    }
    // One dimension cut into blocks, whole ones after it as far as a block reaches, single elements before it.
    let first = shape.len().saturating_sub(BLOCK_DIMENSIONS);
    let values = [QuantValue::Q8S, QuantValue::Q4S];
    let params = [QuantParam::F32, QuantParam::F16, QuantParam::UE8M0];
    let candidates = values.into_iter().flat_map(|value| params.map(|param| BASE.with_value(value).with_param(param)));
    let candidates = candidates.flat_map(|scheme| (first..shape.len()).map(move |dim| (scheme, dim)));
    let covering = candidates.filter_map(|(scheme, dim)| {
        let after: usize = shape[dim + 1..].iter().map(|n| n.div_ceil(LARGEST_BLOCK)).product();
        let others = shape[..dim].iter().product::<usize>() * after * param_bytes(scheme);
        let blocks = bytes.saturating_sub(value_bytes(scheme, shape)).div_ceil(others.max(1)).max(1);
        // The largest block that still makes so many of them.
        let block = match blocks {
            1 => LARGEST_BLOCK,
            blocks => (shape[dim].div_ceil(blocks - 1) - 1).min(LARGEST_BLOCK),
        };
        let mut sizes = vec![1; dim - first];
        sizes.push(block as u8);
        sizes.resize(shape.len() - first, LARGEST_BLOCK as u8);
        let scheme = scheme.with_level(QuantLevel::block(sizes));
        (block > 0 && length(scheme, shape) >= bytes).then(|| (length(scheme, shape), scheme))
    });
    covering.min_by_key(|&(length, _)| length).map_or(BASE.with_level(QuantLevel::block([1])), |(_, scheme)| scheme)
}

/// The bytes that Burn computes for data of this scheme and shape (`TensorSnapshot::data_len` of burn-store).
pub(crate) fn length(scheme: QuantScheme, shape: &[usize]) -> usize {
    let blocks = match scheme.level {
        QuantLevel::Tensor => 1,
        QuantLevel::Block(block) => {
            let sizes = block.to_dim_vec(shape.len());
            shape
                .iter()
                .zip(sizes)
                .fold(1usize, |n, (&dim, size)| n.saturating_mul(dim.div_ceil(usize::from(size).max(1))))
        }
    };
    value_bytes(scheme, shape).saturating_add(blocks.saturating_mul(param_bytes(scheme)))
}

/// Burn counts whole bytes of a value: none for one of 4 bits that is not packed.
fn value_bytes(scheme: QuantScheme, shape: &[usize]) -> usize {
    let values = shape.iter().fold(1usize, |n, &dim| n.saturating_mul(dim));
    values.saturating_mul(scheme.size_bits_stored() / 8).saturating_add(3) / 4 * 4
}

fn param_bytes(scheme: QuantScheme) -> usize {
    match scheme.param {
        QuantParam::F32 => 4,
        QuantParam::F16 | QuantParam::BF16 => 2,
        QuantParam::UE8M0 | QuantParam::UE4M3 => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_scheme_covers_the_bytes(shape in prop::collection::vec(1usize..40, 1..7), bits in 2usize..30) {
            let weights: usize = shape.iter().product();
            let bytes = 80 + weights * bits / 8;
            let scheme = covering(&shape, bytes);
            prop_assert!(is_qins_type(DType::QFloat(scheme)));
            if bytes <= weights * 5 && weights < 100_000_000 {
                prop_assert!(length(scheme, &shape) >= bytes);
            }
        }
    }

    #[test]
    fn little_is_lost_at_the_size_of_a_model() {
        for (shape, percent) in [(&[3072, 8192][..], 1), (&[512, 512, 3, 3], 1), (&[32064, 3072], 1), (&[64, 64], 10)] {
            let weights: usize = shape.iter().product();
            // q8: a byte a weight, a scale for 32.
            let bytes = weights + weights / 32 + 74;
            let length = length(covering(shape, bytes), shape);
            assert!(length >= bytes && length * 100 <= bytes * (100 + percent), "{shape:?}: {length} for {bytes}");
        }
    }
}
