use crate::{
    device::{BackendName, Device},
    output,
};
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    devices: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    /// As `--backend` takes it.
    backend: String,
    name: String,
    /// Of a graphics device.
    #[serde(skip_serializing_if = "Option::is_none")]
    graphics: Option<Graphics>,
}

#[derive(Serialize)]
struct Graphics {
    api: String,
    kind: String,
    /// The largest tensor that it holds; coded weights beyond that are cut.
    max_buffer_bytes: u64,
    f16: bool,
    /// Units that work in step, from and to; none where kernels cannot use them.
    subgroups: Option<[u32; 2]>,
}

pub fn run(args: Args) -> Result<()> {
    let devices: Vec<Line> = BackendName::value_variants().iter().flat_map(|&name| lines(name)).collect();
    if args.json {
        return output::json(&Report { devices });
    }
    let text: String = devices.iter().map(|line| format!("{:8} {}\n", line.backend, describe(line))).collect();
    output::text(&text)
}

fn describe(line: &Line) -> String {
    let Some(graphics) = &line.graphics else { return line.name.clone() };
    let subgroups = match graphics.subgroups {
        Some([from, to]) if from == to => format!("subgroups of {from}"),
        Some([from, to]) => format!("subgroups of {from} to {to}"),
        None => "no subgroups".to_owned(),
    };
    format!(
        "{}, {}, {}; tensors of up to {:.2} GB each, {} f16, {subgroups}",
        line.name,
        graphics.api,
        graphics.kind,
        graphics.max_buffer_bytes as f64 / 1e9,
        if graphics.f16 { "with" } else { "without" },
    )
}

fn lines(name: BackendName) -> Vec<Line> {
    let plain = |text: &str| {
        let device = Device { name, index: None };
        vec![Line { backend: device.to_string(), name: text.to_owned(), graphics: None }]
    };
    match name {
        #[cfg(feature = "flex")]
        BackendName::Flex => plain("the processor"),
        #[cfg(feature = "ndarray")]
        BackendName::Ndarray => plain("the processor, by ndarray"),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => {
            let lines: Vec<Line> = crate::device::wgpu_devices().iter().enumerate().map(wgpu_line).collect();
            if lines.is_empty() { plain("no graphics device was found") } else { lines }
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => plain("NVIDIA's devices, cuda:0 and up"),
    }
}

#[cfg(feature = "wgpu")]
fn wgpu_line((index, device): (usize, &burn_wgpu::WgpuDevice)) -> Line {
    use burn_wgpu::{RuntimeOptions, WgpuRuntime, graphics::AutoGraphicsApi, init_setup};
    use cubecl::{
        Runtime,
        features::{Plane, TypeUsage},
        ir::{ElemType, FloatKind, StorageType},
    };
    let adapter = init_setup::<AutoGraphicsApi>(device, RuntimeOptions::default()).adapter.get_info();
    let client = WgpuRuntime::client(device);
    let properties = client.properties();
    let half = StorageType::Scalar(ElemType::Float(FloatKind::F16));
    let hardware = &properties.hardware;
    let subgroups = properties.features.plane.contains(Plane::Ops);
    Line {
        backend: Device { name: BackendName::Wgpu, index: Some(index) }.to_string(),
        name: adapter.name,
        graphics: Some(Graphics {
            api: format!("{:?}", adapter.backend),
            kind: format!("{:?}", adapter.device_type),
            max_buffer_bytes: properties.memory.max_page_size,
            f16: properties.type_usage(half).contains(TypeUsage::Arithmetic),
            subgroups: subgroups.then_some([hardware.plane_size_min, hardware.plane_size_max]),
        }),
    }
}
