//! Keys and values of one layer in codes, on the graphics device where they are computed: what [`KvLayer`] is in the host's
//! memory.

use crate::{kernels, parts::BufferError, parts::largest_buffer};
use burn_backend::{
    Backend, DType, Shape, TensorData, TensorMetadata,
    tensor::{Device, FloatTensor, IntTensor},
};
use qins_codec::kv::{Encoding, KvFormat, KvLayer, Seen};

/// Tokens in a block, as in the host's memory.
pub(crate) const BLOCK: usize = KvLayer::BLOCK;

/// Keys and values of one layer in codes, for a batch of sequences of one length, in the memory of a graphics device.
///
/// New keys and values are encoded there and attention is computed there, with the codes that [`KvLayer`] would have. Nothing
/// is read back before [`to_layer`](Self::to_layer), and what is stored is never there in floats.
#[derive(Debug, Clone)]
pub struct DeviceKv<B: Backend> {
    layout: KvLayout,
    device: Device<B>,
    /// `u32 [blocks * block words]`, from the first token on.
    room: Option<IntTensor<B>>,
    /// Blocks that the room has space for.
    capacity: usize,
    /// Blocks before the room's first.
    before: usize,
    /// Blocks that no query sees any more; the room may still have some of them.
    freed: usize,
    len: usize,
    reserved: usize,
}

/// How rows lie in a room: as in the blocks of [`KvLayer`], keys and values in turn, but that each row of codes starts at a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KvLayout {
    pub(crate) format: KvFormat,
    pub(crate) batch: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head: usize,
}

/// New tokens to the room, which may be another one afterwards.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code))]
pub(crate) struct Append {
    pub(crate) layout: KvLayout,
    /// Blocks that the room has space for afterwards.
    pub(crate) capacity: usize,
    /// What a larger room takes over: so many blocks, after so many of the old one. `None` where the room stays.
    pub(crate) moved: Option<[usize; 2]>,
    /// Of the first new token, in the room.
    pub(crate) at: usize,
    pub(crate) tokens: usize,
}

/// Queries of the last tokens.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code))]
pub(crate) struct Attend {
    pub(crate) layout: KvLayout,
    pub(crate) heads: usize,
    /// Queries of a head.
    pub(crate) tokens: usize,
    /// Tokens stored, those before the room's first included.
    pub(crate) len: usize,
    /// Tokens before the room's first.
    pub(crate) before: usize,
    /// Keys that a query sees, its own included.
    pub(crate) window: usize,
}

impl Attend {
    /// The first token that a query sees, but for padding.
    pub(crate) fn start(&self) -> usize {
        (self.len - self.tokens + 1).saturating_sub(self.window)
    }

    /// Queries of all heads that share a key-value head.
    #[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), allow(dead_code))]
    pub(crate) fn rows(&self) -> usize {
        self.heads / self.layout.kv_heads * self.tokens
    }
}

/// Rows of keys, or of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KvRows {
    pub(crate) encoding: Encoding,
    pub(crate) head: usize,
}

impl KvRows {
    /// Words of a row's codes.
    pub(crate) fn words(&self) -> usize {
        self.encoding.code_bytes(self.head).div_ceil(size_of::<u32>())
    }

    /// Words of a row's scale.
    pub(crate) fn scale_words(&self) -> usize {
        self.encoding.scale_bytes(self.head) / size_of::<u32>()
    }
}

impl KvLayout {
    pub(crate) fn keys(&self) -> KvRows {
        KvRows { encoding: self.format.keys(self.head), head: self.head }
    }

    pub(crate) fn values(&self) -> KvRows {
        KvRows { encoding: self.format.values(), head: self.head }
    }

    /// Key-value heads of all sequences.
    pub(crate) fn lanes(&self) -> usize {
        self.batch * self.kv_heads
    }

    /// Words of a block's keys, or of its values.
    pub(crate) fn part_words(&self, rows: KvRows) -> usize {
        self.lanes() * BLOCK * (rows.words() + rows.scale_words())
    }

    pub(crate) fn block_words(&self) -> usize {
        self.part_words(self.keys()) + self.part_words(self.values())
    }

    /// All rows of codes and all scales of so many blocks, in their order.
    fn pieces(&self, blocks: usize) -> impl Iterator<Item = Piece> + use<> {
        let (lanes, parts) = (self.lanes(), [self.keys(), self.values()]);
        let of_kind = move |block: usize, bytes: usize, padding: usize| {
            (0..lanes * BLOCK).map(move |i| Piece { bytes, padding, token: block * BLOCK + i % BLOCK })
        };
        let of_part = move |block: usize, rows: KvRows| {
            let [codes, scale] = [rows.encoding.code_bytes(rows.head), rows.encoding.scale_bytes(rows.head)];
            let padding = rows.words() * size_of::<u32>() - codes;
            of_kind(block, codes, padding).chain(of_kind(block, scale, 0))
        };
        (0..blocks).flat_map(move |block| parts.into_iter().flat_map(move |rows| of_part(block, rows)))
    }
}

/// A row of codes, or its scale.
struct Piece {
    /// Its bytes, as the host has them.
    bytes: usize,
    /// Bytes behind them on the device.
    padding: usize,
    /// Its token, from the first block's on.
    token: usize,
}

impl<B: Backend> DeviceKv<B> {
    /// An empty cache for `[batch, kv heads, head]` on a device. `None` where `B` is of no graphics device, or its kernels do not
    /// know the format: [`KvFormat::V4`] is searched for by the host alone.
    pub fn new(format: KvFormat, [batch, kv_heads, head]: [usize; 3], device: &Device<B>) -> Option<Self> {
        let layout = KvLayout { format, batch, kv_heads, head };
        let (device, known) = (device.clone(), format != KvFormat::V4 && layout.lanes() * head > 0);
        (known && kernels::keeps_kv::<B>(&layout, &device)).then(|| Self {
            layout,
            device,
            room: None,
            capacity: 0,
            before: 0,
            freed: 0,
            len: 0,
            reserved: 0,
        })
    }

    /// How keys and values are stored.
    pub fn format(&self) -> KvFormat {
        self.layout.format
    }

    /// Sequences, key-value heads and dimensions of a head.
    pub fn shape(&self) -> [usize; 3] {
        [self.layout.batch, self.layout.kv_heads, self.layout.head]
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
        (self.freed * BLOCK).min(self.len)
    }

    /// Bytes on the device, room for further tokens included.
    pub fn bytes(&self) -> usize {
        self.capacity * self.layout.block_words() * size_of::<u32>()
    }

    /// Tells how many tokens will be stored: room is taken for all of them at once.
    pub fn reserve(&mut self, len: usize) {
        self.reserved = len;
    }

    /// Appends the keys and values of new tokens, `[batch, kv heads, tokens, head]` each: they are written into the room where it
    /// has space for them and nothing else refers to it. A larger one is of twice the blocks that are kept.
    ///
    /// # Panics
    /// If the shapes are others. With the text of [`BufferError`] where the device holds no room of that size in one piece.
    pub fn append(&mut self, keys: FloatTensor<B>, values: FloatTensor<B>) {
        let KvLayout { batch, kv_heads, head, .. } = self.layout;
        let tokens = keys.shape()[2];
        let shape = Shape::new([batch, kv_heads, tokens, head]);
        assert!(
            keys.shape() == shape && values.shape() == shape,
            "{} and {}: not {shape}",
            keys.shape(),
            values.shape()
        );
        if tokens == 0 {
            return;
        }
        let end = self.len + tokens;
        let mut moved = None;
        if end > (self.before + self.capacity) * BLOCK {
            let kept = self.len.div_ceil(BLOCK) - self.freed;
            let needed = end.div_ceil(BLOCK) - self.freed;
            let reserved = self.reserved.div_ceil(BLOCK).saturating_sub(self.freed);
            moved = Some([kept, self.freed - self.before]);
            self.capacity = self.within_limit(needed, needed.max(2 * kept).max(reserved));
            self.before = self.freed;
        }
        let at = self.len - self.before * BLOCK;
        let append = Append { layout: self.layout, capacity: self.capacity, moved, at, tokens };
        // Taken out, so that no other reference is in the way of writing in place.
        let room = self.room.take();
        self.room = Some(kernels::kv_append::<B>(append, room, keys, values));
        self.len = end;
    }

    /// As many blocks as are wished for and the device holds in one piece.
    fn within_limit(&self, needed: usize, wished: usize) -> usize {
        let block = self.layout.block_words() * size_of::<u32>();
        let Some(limit) = largest_buffer::<B>(&self.device) else { return wished };
        if needed * block > limit {
            let [batch, kv_heads, head] = self.shape();
            let tensor = format!(
                "a {} cache of {} tokens, {batch} x {kv_heads} heads of {head},",
                self.format(),
                (self.freed + needed) * BLOCK
            );
            panic!("{}", BufferError { tensor, bytes: needed * block, limit });
        }
        wished.min(limit / block)
    }

    /// Scaled dot-product attention of the queries of the tokens appended last, `[batch, heads, tokens, head]`, over the
    /// keys that they see, as [`KvLayer::attend`].
    ///
    /// # Panics
    /// If the queries do not have that shape, or are of more tokens than there are, or a key that one sees was freed.
    pub fn attend(&self, queries: FloatTensor<B>, seen: Seen<'_>) -> FloatTensor<B> {
        let KvLayout { batch, kv_heads, head, .. } = self.layout;
        let shape = queries.shape();
        let [heads, tokens] = [shape[1], shape[2]];
        assert!(
            shape[0] == batch && shape[3] == head && heads > 0 && heads.is_multiple_of(kv_heads),
            "queries {shape} for a cache of [{batch}, {kv_heads}, tokens, {head}]"
        );
        assert!(tokens <= self.len, "queries of {tokens} tokens, and {} are stored", self.len);
        assert!(seen.left_padding.is_empty() || seen.left_padding.len() == batch, "padding of {batch} sequences");
        let Some(room) = self.room.clone().filter(|_| tokens > 0) else { return queries };
        let window = seen.window.unwrap_or(usize::MAX);
        let attend = Attend { layout: self.layout, heads, tokens, len: self.len, before: self.before * BLOCK, window };
        let (start, first) = (attend.start(), self.first());
        assert!(start >= first, "token {start} is seen and was freed: the first kept is {first}");
        let padding = seen.left_padding.iter().any(|&padding| padding > 0).then(|| {
            let padding: Vec<u32> = seen.left_padding.iter().map(|&padding| padding as u32).collect();
            B::int_from_data(TensorData::new(padding, [batch]), &self.device)
        });
        kernels::kv_attend::<B>(attend, room, queries, padding)
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
            (self.room, self.capacity, self.before, self.freed) = (None, 0, 0, 0);
        }
        assert!(len == 0 || len > self.first(), "token {len} was freed: the first kept is {}", self.first());
        self.len = len;
    }

    /// Frees tokens before `first`, which no later query sees, a block at a time: the room gives up what they take when it is
    /// full next time.
    pub fn free_before(&mut self, first: usize) {
        self.freed = self.freed.max(first.min(self.len) / BLOCK);
    }

    /// What is stored, read back into the host's memory.
    ///
    /// # Panics
    /// If the device does not give it back.
    pub fn to_layer(&self) -> KvLayer {
        let shape = self.shape();
        let Some(room) = &self.room else { return KvLayer::new(self.format(), shape[0], shape[1], shape[2]) };
        let blocks = self.freed - self.before..self.len.div_ceil(BLOCK) - self.before;
        let words = self.layout.block_words();
        let kept = burn_backend::Slice::from(blocks.start * words..blocks.end * words);
        let kept = B::int_slice(room.clone(), &[kept]);
        let data = burn_backend::read_sync(B::int_into_data(kept)).expect("a tensor can be read from its device");
        let mut rest: &[u8] = &data.bytes;
        let mut file = Vec::with_capacity(rest.len());
        for Piece { bytes, padding, token } in self.layout.pieces(blocks.len()) {
            let (piece, after) = rest.split_at(bytes + padding);
            rest = after;
            // What lies behind the last token was never written.
            if self.freed * BLOCK + token < self.len {
                file.extend_from_slice(&piece[..bytes]);
            } else {
                file.resize(file.len() + bytes, 0);
            }
        }
        KvLayer::read(self.format(), shape, self.freed * BLOCK, self.len, &mut &file[..])
            .expect("as many bytes as the blocks have")
    }

    /// Moves what is stored to a device. `None` as for [`new`](Self::new).
    ///
    /// # Panics
    /// As [`append`](Self::append).
    pub fn from_layer(layer: &KvLayer, device: &Device<B>) -> Option<Self> {
        let mut kv = Self::new(layer.format(), layer.shape(), device)?;
        if layer.is_empty() {
            return Some(kv);
        }
        let mut file = Vec::new();
        layer.write(&mut file).expect("memory takes what is written");
        let freed = layer.first() / BLOCK;
        let blocks = layer.len().div_ceil(BLOCK) - freed;
        kv.within_limit(blocks, blocks);
        let mut rest = &file[..];
        let mut words: Vec<u8> = Vec::with_capacity(blocks * kv.layout.block_words() * size_of::<u32>());
        for Piece { bytes, padding, .. } in kv.layout.pieces(blocks) {
            let (piece, after) = rest.split_at(bytes);
            rest = after;
            words.extend_from_slice(piece);
            words.resize(words.len() + padding, 0);
        }
        let n = words.len() / size_of::<u32>();
        let words = TensorData::from_bytes_vec(words, [n], DType::U32);
        kv.room = Some(B::int_from_data(words, device));
        (kv.capacity, kv.before, kv.freed, kv.len) = (blocks, freed, freed, layer.len());
        Some(kv)
    }
}
