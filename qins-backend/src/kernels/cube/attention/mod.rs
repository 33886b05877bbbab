//! Keys and values in codes on the device: encoded there, and attended to there. They are decoded in registers, or for the
//! many queries of a prompt a tile at a time in a cube's own memory; never to the device's.

mod encode;
mod few;
mod many;
mod merge;
mod primitive;
mod room;

use super::{MAX_CUBES, OnDevice, fused, subgroup, traffic};
use crate::kv::{Append, Attend, BLOCK, KvLayout};
use burn_backend::{
    Backend, DType, Shape, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{
    CubeRuntime, fusion::FusionCubeRuntime, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use burn_fusion::FusionTensor;
use cubecl::{CubeCount, CubeDim};
use primitive::{float_from, float_into, is_float_of};
use room::{RoomLaunch, SeenLaunch, Stored};
use std::any::{Any, TypeId};

type Fused<R> = FusionTensor<FusionCubeRuntime<R>>;

fn is_plain<R: CubeRuntime, B: Backend>() -> bool {
    TypeId::of::<IntTensor<B>>() == TypeId::of::<CubeTensor<R>>() && is_float_of::<R, B, CubeTensor<R>>()
}

fn is_fused<R: CubeRuntime, B: Backend>() -> bool {
    TypeId::of::<IntTensor<B>>() == TypeId::of::<Fused<R>>() && is_float_of::<R, B, Fused<R>>()
}

/// Whether `B`'s tensors are those of `R`, fused or not, also within [`Qins`](crate::Qins).
pub(in super::super) fn runs<R: CubeRuntime, B: Backend>() -> bool {
    is_plain::<R, B>() || is_fused::<R, B>()
}

/// Whether a device's cubes have memory for the tiles of a layout.
pub(in super::super) fn keeps<R: CubeRuntime, B: Backend>(layout: &KvLayout, device: &B::Device) -> bool {
    let Some(device) = (device as &dyn Any).downcast_ref::<R::Device>() else { return false };
    let shared = R::client(device).properties().hardware.max_shared_memory_size;
    layout.lanes() <= MAX_CUBES && many::Tile::fitting(layout.head, shared).is_some()
}

/// New keys and values, with the room before them if there was one, to the room with them.
pub(in super::super) fn append<R: CubeRuntime, B: Backend>(
    append: Append,
    room: Option<IntTensor<B>>,
    keys: FloatTensor<B>,
    values: FloatTensor<B>,
) -> IntTensor<B> {
    let operation = Operation::Append(append);
    if is_plain::<R, B>() {
        let inputs = float_inputs::<R, B, CubeTensor<R>>([keys, values], room);
        same(operation.run(inputs))
    } else {
        let inputs = float_inputs::<R, B, Fused<R>>([keys, values], room);
        same(fused::register::<R, _>(operation, inputs))
    }
}

/// Attention of queries over what the room has.
pub(in super::super) fn attend<R: CubeRuntime, B: Backend>(
    attend: Attend,
    room: IntTensor<B>,
    queries: FloatTensor<B>,
    padding: Option<IntTensor<B>>,
) -> FloatTensor<B> {
    let operation = Operation::Attend(attend, queries.dtype());
    let ints = std::iter::once(room).chain(padding);
    if is_plain::<R, B>() {
        let inputs = float_inputs::<R, B, CubeTensor<R>>([queries], ints);
        float_from::<R, B, _>(operation.run(inputs))
    } else {
        let inputs = float_inputs::<R, B, Fused<R>>([queries], ints);
        float_from::<R, B, _>(fused::register::<R, _>(operation, inputs))
    }
}

/// Tensors as those of the device: floats, then the others.
fn float_inputs<R: CubeRuntime, B: Backend, T: 'static>(
    floats: impl IntoIterator<Item = FloatTensor<B>>,
    ints: impl IntoIterator<Item = IntTensor<B>>,
) -> Vec<T> {
    let floats = floats.into_iter().map(float_into::<R, B, T>);
    floats.chain(ints.into_iter().map(same::<IntTensor<B>, T>)).collect()
}

/// A value of a type that is known to be another's name. By value: clones would be references to a room that is written.
fn same<T: 'static, U: 'static>(value: T) -> U {
    let mut value = Some(value);
    let value: &mut dyn Any = &mut value;
    value.downcast_mut::<Option<U>>().and_then(Option::take).expect("the type was compared before")
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    /// Keys, values and the room, if there is one, to the room.
    Append(Append),
    /// Queries, the room and the padding, if there is any, to what the queries attend to, of the queries' type.
    Attend(Attend, DType),
}

impl OnDevice for Operation {
    fn shape(&self) -> Shape {
        match self {
            Self::Append(append) => Shape::new([append.capacity * append.layout.block_words()]),
            Self::Attend(Attend { layout, heads, tokens, .. }, _) => {
                Shape::new([layout.batch, *heads, *tokens, layout.head])
            }
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Append(_) => DType::U32,
            Self::Attend(_, dtype) => *dtype,
        }
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> CubeTensor<R> {
        let mut inputs = inputs.into_iter();
        match self {
            Self::Append(append) => {
                let new = [inputs.next(), inputs.next()].map(|new| into_contiguous(new.expect("keys and values")));
                run_append(append, self.shape(), new, inputs.next())
            }
            Self::Attend(attend, _) => {
                let queries = into_contiguous(inputs.next().expect("queries"));
                let room = inputs.next().expect("a room");
                run_attend(attend, queries, room, inputs.next())
            }
        }
    }
}

fn run_append<R: CubeRuntime>(
    append: &Append,
    shape: Shape,
    [keys, values]: [CubeTensor<R>; 2],
    room: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let &Append { layout, moved, at, tokens, .. } = append;
    let client = keys.client.clone();
    let block = layout.block_words();
    let stays = moved.is_none();
    let room = match room {
        Some(room) if stays && room.can_mut() => room,
        old => {
            traffic::count_cache_room();
            if old.is_some() {
                // What the rooms of layers before this one had.
                client.memory_cleanup();
            }
            // A room stays: it takes what it needs from the device, and no share of a page for what comes and goes.
            let empty = |()| empty_device_contiguous_dtype(client.clone(), keys.device.clone(), shape, DType::U32);
            let new = client.memory_persistent_allocation((), empty).expect("what is asked for is made here");
            if let Some(old) = old {
                // Where something else refers to the room, a clone of the cache, it is kept as it is.
                let [blocks, from] = moved.unwrap_or([at.div_ceil(BLOCK), 0]);
                room::copy(&old, &new, from * block, blocks * block);
            }
            new
        }
    };
    let stored = Stored::new(&layout, false);
    let cubes = (layout.lanes() * tokens).div_ceil(encode::ROWS);
    let across = cubes.min(MAX_CUBES);
    let dtypes = [keys.dtype.into(), values.dtype.into()];
    // SAFETY: rows and columns are below their numbers where they are read and written, and `at + tokens` is within the room.
    unsafe {
        encode::encode::launch_unchecked(
            &client,
            CubeCount::Static(across as u32, cubes.div_ceil(across) as u32, 2),
            CubeDim::new_2d(room::LANES as u32, encode::ROWS as u32),
            keys.into_array_arg(),
            values.into_array_arg(),
            room.clone().into_array_arg(),
            at,
            tokens,
            layout.lanes(),
            stored,
            dtypes,
        );
    }
    room
}

fn run_attend<R: CubeRuntime>(
    attend: &Attend,
    queries: CubeTensor<R>,
    room: CubeTensor<R>,
    padding: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let &Attend { layout, tokens, len, before, window, .. } = attend;
    let (client, device) = (queries.client.clone(), queries.device.clone());
    let (rows, lanes) = (attend.rows(), layout.lanes());
    let out = empty_device_contiguous_dtype(client.clone(), device.clone(), queries.shape(), queries.dtype);
    let dtype = queries.dtype.into();
    let stored = Stored::new(&layout, padding.is_some());
    // Without padding the kernel reads none.
    let padding = padding.unwrap_or_else(|| room.clone());
    let start = attend.start();
    let bytes_seen = (len - start) * lanes * layout.format.token_bytes(layout.head);
    let room_arg = RoomLaunch::new(room.into_array_arg(), padding.into_array_arg(), lanes, layout.kv_heads, before);
    let window = window.min(u32::MAX as usize / 2);
    let shared = client.properties().hardware.max_shared_memory_size;
    let subgroup = subgroup(&client, |units| units.is_multiple_of(room::LANES) && few::UNITS.is_multiple_of(units));
    // SAFETY: tokens, rows and columns are below their numbers where they are read and written.
    unsafe {
        let memory = few::shared_bytes(&stored, rows, subgroup).max(merge::shared_bytes(layout.head));
        if rows <= few::ROWS && memory <= shared {
            traffic::count_cache_bytes(bytes_seen);
            let span = few::span(lanes, len - start);
            let splits = (len - start).div_ceil(span);
            let parts = Shape::new([lanes * splits * rows * (layout.head + 2)]);
            let parts = empty_device_contiguous_dtype(client.clone(), device, parts, DType::F32);
            few::few::launch_unchecked(
                &client,
                CubeCount::Static(splits as u32, lanes as u32, 1),
                CubeDim::new_2d(room::LANES as u32, few::SLOTS as u32),
                queries.into_array_arg(),
                room_arg,
                SeenLaunch::new(len, tokens, window, start),
                parts.clone().into_array_arg(),
                span,
                splits,
                rows,
                subgroup,
                stored,
                dtype,
            );
            merge::merge::launch_unchecked(
                &client,
                CubeCount::Static(rows as u32, lanes as u32, 1),
                CubeDim::new_2d(merge::SIDE[0] as u32, merge::SIDE[1] as u32),
                parts.into_array_arg(),
                out.clone().into_array_arg(),
                lanes,
                rows,
                splits,
                layout.head,
                dtype,
            );
        } else {
            let tile = many::Tile::fitting(layout.head, shared).expect("as was asked for the layout");
            // Where one reads them all.
            traffic::count_cache_bytes(rows.div_ceil(tile.queries()) * bytes_seen);
            many::many::launch_unchecked(
                &client,
                CubeCount::Static(rows.div_ceil(tile.queries()) as u32, lanes as u32, 1),
                CubeDim::new_2d(many::SIDE[0] as u32, many::SIDE[1] as u32),
                queries.into_array_arg(),
                room_arg,
                SeenLaunch::new(len, tokens, window, start),
                out.clone().into_array_arg(),
                rows,
                tile,
                stored,
                dtype,
            );
        }
    }
    out
}
