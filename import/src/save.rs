//! Any module of `Qins<B>` as a container.

use crate::{
    ImportError,
    container::{
        CONTAINER_FILE, Manifest, PRODUCER, hexadecimal,
        layout::{Layout, arrange, constants, header, header_room, version},
    },
    load::in_checkpoint,
    output::{Output, require_space, write_error},
};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, TensorPrimitive, backend::Backend},
};
use qins_backend::{ParamPath, Qins, QinsFloat};
use qins_codec::Encoded;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

/// Saves a module as a container in the directory `output`: coded parameters in their codes, bit for bit, all others in
/// f32. [`load_container`](crate::load_container) gives it back.
///
/// # Errors
/// If `output` exists, unless `force` allows to replace it and it is a container or an export as it was written, or cannot
/// be written.
pub fn save_container<B: Backend, M: Module<Qins<B>>>(
    module: &M,
    output: &Path,
    force: bool,
) -> Result<(), ImportError> {
    let target = Output::check(output, &[], force)?;
    let mut collected = Collect { path: ParamPath::default(), found: BTreeMap::new() };
    module.visit(&mut collected);
    let found = collected.found;

    let layout = |(name, saved): (&String, &Saved<B>)| {
        let header = saved.encoded().map(|encoded| *encoded.header());
        let row_bases = header.is_some_and(|header| header.row_bases);
        Layout::new(name, &saved.shape, header.map(|header| header.format), row_bases, ("F32", size_of::<f32>()))
            .map_err(|source| ImportError::Container { file: output.to_owned(), reason: format!("{name}: {source}") })
    };
    let mut tensors: Vec<Layout> = found.iter().map(layout).collect::<Result<_, _>>()?;
    arrange(&mut tensors);
    let mut manifest = Manifest {
        version: version(&tensors),
        producer: PRODUCER.to_owned(),
        policy: "as the module was".to_owned(),
        sources: Vec::new(),
        revision: None,
        tensors: BTreeMap::new(),
    };
    let mut data_bytes = 0;
    for tensor in &tensors {
        let mut hash = Sha256::new();
        let code = found[&tensor.name].write::<std::convert::Infallible>(tensor, |bytes| {
            hash.update(bytes);
            data_bytes += bytes.len() as u64;
            Ok(())
        });
        let Ok(code) = code;
        let sha256 = hexadecimal(hash.finalize());
        let info = tensor.info(code, sha256);
        manifest.tensors.insert(tensor.name.clone(), info);
    }

    let mut header = header(&tensors, &manifest);
    header.resize(header_room(header.len()), b' ');
    let partial = target.begin(&[CONTAINER_FILE])?;
    let write = |path: &Path| -> Result<(), ImportError> {
        require_space(partial.path(), data_bytes + header.len() as u64)?;
        let failed = write_error(path);
        let mut file = BufWriter::new(File::create(path).map_err(&failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
        file.write_all(&header).map_err(&failed)?;
        for tensor in &tensors {
            found[&tensor.name].write(tensor, |bytes| file.write_all(bytes)).map_err(&failed)?;
        }
        file.flush().map_err(&failed)
    };
    match write(&partial.path().join(CONTAINER_FILE)) {
        Ok(()) => partial.finish(None),
        Err(error) => partial.discard().and(Err(error)),
    }
}

/// A parameter as the checkpoint would have it; the tensor is shared with the module.
struct Saved<B: Backend> {
    shape: Vec<usize>,
    value: QinsFloat<B>,
    is_transposed: bool,
}

impl<B: Backend> Saved<B> {
    /// The codes, if the parameter is coded in the order of the checkpoint.
    fn encoded(&self) -> Option<Encoded> {
        match &self.value {
            QinsFloat::Coded(tensor, _) if self.is_transposed => tensor.clone().transpose().to_encoded(),
            QinsFloat::Coded(tensor, _) => tensor.to_encoded(),
            QinsFloat::Dense(_) => None,
        }
    }

    fn write<E>(
        &self,
        layout: &Layout,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<crate::container::CodeConstants>, E> {
        if let Some(encoded) = self.encoded() {
            layout.write_encoded(&encoded, write)?;
            return Ok((!encoded.header().format.is_raw()).then(|| constants(encoded.header(), None)));
        }
        let dense = self.value.clone().dense();
        let dense = if self.is_transposed { B::float_transpose(dense) } else { dense };
        let data = burn::tensor::read_sync(B::float_into_data(dense)).expect("a tensor can be read from its device");
        let values: Vec<f32> = data.convert::<f32>().into_vec().expect("just converted to f32");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        write(&bytes)?;
        Ok(None)
    }
}

struct Collect<B: Backend> {
    path: ParamPath,
    found: BTreeMap<String, Saved<B>>,
}

impl<B: Backend> ModuleVisitor<Qins<B>> for Collect<B> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Qins<B>, D>>) {
        let tensor = param.val();
        let (name, shape) = in_checkpoint(&self.path, tensor.dims().to_vec());
        let value = match tensor.into_primitive() {
            TensorPrimitive::Float(float) => float,
            TensorPrimitive::QFloat(coded) => QinsFloat::Coded(coded, burn::tensor::FloatDType::F32),
        };
        self.found.insert(name, Saved { shape, value, is_transposed: self.path.is_linear_weight() });
    }
}
