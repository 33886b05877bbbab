//! Products on the stream of a fused backend.

use super::{Inputs, Product};
use burn_cubecl::{CubeBackend, CubeRuntime, fusion::FusionCubeRuntime};
use burn_fusion::{
    FusionRuntime, FusionTensor,
    stream::{Operation, OperationStreams},
};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};
use std::marker::PhantomData;

/// Takes tensors from their handles, whatever types the fused backend names as its own.
type Plain<R> = CubeBackend<R, f32, i32, u32>;

#[derive(Debug)]
struct Registered<R> {
    product: Product,
    tensors: CustomOpIr,
    runtime: PhantomData<R>,
}

pub(super) fn register<R: CubeRuntime>(
    product: Product,
    inputs: Inputs<FusionTensor<FusionCubeRuntime<R>>>,
) -> FusionTensor<FusionCubeRuntime<R>> {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(inputs.each_ref());
    let out = TensorIr::uninit(client.create_empty_handle(), product.shape.clone(), inputs[0].dtype);
    let tensors = CustomOpIr::new("qins_product", &inputs.map(FusionTensor::into_ir), &[out]);
    let operation = Registered::<R> { product, tensors: tensors.clone(), runtime: PhantomData };
    client.register(streams, OperationIr::Custom(tensors), operation).output()
}

impl<R: CubeRuntime> Operation<FusionCubeRuntime<R>> for Registered<R> {
    fn execute(&self, handles: &mut HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>) {
        let (inputs, [out]): (&Inputs<TensorIr>, &[TensorIr; 1]) = self.tensors.as_fixed();
        let inputs = inputs.each_ref().map(|tensor| handles.get_float_tensor::<Plain<R>>(tensor));
        handles.register_float_tensor::<Plain<R>>(&out.id, self.product.run(inputs));
    }
}
