//! A model of random weights, made in their codes: for measurements at a size whose files are not at hand.

use crate::load::{coded, in_checkpoint};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Bytes, Tensor, backend::Backend},
};
use qins_backend::{ParamPath, Policy, Qins, QinsTensor};
use qins_codec::{Decoder, Format, Header, matrix_shape};
use rayon::prelude::*;

/// Gives every parameter that the policy encodes random codes, whose weights are of the order of 0.01; the others keep what
/// they are initialised with.
pub fn synthetic<B: Backend, M: Module<Qins<B>>>(module: M, policy: &Policy) -> M {
    module.map(&mut Synthetic { policy, path: ParamPath::default() })
}

struct Synthetic<'a> {
    policy: &'a Policy,
    path: ParamPath,
}

impl<B: Backend> ModuleMapper<Qins<B>> for Synthetic<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Qins<B>, D>>) -> Param<Tensor<Qins<B>, D>> {
        let storage = self.policy.storage(&self.path);
        let Some(format) = storage.format() else { return param };
        let (_, shape) = in_checkpoint(&self.path, param.lazy_shape().to_vec());
        let (rows, cols) = matrix_shape(&shape).expect("the shape of a parameter");
        let header = Header { format, rows, cols, base: 0.04, k: 0.5, row_bases: false };
        let decoder = Decoder::new(header).expect("legal constants");
        let (codes, scales) = (Bytes::from_elems(codes(&header)), Bytes::from_elems(scales(&header)));
        let matrix = QinsTensor::from_bytes(decoder, codes, scales, &param.lazy_device());
        let matrix = matrix.expect("lengths are the header's");
        let id = param.id;
        param.transform_for_load(coded(matrix, &shape, storage.is_cached(), &self.path), id)
    }
}

/// Any bits, but where they are floats: there any sign and mantissa at 2^-7.
fn codes(header: &Header) -> Vec<u32> {
    let (random, fixed) = match header.format {
        Format::F16 => (0x83FF_83FF, 0x2000_2000),
        Format::Bf16 => (0x807F_807F, 0x3C00_3C00),
        _ => (u32::MAX, 0),
    };
    let mut words = vec![0u32; header.code_bytes().div_ceil(4)];
    words.par_chunks_mut(1 << 16).enumerate().for_each(|(i, words)| {
        // xorshift, from a state that is never 0.
        let mut state = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for word in words {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = (state >> 32) as u32 & random | fixed;
        }
    });
    words
}

/// The same scale for every group: an octave below the base, or 2^-12 for tables up to 127.
fn scales(header: &Header) -> Vec<u32> {
    let &Header { format, rows, cols, .. } = header;
    let has_base = header.base_bytes() > 0;
    let mut bytes = Vec::with_capacity(header.scale_bytes());
    for row in 0..rows {
        if has_base {
            bytes.extend(2f32.powi(-12).to_le_bytes());
        }
        // Any of the four tables, where there are tables.
        let code = |group: usize| if has_base { ((row + group) % 4) as u8 } else { 32 };
        bytes.extend((0..format.groups(cols)).map(code));
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}
