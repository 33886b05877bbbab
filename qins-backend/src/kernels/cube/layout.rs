use cubecl::prelude::*;
use qins_codec::{Format, Header};

/// How a code becomes `w/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Law {
    /// An entry of the one table.
    Table,
    /// An entry of the table that the scale code chooses.
    ChosenTable,
    /// An integer in two's complement, of so many 128ths.
    Integers,
    /// The centre of a cell of the projective law, in several planes.
    Cells,
    /// The bits of an IEEE half, without a scale.
    F16,
    /// The upper half of an f32, without a scale.
    Bf16,
}

/// What of a matrix is a constant of the kernel: one is compiled for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) law: Law,
    /// Bits of a code in a plane.
    pub(super) bits: usize,
    pub(super) planes: usize,
    /// Words after which codes start at a word again: a unit is what is decoded together.
    pub(super) unit_words: usize,
    /// Weights that share a scale.
    pub(super) group: usize,
    /// Bytes of the row's base before its scale codes.
    pub(super) base_bytes: usize,
    /// Whether rows end with a whole unit.
    pub(super) whole: bool,
}

impl Layout {
    pub(super) fn new(header: &Header) -> Self {
        let format = header.format;
        let law = match format {
            Format::F16 => Law::F16,
            Format::Bf16 => Law::Bf16,
            _ if format.planes() > 1 => Law::Cells,
            _ if format.tables() > 1 => Law::ChosenTable,
            Format::Lin8 => Law::Integers,
            _ => Law::Table,
        };
        let mut layout = Self {
            law,
            bits: format.code_bits(),
            planes: format.planes(),
            unit_words: format.unit_words(),
            group: format.group(),
            base_bytes: header.base_bytes(),
            whole: false,
        };
        layout.whole = header.cols.is_multiple_of(layout.unit_codes());
        layout
    }

    /// Codes of a unit in one plane.
    pub(super) fn unit_codes(&self) -> usize {
        32 * self.unit_words / self.bits
    }

    /// Scales that so many codes have. Those of raw formats have none, which are taken as one of 1.
    pub(super) fn scales(&self, codes: usize) -> usize {
        if self.has_scales() { codes.div_ceil(self.group) } else { 1 }
    }

    pub(super) fn has_scales(&self) -> bool {
        !matches!(self.law, Law::F16 | Law::Bf16)
    }

    /// Entries before the scales in the tables of a decoder.
    pub(super) fn values(&self) -> usize {
        match self.law {
            Law::Table => 1 << self.bits,
            Law::ChosenTable => 4 << self.bits,
            // `k` and the inverse of what the law is at the centre of the first cell of plane 1.
            Law::Cells => 2,
            Law::Integers | Law::F16 | Law::Bf16 => 0,
        }
    }

    /// Entries of all tables.
    pub(super) fn tables(&self) -> usize {
        if self.has_scales() { self.values() + 256 } else { 0 }
    }

    /// Whether each code chooses an entry of tables that a cube has of its own.
    pub(super) fn looks_up(&self) -> bool {
        self.shares_tables() && !matches!(self.law, Law::Cells | Law::Integers)
    }

    /// Whether the tables are small enough to be copied to a cube's own memory, of which WebGPU promises 16 KiB.
    pub(super) fn shares_tables(&self) -> bool {
        self.has_scales() && self.tables() <= 512
    }
}

/// Rows of an encoded matrix on a device, all or those of one part. Kernels are given their codes, plane after plane, apart,
/// in pieces of a width of their own.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Coded {
    /// Packed bases and scale codes.
    pub(super) scales: Array<u32>,
    /// `w/s` of every code and then the scale of every scale code.
    pub(super) tables: Array<f32>,
    pub(super) rows: usize,
    /// Rows of the matrix before these.
    pub(super) first_row: usize,
    /// Rows of the matrix.
    pub(super) all_rows: usize,
    pub(super) cols: usize,
    /// Words of codes in a row of a plane.
    pub(super) row_words: usize,
    /// Bytes of the base and the scale codes of a row.
    pub(super) scale_bytes: usize,
}
