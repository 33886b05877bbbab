use crate::{Qins, QinsFloat, QinsTensor, bytes, tensor::rows_of};
use burn_backend::{
    Backend, ExecutionError, FloatDType, Shape, Slice, TensorData, TensorMetadata,
    ops::QTensorOps,
    quantization::{QuantScheme, QuantizationParametersPrimitive},
    tensor::{Device, FloatTensor, IntTensor, QuantizedTensor},
};
use qins_codec::Format;

/// What Burn's own quantization API encodes to: it has no way to name another.
const DEFAULT_FORMAT: Format = Format::Q8;

/// The provided operations go through [`dequantize`](QTensorOps::dequantize), which decodes nothing by itself.
impl<B: Backend> QTensorOps<Self> for Qins<B> {
    /// # Panics
    /// If the data is not QINS data, with the text of [`BytesError`](crate::BytesError): Burn's signature leaves no other way.
    fn q_from_data(data: TensorData, device: &Device<Self>) -> QuantizedTensor<Self> {
        bytes::from_data(&data, device).unwrap_or_else(|error| panic!("{error}"))
    }

    fn quantize(
        tensor: FloatTensor<Self>,
        scheme: &QuantScheme,
        _qparams: QuantizationParametersPrimitive<Self>,
    ) -> QuantizedTensor<Self> {
        Self::quantize_dynamic(tensor, scheme)
    }

    /// Encodes with groups along all dimensions but the first; the encoder finds its own scales.
    ///
    /// # Panics
    /// If a value is NaN or infinite.
    fn quantize_dynamic(tensor: FloatTensor<Self>, _scheme: &QuantScheme) -> QuantizedTensor<Self> {
        match tensor {
            QinsFloat::Coded(tensor, _) => tensor,
            QinsFloat::Dense(tensor) => {
                QinsTensor::encode(tensor, DEFAULT_FORMAT).unwrap_or_else(|error| panic!("{error}"))
            }
        }
    }

    /// Decodes nothing yet.
    fn dequantize(tensor: QuantizedTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
        QinsFloat::Coded(tensor, dtype)
    }

    fn q_device(tensor: &QuantizedTensor<Self>) -> Device<Self> {
        tensor.device()
    }

    fn q_to_device(tensor: QuantizedTensor<Self>, device: &Device<Self>) -> QuantizedTensor<Self> {
        tensor.to_device(device)
    }

    async fn q_into_data(tensor: QuantizedTensor<Self>) -> Result<TensorData, ExecutionError> {
        bytes::to_data(tensor).await
    }

    fn q_reshape(tensor: QuantizedTensor<Self>, shape: Shape) -> QuantizedTensor<Self> {
        let viewed = tensor.viewed(|view| view.reshape(shape.as_slice()));
        viewed.unwrap_or_else(|| re_encode(tensor, |float| B::float_reshape(float, shape)))
    }

    fn q_swap_dims(tensor: QuantizedTensor<Self>, dim1: usize, dim2: usize) -> QuantizedTensor<Self> {
        let view = tensor.view.swap_dims(dim1, dim2);
        tensor.with_view(view)
    }

    fn q_permute(tensor: QuantizedTensor<Self>, axes: &[usize]) -> QuantizedTensor<Self> {
        let view = tensor.view.permute(axes);
        tensor.with_view(view)
    }

    fn q_expand(tensor: QuantizedTensor<Self>, shape: Shape) -> QuantizedTensor<Self> {
        let viewed = tensor.viewed(|view| view.expand(shape.as_slice()));
        viewed.unwrap_or_else(|| re_encode(tensor, |float| B::float_expand(float, shape)))
    }

    fn q_flip(tensor: QuantizedTensor<Self>, axes: &[usize]) -> QuantizedTensor<Self> {
        tensor.through_float(|float, stored| {
            B::float_flip(float, &axes.iter().map(|&axis| stored[axis]).collect::<Vec<_>>())
        })
    }

    fn q_select(tensor: QuantizedTensor<Self>, dim: usize, indices: IntTensor<Self>) -> QuantizedTensor<Self> {
        tensor
            .select(dim, &indices)
            .unwrap_or_else(|| tensor.through_float(|float, stored| B::float_select(float, stored[dim], indices)))
    }

    fn q_slice(tensor: QuantizedTensor<Self>, slices: &[Slice]) -> QuantizedTensor<Self> {
        tensor.slice(slices).unwrap_or_else(|| {
            tensor.through_float(|float, stored| {
                let mut by_place = vec![Slice::full(); stored.len()];
                slices.iter().zip(stored).for_each(|(&slice, &place)| by_place[place] = slice);
                B::float_slice(float, &by_place)
            })
        })
    }
}

/// Decodes, applies `op` and encodes the result, whatever its dimensions, with the same constants.
fn re_encode<B: Backend>(tensor: QinsTensor<B>, op: impl FnOnce(FloatTensor<B>) -> FloatTensor<B>) -> QinsTensor<B> {
    let header = *tensor.header();
    let float = op(tensor.decode(FloatDType::F32));
    let rows = rows_of(float.shape().as_slice());
    QinsTensor::encode_like(float, rows, &header).expect("decoded weights are finite")
}
