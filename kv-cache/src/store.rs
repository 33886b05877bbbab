use burn::tensor::{Tensor, TensorData, TensorPrimitive, backend::Backend};
use phi35_model::{KvStore, QueryMask};
use qins_backend::DeviceKv;
use qins_codec::kv::{KvFormat, KvLayer, Seen};
use std::borrow::Cow;

/// Keys and values of one layer in codes.
///
/// On the graphics devices that [`DeviceKv`] knows they lie on the device, where new ones are encoded and attention is computed:
/// nothing is read back. On every other backend, and in [`KvFormat::V4`], they lie in the host's memory: new keys, values and
/// queries are read from the backend, attention is computed on the host's processor by [`KvLayer`], and the result goes back.
/// On backends of the host's memory that is a copy of the new tokens alone; on others it waits for the device once a layer.
///
/// So half precision works on backends that lack the type, and results are in f32 before `B` stores them as it does.
#[derive(Debug, Clone)]
pub struct QinsKvCache<B: Backend> {
    format: KvFormat,
    reserved: usize,
    /// From the first token on, which tells the shape and the device.
    stored: Option<Stored<B>>,
}

#[derive(Debug, Clone)]
enum Stored<B: Backend> {
    Host(KvLayer),
    Device(Box<DeviceKv<B>>),
}

/// The same call on either kind.
macro_rules! either {
    ($stored:expr, $of:ident => $call:expr) => {
        match $stored {
            Stored::Host($of) => $call,
            Stored::Device($of) => $call,
        }
    };
}

impl<B: Backend> Stored<B> {
    fn new(format: KvFormat, shape: [usize; 3], device: &B::Device) -> Self {
        let [batch, kv_heads, head] = shape;
        match DeviceKv::new(format, shape, device) {
            Some(kv) => Self::Device(Box::new(kv)),
            None => Self::Host(KvLayer::new(format, batch, kv_heads, head)),
        }
    }
}

impl<B: Backend> QinsKvCache<B> {
    /// An empty cache.
    pub fn new(format: KvFormat) -> Self {
        Self { format, reserved: 0, stored: None }
    }

    /// A cache on a device that goes on with what is stored in a layer.
    pub fn from_layer(layer: KvLayer, device: &B::Device) -> Self {
        let format = layer.format();
        let stored = match DeviceKv::from_layer(&layer, device) {
            Some(kv) => Stored::Device(Box::new(kv)),
            None => Stored::Host(layer),
        };
        Self { format, reserved: 0, stored: Some(stored) }
    }

    /// How keys and values are stored.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// What is stored, read back where it lies on a device; `None` before the first token.
    pub fn layer(&self) -> Option<Cow<'_, KvLayer>> {
        self.stored.as_ref().map(|stored| match stored {
            Stored::Host(layer) => Cow::Borrowed(layer),
            Stored::Device(kv) => Cow::Owned(kv.to_layer()),
        })
    }

    /// Whether keys and values lie on a graphics device; `false` before the first token.
    pub fn is_on_device(&self) -> bool {
        matches!(self.stored, Some(Stored::Device(_)))
    }

    /// Bytes of keys and values, room for further tokens included.
    pub fn bytes(&self) -> usize {
        self.stored.as_ref().map_or(0, |stored| either!(stored, of => of.bytes()))
    }
}

/// The values of a tensor `[batch, heads, tokens, head]` as `[batch, tokens, heads, head]`: so models compute them, of which
/// this is a view, and backends are slow to put heads before tokens.
fn read<B: Backend>(tensor: Tensor<B, 4>) -> Vec<f32> {
    tensor.swap_dims(1, 2).into_data().convert::<f32>().into_vec().expect("just converted to f32")
}

/// `[batch, n, m, head]` as `[batch, m, n, head]`.
fn heads_apart(values: &[f32], [batch, n, m, head]: [usize; 4]) -> Vec<f32> {
    let at = |b, i, j| &values[((b * n + i) * m + j) * head..][..head];
    let in_order = (0..batch).flat_map(|b| (0..m).flat_map(move |j| (0..n).map(move |i| (b, i, j))));
    let mut out = Vec::with_capacity(values.len());
    in_order.for_each(|(b, i, j)| out.extend_from_slice(at(b, i, j)));
    out
}

/// The backend's own float tensor.
fn primitive<B: Backend>(tensor: Tensor<B, 4>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

impl<B: Backend> KvStore<B> for QinsKvCache<B> {
    fn append(&mut self, keys: Tensor<B, 4>, values: Tensor<B, 4>) {
        let [batch, kv_heads, tokens, head] = keys.dims();
        let shape = [batch, kv_heads, head];
        let stored = self.stored.get_or_insert_with(|| Stored::new(self.format, shape, &keys.device()));
        assert_eq!(either!(stored, of => of.shape()), shape, "keys of another shape than those before");
        match stored {
            Stored::Host(layer) => {
                // All are freed after the layer has taken memory of its own, and the next find the same.
                let [keys, values] = [keys, values].map(read);
                let by_head = |values: &[f32]| heads_apart(values, [batch, tokens, kv_heads, head]);
                layer.append(&by_head(&keys), &by_head(&values));
            }
            Stored::Device(kv) => {
                kv.reserve(self.reserved);
                kv.append(primitive(keys), primitive(values));
            }
        }
    }

    fn attend(&self, queries: Tensor<B, 4>, mask: &QueryMask<'_, B>) -> Tensor<B, 4> {
        let Some(stored) = &self.stored else { return queries };
        let rule = mask.rule();
        let seen = Seen { window: rule.window, left_padding: &rule.left_padding };
        match stored {
            Stored::Host(layer) => {
                let (device, [batch, heads, tokens, head]) = (queries.device(), queries.dims());
                let queries = heads_apart(&read(queries), [batch, tokens, heads, head]);
                let attended = layer.attend(&queries, heads, seen);
                let attended = heads_apart(&attended, [batch, heads, tokens, head]);
                Tensor::<B, 4>::from_data(TensorData::new(attended, [batch, tokens, heads, head]), &device)
                    .swap_dims(1, 2)
            }
            Stored::Device(kv) => {
                let attended = kv.attend(primitive(queries), seen);
                Tensor::from_primitive(TensorPrimitive::Float(attended))
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        match &mut self.stored {
            Some(stored) if len > 0 => either!(stored, of => of.truncate(len)),
            // The next tokens may be of another batch.
            stored => *stored = None,
        }
    }

    /// Where keys and values lie on a device they have room for so many then; in the host's memory room grows by blocks.
    fn reserve(&mut self, len: usize) {
        self.reserved = len;
    }

    fn free_before(&mut self, first: usize) {
        if let Some(stored) = &mut self.stored {
            either!(stored, of => of.free_before(first));
        }
    }

    fn first(&self) -> usize {
        self.stored.as_ref().map_or(0, |stored| either!(stored, of => of.first()))
    }

    fn len(&self) -> usize {
        self.stored.as_ref().map_or(0, |stored| either!(stored, of => of.len()))
    }
}
