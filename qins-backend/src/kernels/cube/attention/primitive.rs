//! Float tensors of `B` as those of its device. Within [`Qins`](crate::Qins) they are of a type of its own, which is found among the
//! backends that a device has.

use crate::QinsFloat;
use burn_backend::{Backend, bf16, f16, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, CubeRuntime};
use burn_fusion::Fusion;
use std::any::{Any, TypeId};

/// `$call` for every backend of the device `R`, until one gives something.
macro_rules! first {
    ($runtime:ident, $inner:ident => $call:expr) => {
        first!(@floats $runtime, $inner, $call, f32, f16, bf16)
    };
    (@floats $runtime:ident, $inner:ident, $call:expr, $($float:ty),*) => {
        None$(.or_else(|| first!(@bools $runtime, $inner, $call, $float, u32, u8)))*
    };
    (@bools $runtime:ident, $inner:ident, $call:expr, $float:ty, $($bool:ty),*) => {
        None$(.or_else(|| {
            {
                type $inner<R> = CubeBackend<R, $float, i32, $bool>;
                $call
            }
            .or_else(|| {
                type $inner<R> = Fusion<CubeBackend<R, $float, i32, $bool>>;
                $call
            })
        }))*
    };
}

/// Whether `B`'s float tensors are `T`, or are it within [`Qins`](crate::Qins).
pub(super) fn is_float_of<R: CubeRuntime, B: Backend, T: 'static>() -> bool {
    let float = TypeId::of::<FloatTensor<B>>();
    let within: Option<()> = first!(R, Inner => {
        let is = float == TypeId::of::<QinsFloat<Inner<R>>>() && is::<FloatTensor<Inner<R>>, T>();
        is.then_some(())
    });
    is::<FloatTensor<B>, T>() || within.is_some()
}

fn is<T: 'static, U: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<U>()
}

/// A tensor as the device's.
pub(super) fn float_into<R: CubeRuntime, B: Backend, T: 'static>(tensor: FloatTensor<B>) -> T {
    if is::<FloatTensor<B>, T>() {
        return super::same(tensor);
    }
    let mut tensor = Some(tensor);
    let tensor: &mut dyn Any = &mut tensor;
    let found = first!(R, Inner => {
        let within = tensor.downcast_mut::<Option<QinsFloat<Inner<R>>>>().and_then(Option::take);
        within.map(|float| super::same(float.dense()))
    });
    found.expect("a type that was found before")
}

/// A tensor of the device as `B`'s.
pub(super) fn float_from<R: CubeRuntime, B: Backend, T: 'static>(tensor: T) -> FloatTensor<B> {
    if is::<FloatTensor<B>, T>() {
        return super::same(tensor);
    }
    let mut tensor = Some(tensor);
    let found = first!(R, Inner => {
        if is::<FloatTensor<B>, QinsFloat<Inner<R>>>() {
            tensor.take().map(|tensor| super::same(QinsFloat::<Inner<R>>::Dense(super::same(tensor))))
        } else {
            None
        }
    });
    found.expect("a type that was found before")
}
