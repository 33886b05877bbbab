//! Codes of any number of bits in bytes: code `i` of a row is bits `i * bits` and up, lowest first.

/// Appends codes from `first` on: bits there must be zero.
pub(crate) fn pack(codes: &[u16], bits: usize, first: usize, bytes: &mut [u8]) {
    for (i, &code) in codes.iter().enumerate() {
        let at = (first + i) * bits;
        let shifted = u32::from(code) << (at % 8);
        for (byte, part) in bytes[at / 8..].iter_mut().zip(shifted.to_le_bytes()).take((at % 8 + bits).div_ceil(8)) {
            *byte |= part;
        }
    }
}

/// Code `i` of a row.
#[inline]
pub(crate) fn unpack(bytes: &[u8], bits: usize, i: usize) -> u16 {
    let at = i * bits;
    let part = |n: usize| u32::from(bytes.get(at / 8 + n).copied().unwrap_or(0)) << (8 * n);
    let word = part(0) | part(1) | part(2);
    ((word >> (at % 8)) & ((1 << bits) - 1)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_of_any_width_come_back(bits in 2usize..=12, codes in prop::collection::vec(any::<u16>(), 0..80), cut in 0usize..80) {
            let codes: Vec<u16> = codes.into_iter().map(|code| code & ((1 << bits) - 1)).collect();
            let mut bytes = vec![0; (codes.len() * bits).div_ceil(8)];
            let (head, tail) = codes.split_at(cut.min(codes.len()));
            pack(head, bits, 0, &mut bytes);
            pack(tail, bits, head.len(), &mut bytes);
            let back: Vec<u16> = (0..codes.len()).map(|i| unpack(&bytes, bits, i)).collect();
            prop_assert_eq!(back, codes);
        }
    }
}
