use crate::{
    Checkpoint, CheckpointTensor, Container, ImportError,
    compare::{Tensors, compare},
    container::{Planned, Stored},
};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{AllocationProperty, Bytes, Tensor, TensorData, backend::Backend},
};
use qins_backend::{NoDeviceMemory, ParamPath, Policy, Qins, QinsTensor, device_memory};
use qins_codec::{Decoder, Format, Header, Weights, needs_row_bases};
use std::{
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

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
    run::<B, M, _>(module, &Floats(checkpoint), on_progress)
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
    parameters::<Qins<B>, M>(&module, Some(policy))?;
    run::<Qins<B>, M, _>(module, &Encoding { checkpoint, policy }, on_progress)
}

/// Loads a module from a container. On backends of the host's memory codes stay in the mapped file; matrices of 16-bit
/// floats are kept in 16 bits, and decoded where they are used.
///
/// # Errors
/// As [`load`].
pub fn load_container<B: Backend, M: Module<Qins<B>>>(
    module: M,
    container: &Container,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<M, ImportError> {
    run::<Qins<B>, M, _>(module, container, on_progress)
}

/// Names of the tensors that loading a module passes over: buffers that follow from the configuration, and a copy of the
/// embedding where the head is the embedding.
///
/// # Errors
/// As [`load`]: names and shapes are compared.
pub fn passed_over<B: Backend, M: Module<B>>(module: &M, checkpoint: &Checkpoint) -> Result<Vec<String>, ImportError> {
    compare(&parameters::<B, M>(module, None)?, checkpoint)
}

/// What the parameters of a module shall become in a container, by their names in the checkpoint.
///
/// # Errors
/// As [`load`]: names and shapes are compared.
pub fn plan<B: Backend, M: Module<B>>(
    module: &M,
    checkpoint: &Checkpoint,
    policy: &Policy,
) -> Result<Vec<Planned>, ImportError> {
    let found = parameters::<B, M>(module, Some(policy))?;
    compare(&found, checkpoint)?;
    let planned = |Parameter { name, path, .. }| {
        let storage = policy.storage(&path);
        Planned { name, format: storage.format(), cached: storage.is_cached() }
    };
    Ok(found.into_iter().map(planned).collect())
}

/// Makes parameters of tensors.
trait Place<B: Backend> {
    /// What there is.
    fn tensors(&self) -> &dyn Tensors;

    /// Bytes of a parameter on a device.
    fn bytes(&self, parameter: &Parameter) -> usize;

    /// Told once of all parameters, in the order in which they will be placed.
    fn begin(&self, _parameters: &[Parameter]) {}

    /// The parameter, and how many bytes of the file it is.
    fn place<const D: usize>(
        &self,
        name: &str,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<(Tensor<B, D>, usize), ImportError>;
}

struct Floats<'a>(&'a Checkpoint);

struct Encoding<'a> {
    checkpoint: &'a Checkpoint,
    policy: &'a Policy,
}

/// A parameter in f32. A linear weight is moved to Burn's order, not viewed in it: products with strided weights are many
/// times slower on the CPU.
fn float<B: Backend, const D: usize>(
    tensor: CheckpointTensor<'_>,
    parameter: &ParamPath,
    device: &B::Device,
) -> Tensor<B, D> {
    let data = if parameter.is_linear_weight() {
        TensorData::new(tensor.to_f32_transposed(), [tensor.cols(), tensor.rows()])
    } else {
        TensorData::new(tensor.to_f32(), tensor.shape().to_vec())
    };
    Tensor::from_data(data, device)
}

/// A parameter of a coded matrix `[out, in]`, which stands for a tensor of this shape in the checkpoint.
pub(crate) fn coded<B: Backend, const D: usize>(
    matrix: QinsTensor<B>,
    shape: &[usize],
    cached: bool,
    parameter: &ParamPath,
) -> Tensor<Qins<B>, D> {
    let tensor = if parameter.is_linear_weight() { matrix.transpose() } else { matrix.reshape(shape) };
    let tensor = if cached { tensor.cache_decoded() } else { tensor };
    Tensor::from_primitive(tensor.into_primitive())
}

/// Bytes of a tensor with codes of a format; of another in f32.
fn bytes(tensor: Option<CheckpointTensor<'_>>, shape: &[usize], format: Option<Format>) -> usize {
    let (Some(format), Some(tensor)) = (format, tensor) else {
        return shape.iter().product::<usize>() * size_of::<f32>();
    };
    let row_bases = needs_row_bases(format, &tensor).unwrap_or(false);
    let header = Header { format, rows: tensor.rows(), cols: tensor.cols(), base: 0.0, k: 0.0, row_bases };
    header.code_bytes() + header.scale_bytes()
}

impl<B: Backend> Place<B> for Floats<'_> {
    fn tensors(&self) -> &dyn Tensors {
        self.0
    }

    fn bytes(&self, parameter: &Parameter) -> usize {
        bytes(None, &parameter.shape, None)
    }

    fn place<const D: usize>(
        &self,
        name: &str,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<(Tensor<B, D>, usize), ImportError> {
        let tensor = self.0.tensor(name)?;
        Ok((float(tensor, parameter, device), tensor.bytes()))
    }
}

impl<B: Backend> Place<Qins<B>> for Encoding<'_> {
    fn tensors(&self) -> &dyn Tensors {
        self.checkpoint
    }

    fn bytes(&self, parameter: &Parameter) -> usize {
        let tensor = self.checkpoint.tensor(&parameter.name).ok();
        bytes(tensor, &parameter.shape, self.policy.storage(&parameter.path).format())
    }

    fn place<const D: usize>(
        &self,
        name: &str,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<(Tensor<Qins<B>, D>, usize), ImportError> {
        let tensor = self.checkpoint.tensor(name)?;
        let storage = self.policy.storage(parameter);
        let placed = match storage.format() {
            Some(format) => {
                let encoded = qins_codec::encode(format, &tensor).map_err(|source| ImportError::Encode {
                    file: self.checkpoint.file_of(name),
                    tensor: name.to_owned(),
                    source,
                })?;
                coded(QinsTensor::from_encoded(encoded, device), tensor.shape(), storage.is_cached(), parameter)
            }
            None => float(tensor, parameter, device),
        };
        Ok((placed, tensor.bytes()))
    }
}

impl<B: Backend> Place<Qins<B>> for Container {
    fn tensors(&self) -> &dyn Tensors {
        self
    }

    fn bytes(&self, parameter: &Parameter) -> usize {
        self.tensor_bytes(&parameter.name)
    }

    fn begin(&self, parameters: &[Parameter]) {
        self.read_ahead(parameters.iter().map(|parameter| parameter.name.as_str()));
    }

    fn place<const D: usize>(
        &self,
        name: &str,
        parameter: &ParamPath,
        device: &B::Device,
    ) -> Result<(Tensor<Qins<B>, D>, usize), ImportError> {
        let words = |bytes: bytes::Bytes, n: usize| {
            Bytes::from_shared(bytes.slice(..n.next_multiple_of(4)), AllocationProperty::File)
        };
        let tensor = self.tensor(name).expect("compared with the module before");
        let (header, bytes, matrix) = match tensor {
            Stored::Coded(header, codes, scales) => {
                let [shared_codes, shared_scales] = self.shared(name).expect("a coded tensor");
                let decoder = Decoder::new(header).expect("checked when opened");
                let parts = (words(shared_codes, header.code_bytes()), words(shared_scales, header.scale_bytes()));
                (header, codes.len() + scales.len(), QinsTensor::from_bytes(decoder, parts.0, parts.1, device))
            }
            Stored::Plain(plain) => {
                let Some(format) = plain.half_format().filter(|_| D == 2) else {
                    return Ok((float(plain, parameter, device), plain.bytes()));
                };
                let header =
                    Header { format, rows: plain.rows(), cols: plain.cols(), base: 1.0, k: 0.0, row_bases: false };
                let shared = self.shared_plain(name).expect("a plain tensor");
                let in_place = shared.len() == header.code_bytes() && (shared.as_ptr() as usize).is_multiple_of(4);
                let matrix = match Decoder::new(header) {
                    Ok(decoder) if in_place => {
                        let nothing = words(bytes::Bytes::new(), 0);
                        QinsTensor::from_bytes(decoder, words(shared, header.code_bytes()), nothing, device)
                    }
                    // Rows of an odd number of weights are not whole words.
                    _ => {
                        let encoded = qins_codec::encode(format, &plain).map_err(|source| ImportError::Encode {
                            file: self.path().to_owned(),
                            tensor: name.to_owned(),
                            source,
                        })?;
                        Ok(QinsTensor::from_encoded(encoded, device))
                    }
                };
                (header, plain.bytes(), matrix)
            }
        };
        let matrix = matrix.unwrap_or_else(|error| unreachable!("{header:?} was checked when opened: {error}"));
        let info = &self.manifest().tensors[name];
        Ok((coded(matrix, &info.shape, info.cached, parameter), bytes))
    }
}

fn run<B: Backend, M: Module<B>, P: Place<B> + Sync>(
    module: M,
    source: &P,
    on_progress: impl FnMut(Progress<'_>),
) -> Result<M, ImportError> {
    let parameters = parameters::<B, M>(&module, None)?;
    compare(&parameters, source.tensors())?;
    source.begin(&parameters);

    let (path, backend) = (ParamPath::default(), PhantomData::<B>);
    let mut loader = Loader { path, source, parameters: &parameters, on_progress, error: None, backend };
    let module = module.map(&mut loader);
    loader.error.map_or(Ok(module), Err)
}

/// A parameter's name and shape as the checkpoint should have them.
pub(crate) fn in_checkpoint(path: &ParamPath, mut shape: Vec<usize>) -> (String, Vec<usize>) {
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

/// The parameters of a module. Fails for a pattern of the policy that takes none of them.
pub(crate) fn parameters<B: Backend, M: Module<B>>(
    module: &M,
    policy: Option<&Policy>,
) -> Result<Vec<Parameter>, ImportError> {
    let mut parameters = Parameters::default();
    module.visit(&mut parameters);
    let paths: Vec<_> = parameters.found.iter().map(|parameter| parameter.path.clone()).collect();
    policy.map_or(Ok(()), |policy| policy.check(&paths))?;
    Ok(parameters.found)
}

/// A parameter as the checkpoint should have it.
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) path: ParamPath,
    pub(crate) shape: Vec<usize>,
}

/// Collects names and shapes without initialising a parameter.
#[derive(Default)]
struct Parameters {
    path: ParamPath,
    found: Vec<Parameter>,
}

impl<B: Backend> ModuleVisitor<B> for Parameters {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let (name, shape) = in_checkpoint(&self.path, param.lazy_shape().to_vec());
        self.found.push(Parameter { name, path: self.path.clone(), shape });
    }
}

struct Loader<'a, B, P, F> {
    path: ParamPath,
    source: &'a P,
    parameters: &'a [Parameter],
    on_progress: F,
    error: Option<ImportError>,
    backend: PhantomData<B>,
}

impl<B: Backend, P: Place<B>, F> Loader<'_, B, P, F> {
    fn no_memory(&self, tensor: String, device: &B::Device) -> ImportError {
        let own = self.parameters.iter().find(|parameter| parameter.name == tensor);
        let bytes = own.map_or(0, |parameter| self.source.bytes(parameter));
        let file = self.source.tensors().file_of(&tensor);
        let held = device_memory::<B>(device).map_or(0, |memory| memory.in_use as usize);
        let needed = self.parameters.iter().map(|parameter| self.source.bytes(parameter)).sum();
        ImportError::DeviceMemory { file, tensor, bytes, held, needed }
    }
}

impl<B: Backend, P: Place<B> + Sync, F: FnMut(Progress<'_>)> ModuleMapper<B> for Loader<'_, B, P, F> {
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
        let (source, path, device) = (self.source, &self.path, param.lazy_device());
        // A weight stays: it takes what it needs from the device, and no share of a page for what comes and goes.
        let place = |()| catch_unwind(AssertUnwindSafe(|| source.place(&name, path, &device)));
        let placed = B::memory_persistent_allocations(&device, (), place);
        // Where nothing was read back, Burn goes on without the tensor.
        let is_full = match &placed {
            Ok(_) => B::sync(&device).is_err(),
            Err(panic) => panic.is::<NoDeviceMemory>(),
        };
        if is_full {
            self.error = Some(self.no_memory(name, &device));
            return param;
        }
        match placed.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok((tensor, bytes)) => {
                (self.on_progress)(Progress { tensor: &name, bytes });
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
