//! The record's arithmetic on codes by tables: the sum, the product and the reciprocal of codes is a code again.
//!
//! A code `c` of `1..=255` stands for `mu(c) = scale / c`, the inverse law; code 0, which that law leaves free, stands for
//! 0. A result is the code nearest to the exact one, `scale / value`, clamped to `1..=255`.
//!
//! The "conservation" of the record is `mu(a (+) b) = mu(a) + mu(b)`. It holds as well as the nearest code does for one sum,
//! and not for many: a running sum stands still once a term is below half a code. The sum does not depend on the scale, but
//! the product needs one of about 256 to stay within the codes and the reciprocal one of 16, so that no scale serves both.
//! The record's code error, mean 3.5 and at most 256, is none of these: it does not say of what.

/// Bytes of the three tables: 129 KB.
pub const BYTES: usize = 2 * 256 * 256 + 256;

/// What the tables compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `mu(a) + mu(b)`.
    Sum,
    /// `mu(a) mu(b)`.
    Product,
    /// `1 / mu(a)`.
    Reciprocal,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 3] = [Operation::Sum, Operation::Product, Operation::Reciprocal];
}

/// What an operation loses over all codes of `1..=255`, or all pairs of them; `c` is the code it gives, `value` the exact
/// result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Mean of `|c - scale / value|`.
    pub mean_code: f64,
    /// Its largest.
    pub max_code: f64,
    /// Mean of `|mu(c) - value| / value`.
    pub mean_value: f64,
    /// Its largest.
    pub max_value: f64,
}

/// The tables QINS_ADD, QINS_MUL and QINS_RECIPROCAL of the record.
#[derive(Clone)]
pub struct Tables {
    scale: f64,
    add: Box<[u8]>,
    mul: Box<[u8]>,
    reciprocal: Box<[u8]>,
}

impl Tables {
    /// Computes the tables for `mu(c) = scale / c`.
    ///
    /// # Panics
    /// If the scale is not a finite number above 0.
    pub fn new(scale: f64) -> Self {
        assert!(scale.is_finite() && scale > 0.0, "scale {scale} of the codes");
        let nearest = |exact: f64| exact.round().clamp(1.0, 255.0) as u8;
        let add = |a, b| match (a, b) {
            (0, other) | (other, 0) => other,
            (a, b) => nearest(f64::from(a) * f64::from(b) / (f64::from(a) + f64::from(b))),
        };
        let mul = |a, b| if a == 0 || b == 0 { 0 } else { nearest(f64::from(a) * f64::from(b) / scale) };
        let reciprocal = |a| if a == 0 { 0 } else { nearest(scale * scale / f64::from(a)) };
        let pairs = || (0..=255u8).flat_map(|a| (0..=255u8).map(move |b| (a, b)));
        Self {
            scale,
            add: pairs().map(|(a, b)| add(a, b)).collect(),
            mul: pairs().map(|(a, b)| mul(a, b)).collect(),
            reciprocal: (0..=255).map(reciprocal).collect(),
        }
    }

    /// What a code stands for: `scale / code`, and 0 for code 0.
    pub fn mu(&self, code: u8) -> f64 {
        if code == 0 { 0.0 } else { self.scale / f64::from(code) }
    }

    /// The code of `mu(a) + mu(b)`; code 1 where that is beyond it.
    pub fn add(&self, a: u8, b: u8) -> u8 {
        self.add[usize::from(a) << 8 | usize::from(b)]
    }

    /// The code of `mu(a) mu(b)`.
    pub fn mul(&self, a: u8, b: u8) -> u8 {
        self.mul[usize::from(a) << 8 | usize::from(b)]
    }

    /// The code of `1 / mu(a)`; 0 for code 0.
    pub fn reciprocal(&self, a: u8) -> u8 {
        self.reciprocal[usize::from(a)]
    }

    /// What an operation loses, over all codes above 0.
    pub fn loss(&self, operation: Operation) -> Loss {
        let second = if operation == Operation::Reciprocal { 1..=1 } else { 1..=255 };
        let mut loss = Loss { mean_code: 0.0, max_code: 0.0, mean_value: 0.0, max_value: 0.0 };
        let results = 255.0 * second.clone().count() as f64;
        for (a, b) in (1..=255).flat_map(|a| second.clone().map(move |b| (a, b))) {
            let (code, value) = match operation {
                Operation::Sum => (self.add(a, b), self.mu(a) + self.mu(b)),
                Operation::Product => (self.mul(a, b), self.mu(a) * self.mu(b)),
                Operation::Reciprocal => (self.reciprocal(a), 1.0 / self.mu(a)),
            };
            let of_code = (f64::from(code) - self.scale / value).abs();
            let of_value = (self.mu(code) / value - 1.0).abs();
            loss.mean_code += of_code / results;
            loss.mean_value += of_value / results;
            loss.max_code = loss.max_code.max(of_code);
            loss.max_value = loss.max_value.max(of_value);
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_bytes_of_the_record() {
        let tables = Tables::new(256.0);
        assert_eq!((BYTES, tables.add.len() + tables.mul.len() + tables.reciprocal.len()), (131_328, BYTES));
    }

    #[test]
    fn results_are_the_codes_nearest_to_the_exact_ones() {
        for scale in [1.0, 16.0, 256.0] {
            let tables = Tables::new(scale);
            // Every table entry against the value it stands for.
            let check = |code: u8, value: f64| {
                let exact = (scale / value).clamp(1.0, 255.0);
                assert!((f64::from(code) - exact).abs() <= 0.5 + 1e-9, "{code} for {exact} at scale {scale}");
            };
            for (a, b) in (1..=255).flat_map(|a| (1..=255).map(move |b| (a, b))) {
                check(tables.add(a, b), tables.mu(a) + tables.mu(b));
                check(tables.mul(a, b), tables.mu(a) * tables.mu(b));
                check(tables.reciprocal(a), 1.0 / tables.mu(a));
            }
        }
        let tables = Tables::new(16.0);
        // 16/60 + 16/30 = 16/20, 16/4 * 16/8 = 16/2, 1 / (16/4) = 16/64.
        assert_eq!((tables.add(60, 30), tables.mul(4, 8), tables.reciprocal(4)), (20, 2, 64));
    }

    #[test]
    fn code_0_is_zero() {
        let tables = Tables::new(16.0);
        for a in 0..=255 {
            assert_eq!((tables.add(a, 0), tables.mul(0, a)), (a, 0));
        }
        assert_eq!((tables.mu(0), tables.reciprocal(0)), (0.0, 0));
    }

    #[test]
    fn one_sum_is_conserved_to_half_a_code() {
        let loss = Tables::new(256.0).loss(Operation::Sum);
        assert!((0.24..0.26).contains(&loss.mean_code) && (loss.max_code - 0.5).abs() < 1e-9, "{loss:?}");
        // The largest is 1 (+) 1 = 1: code 1/2 is none.
        assert!((0.0085..0.0095).contains(&loss.mean_value) && (loss.max_value - 0.5).abs() < 1e-9, "{loss:?}");
        let at_16 = Tables::new(16.0).loss(Operation::Sum);
        assert!((loss.mean_value - at_16.mean_value).abs() < 1e-9);
    }

    #[test]
    fn a_running_sum_stands_still() {
        let tables = Tables::new(256.0);
        let (mut code, mut sum) = (0, 0.0);
        for _ in 0..255 {
            (code, sum) = (tables.add(code, 255), sum + tables.mu(255));
        }
        // 255 times the smallest is the magnitude of code 1; the tables reach an eleventh of it.
        assert!((sum / tables.mu(1) - 1.0).abs() < 1e-9);
        assert_eq!((code, tables.add(code, 255)), (11, 11));
    }

    #[test]
    fn no_scale_serves_product_and_reciprocal() {
        let loss = |scale, operation| Tables::new(scale).loss(operation);
        let product = loss(256.0, Operation::Product);
        assert!(product.mean_value < 0.03 && product.max_code <= 1.0, "{product:?}");
        assert!(Tables::new(256.0).reciprocal[1..].iter().all(|&code| code == 255));
        assert!(loss(256.0, Operation::Reciprocal).mean_value > 5.0);
        let reciprocal = loss(16.0, Operation::Reciprocal);
        assert!(reciprocal.mean_value < 0.13 && reciprocal.max_code <= 1.0, "{reciprocal:?}");
        assert!(loss(16.0, Operation::Product).mean_value > 3.0);
    }
}
