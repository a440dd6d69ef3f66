//! Elementary functions in single precision that the compiler can vectorise: no branches, no tables, no calls.
//!
//! Each is within a few units in the last place of the exact value, passes NaN on, and is gradual where results
//! are subnormal. The polynomials were fitted here (Chebyshev interpolation), but for the exponential, whose
//! coefficients are those of the series.

/// `1.5 * 2^23`: adding and subtracting it rounds to a whole number, which then sits in the low bits of the sum.
const ROUNDING: f32 = 12_582_912.0;
/// ln 2 in two parts, the first with few bits, so that multiples of it are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these ends the result is 0 or infinity anyway.
    let x = x.clamp(-104.5, 89.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDING;
    let whole = shifted - ROUNDING;
    let rest = (x - whole * LN_2_HIGH) - whole * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + coefficient;
    }
    // In two factors, so that neither overflows and a subnormal result is rounded once.
    let power = (shifted.to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
    let half = power >> 1;
    sum * power_of_two(half) * power_of_two(power.wrapping_sub(half))
}

/// `2^power` for a power of a normal number.
#[inline(always)]
fn power_of_two(power: i32) -> f32 {
    f32::from_bits((power.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let tail = exp(-x.abs());
    let numerator = if x < 0.0 { tail } else { 1.0 };
    numerator / (1.0 + tail)
}

/// Hyperbolic tangent: an odd polynomial near 0, by the exponential elsewhere.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut sum = -0.005_094_828;
    for coefficient in [0.020_032_447, -0.053_529_455, 0.133_284_76, -0.333_331_34, 1.0] {
        sum = sum * square + coefficient;
    }
    let near = sum * x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if square < 0.49 { near } else { far }
}

/// `1 - erf(x)` by a polynomial in `1 / (1 + |x| / 2)` for the logarithm of what is left beside `e^(-x^2)`.
#[inline(always)]
pub(crate) fn erfc(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.5 * size);
    let mut sum = ERFC[0];
    for coefficient in &ERFC[1..] {
        sum = sum * t + coefficient;
    }
    let tail = t * exp(sum - size * size);
    if x < 0.0 { 2.0 - tail } else { tail }
}

/// Highest power first; relative error 1.5e-8 for |x| up to 13, where the result has long been 0.
const ERFC: [f32; 11] = [
    -0.118338555,
    0.8321181,
    -2.4248214,
    3.697276,
    -3.042081,
    1.3500373,
    -0.5801918,
    0.18977545,
    0.36068845,
    1.0010847,
    -1.2655473,
];

/// Error function; near 0 by its series, so that small results keep their precision.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let square = x * x;
    let mut sum = 1.0 / 9360.0;
    for coefficient in [-1.0 / 1320.0, 1.0 / 216.0, -1.0 / 42.0, 0.1, -1.0 / 3.0, 1.0] {
        sum = sum * square + coefficient;
    }
    let near = std::f32::consts::FRAC_2_SQRT_PI * x * sum;
    let far = 1.0 - erfc(x);
    if square < 0.25 { near } else { far }
}

/// Distribution function of the standard normal distribution.
#[inline(always)]
pub(crate) fn normal_distribution(x: f32) -> f32 {
    0.5 * erfc(-x * std::f32::consts::FRAC_1_SQRT_2)
}

/// Density of the standard normal distribution.
#[inline(always)]
pub(crate) fn normal_density(x: f32) -> f32 {
    const SCALE: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2 / 2.0;
    SCALE * exp(x * x * -0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place over the given range, against double precision.
    fn check(
        name: &str,
        range: (f32, f32),
        limit: f64,
        fast: fn(f32) -> f32,
        exact: fn(f64) -> f64,
    ) {
        for step in 0..=100_000 {
            let x = range.0 + (range.1 - range.0) * (step as f32 / 100_000.0);
            let expected = exact(f64::from(x));
            let ulp = f64::from((expected as f32).next_up()) - f64::from(expected as f32);
            let error =
                (f64::from(fast(x)) - expected).abs() / ulp.abs().max(f64::from(f32::from_bits(1)));
            assert!(error <= limit, "{name}({x}): {} against {expected}, {error} ulp", fast(x));
        }
    }

    #[test]
    fn close_to_double_precision() {
        check("exp", (-87.0, 88.7), 2.5, exp, libm::exp);
        check("exp, subnormal", (-104.0, -87.0), 2.5, exp, libm::exp);
        check("sigmoid", (-80.0, 80.0), 5.0, sigmoid, |x| 1.0 / (1.0 + libm::exp(-x)));
        check("tanh", (-12.0, 12.0), 4.0, tanh, libm::tanh);
        check("erf", (-6.0, 6.0), 8.0, erf, libm::erf);
        check("erfc", (-3.0, 2.0), 16.0, erfc, libm::erfc);
        // The exponent -x^2 is rounded, which costs about 2 x^2 units in the tail.
        check("erfc, tail", (2.0, 9.0), 240.0, erfc, libm::erfc);
    }

    #[test]
    fn ends_and_nan() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY)), (0.0, 1.0));
        assert_eq!((tanh(f32::NEG_INFINITY), tanh(f32::INFINITY)), (-1.0, 1.0));
        assert_eq!((erfc(f32::NEG_INFINITY), erfc(f32::INFINITY)), (2.0, 0.0));
        for function in [exp, sigmoid, tanh, erf, erfc] {
            assert!(function(f32::NAN).is_nan());
        }
    }
}
