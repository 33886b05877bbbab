//! Keys and values on a graphics device, plain, fused and within `Qins`, against the host's cache and the formula.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use burn_wgpu::{CubeBackend, Wgpu, WgpuRuntime};
use phi35_model::{Config, Generation, KvStore, Mask, Phi3, Prefix, resume};
use qins_backend::{Qins, allow_subgroups, limit_buffers};
use qins_codec::kv::{KvFormat, KvLayer, Seen};
use qins_kv_cache::{ChosenKv, KvChoice, QinsKvCache, file};
use qins_tests::{Random, has_gpu};
use serde_json::json;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

type Unfused = CubeBackend<WgpuRuntime, f32, i32, u32>;

/// One test at a time: some change what devices are said to have.
static ALONE: Mutex<()> = Mutex::new(());

const ON_DEVICE: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::V8, KvFormat::Q8];

fn tensor<B: Backend>(values: &[f32], shape: [usize; 4]) -> Tensor<B, 4> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

fn bytes(layer: &KvLayer) -> Vec<u8> {
    let mut bytes = Vec::new();
    layer.write(&mut bytes).unwrap();
    bytes
}

/// What a model's layer would do, on a device and on the host.
struct Both<B: Backend> {
    device: QinsKvCache<B>,
    host: KvLayer,
    random: Random,
    heads: usize,
    mask: Mask,
}

impl<B: Backend> Both<B> {
    fn new(format: KvFormat, [batch, heads, kv_heads, head]: [usize; 4], mask: Mask) -> Self {
        let host = KvLayer::new(format, batch, kv_heads, head);
        Self { device: QinsKvCache::new(format), host, random: Random(head as u64), heads, mask }
    }

    /// Appends random tokens; their queries attend to the same.
    fn step(&mut self, tokens: usize) {
        let [batch, kv_heads, head] = self.host.shape();
        let mut draw = |heads: usize| self.random.weights(batch * heads * tokens * head, 1.0);
        let (keys, values, queries) = (draw(kv_heads), draw(kv_heads), draw(self.heads));
        let shape = [batch, kv_heads, tokens, head];
        self.device.append(tensor(&keys, shape), tensor(&values, shape));
        self.host.append(&keys, &values);
        assert!(self.device.is_on_device());
        assert_eq!((self.device.len(), self.device.first()), (self.host.len(), self.host.first()));

        let rule = self.mask.queries(tokens, self.host.len(), &Default::default());
        let found = self.device.attend(tensor(&queries, [batch, self.heads, tokens, head]), &rule);
        assert_eq!(found.dims(), [batch, self.heads, tokens, head]);
        let found: Vec<f32> = found.into_data().into_vec().unwrap();
        let seen = Seen { window: self.mask.window, left_padding: &self.mask.left_padding };
        let expected = self.host.attend(&queries, self.heads, seen);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let off = (found - expected).abs();
            let (format, len) = (self.host.format(), self.host.len());
            assert!(off < 2e-5, "{format}, {tokens} of {len} tokens of {shape:?}, {i}: {found}, not {expected}");
        }
        // What is stored is the same, bit for bit.
        assert!(bytes(&self.device.layer().unwrap()) == bytes(&self.host), "{} bytes differ", self.host.format());
    }
}

/// Chunks of all sizes: one query and many, rooms that grow.
fn attends<B: Backend>(format: KvFormat, shape: [usize; 4], chunks: &[usize]) {
    let mut both = Both::<B>::new(format, shape, Mask::default());
    chunks.iter().for_each(|&tokens| both.step(tokens));
}

#[test]
fn a_device_stores_and_attends_as_the_host_does() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if has_gpu() {
        for format in ON_DEVICE {
            attends::<Unfused>(format, [1, 4, 2, 8], &[1, 7, 64, 1, 130, 1]);
            attends::<Wgpu>(format, [1, 3, 3, 33], &[130, 1, 1, 7, 300, 1]);
            attends::<Qins<Unfused>>(format, [2, 8, 2, 80], &[7, 1, 64, 1]);
            attends::<Qins<Wgpu>>(format, [1, 8, 8, 96], &[1, 64, 130, 1, 2]);
        }
    }
}
