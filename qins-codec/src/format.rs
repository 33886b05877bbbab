use crate::error::UnknownFormat;
use std::{fmt, str::FromStr};

/// A number format. Everything that depends on the format alone is answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Projective law, sign and 7-bit magnitude, groups of 32 with one 8-bit scale code: 8.25 bits a weight.
    Q8,
    /// As `q8` in groups of 16: 8.5 bits.
    Q8h,
    /// Projective law, sign and 11-bit magnitude, groups of 32: 12.25 bits.
    Q12,
    /// Groups of 16 with a signed scale and one of four tables of 64 entries: 6.5 bits, and a base for each row.
    Q6,
    /// The same with 16 entries: 4.5 bits.
    Q4,
    /// The same with 8 entries: 3.5 bits.
    Q3,
    /// The same with 4 entries: 2.5 bits.
    Q2,
    /// Logarithmic law, sign and 7-bit magnitude, groups of 32: 8.25 bits.
    Log8,
    /// Equal steps, 8-bit integers, groups of 32: 8.25 bits. Decoded by arithmetic, without a table.
    Lin8,
    /// One byte plane of the progressive law, decoded as `q8`: 8.25 bits. What is read of the others at depth 1.
    Fpins1,
    /// Two byte planes: each further byte cuts the cell of those before into 256. 16.25 bits.
    Fpins2,
    /// Three byte planes: 24.25 bits.
    Fpins3,
    /// IEEE half precision, as it is: 16 bits a weight.
    F16,
    /// The upper half of an f32, as it is: 16 bits a weight.
    Bf16,
}

/// What a code stands for, in units of its group's scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Law {
    /// Sign and magnitude by the projective law.
    Projective,
    /// Sign and magnitude by the logarithmic law.
    Logarithmic,
    /// Integers, in two's complement.
    Linear,
    /// An entry of one of the integer tables in `shaped.rs`.
    Shaped,
    /// A cell of the projective law in several byte planes, `fpins.rs`.
    Progressive,
    /// The bits of a float.
    Raw,
}

struct Properties {
    name: &'static str,
    group: usize,
    code_bits: usize,
    law: Law,
}

impl Format {
    /// Every format, in the order of the documents.
    pub const ALL: &'static [Format] = &[
        Format::Q8,
        Format::Q8h,
        Format::Q12,
        Format::Q6,
        Format::Q4,
        Format::Q3,
        Format::Q2,
        Format::Log8,
        Format::Lin8,
        Format::Fpins1,
        Format::Fpins2,
        Format::Fpins3,
        Format::F16,
        Format::Bf16,
    ];

    fn properties(self) -> Properties {
        let of = |name, group, code_bits, law| Properties { name, group, code_bits, law };
        match self {
            Format::Q8 => of("q8", 32, 8, Law::Projective),
            Format::Q8h => of("q8h", 16, 8, Law::Projective),
            Format::Q12 => of("q12", 32, 12, Law::Projective),
            Format::Q6 => of("q6", 16, 6, Law::Shaped),
            Format::Q4 => of("q4", 16, 4, Law::Shaped),
            Format::Q3 => of("q3", 16, 3, Law::Shaped),
            Format::Q2 => of("q2", 16, 2, Law::Shaped),
            Format::Log8 => of("log8", 32, 8, Law::Logarithmic),
            Format::Lin8 => of("lin8", 32, 8, Law::Linear),
            Format::Fpins1 => of("fpins:1", 32, 8, Law::Projective),
            Format::Fpins2 => of("fpins:2", 32, 8, Law::Progressive),
            Format::Fpins3 => of("fpins:3", 32, 8, Law::Progressive),
            Format::F16 => of("f16", 1, 16, Law::Raw),
            Format::Bf16 => of("bf16", 1, 16, Law::Raw),
        }
    }

    /// The name used on command lines and in files.
    pub fn name(self) -> &'static str {
        self.properties().name
    }

    /// Weights that share one scale; 1 where weights have none.
    pub fn group(self) -> usize {
        self.properties().group
    }

    pub(crate) fn law(self) -> Law {
        self.properties().law
    }

    /// Whether weights are kept as they are, without scales.
    pub fn is_raw(self) -> bool {
        self.law() == Law::Raw
    }

    /// Whether rows may have bases of their own, and need not ([`Header::row_bases`](crate::Header::row_bases)).
    pub fn allows_row_bases(self) -> bool {
        !matches!(self.law(), Law::Shaped | Law::Raw)
    }

    /// Bits of one code, of each of its [`planes`](Self::planes).
    pub fn code_bits(self) -> usize {
        self.properties().code_bits
    }

    /// Byte planes of the codes, one after the other, each with a code of every weight: 1 but where several are told apart
    /// to be read to a chosen depth.
    pub fn planes(self) -> usize {
        match self {
            Format::Fpins2 => 2,
            Format::Fpins3 => 3,
            _ => 1,
        }
    }

    /// What the first `depth` planes of this format are; itself if it has no more.
    ///
    /// # Panics
    /// If `depth` is 0.
    pub fn at_depth(self, depth: usize) -> Format {
        assert!(depth > 0, "at least one plane is read");
        match depth.min(self.planes()) {
            depth if depth == self.planes() => self,
            1 => Format::Fpins1,
            _ => Format::Fpins2,
        }
    }

    /// Scaled groups in a row of `cols` weights; the last may be shorter.
    pub fn groups(self, cols: usize) -> usize {
        if self.is_raw() { 0 } else { cols.div_ceil(self.group()) }
    }

    /// 32-bit words after which codes start at a word again: code `i` of a row is bits `i * code_bits` and up of its
    /// bytes, lowest first.
    pub fn unit_words(self) -> usize {
        match self.code_bits() {
            3 | 6 | 12 => 3,
            _ => 1,
        }
    }

    /// Bytes of codes in a row of `cols` weights, in one plane: rows are whole units of
    /// [`unit_words`](Self::unit_words), so that a device without byte addressing can read them as 32-bit words.
    pub fn code_bytes(self, cols: usize) -> usize {
        (cols * self.code_bits()).div_ceil(8).next_multiple_of(4 * self.unit_words())
    }

    /// Tables of which each group chooses one.
    pub fn tables(self) -> usize {
        if self.law() == Law::Shaped { 4 } else { 1 }
    }

    /// Which of the decoder's [tables](Self::tables) a scale code chooses.
    pub fn shape(self, scale_code: u8) -> usize {
        usize::from(scale_code) & (self.tables() - 1)
    }

    pub(crate) fn names() -> String {
        Self::ALL.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.iter().copied().find(|f| f.name() == name).ok_or_else(|| UnknownFormat { found: name.to_owned() })
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Format {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_listed() {
        for &f in Format::ALL {
            assert_eq!(f.name().parse::<Format>(), Ok(f));
        }
        assert_eq!(
            "q9".parse::<Format>().unwrap_err().to_string(),
            "unknown format `q9`: expected one of q8, q8h, q12, q6, q4, q3, q2, log8, lin8, fpins:1, fpins:2, fpins:3, f16, bf16"
        );
    }
}
