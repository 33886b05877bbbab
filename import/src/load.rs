use crate::{Checkpoint, CheckpointTensor, ImportError};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};
use qins_backend::{ParamPath, Policy, Qins, QinsTensor};
use qins_codec::{EncodeError, Weights};
use std::{collections::BTreeSet, marker::PhantomData};

/// How far loading is: told after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The tensor just loaded, by its name in the file.
    pub tensor: &'a str,
    /// Its bytes in the file.
    pub bytes: usize,
}

/// Loads a module in f32.
///
/// # Errors
/// All kinds of [`ImportError`]; shapes and names are compared before anything is allocated.
pub fn load<B: Backend, M: Module<B>>(
    module: M,
    checkpoint: &Checkpoint,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<M, ImportError> {
    run::<B, M, Float>(module, checkpoint, &Float, on_progress)
}

/// Loads a module, encoding what the policy says row by row from the mapped file: no float copy of an encoded weight is
/// ever made.
///
/// # Errors
/// As [`load`], and [`ImportError::Encode`] for a weight that is NaN or infinite.
pub fn load_encoded<B: Backend, M: Module<Qins<B>>>(
    module: M,
    checkpoint: &Checkpoint,
    policy: &Policy,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<M, ImportError> {
    run::<Qins<B>, M, Policy>(module, checkpoint, policy, on_progress)
}

/// Makes a parameter's tensor of a checkpoint's.
trait Place<B: Backend> {
    fn place<const D: usize>(
        &self,
        tensor: CheckpointTensor<'_>,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, EncodeError>;
}

struct Float;

impl<B: Backend> Place<B> for Float {
    fn place<const D: usize>(
        &self,
        tensor: CheckpointTensor<'_>,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<Tensor<B, D>, EncodeError> {
        // Moved to Burn's order, not viewed in it: products with strided weights are many times slower on the CPU.
        let data = if parameter.is_linear_weight() {
            TensorData::new(tensor.to_f32_transposed(), [tensor.cols(), tensor.rows()])
        } else {
            TensorData::new(tensor.to_f32(), tensor.shape().to_vec())
        };
        Ok(Tensor::from_data(data, device))
    }
}

impl<B: Backend> Place<Qins<B>> for Policy {
    fn place<const D: usize>(
        &self,
        tensor: CheckpointTensor<'_>,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<Tensor<Qins<B>, D>, EncodeError> {
        let Some(format) = self.format(parameter) else {
            return Place::<Qins<B>>::place(&Float, tensor, parameter, device);
        };
        let encoded = QinsTensor::from_encoded(qins_codec::encode(format, &tensor)?, device);
        let encoded = if parameter.is_linear_weight() { encoded.transpose() } else { encoded };
        Ok(Tensor::from_primitive(encoded.into_primitive()))
    }
}

fn run<B: Backend, M: Module<B>, P: Place<B>>(
    module: M,
    checkpoint: &Checkpoint,
    place: &P,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<M, ImportError> {
    let mut parameters = Parameters { path: ParamPath::default(), found: Vec::new() };
    module.visit(&mut parameters);
    compare(&parameters.found, checkpoint)?;

    let mut loader =
        Loader { path: ParamPath::default(), checkpoint, place, on_progress, error: None, backend: PhantomData::<B> };
    let module = module.map(&mut loader);
    loader.error.map_or(Ok(module), Err)
}

/// A parameter's name and shape as the checkpoint should have them.
fn in_checkpoint(path: &ParamPath, mut shape: Vec<usize>) -> (String, Vec<usize>) {
    if path.is_linear_weight() {
        shape.reverse();
    }
    let name = path.dotted();
    let renamed = [
        ("Struct:RmsNorm", "gamma", "weight"),
        ("Struct:LayerNorm", "gamma", "weight"),
        ("Struct:LayerNorm", "beta", "bias"),
    ]
    .into_iter()
    .find(|(container, here, _)| path.is(here, container))
    .map(|(_, here, there)| format!("{}{there}", name.strip_suffix(here).expect("the path ends in its field")));
    (renamed.unwrap_or(name), shape)
}

/// Every parameter against the header.
fn compare(parameters: &[(String, Vec<usize>)], checkpoint: &Checkpoint) -> Result<(), ImportError> {
    let file = || checkpoint.path().to_owned();
    let missing: Vec<_> =
        parameters.iter().filter(|(name, _)| !checkpoint.contains(name)).map(|(name, _)| name.clone()).collect();
    if !missing.is_empty() {
        return Err(ImportError::Missing { file: file(), names: missing });
    }
    let known: BTreeSet<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    let extra: Vec<_> = checkpoint.names().filter(|name| !known.contains(name)).map(str::to_owned).collect();
    if !extra.is_empty() {
        return Err(ImportError::Extra { file: file(), names: extra });
    }
    for (name, expected) in parameters {
        let tensor = checkpoint.tensor(name)?;
        if tensor.shape() != expected {
            let (tensor, found) = (name.clone(), tensor.shape().to_vec());
            return Err(ImportError::Shape {
                file: checkpoint.file_of(name),
                tensor,
                expected: expected.clone(),
                found,
            });
        }
    }
    Ok(())
}

/// Collects names and shapes without initialising a parameter.
struct Parameters {
    path: ParamPath,
    found: Vec<(String, Vec<usize>)>,
}

impl<B: Backend> ModuleVisitor<B> for Parameters {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.push(in_checkpoint(&self.path, param.lazy_shape().to_vec()));
    }
}

struct Loader<'a, B, P, F> {
    path: ParamPath,
    checkpoint: &'a Checkpoint,
    place: &'a P,
    on_progress: F,
    error: Option<ImportError>,
    backend: PhantomData<B>,
}

impl<B: Backend, P: Place<B>, F: FnMut(Progress<'_>)> ModuleMapper<B> for Loader<'_, B, P, F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.error.is_some() {
            return param;
        }
        let (name, _) = in_checkpoint(&self.path, Vec::new());
        let placed = self.checkpoint.tensor(&name).and_then(|tensor| {
            let placed = self.place.place(tensor, &self.path, &param.lazy_device());
            (self.on_progress)(Progress { tensor: &name, bytes: tensor.bytes() });
            placed.map_err(|source| ImportError::Encode {
                file: self.checkpoint.file_of(&name),
                tensor: name.clone(),
                source,
            })
        });
        match placed {
            Ok(tensor) => {
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
