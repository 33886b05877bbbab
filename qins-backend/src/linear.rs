//! A linear layer whose weight is coded from the start.

use crate::{Policy, PolicyError, Qins, QinsFloat, QinsTensor};
use burn::{
    config::Config,
    module::{Content, DisplaySettings, Initializer, Module, ModuleDisplay, Param},
    nn::{Linear, LinearConfig},
    tensor::{Tensor, TensorPrimitive, module::linear},
};
use burn_backend::Backend;
use qins_codec::Format;

/// Creates a [`QinsLinear`].
#[derive(Config, Debug)]
pub struct QinsLinearConfig {
    /// Size of the last dimension of the input.
    pub d_input: usize,
    /// Size of the last dimension of the output.
    pub d_output: usize,
    /// Whether a bias is added.
    #[config(default = true)]
    pub bias: bool,
    /// How weight and bias start, before the weight is encoded.
    #[config(default = "LinearConfig::new(1, 1).initializer")]
    pub initializer: Initializer,
    /// The format of the weight.
    #[config(default = "Format::Q8")]
    pub format: Format,
}

impl QinsLinearConfig {
    /// A layer of random weights, encoded.
    pub fn init<B: Backend>(&self, device: &B::Device) -> QinsLinear<Qins<B>> {
        let linear = LinearConfig::new(self.d_input, self.d_output)
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone())
            .init(device);
        QinsLinear::from_linear(linear, self.format).unwrap_or_else(|error| panic!("random weights: {error}"))
    }
}

/// `O = I W + b`, with `W` in codes: what `nn::Linear` is after [`Policy::encode`], as a type of its own.
///
/// Outputs are those of `nn::Linear` on the same coded weight, bit for bit, and records of the two can be exchanged.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flex::Flex;
/// use qins_backend::{Qins, QinsLinearConfig};
///
/// let device = Default::default();
/// let layer = QinsLinearConfig::new(64, 96).init::<Flex>(&device);
/// let x = Tensor::<Qins<Flex>, 3>::random([2, 5, 64], Distribution::Default, &device);
/// assert_eq!(layer.forward(x).dims(), [2, 5, 96]);
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct QinsLinear<B: Backend> {
    /// `[d_input, d_output]`, a view over the codes `[d_output, d_input]`.
    weight: Param<Tensor<B, 2>>,
    /// `[d_output]`, in float.
    bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> QinsLinear<B> {
    /// Multiplies: `[.., d_input]` to `[.., d_output]`.
    pub fn forward<const D: usize>(&self, input: Tensor<B, D>) -> Tensor<B, D> {
        linear(input, self.weight.val(), self.bias.as_ref().map(|bias| bias.val()))
    }
}

impl<B: Backend> QinsLinear<Qins<B>> {
    /// Encodes the weight of a linear layer. One already coded stays as it is.
    ///
    /// # Errors
    /// A weight of NaN or infinity, by row and column of `[out, in]`.
    pub fn from_linear(linear: Linear<Qins<B>>, format: Format) -> Result<Self, PolicyError> {
        let Linear { weight, bias } = Policy::linear(format).encode(linear)?;
        Ok(Self { weight, bias })
    }

    /// Keeps the weight decoded besides its codes: more memory, and products at the speed of `B`'s floats, rounded as
    /// `B` rounds. Recorders store the codes, as before.
    pub fn cache_decoded(self) -> Self {
        self.map_weight(QinsTensor::cache_decoded)
    }

    /// Drops the decoded weight again.
    pub fn drop_decoded(self) -> Self {
        self.map_weight(QinsTensor::drop_decoded)
    }

    fn map_weight(self, f: impl FnOnce(QinsTensor<B>) -> QinsTensor<B>) -> Self {
        let weight = self.weight.map(|weight| match weight.into_primitive() {
            TensorPrimitive::QFloat(weight) => Tensor::from_primitive(f(weight).into_primitive()),
            TensorPrimitive::Float(QinsFloat::Coded(weight, dtype)) => {
                Tensor::from_primitive(TensorPrimitive::Float(QinsFloat::Coded(f(weight), dtype)))
            }
            float => Tensor::from_primitive(float),
        });
        Self { weight, ..self }
    }
}

impl<B: Backend> ModuleDisplay for QinsLinear<B> {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [d_input, d_output] = self.weight.shape().dims();
        content.add("d_input", &d_input).add("d_output", &d_output).add("bias", &self.bias.is_some()).optional()
    }
}
