use burn::tensor::{Tensor, TensorData, backend::Backend};
use phi35_model::{KvStore, QueryMask};
use qins_codec::kv::{KvFormat, KvLayer, Seen};
use std::marker::PhantomData;

/// Keys and values of one layer in codes.
///
/// They lie in the host's memory, whatever the backend: new keys, values and queries are read from it, attention is
/// computed on the host's processor by [`KvLayer`], and the result goes back. On backends of the host's memory that is a
/// copy of the new tokens alone; on others it waits for the device once a layer, and is right rather than fast.
///
/// So half precision works on backends that lack the type, and results are in f32 before `B` stores them as it does.
#[derive(Debug, Clone)]
pub struct QinsKvCache<B> {
    format: KvFormat,
    /// From the first token on, which tells the shape.
    layer: Option<KvLayer>,
    backend: PhantomData<fn() -> B>,
}

impl<B: Backend> QinsKvCache<B> {
    /// An empty cache.
    pub fn new(format: KvFormat) -> Self {
        Self { format, layer: None, backend: PhantomData }
    }

    /// A cache that goes on with what is stored in a layer.
    pub fn from_layer(layer: KvLayer) -> Self {
        Self { format: layer.format(), layer: Some(layer), backend: PhantomData }
    }

    /// What is stored; `None` before the first token.
    pub fn layer(&self) -> Option<&KvLayer> {
        self.layer.as_ref()
    }

    /// Bytes of keys and values, room for further tokens included.
    pub fn bytes(&self) -> usize {
        self.layer.as_ref().map_or(0, KvLayer::bytes)
    }
}

/// The values of a tensor, row-major.
fn read<B: Backend>(tensor: Tensor<B, 4>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("just converted to f32")
}

impl<B: Backend> KvStore<B> for QinsKvCache<B> {
    fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>) {
        let [batch, kv_heads, _, head] = keys.dims();
        let layer = self.layer.get_or_insert_with(|| KvLayer::new(self.format, batch, kv_heads, head));
        assert_eq!(layer.shape(), [batch, kv_heads, head], "keys of another shape than those before");
        layer.append(&read(keys), &read(values));
    }

    fn attend(&self, queries: Tensor<B, 4>, mask: &QueryMask<'_, B>) -> Tensor<B, 4> {
        let Some(layer) = &self.layer else { return queries };
        let (shape, device) = (queries.shape(), queries.device());
        let [_, heads, _, _] = queries.dims();
        let rule = mask.rule();
        let seen = Seen { window: rule.window, left_padding: &rule.left_padding };
        let attended = layer.attend(&read(queries), heads, seen);
        Tensor::from_data(TensorData::new(attended, shape), &device)
    }

    fn truncate(&mut self, len: usize) {
        match &mut self.layer {
            Some(layer) if len > 0 => layer.truncate(len),
            // The next tokens may be of another batch.
            layer => *layer = None,
        }
    }

    fn free_before(&mut self, first: usize) {
        if let Some(layer) = &mut self.layer {
            layer.free_before(first);
        }
    }

    fn first(&self) -> usize {
        self.layer.as_ref().map_or(0, KvLayer::first)
    }

    fn len(&self) -> usize {
        self.layer.as_ref().map_or(0, KvLayer::len)
    }
}
