//! Every float operation of `Qins<B>` against `B`, made from the tables that make the delegation: with dense inputs the
//! same as `B`, with a coded input the same as `B` on the decoded one, each float argument coded in turn.

mod sample;
mod table_is_complete;

use super::{
    delegate::names,
    table::{activation_ops, bool_ops, float_ops, int_ops, module_ops},
};
use crate::Qins;
use burn_backend::{Backend, TensorData};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use sample::{Coded, Sample, SampleBackend, Samples, Variant};
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// The operations that are written by hand, in the form of the tables.
macro_rules! by_hand_ops {
    ($callback:ident) => {
        $callback! {
            fn float_matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;
            fn float_select(tensor: FloatTensor<Self>, dim: usize, indices: IntTensor<Self>) -> FloatTensor<Self>;
            fn float_gather(dim: usize, tensor: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self>;
            fn float_slice(tensor: FloatTensor<Self>, slices: &[Slice]) -> FloatTensor<Self>;
            fn float_expand(tensor: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self>;
            fn float_transpose(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
            fn float_swap_dims(tensor: FloatTensor<Self>, dim1: usize, dim2: usize) -> FloatTensor<Self>;
            fn float_permute(tensor: FloatTensor<Self>, axes: &[usize]) -> FloatTensor<Self>;
            fn float_reshape(tensor: FloatTensor<Self>, shape: Shape) -> FloatTensor<Self>;
            fn float_detach(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
            fn float_set_require_grad(tensor: FloatTensor<Self>, require_grad: bool) -> FloatTensor<Self>;
            fn float_is_require_grad(tensor: &FloatTensor<Self>) -> bool;
            fn float_device(tensor: &FloatTensor<Self>) -> Device<Self>;
            fn float_to_device(tensor: FloatTensor<Self>, device: &Device<Self>) -> FloatTensor<Self>;
            fn embedding(weights: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self>;
            fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: Option<FloatTensor<Self>>) -> FloatTensor<Self>;
            fn sigmoid(tensor: FloatTensor<Self>) -> FloatTensor<Self>;
        }
    };
}

use by_hand_ops;

/// A table as one generic function an operation: sampled arguments in, everything observable of the result out.
macro_rules! cases {
    () => { Vec::<Case<B>>::new() };
    // One line at a time, told apart by what it returns.
    (fn $name:ident($($args:tt)*) -> FloatTensor<Self>; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| vec![sample::read_float::<K>(a)]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> (FloatTensor<Self>, FloatTensor<Self>); $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |(a, b)| vec![sample::read_float::<K>(a), sample::read_float::<K>(b)]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> (FloatTensor<Self>, IntTensor<Self>); $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |(a, b)| vec![sample::read_float::<K>(a), sample::read_int::<K>(b)]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> IntTensor<Self>; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| vec![sample::read_int::<K>(a)]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> BoolTensor<Self>; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| vec![sample::read_bool::<K>(a)]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> bool; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| vec![TensorData::new(vec![a], [1])]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> Device<Self>; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| vec![sample::text(&a)]; $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> $fields:ident<Self>; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| sample::Fields::fields(a); $($rest)*)
    };
    (fn $name:ident($($args:tt)*) -> $future:ty; $($rest:tt)*) => {
        cases!(@case $name ($($args)*) |a| vec![read_sync(a).unwrap()]; $($rest)*)
    };
    (@case $name:ident ($($args:tt)*) |$result:pat_param| $observed:expr; $($rest:tt)*) => {{
        fn run<K: SampleBackend>(samples: &mut Samples<K>) -> Vec<TensorData> {
            samples.operation = stringify!($name);
            let $result = cases!(@ samples $name [] $($args)*);
            $observed
        }
        let case = Case { name: stringify!($name), inner: run::<B>, decorated: run::<Qins<B>> };
        case.and(cases!($($rest)*))
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: FloatTensor<Self> $(, $($rest:tt)*)?) => {{
        let value = $s.float(stringify!($arg));
        cases!(@ $s $name [$($a)* value,] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: &FloatTensor<Self> $(, $($rest:tt)*)?) => {{
        let value = $s.float(stringify!($arg));
        cases!(@ $s $name [$($a)* &value,] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: Option<FloatTensor<Self>> $(, $($rest:tt)*)?) => {{
        let value = $s.float(stringify!($arg));
        cases!(@ $s $name [$($a)* Some(value),] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: Vec<FloatTensor<Self>> $(, $($rest:tt)*)?) => {{
        let value = vec![$s.float(stringify!($arg)), $s.float(stringify!($arg))];
        cases!(@ $s $name [$($a)* value,] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: IntTensor<Self> $(, $($rest:tt)*)?) => {{
        let value = $s.int(stringify!($arg));
        cases!(@ $s $name [$($a)* value,] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: BoolTensor<Self> $(, $($rest:tt)*)?) => {{
        let value = $s.bool(stringify!($arg));
        cases!(@ $s $name [$($a)* value,] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: Option<BoolTensor<Self>> $(, $($rest:tt)*)?) => {{
        let value = $s.bool(stringify!($arg));
        cases!(@ $s $name [$($a)* Some(value),] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: &Device<Self> $(, $($rest:tt)*)?) => {
        cases!(@ $s $name [$($a)* &Default::default(),] $($($rest)*)?)
    };
    (@ $s:ident $name:ident [$($a:tt)*] $arg:ident: $type:ty $(, $($rest:tt)*)?) => {{
        let value = <$type as Sample>::sample($s.operation, stringify!($arg), $s.variant.width);
        cases!(@ $s $name [$($a)* value,] $($($rest)*)?)
    }};
    (@ $s:ident $name:ident [$($a:tt)*]) => {
        K::$name($($a)*)
    };
}

struct Case<B: Backend> {
    name: &'static str,
    inner: fn(&mut Samples<B>) -> Vec<TensorData>,
    decorated: fn(&mut Samples<Qins<B>>) -> Vec<TensorData>,
}

impl<B: Backend> Case<B> {
    fn and(self, mut others: Vec<Self>) -> Vec<Self> {
        others.push(self);
        others
    }
}

const VARIANTS: [Variant; 4] = [
    Variant { width: 40, strided: false, sparse: false },
    Variant { width: 64, strided: true, sparse: false },
    Variant { width: 33, strided: true, sparse: true },
    Variant { width: 32, strided: false, sparse: true },
];

/// Operations on codes may sum in another order than `B`; every other result is the same bit for bit.
const SUMS_ON_CODES: [&str; 2] = ["float_matmul", "linear"];

/// `refused_by_inner` lists the operations that the inner backend itself panics in, for some variant; `unsteady` those
/// whose bits differ there from run to run.
fn check<B: SampleBackend>(refused_by_inner: &[&str], unsteady: &[&str]) {
    use burn_backend::{Scalar, Shape, Slice, ops::*, tensor::*, *};
    let cases: Vec<Case<B>> = [float_ops!(cases), module_ops!(cases), activation_ops!(cases), by_hand_ops!(cases)]
        .into_iter()
        .flatten()
        .collect();
    let mut refused = BTreeSet::new();
    let mut failures = Vec::new();
    for (case, variant) in cases.iter().flat_map(|case| VARIANTS.map(|variant| (case, variant))) {
        // How many float arguments there are is known after the first run.
        let mut coded = Coded::None;
        loop {
            let mut samples = Samples::new(coded, variant);
            B::seed(&Default::default(), 7);
            let Ok(expected) = catch_unwind(AssertUnwindSafe(|| (case.inner)(&mut samples))) else {
                refused.insert(case.name);
                break;
            };
            let floats = samples.floats;
            B::seed(&Default::default(), 7);
            match catch_unwind(AssertUnwindSafe(|| (case.decorated)(&mut Samples::new(coded, variant)))) {
                Err(_) => failures.push(format!("{} with {coded:?}, {variant:?}: panicked", case.name)),
                Ok(found) => {
                    let tolerance = match case.name {
                        name if SUMS_ON_CODES.contains(&name) => 1e-5,
                        name if unsteady.contains(&name) => 1e-3,
                        _ => 0.0,
                    };
                    if let Err(difference) = sample::equal(&expected, &found, tolerance) {
                        failures.push(format!("{} with {coded:?}, {variant:?}: {difference}", case.name));
                    }
                }
            }
            match coded.next(floats) {
                Some(next) => coded = next,
                None => break,
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} runs of {} operations differ:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    assert_eq!(refused, refused_by_inner.iter().copied().collect(), "operations that the inner backend itself refuses");
    assert!(cases.len() > 190, "only {} cases", cases.len());
}

// One test for both backends: seeds are global.
#[test]
fn every_float_operation_equals_the_inner_backends() {
    check::<Flex>(&["float_argtopk", "ctc_loss_backward"], &[]);
    // NdArray refuses the last three on strided inputs only. It takes the processor's 12-bit reciprocal where an aligned
    // vector fits, and divides elsewhere; it adds gradients of a deformable convolution in the order its threads come.
    check::<NdArray>(
        &[
            "float_argtopk",
            "ctc_loss_backward",
            "rfft",
            "irfft",
            "float_scatter_nd",
            "float_gather_nd",
            "deform_conv2d_backward",
        ],
        &["float_recip", "log_sigmoid_backward", "deform_conv2d_backward"],
    );
}
