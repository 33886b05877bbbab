//! Codes of any number of bits in bytes: code `i` of a row is bits `i * bits` and up, lowest first. So eight codes fill
//! `bits` whole bytes, and are packed and unpacked together.

/// Codes that are packed together.
pub(crate) const EIGHT: usize = 8;

/// Packs eight codes into `BITS` bytes. The codes have no more than `BITS` bits.
#[inline(always)]
pub(crate) fn pack_eight<const BITS: usize>(codes: &[u16; EIGHT]) -> [u8; BITS] {
    let [mut low, mut high] = [0u64; 2];
    for i in 0..EIGHT / 2 {
        low |= u64::from(codes[i]) << (i * BITS);
        high |= u64::from(codes[i + EIGHT / 2]) << (i * BITS);
    }
    let all = (u128::from(low) | u128::from(high) << (EIGHT / 2 * BITS)).to_le_bytes();
    std::array::from_fn(|i| all[i])
}

/// Writes the codes `first` and up of a row. `first` is a multiple of eight; what the bytes hold after the last code is
/// zero.
#[inline(always)]
pub(crate) fn pack<const BITS: usize>(codes: &[u16], first: usize, bytes: &mut [u8]) {
    let bytes = &mut bytes[first / EIGHT * BITS..];
    let (eights, rest) = codes.as_chunks::<EIGHT>();
    for (codes, bytes) in eights.iter().zip(bytes.as_chunks_mut::<BITS>().0) {
        *bytes = pack_eight::<BITS>(codes);
    }
    if !rest.is_empty() {
        let mut last = [0; EIGHT];
        last[..rest.len()].copy_from_slice(rest);
        let packed = pack_eight::<BITS>(&last);
        // A row may end before eight more codes would.
        for (byte, packed) in bytes[eights.len() * BITS..].iter_mut().zip(packed) {
            *byte = packed;
        }
    }
}

/// The eight codes of `BITS` bytes.
#[inline(always)]
pub(crate) fn unpack_eight<const BITS: usize>(bytes: &[u8; BITS]) -> [u16; EIGHT] {
    let mut all = [0; 16];
    all[..BITS].copy_from_slice(bytes);
    let all = u128::from_le_bytes(all);
    let halves = [all as u64, (all >> (EIGHT / 2 * BITS)) as u64];
    std::array::from_fn(|i| (halves[i / 4] >> (i % 4 * BITS)) as u16 & ((1 << BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One code after the other, as the format defines it.
    fn code(bytes: &[u8], bits: usize, i: usize) -> u16 {
        let bit = |at: usize| u16::from(bytes[at / 8] >> (at % 8) & 1);
        (0..bits).map(|b| bit(i * bits + b) << b).sum()
    }

    fn check<const BITS: usize>(codes: &[u16; EIGHT]) {
        let codes = codes.map(|code| code & ((1 << BITS) - 1));
        let bytes = pack_eight::<BITS>(&codes);
        assert_eq!(unpack_eight(&bytes), codes);
        assert_eq!(std::array::from_fn(|i| code(&bytes, BITS, i)), codes);
    }

    proptest! {
        #[test]
        fn codes_of_any_width_lie_where_the_format_says_and_come_back(codes in any::<[u16; EIGHT]>()) {
            check::<2>(&codes);
            check::<3>(&codes);
            check::<4>(&codes);
            check::<6>(&codes);
            check::<8>(&codes);
            check::<12>(&codes);
        }
    }
}
