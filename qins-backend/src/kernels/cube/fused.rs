//! Operations on the stream of a fused backend.

use super::OnDevice;
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
struct Registered<R, O> {
    operation: O,
    tensors: CustomOpIr,
    runtime: PhantomData<R>,
}

pub(super) fn register<R: CubeRuntime, O: OnDevice>(
    operation: O,
    inputs: Vec<FusionTensor<FusionCubeRuntime<R>>>,
) -> FusionTensor<FusionCubeRuntime<R>> {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let out = TensorIr::uninit(client.create_empty_handle(), operation.shape(), operation.dtype());
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let tensors = CustomOpIr::new("qins", &inputs, &[out]);
    let registered = Registered::<R, O> { operation, tensors: tensors.clone(), runtime: PhantomData };
    client.register(streams, OperationIr::Custom(tensors), registered).output()
}

impl<R: CubeRuntime, O: OnDevice> FusionOperation<FusionCubeRuntime<R>> for Registered<R, O> {
    fn execute(&self, handles: &mut HandleContainer<<FusionCubeRuntime<R> as FusionRuntime>::FusionHandle>) {
        let inputs = self.tensors.inputs.iter().map(|tensor| handles.get_float_tensor::<Plain<R>>(tensor)).collect();
        let out = &self.tensors.outputs[0];
        handles.register_float_tensor::<Plain<R>>(&out.id, self.operation.run(inputs));
    }
}
