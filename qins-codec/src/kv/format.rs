use super::Encoding;
use std::{fmt, str::FromStr};

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Both in f32.
    F32,
    /// Both as IEEE half precision.
    F16,
    /// Keys in half precision; values in 8 bits of equal steps, the projective law of k = 0, a row with one f32 scale.
    V8,
    /// Both in 8 bits; keys of less than [`SHORT`](KvFormat::SHORT) dimensions in half precision.
    Q8,
    /// Keys in half precision; values in 4 bits as [`Format::Q4`](crate::Format::Q4).
    V4,
}

impl KvFormat {
    /// Every format, largest first.
    pub const ALL: [KvFormat; 5] = [KvFormat::F32, KvFormat::F16, KvFormat::V8, KvFormat::Q8, KvFormat::V4];

    /// Keys of fewer dimensions stay in half precision: all of a short row shares what its largest number leaves, and its
    /// scale takes most of what 8 bits save.
    pub const SHORT: usize = 32;

    /// The name used on command lines.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::V8 => "v8",
            KvFormat::Q8 => "q8",
            KvFormat::V4 => "v4",
        }
    }

    /// How keys of so many dimensions are stored.
    pub fn keys(self, head: usize) -> Encoding {
        match self {
            KvFormat::F32 => Encoding::Full,
            KvFormat::F16 | KvFormat::V8 | KvFormat::V4 => Encoding::Half,
            KvFormat::Q8 if head < Self::SHORT => Encoding::Half,
            KvFormat::Q8 => Encoding::Linear,
        }
    }

    /// How values are stored.
    pub fn values(self) -> Encoding {
        match self {
            KvFormat::F32 => Encoding::Full,
            KvFormat::F16 => Encoding::Half,
            KvFormat::V8 | KvFormat::Q8 => Encoding::Linear,
            KvFormat::V4 => Encoding::Shaped,
        }
    }

    /// Bytes of one head's key and value of one token, scales included, where heads have `head` dimensions.
    pub fn token_bytes(self, head: usize) -> usize {
        self.keys(head).row_bytes(head) + self.values().row_bytes(head)
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = UnknownKvFormat;

    fn from_str(name: &str) -> Result<Self, UnknownKvFormat> {
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| UnknownKvFormat { found: name.to_owned() })
    }
}

/// A name that is no format of keys and values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown cache format `{found}`: expected one of {}", KvFormat::ALL.map(KvFormat::name).join(", "))]
pub struct UnknownKvFormat {
    /// The name given.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_listed() {
        for format in KvFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let message = "q9".parse::<KvFormat>().unwrap_err().to_string();
        assert_eq!(message, "unknown cache format `q9`: expected one of f32, f16, v8, q8, v4");
    }

    /// Of Phi-3.5's heads, as a part of what half precision takes.
    #[test]
    fn bytes_are_what_the_format_says() {
        assert_eq!(KvFormat::ALL.map(|format| format.token_bytes(96)), [768, 384, 292, 200, 250]);
        // Rows need not be whole blocks of columns.
        assert_eq!(KvFormat::ALL.map(|format| format.token_bytes(5)), [40, 20, 19, 19, 19]);
    }
}
