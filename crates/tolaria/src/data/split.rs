//! Dividing a data set and standardising it by its training part.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::{Dataset, Division};

/// Fewer rows than this cannot be divided in three.
pub const ROWS_MIN: usize = 10;
/// One row in this many is a test row: 80/20.
const TEST_SHARE: usize = 5;
/// Of the others, one in this many is a validation row, by which decisions are taken.
const VALIDATION_SHARE: usize = 5;
/// Keeps the split's random numbers apart from those that made the points.
const STREAM: u64 = 1;

/// Some rows of a data set, standardised, ready for the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Row-major features.
    pub features: Vec<f32>,
    /// Class of each row.
    pub labels: Vec<f32>,
    /// Number of feature columns.
    pub width: usize,
}

impl Part {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// One row's features.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.features[index * self.width..(index + 1) * self.width]
    }
}

/// Mean and standard deviation of each column of the training rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardiser {
    /// Mean of each column.
    pub mean: Vec<f32>,
    /// Standard deviation of each column; 1 for a constant one.
    pub deviation: Vec<f32>,
}

impl Standardiser {
    fn of(data: &Dataset, rows: &[usize]) -> Self {
        let count = rows.len() as f64;
        let mut mean = Vec::with_capacity(data.width());
        let mut deviation = Vec::with_capacity(data.width());
        for column in 0..data.width() {
            let values = || rows.iter().map(|row| f64::from(data.row(*row)[column]));
            let centre = values().sum::<f64>() / count;
            let spread =
                (values().map(|value| (value - centre).powi(2)).sum::<f64>() / count).sqrt();
            mean.push(centre as f32);
            deviation.push(if spread > 1e-12 { spread as f32 } else { 1.0 });
        }
        Self { mean, deviation }
    }

    /// Standardises one value of a column.
    pub fn apply(&self, column: usize, value: f32) -> f32 {
        (value - self.mean[column]) / self.deviation[column]
    }
}

/// A data set in three parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// What gradients come from.
    pub train: Part,
    /// What decisions are taken by.
    pub validation: Part,
    /// What is reported. Nothing is ever decided by it.
    pub test: Part,
    /// How the numbers were standardised: by the training rows only.
    pub standardiser: Standardiser,
}

impl Split {
    /// Divides a data set: 20 % for the test, 20 % of the rest for validation. The same seed gives
    /// the same parts.
    pub fn of(data: &Dataset, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..data.rows()).collect();
        if data.division == Division::WholeTable {
            let standardiser = Standardiser::of(data, &order);
            let whole = gather(data, &order, &standardiser);
            return Self {
                train: whole.clone(),
                validation: whole.clone(),
                test: whole,
                standardiser,
            };
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(STREAM);
        order.shuffle(&mut rng);
        let (test, rest) = order.split_at((data.rows() / TEST_SHARE).max(1));
        let (validation, train) = rest.split_at((rest.len() / VALIDATION_SHARE).max(1));
        let standardiser = Standardiser::of(data, train);
        Self {
            train: gather(data, train, &standardiser),
            validation: gather(data, validation, &standardiser),
            test: gather(data, test, &standardiser),
            standardiser,
        }
    }
}

fn gather(data: &Dataset, rows: &[usize], standardiser: &Standardiser) -> Part {
    let mut features = Vec::with_capacity(rows.len() * data.width());
    for row in rows {
        let values = data.row(*row).iter().enumerate();
        features.extend(values.map(|(column, value)| standardiser.apply(column, *value)));
    }
    let labels = rows.iter().map(|row| data.labels[*row] as f32).collect();
    Part { features, labels, width: data.width() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::{Moons, xor};

    #[test]
    fn parts_are_disjoint_complete_and_repeatable() {
        let data = Moons { points: 500, noise: 0.1 }.generate(1);
        let split = Split::of(&data, 7);
        assert_eq!(split, Split::of(&data, 7));
        assert_ne!(split.test, Split::of(&data, 8).test);
        let sizes = [&split.train, &split.validation, &split.test].map(Part::rows);
        assert_eq!(sizes, [320, 80, 100]);
        let mut rows: Vec<Vec<u32>> = [&split.train, &split.validation, &split.test]
            .iter()
            .flat_map(|part| {
                (0..part.rows()).map(|row| part.row(row).iter().map(|v| v.to_bits()).collect())
            })
            .collect();
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), 500, "a row stands in two parts");
    }

    #[test]
    fn only_training_rows_decide_the_scale() {
        let data = Moons { points: 500, noise: 0.1 }.generate(1);
        let split = Split::of(&data, 7);
        let mean = |part: &Part| part.features.iter().step_by(2).sum::<f32>() / part.rows() as f32;
        assert!(mean(&split.train).abs() < 1e-4);
        assert!(mean(&split.test).abs() > 1e-4);
    }

    #[test]
    fn a_truth_table_is_not_divided() {
        let split = Split::of(&xor(), 1);
        assert_eq!(split.train, split.test);
        assert_eq!(split.train.features[..2], [-1.0, -1.0]);
    }

    #[test]
    fn a_constant_column_stays_finite() {
        let mut data = Moons { points: 20, noise: 0.1 }.generate(1);
        for value in data.features.iter_mut().step_by(2) {
            *value = 4.0;
        }
        assert!(Split::of(&data, 1).train.features.iter().all(|value| value.is_finite()));
    }
}
