//! Which instruction set the kernels run on: all run-time detection stands here.
//!
//! A kernel of encoding is written once, in plain Rust over arrays of lanes, and compiled once for each [`Level`]. Rust
//! neither fuses nor reorders float operations, so that every level writes the same bits, and a level decides speed alone.
//! Kernels of products, `kernels`, are written for their instructions: of those the last bits differ.

use crate::error::UnknownLevel;
use std::{
    str::FromStr,
    sync::atomic::{AtomicU8, Ordering},
};

/// A set of instructions that kernels are compiled for.
///
/// ```
/// use qins_codec::Level;
///
/// // Slower, and the same bits of all but products.
/// Level::Scalar.set_current();
/// assert_eq!(Level::current(), Level::Scalar);
/// Level::detected().set_current();
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// What every processor of the architecture has.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same instructions; products of one input with `q8`, `fpins:1`, `lin8` and `q4` are sums of integers, for which
    /// inputs are rounded to 16-bit fixed point: to within 2^-15 of the largest of each 256 of them. Products of many inputs
    /// are as at [`Avx512Fixed`](Self::Avx512Fixed). In `q8` and `fpins:1` the last 16 magnitudes are rounded to within
    /// 1.5 * 2^-13 of the group's scale, others not at all.
    Avx2Fixed,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VBMI besides.
    Avx512,
    /// With AVX-512 VNNI besides: since Ice Lake and Zen 4. Products of many inputs with formats of at most 8 bits are sums of
    /// integers, for which inputs and weights are rounded to 14-bit fixed point: to within 2^-14 of the largest of some 32
    /// of them, or of the group's scale.
    Avx512Fixed,
    /// AArch64 with NEON.
    Neon,
}

/// The level set by [`Level::set_current`], as its discriminant.
static CURRENT: AtomicU8 = AtomicU8::new(NOT_SET);
const NOT_SET: u8 = u8::MAX;

impl Level {
    /// Every level, slowest first.
    pub const ALL: [Level; 6] =
        [Level::Scalar, Level::Avx2, Level::Avx2Fixed, Level::Avx512, Level::Avx512Fixed, Level::Neon];

    /// Whether this processor has the instructions.
    pub fn is_supported(self) -> bool {
        // The standard library keeps what it has detected.
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx2Fixed => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Fixed => Level::Avx512.is_supported() && is_x86_feature_detected!("avx512vnni"),
            Level::Neon => cfg!(all(target_arch = "aarch64", target_feature = "neon")),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The levels of this processor, slowest first.
    pub fn all_supported() -> impl Iterator<Item = Level> {
        Self::ALL.into_iter().filter(|level| level.is_supported())
    }

    /// The fastest level of this processor.
    pub fn detected() -> Level {
        Self::all_supported().last().unwrap_or(Level::Scalar)
    }

    /// The level that kernels run at: the detected one, if no other was set.
    pub fn current() -> Level {
        let set = CURRENT.load(Ordering::Relaxed);
        Self::ALL.into_iter().find(|&level| level as u8 == set).unwrap_or_else(Self::detected)
    }

    /// Makes all kernels of this process run at this level, to compare or to rule out a fault.
    ///
    /// # Panics
    /// If this processor lacks the instructions.
    pub fn set_current(self) {
        assert!(self.is_supported(), "this processor lacks {}", self.name());
        CURRENT.store(self as u8, Ordering::Relaxed);
    }

    /// The same instructions, and no product in fixed point.
    pub fn in_float(self) -> Level {
        match self {
            Level::Avx2Fixed => Level::Avx2,
            Level::Avx512Fixed => Level::Avx512,
            other => other,
        }
    }

    /// The name used on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx2Fixed => "avx2-fixed",
            Level::Avx512 => "avx512",
            Level::Avx512Fixed => "avx512-fixed",
            Level::Neon => "neon",
        }
    }

    /// Those of this processor.
    pub(crate) fn names() -> String {
        Self::all_supported().map(Self::name).collect::<Vec<_>>().join(", ")
    }

    /// Runs a kernel compiled for this level.
    ///
    /// # Panics
    /// If this processor lacks the instructions.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<K: Kernel>(kernel: K) -> K::Output {
                kernel.run()
            }

            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
            fn avx512<K: Kernel>(kernel: K) -> K::Output {
                kernel.run()
            }

            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
            fn avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
                kernel.run()
            }

            match self {
                Level::Scalar | Level::Neon => {}
                Level::Avx2 | Level::Avx2Fixed => {
                    assert!(self.is_supported());
                    // SAFETY: `is_supported` has found every feature of `avx2`.
                    return unsafe { avx2(kernel) };
                }
                Level::Avx512 => {
                    assert!(self.is_supported());
                    // SAFETY: `is_supported` has found every feature of `avx512`.
                    return unsafe { avx512(kernel) };
                }
                Level::Avx512Fixed => {
                    assert!(self.is_supported());
                    // SAFETY: `is_supported` has found every feature of `avx512_vnni`.
                    return unsafe { avx512_vnni(kernel) };
                }
            }
        }
        // NEON is part of every AArch64 target that has it: there is nothing to switch on.
        kernel.run()
    }
}

/// By name, of those that this processor has.
impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Self::all_supported().find(|level| level.name() == name).ok_or_else(|| UnknownLevel { found: name.to_owned() })
    }
}

/// Work that is compiled once for each level.
pub(crate) trait Kernel {
    /// What the work returns.
    type Output;

    /// The work. It and what it calls must be `#[inline(always)]`: only what is inlined into the function of a level is
    /// compiled for that level.
    fn run(self) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_level_is_supported_and_the_last() {
        assert!(Level::detected().is_supported());
        assert_eq!(Level::all_supported().next(), Some(Level::Scalar));
        assert!(Level::all_supported().all(|level| level <= Level::detected()));
    }

    #[test]
    fn names_of_this_processors_levels_round_trip() {
        for level in Level::ALL {
            assert_eq!(level.name().parse().ok(), Some(level).filter(|level| level.is_supported()));
        }
        let message = "mmx".parse::<Level>().unwrap_err().to_string();
        assert!(message.starts_with("no instruction set `mmx` on this processor: expected one of scalar"), "{message}");
    }

    #[test]
    fn every_supported_level_runs() {
        struct Double(u32);
        impl Kernel for Double {
            type Output = u32;
            fn run(self) -> u32 {
                self.0 * 2
            }
        }
        for level in Level::all_supported() {
            assert_eq!(level.run(Double(4)), 8, "{level:?}");
        }
    }
}
