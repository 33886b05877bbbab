use super::{Encoding, KvFormat};
use crate::kernels::attention::{Stored, TOKENS};
use rayon::prelude::*;
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
};

/// Values that are encoded by one task.
const TASK: usize = 1 << 14;

/// Keys and values of one layer, for a batch of sequences of one length.
#[derive(Debug, Clone)]
pub struct KvLayer {
    format: KvFormat,
    batch: usize,
    kv_heads: usize,
    head: usize,
    blocks: VecDeque<Block>,
    /// Blocks that were freed before the first.
    freed: usize,
    len: usize,
}

/// [`TOKENS`] tokens of all heads of all sequences.
#[derive(Debug, Clone)]
struct Block {
    keys: Part,
    values: Part,
}

/// Rows by sequence, head and token; codes and scales apart.
#[derive(Debug, Clone)]
struct Part {
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Part {
    fn new(encoding: Encoding, lanes: usize, head: usize) -> Self {
        let rows = lanes * TOKENS;
        Self { codes: vec![0; rows * encoding.code_bytes(head)], scales: vec![0; rows * encoding.scale_bytes(head)] }
    }

    /// The rows of one head of one sequence, of `lanes`.
    fn lane(&self, lane: usize, lanes: usize) -> Stored<'_> {
        let (codes, scales) = (self.codes.len() / lanes, self.scales.len() / lanes);
        Stored { codes: &self.codes[lane * codes..][..codes], scales: &self.scales[lane * scales..][..scales] }
    }

    /// Encodes rows `at..at + count` of all heads: those of the tokens `first` and up of `new`, `[lanes, tokens, head]`.
    fn encode(
        &mut self,
        encoding: Encoding,
        head: usize,
        lanes: usize,
        (at, count): (usize, usize),
        (new, first): (&[f32], usize),
    ) {
        let (code_bytes, scale_bytes) = (encoding.code_bytes(head), encoding.scale_bytes(head));
        let lane = |((lane, codes), scales): ((usize, &mut [u8]), &mut [u8])| {
            let rows = new[lane * (new.len() / lanes)..][first * head..].chunks_exact(head);
            for (row, values) in (at..at + count).zip(rows) {
                let codes = &mut codes[row * code_bytes..][..code_bytes];
                let scales = &mut scales[row * scale_bytes..][..scale_bytes];
                encoding.encode(values, codes, scales);
            }
        };
        let lanes_a_task = (TASK / (count * head)).max(1);
        // Floats have no scales, and chunks are not empty.
        if scale_bytes == 0 {
            let lanes = self.codes.par_chunks_exact_mut(TOKENS * code_bytes).enumerate();
            lanes.with_min_len(lanes_a_task).for_each(|codes| lane((codes, &mut [])));
        } else {
            let scales = self.scales.par_chunks_exact_mut(TOKENS * scale_bytes);
            let lanes = self.codes.par_chunks_exact_mut(TOKENS * code_bytes).enumerate();
            lanes.zip(scales).with_min_len(lanes_a_task).for_each(lane);
        }
    }
}

impl KvLayer {
    /// Tokens in a block: room is taken, and freed, for so many.
    pub const BLOCK: usize = TOKENS;

    /// An empty cache for `batch` sequences.
    ///
    /// # Panics
    /// If one of the sizes is 0.
    pub fn new(format: KvFormat, batch: usize, kv_heads: usize, head: usize) -> Self {
        assert!(batch > 0 && kv_heads > 0 && head > 0, "a cache of [{batch}, {kv_heads}, tokens, {head}]");
        Self { format, batch, kv_heads, head, blocks: VecDeque::new(), freed: 0, len: 0 }
    }

    /// How keys and values are stored.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Sequences, key-value heads and dimensions of a head.
    pub fn shape(&self) -> [usize; 3] {
        [self.batch, self.kv_heads, self.head]
    }

    pub(super) fn lanes(&self) -> usize {
        self.batch * self.kv_heads
    }

    /// Tokens of each sequence, those freed included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first token that was not freed.
    pub fn first(&self) -> usize {
        (self.freed * TOKENS).min(self.len)
    }

    /// Bytes of all blocks, room for further tokens in the last included.
    pub fn bytes(&self) -> usize {
        self.blocks.len() * TOKENS * self.lanes() * self.format.token_bytes(self.head)
    }

    /// Appends the keys and values of new tokens, `[batch, kv heads, tokens, head]` each.
    ///
    /// # Panics
    /// If the lengths differ, or are no whole tokens.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let (lanes, head) = (self.lanes(), self.head);
        assert!(
            keys.len() == values.len() && keys.len().is_multiple_of(lanes * head),
            "{} keys and {} values for {lanes} heads of {head}",
            keys.len(),
            values.len()
        );
        let tokens = keys.len() / (lanes * head);
        let (key_encoding, value_encoding) = (self.format.keys(head), self.format.values());
        let mut done = 0;
        while done < tokens {
            let at = self.len % TOKENS;
            let count = (TOKENS - at).min(tokens - done);
            if self.len == (self.freed + self.blocks.len()) * TOKENS {
                let part = |encoding| Part::new(encoding, lanes, head);
                self.blocks.push_back(Block { keys: part(key_encoding), values: part(value_encoding) });
            }
            let block = self.blocks.back_mut().expect("room for the token");
            block.keys.encode(key_encoding, head, lanes, (at, count), (keys, done));
            block.values.encode(value_encoding, head, lanes, (at, count), (values, done));
            self.len += count;
            done += count;
        }
    }

    /// Forgets all but the first `len` tokens.
    ///
    /// # Panics
    /// If some of those that come to be the last were [freed](Self::free_before), but for all of them.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if len == 0 {
            self.blocks.clear();
            self.freed = 0;
        }
        assert!(len == 0 || len > self.first(), "token {len} was freed: the first kept is {}", self.first());
        self.len = len;
        self.blocks.truncate(len.div_ceil(TOKENS) - self.freed);
    }

    /// Frees blocks of tokens before `first`, which no later query sees.
    pub fn free_before(&mut self, first: usize) {
        while (self.freed + 1) * TOKENS <= first.min(self.len) && self.blocks.pop_front().is_some() {
            self.freed += 1;
        }
    }

    /// Writes all blocks that are kept: codes and scales of keys, then of values.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        for Block { keys, values } in &self.blocks {
            for part in [keys, values] {
                to.write_all(&part.codes)?;
                to.write_all(&part.scales)?;
            }
        }
        Ok(())
    }

    /// Reads what [`write`](Self::write) wrote: the tokens `first..len` for a cache of `[batch, kv heads, head]`. Any bytes
    /// are legal codes.
    ///
    /// # Errors
    /// Those of reading; [`io::ErrorKind::InvalidData`] if no blocks have those tokens.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn read(
        format: KvFormat,
        [batch, kv_heads, head]: [usize; 3],
        first: usize,
        len: usize,
        from: &mut impl Read,
    ) -> io::Result<Self> {
        let mut layer = Self::new(format, batch, kv_heads, head);
        if !first.is_multiple_of(TOKENS) || first > len {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("tokens {first}..{len} are no blocks")));
        }
        (layer.freed, layer.len) = (first / TOKENS, len);
        for _ in layer.freed..len.div_ceil(TOKENS) {
            let mut part = |encoding| {
                let mut part = Part::new(encoding, batch * kv_heads, head);
                from.read_exact(&mut part.codes)?;
                from.read_exact(&mut part.scales)?;
                Ok::<_, io::Error>(part)
            };
            let (keys, values) = (part(format.keys(head))?, part(format.values())?);
            layer.blocks.push_back(Block { keys, values });
        }
        Ok(layer)
    }

    /// The rows of a block of one head of one sequence: keys and values.
    pub(super) fn block(&self, block: usize, lane: usize) -> [Stored<'_>; 2] {
        let block = &self.blocks[block - self.freed];
        [&block.keys, &block.values].map(|part| part.lane(lane, self.lanes()))
    }

    /// The key of a token as it is decoded, `head` numbers.
    ///
    /// # Panics
    /// If there is no such sequence, head or token, or it was freed.
    pub fn key(&self, sequence: usize, kv_head: usize, token: usize) -> Vec<f32> {
        self.row(sequence, kv_head, token, 0, self.format.keys(self.head))
    }

    /// The value of a token as it is decoded, `head` numbers.
    ///
    /// # Panics
    /// As [`key`](Self::key).
    pub fn value(&self, sequence: usize, kv_head: usize, token: usize) -> Vec<f32> {
        self.row(sequence, kv_head, token, 1, self.format.values())
    }

    fn row(&self, sequence: usize, kv_head: usize, token: usize, part: usize, encoding: Encoding) -> Vec<f32> {
        assert!(sequence < self.batch && kv_head < self.kv_heads && (self.first()..self.len).contains(&token));
        let stored = self.block(token / TOKENS, sequence * self.kv_heads + kv_head)[part];
        let (row, head) = (token % TOKENS, self.head);
        let (codes, scales) = (encoding.code_bytes(head), encoding.scale_bytes(head));
        let mut out = vec![0.0; head];
        encoding.decode(&stored.codes[row * codes..][..codes], &stored.scales[row * scales..][..scales], &mut out);
        out
    }
}
