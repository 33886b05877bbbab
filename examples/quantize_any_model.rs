//! Models that know nothing of QINS and are no language models of this project: a convolutional network and an encoder
//! like BERT. A policy encodes their weights; the models stay as they are.
//!
//!     cargo run --release --example quantize_any_model

use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::{
        Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, Relu,
        conv::{Conv2d, Conv2dConfig},
        pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig},
        transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput},
    },
    tensor::{Distribution, Int, Tensor, TensorPrimitive, backend::Backend},
};
use burn_flex::Flex;
use qins_backend::{Policy, Qins};
use qins_codec::Format;
use std::error::Error;

type B = Qins<Flex>;

/// Images to classes.
#[derive(Module, Debug)]
struct ConvNet<B: Backend> {
    conv1: Conv2d<B>,
    conv2: Conv2d<B>,
    pool: AdaptiveAvgPool2d,
    head: Linear<B>,
    activation: Relu,
}

impl<B: Backend> ConvNet<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            conv1: Conv2dConfig::new([3, 32], [3, 3]).init(device),
            conv2: Conv2dConfig::new([32, 64], [3, 3]).init(device),
            pool: AdaptiveAvgPool2dConfig::new([4, 4]).init(),
            head: LinearConfig::new(64 * 4 * 4, 10).init(device),
            activation: Relu::new(),
        }
    }

    /// `[batch, 3, height, width]` to `[batch, 10]`.
    fn forward(&self, images: Tensor<B, 4>) -> Tensor<B, 2> {
        let x = self.activation.forward(self.conv1.forward(images));
        let x = self.activation.forward(self.conv2.forward(x));
        self.head.forward(self.pool.forward(x).flatten(1, 3))
    }
}

/// Token ids to a vector for each.
#[derive(Module, Debug)]
struct Encoder<B: Backend> {
    tokens: Embedding<B>,
    positions: Embedding<B>,
    norm: LayerNorm<B>,
    layers: TransformerEncoder<B>,
}

impl<B: Backend> Encoder<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            tokens: EmbeddingConfig::new(1000, 128).init(device),
            positions: EmbeddingConfig::new(64, 128).init(device),
            norm: LayerNormConfig::new(128).init(device),
            layers: TransformerEncoderConfig::new(128, 512, 4, 2).with_dropout(0.0).init(device),
        }
    }

    /// `[batch, tokens]` to `[batch, tokens, 128]`.
    fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let positions = Tensor::arange(0..ids.dims()[1] as i64, &ids.device()).unsqueeze();
        let x = self.tokens.forward(ids) + self.positions.forward(positions);
        self.layers.forward(TransformerEncoderInput::new(self.norm.forward(x)))
    }
}

/// Bytes of a module's float parameters: codes where they are coded, f32 otherwise.
#[derive(Default)]
struct Size(usize);

impl ModuleVisitor<B> for Size {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0 += match param.val().into_primitive() {
            TensorPrimitive::QFloat(tensor) => tensor.header().code_bytes() + tensor.header().scale_bytes(),
            TensorPrimitive::Float(_) => param.val().shape().num_elements() * 4,
        };
    }
}

fn compare<M: Module<B>, const D: usize>(
    name: &str,
    policy: &Policy,
    float: M,
    run: impl Fn(&M) -> Tensor<B, D>,
) -> Result<(), Box<dyn Error>> {
    let size = |module: &M| {
        let mut size = Size::default();
        module.visit(&mut size);
        size.0
    };
    let (before, expected) = (size(&float), run(&float));
    let coded = policy.encode(float)?;
    let power = |t: Tensor<B, D>| t.powi_scalar(2).mean().into_scalar();
    let noise = power(run(&coded) - expected.clone());
    println!(
        "{name}: {before} bytes in float, {} with {policy}; outputs {:.1} dB above the error",
        size(&coded),
        10.0 * (power(expected) / noise).log10()
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Default::default();
    B::seed(&device, 1);
    let policy = Policy::linear(Format::Q8).with_convolutions(Format::Q8);
    let images = Tensor::random([2, 3, 32, 32], Distribution::Default, &device);
    compare("convolutional network", &policy, ConvNet::new(&device), |net| net.forward(images.clone()))?;

    // Tokens in 16 bits, the first layer's attention left in float.
    let policy = Policy::linear(Format::Q8).with_embeddings(Format::F16).keep("layers.layers.0.mha")?;
    let ids = Tensor::<B, 1, Int>::arange(0..48, &device).mul_scalar(13).reshape([2, 24]);
    compare("encoder", &policy, Encoder::new(&device), |encoder| encoder.forward(ids.clone()))?;
    Ok(())
}
