//! What computes: a backend that the program was built with, and a device of it.

use clap::ValueEnum;
use std::{fmt, str::FromStr};

/// A backend of Burn.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The processor.
    #[cfg(feature = "flex")]
    Flex,
    /// The processor, by ndarray.
    #[cfg(feature = "ndarray")]
    Ndarray,
    /// Graphics devices.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// NVIDIA's.
    #[cfg(feature = "cuda")]
    Cuda,
}

impl BackendName {
    /// Whether it may have several devices.
    fn has_devices(self) -> bool {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => false,
            #[cfg(feature = "ndarray")]
            Self::Ndarray => false,
            #[cfg(feature = "wgpu")]
            Self::Wgpu => true,
            #[cfg(feature = "cuda")]
            Self::Cuda => true,
        }
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("no backend is hidden").get_name())
    }
}

/// A backend and perhaps one of its devices: `wgpu`, `wgpu:1`.
#[derive(Clone, Copy)]
pub struct Device {
    pub name: BackendName,
    pub index: Option<usize>,
}

/// The first backend that the program was built with.
impl Default for Device {
    fn default() -> Self {
        Self { name: BackendName::value_variants()[0], index: None }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let Ok(name) = BackendName::from_str(name, false) else {
            let names: Vec<String> = BackendName::value_variants().iter().map(BackendName::to_string).collect();
            return Err(format!("expected one of {}", names.join(", ")));
        };
        match index.map(str::parse) {
            None => Ok(Self { name, index: None }),
            Some(Ok(index)) if name.has_devices() => Ok(Self { name, index: Some(index) }),
            Some(_) if name.has_devices() => Err(format!("expected {name} or {name}:0 and up")),
            Some(_) => Err(format!("{name} has no devices to choose from")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}:{index}", self.name),
            None => self.name.fmt(f),
        }
    }
}

#[cfg(feature = "wgpu")]
impl Device {
    /// # Errors
    /// If there is no graphics device, or none of this number.
    pub fn wgpu(self) -> anyhow::Result<burn_wgpu::WgpuDevice> {
        let devices = wgpu_devices();
        if devices.is_empty() {
            anyhow::bail!("no graphics device was found");
        }
        match self.index {
            // What the system prefers.
            None => Ok(burn_wgpu::WgpuDevice::DefaultDevice),
            Some(index) => match devices.into_iter().nth(index) {
                Some(device) => Ok(device),
                None => anyhow::bail!("{self}: no such device; see `qins devices`"),
            },
        }
    }
}

/// Graphics devices: those with memory of their own first, those of software last.
#[cfg(feature = "wgpu")]
pub fn wgpu_devices() -> Vec<burn_wgpu::WgpuDevice> {
    use burn_wgpu::{
        WgpuDevice, WgpuRuntime,
        graphics::{AutoGraphicsApi, GraphicsApi},
    };
    use cubecl::{Runtime, device::Device as _};
    let kinds = [WgpuDevice::DiscreteGpu(0), WgpuDevice::IntegratedGpu(0), WgpuDevice::VirtualGpu(0), WgpuDevice::Cpu];
    let of_kind = |kind: WgpuDevice| WgpuRuntime::enumerate_devices(kind.to_id().type_id, &AutoGraphicsApi::backend());
    kinds.into_iter().flat_map(of_kind).map(WgpuDevice::from_id).collect()
}

#[cfg(feature = "cuda")]
impl Device {
    pub fn cuda(self) -> burn_cuda::CudaDevice {
        burn_cuda::CudaDevice { index: self.index.unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_printed() {
        for &name in BackendName::value_variants() {
            assert_eq!(name.to_string().parse::<Device>().unwrap().to_string(), name.to_string());
            let numbered = format!("{name}:1").parse::<Device>();
            assert_eq!(numbered.is_ok(), name.has_devices());
            assert!(format!("{name}:x").parse::<Device>().is_err());
        }
        assert!("abacus".parse::<Device>().is_err());
    }
}
