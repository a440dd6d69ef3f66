//! The dropout mask: a definition shared by every executor, so that all of them drop the same elements.

/// Which elements one dropout of one step keeps. Counter-based: any element can be asked for in any order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    key: u64,
    threshold: u32,
    factor: f32,
}

/// Random bits compared with the rate; 24 are what an `f32` rate can tell apart.
const BITS: u32 = 24;

impl Mask {
    pub(crate) fn new(rate: f32, stream: u32, seed: f32) -> Self {
        let key = mix(u64::from(seed.to_bits()) << 32 | u64::from(stream));
        let threshold = (f64::from(rate) * f64::from(1_u32 << BITS)) as u32;
        Self { key, threshold, factor: 1.0 / (1.0 - rate) }
    }

    /// What the kept elements are multiplied by.
    pub(crate) fn factor(self) -> f32 {
        self.factor
    }

    /// Whether the element at this row-major index is kept.
    pub(crate) fn keeps(self, index: usize) -> bool {
        let random = mix(self.key ^ (index as u64)) >> (64 - BITS);
        random as u32 >= self.threshold
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over the golden-ratio increment.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_asked_share_and_differs_by_step_and_stream() {
        let kept = |mask: Mask| (0..10_000).map(|index| mask.keeps(index)).collect::<Vec<_>>();
        let share =
            |kept: &[bool]| kept.iter().filter(|&&kept| !kept).count() as f64 / kept.len() as f64;
        let first = kept(Mask::new(0.3, 0, 1.0));
        assert!((share(&first) - 0.3).abs() < 0.02);
        assert_eq!(first, kept(Mask::new(0.3, 0, 1.0)));
        assert_ne!(first, kept(Mask::new(0.3, 1, 1.0)));
        assert_ne!(first, kept(Mask::new(0.3, 0, 2.0)));
        assert_eq!(share(&kept(Mask::new(0.0, 0, 1.0))), 0.0);
    }
}
