use crate::error::UnknownFormat;
use std::{fmt, str::FromStr};

/// A number format. Everything that depends on the format alone is answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Projective law, sign and 7-bit magnitude, groups of 32 with one 8-bit scale code: 8.25 bits a weight.
    Q8,
    /// IEEE half precision, as it is: 16 bits a weight.
    F16,
    /// The upper half of an f32, as it is: 16 bits a weight.
    Bf16,
}

impl Format {
    /// Every format, in the order of the documents.
    pub const ALL: &'static [Format] = &[Format::Q8, Format::F16, Format::Bf16];

    /// The name used on command lines and in files.
    pub fn name(self) -> &'static str {
        match self {
            Format::Q8 => "q8",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
        }
    }

    /// Weights that share one scale; 1 where weights have none.
    pub fn group(self) -> usize {
        match self {
            Format::Q8 => 32,
            Format::F16 | Format::Bf16 => 1,
        }
    }

    /// Whether weights are kept as they are, without scales.
    pub fn is_raw(self) -> bool {
        matches!(self, Format::F16 | Format::Bf16)
    }

    /// Bits of one code.
    pub fn code_bits(self) -> usize {
        match self {
            Format::Q8 => 8,
            Format::F16 | Format::Bf16 => 16,
        }
    }

    /// Scaled groups in a row of `cols` weights; the last may be shorter.
    pub fn groups(self, cols: usize) -> usize {
        if self.is_raw() { 0 } else { cols.div_ceil(self.group()) }
    }

    /// Bytes of codes in a row of `cols` weights: rows start at multiples of four bytes, so that a device without
    /// byte addressing can read them as 32-bit words.
    pub fn code_bytes(self, cols: usize) -> usize {
        (cols * self.code_bits() / 8).next_multiple_of(4)
    }

    /// Bytes of scale codes in a row of `cols` weights.
    pub fn scale_bytes(self, cols: usize) -> usize {
        self.groups(cols)
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
            "unknown format `q9`: expected one of q8, f16, bf16"
        );
    }
}
