//! A low-rank adapter (LoRA) trained on a coded base: the base stays in 8-bit codes, frozen, while gradients pass through
//! it and two small float matrices learn.
//!
//!     cargo run --release --example lora

use burn::{
    module::{AutodiffModule, Module},
    nn::{Initializer, Linear, LinearConfig, Relu, loss::MseLoss, loss::Reduction},
    optim::{AdamConfig, GradientsParams, Optimizer},
    tensor::{Distribution, Tensor, backend::Backend},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use qins_backend::{Policy, Qins, lazy_float, recode};
use qins_codec::Format;
use std::error::Error;

type Inner = Qins<Flex>;
type B = Autodiff<Inner>;

const D: usize = 64;
const RANK: usize = 4;

/// `y = x W + b + x A B`: `W` and `b` frozen, `A [d, rank]` and `B [rank, d]` trained.
#[derive(Module, Debug)]
struct Lora<B: Backend> {
    base: Linear<B>,
    down: Linear<B>,
    up: Linear<B>,
}

impl<B: Backend> Lora<B> {
    fn new(base: Linear<B>, device: &B::Device) -> Self {
        let linear = |input, output| LinearConfig::new(input, output).with_bias(false);
        // At first the adapter adds nothing.
        let up = linear(RANK, D).with_initializer(Initializer::Zeros).init(device);
        Self { base: base.no_grad(), down: linear(D, RANK).init(device), up }
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.base.forward(x.clone()) + self.up.forward(self.down.forward(x))
    }
}

/// Two layers of a network that was trained elsewhere.
#[derive(Module, Debug)]
struct Net<B: Backend> {
    first: Lora<B>,
    second: Lora<B>,
    activation: Relu,
}

impl<B: Backend> Net<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.second.forward(self.activation.forward(self.first.forward(x)))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Default::default();
    B::seed(&device, 1);
    let base = || {
        let linear = LinearConfig::new(D, D).init::<Inner>(&device);
        // Burn draws weights when they are first used: before, each clone would draw its own.
        linear.forward(Tensor::<Inner, 2>::zeros([1, D], &device));
        linear
    };
    let (first, second) = (base(), base());

    // Burn 0.21 has no gradients through quantized tensors: codes enter Autodiff as lazy floats, still coded in memory.
    let policy = Policy::linear(Format::Q8);
    let coded = |linear: &Linear<Inner>| -> Result<Linear<B>, Box<dyn Error>> {
        Ok(Linear::from_inner(lazy_float(policy.encode(linear.clone())?)))
    };
    let mut net = Net::<B> {
        first: Lora::new(coded(&first)?, &device),
        second: Lora::new(coded(&second)?, &device),
        activation: Relu::new(),
    };

    // The task: the same network with a change of low rank in its first layer.
    let change = Tensor::<Inner, 2>::random([D, 2], Distribution::Normal(0.0, 0.3), &device).matmul(Tensor::random(
        [2, D],
        Distribution::Normal(0.0, 0.3),
        &device,
    ));
    let teacher = |x: Tensor<Inner, 2>| {
        let hidden = first.forward(x.clone()) + x.matmul(change.clone());
        second.forward(Relu::new().forward(hidden))
    };

    let mut optimizer = AdamConfig::new().init();
    for step in 0..=400 {
        let x = Tensor::<Inner, 2>::random([64, D], Distribution::Normal(0.0, 1.0), &device);
        let target = Tensor::from_inner(teacher(x.clone()));
        let loss = MseLoss::new().forward(net.forward(Tensor::from_inner(x)), target, Reduction::Mean);
        if step % 100 == 0 {
            println!("step {step}: loss {:.5}", loss.clone().into_scalar());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = optimizer.step(0.003, net, gradients);
    }

    // The base is what it was, bit for bit, and a quantized parameter again.
    let trained = recode(net.valid());
    assert_eq!(trained.first.base.weight.val().into_data(), policy.encode(first)?.weight.val().into_data());
    println!("the coded base did not change");
    Ok(())
}
