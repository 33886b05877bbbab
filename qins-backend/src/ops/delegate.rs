//! Makes a method of `Qins<B>` from a line of `table.rs`: float arguments are decoded if need be, everything else is
//! passed on, and float results are wrapped.

use crate::{Qins, QinsFloat};
use burn_backend::{
    Backend,
    ops::{DeformConv2dBackward, MaxPool1dBackward, MaxPool1dWithIndices, MaxPool2dBackward, MaxPool2dWithIndices},
    tensor::{FloatTensor, IntTensor},
};

macro_rules! delegate {
    () => {};
    // One line at a time, told apart by what it returns.
    (fn $name:ident($($args:tt)*) -> FloatTensor<Self>; $($rest:tt)*) => {
        delegate!(@ $name (FloatTensor<Self>) ($crate::QinsFloat::Dense) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> (FloatTensor<Self>, FloatTensor<Self>); $($rest:tt)*) => {
        delegate!(@ $name ((FloatTensor<Self>, FloatTensor<Self>)) ($crate::ops::delegate::both::<B>) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> (FloatTensor<Self>, IntTensor<Self>); $($rest:tt)*) => {
        delegate!(@ $name ((FloatTensor<Self>, IntTensor<Self>)) ($crate::ops::delegate::first::<B>) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> IntTensor<Self>; $($rest:tt)*) => {
        delegate!(@ $name (IntTensor<Self>) (core::convert::identity) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> BoolTensor<Self>; $($rest:tt)*) => {
        delegate!(@ $name (BoolTensor<Self>) (core::convert::identity) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> Device<Self>; $($rest:tt)*) => {
        delegate!(@ $name (Device<Self>) (core::convert::identity) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> $fields:ident<Self>; $($rest:tt)*) => {
        delegate!(@ $name ($fields<Self>) ($crate::ops::delegate::Rebuild::rebuild) [] [] $($args)*);
        delegate!($($rest)*);
    };
    (fn $name:ident($($args:tt)*) -> $result:ty; $($rest:tt)*) => {
        delegate!(@ $name ($result) (core::convert::identity) [] [] $($args)*);
        delegate!($($rest)*);
    };

    // One argument at a time: [parameters] and [arguments] of the call grow.
    (@ $name:ident $result:tt $wrap:tt [$($p:tt)*] [$($a:tt)*] $arg:ident: FloatTensor<Self> $(, $($rest:tt)*)?) => {
        delegate!(@ $name $result $wrap [$($p)* $arg: FloatTensor<Self>,] [$($a)* $arg.dense(),] $($($rest)*)?);
    };
    (@ $name:ident $result:tt $wrap:tt [$($p:tt)*] [$($a:tt)*] $arg:ident: Option<FloatTensor<Self>> $(, $($rest:tt)*)?) => {
        delegate!(@ $name $result $wrap
            [$($p)* $arg: Option<FloatTensor<Self>>,] [$($a)* $arg.map($crate::QinsFloat::dense),] $($($rest)*)?);
    };
    (@ $name:ident $result:tt $wrap:tt [$($p:tt)*] [$($a:tt)*] $arg:ident: Vec<FloatTensor<Self>> $(, $($rest:tt)*)?) => {
        delegate!(@ $name $result $wrap
            [$($p)* $arg: Vec<FloatTensor<Self>>,]
            [$($a)* $arg.into_iter().map($crate::QinsFloat::dense).collect(),]
            $($($rest)*)?);
    };
    (@ $name:ident $result:tt $wrap:tt [$($p:tt)*] [$($a:tt)*] $arg:ident: $type:ty $(, $($rest:tt)*)?) => {
        delegate!(@ $name $result $wrap [$($p)* $arg: $type,] [$($a)* $arg,] $($($rest)*)?);
    };
    (@ $name:ident ($($result:tt)*) ($($wrap:tt)*) [$($p:tt)*] [$($a:tt)*]) => {
        fn $name($($p)*) -> $($result)* {
            $($wrap)*(B::$name($($a)*))
        }
    };
}
pub(crate) use delegate;

/// The names of a table's operations.
#[cfg(test)]
macro_rules! names {
    ($(fn $name:ident($($args:tt)*) -> $result:ty;)*) => { &[$(stringify!($name)),*] };
}
#[cfg(test)]
pub(crate) use names;

pub(crate) fn first<B: Backend>(
    (float, int): (FloatTensor<B>, IntTensor<B>),
) -> (FloatTensor<Qins<B>>, IntTensor<Qins<B>>) {
    (QinsFloat::Dense(float), int)
}

pub(crate) fn both<B: Backend>((a, b): (FloatTensor<B>, FloatTensor<B>)) -> (QinsFloat<B>, QinsFloat<B>) {
    (QinsFloat::Dense(a), QinsFloat::Dense(b))
}

/// Results that Burn types by backend, rebuilt field by field.
pub(crate) trait Rebuild<T> {
    fn rebuild(self) -> T;
}

macro_rules! rebuild {
    ($name:ident { $($float:ident),* $(; optional $($optional:ident),*)? $(; same $($same:ident),*)? }) => {
        impl<B: Backend> Rebuild<$name<Qins<B>>> for $name<B> {
            fn rebuild(self) -> $name<Qins<B>> {
                $name {
                    $($float: QinsFloat::Dense(self.$float),)*
                    $($($optional: self.$optional.map(QinsFloat::Dense),)*)?
                    $($($same: self.$same,)*)?
                }
            }
        }
    };
}

rebuild!(DeformConv2dBackward { x_grad, offset_grad, weight_grad; optional mask_grad, bias_grad });
rebuild!(MaxPool1dBackward { x_grad });
rebuild!(MaxPool1dWithIndices { output; same indices });
rebuild!(MaxPool2dBackward { x_grad });
rebuild!(MaxPool2dWithIndices { output; same indices });
