//! Data sets that are made, not read: two spirals, two moons, exclusive or.

use std::f64::consts::{PI, TAU};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Dataset, Division};

/// Two interleaved spirals.
///
/// Each class is an arm `r = 0.05 + t`, `phi = 2 pi turns t (+ pi)`, `t` = square root of a uniform number, so that points
/// lie about equally dense along the arm (after K. Lang and M. Witbrock, "Learning to tell two spirals apart", 1988).
#[derive(Debug, Clone, PartialEq)]
pub struct Spirals {
    /// Number of points, both classes together.
    pub points: usize,
    /// How often an arm winds round the centre. The original has 3; 2 already defeats any small network.
    pub turns: f64,
    /// Standard deviation of the noise on each coordinate; an arm's radius is about 1.
    pub noise: f64,
}

impl Default for Spirals {
    fn default() -> Self {
        Self { points: 1200, turns: 2.0, noise: 0.02 }
    }
}

impl Spirals {
    /// Makes the points.
    pub fn generate(&self, seed: u64) -> Dataset {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        planar("two spirals", self.points, |class| {
            let t = rng.random::<f64>().sqrt();
            let angle = TAU * self.turns * t + PI * f64::from(class);
            let radius = 0.05 + t;
            let (dx, dy) = normal_pair(&mut rng);
            [radius * angle.cos() + self.noise * dx, radius * angle.sin() + self.noise * dy]
        })
    }
}

/// Two interleaved half circles, the second shifted by (1, 0.5): the `make_moons` of scikit-learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Moons {
    /// Number of points, both classes together.
    pub points: usize,
    /// Standard deviation of the noise on each coordinate; a moon's radius is 1.
    pub noise: f64,
}

impl Default for Moons {
    fn default() -> Self {
        Self { points: 1000, noise: 0.2 }
    }
}

impl Moons {
    /// Makes the points.
    pub fn generate(&self, seed: u64) -> Dataset {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        planar("two moons", self.points, |class| {
            let angle = PI * rng.random::<f64>();
            let (dx, dy) = normal_pair(&mut rng);
            let (x, y) = match class {
                0 => (angle.cos(), angle.sin()),
                _ => (1.0 - angle.cos(), 0.5 - angle.sin()),
            };
            [x + self.noise * dx, y + self.noise * dy]
        })
    }
}

/// The truth table of exclusive or: four points, which are training, validation and test set alike.
pub fn xor() -> Dataset {
    Dataset {
        name: "xor".to_owned(),
        columns: vec!["a".to_owned(), "b".to_owned()],
        features: vec![0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0],
        labels: vec![0, 1, 1, 0],
        classes: vec!["0".to_owned(), "1".to_owned()],
        division: Division::WholeTable,
    }
}

fn planar(name: &str, points: usize, mut point: impl FnMut(u32) -> [f64; 2]) -> Dataset {
    let labels: Vec<u32> = (0..2).cycle().take(points).collect();
    let features =
        labels.iter().flat_map(|&class| point(class)).map(|value| value as f32).collect();
    Dataset {
        name: name.to_owned(),
        columns: vec!["x".to_owned(), "y".to_owned()],
        features,
        labels,
        classes: vec!["A".to_owned(), "B".to_owned()],
        division: Division::HoldOut,
    }
}

/// Two independent standard normal numbers (Box and Muller, 1958).
fn normal_pair(rng: &mut ChaCha8Rng) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let angle = TAU * rng.random::<f64>();
    (radius * angle.cos(), radius * angle.sin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_points_and_another_others() {
        let spirals = Spirals::default();
        assert_eq!(spirals.generate(3), spirals.generate(3));
        assert_ne!(spirals.generate(3).features, spirals.generate(4).features);
        assert_ne!(Moons::default().generate(1), Moons::default().generate(2));
    }

    #[test]
    fn without_noise_every_point_lies_on_its_arm() {
        let spirals = Spirals { points: 200, turns: 2.0, noise: 0.0 };
        let data = spirals.generate(1);
        for index in 0..data.rows() {
            let [x, y] = [0, 1].map(|axis| f64::from(data.row(index)[axis]));
            let t = x.hypot(y) - 0.05;
            let angle = TAU * 2.0 * t + PI * f64::from(data.labels[index]);
            assert!((0.0..=1.0 + 1e-6).contains(&t), "row {index}: t {t}");
            assert!((x - (t + 0.05) * angle.cos()).abs() < 1e-4, "row {index}");
        }
    }

    #[test]
    fn classes_are_balanced() {
        for data in [Spirals::default().generate(5), Moons::default().generate(5), xor()] {
            let ones = data.labels.iter().filter(|label| **label == 1).count();
            assert_eq!(2 * ones, data.rows(), "{}", data.name);
        }
    }
}
