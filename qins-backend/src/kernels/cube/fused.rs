//! Operations on the stream of a fused backend.

use super::{Inputs, Operation};
use burn_cubecl::{CubeBackend, CubeRuntime, fusion::FusionCubeRuntime};
use burn_fusion::{
    FusionRuntime, FusionTensor,
    stream::{Operation as FusionOperation, OperationStreams},
};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};
use std::marker::PhantomData;

/// Takes tensors from their handles, whatever types the fused backend names as its own.
type Plain<R> = CubeBackend<R, f32, i32, u32>;

#[derive(Debug)]
struct Registered<R> {
    operation: Operation,
    tensors: CustomOpIr,
    runtime: PhantomData<R>,
}

pub(super) fn register<R: CubeRuntime>(
    operation: Operation,
    inputs: Inputs<FusionTensor<FusionCubeRuntime<R>>>,
) -> FusionTensor<FusionCubeRuntime<R>> {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(inputs.each_ref());
    let out = TensorIr::uninit(client.create_empty_handle(), operation.shape.clone(), operation.dtype);
    let tensors = CustomOpIr::new("qins", &inputs.map(FusionTensor::into_ir), &[out]);
    let registered = Registered::<R> { operation, tensors: tensors.clone(), runtime: PhantomData };
    client.register(streams, OperationIr::Custom(tensors), registered).output()
}

impl<R: CubeRuntime> FusionOperation<FusionCubeRuntime<R>> for Registered<R> {
    fn execute(&self, handles: &mut HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>) {
        let (inputs, [out]): (&Inputs<TensorIr>, &[TensorIr; 1]) = self.tensors.as_fixed();
        let inputs = inputs.each_ref().map(|tensor| handles.get_float_tensor::<Plain<R>>(tensor));
        handles.register_float_tensor::<Plain<R>>(&out.id, self.operation.run(inputs));
    }
}
