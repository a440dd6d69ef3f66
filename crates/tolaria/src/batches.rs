//! In which order rows are trained on: a function of the seed and the epoch alone, so that a resumed run goes on as if it
//! had never stopped.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::data::Part;

/// Keeps these random numbers apart from those of the data set and its division.
const STREAM_FIRST: u64 = 1000;

/// The batches of one epoch.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    part: &'a Part,
    order: Vec<usize>,
    batch: usize,
}

impl<'a> Batches<'a> {
    /// `steps` batches in the order of this epoch; a small part is gone through several times.
    pub(crate) fn new(part: &'a Part, batch: usize, steps: usize, seed: u64, epoch: u32) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(STREAM_FIRST + u64::from(epoch));
        let mut order = Vec::with_capacity(steps * batch + part.rows());
        while order.len() < steps * batch {
            let start = order.len();
            order.extend(0..part.rows());
            order[start..].shuffle(&mut rng);
        }
        order.truncate(steps * batch);
        Self { part, order, batch }
    }

    /// Features and labels of each batch.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Vec<f32>, Vec<f32>)> {
        self.order.chunks_exact(self.batch).map(|rows| {
            let features = rows.iter().flat_map(|row| self.part.row(*row)).copied().collect();
            let labels = rows.iter().map(|row| self.part.labels[*row]).collect();
            (features, labels)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, toy};

    #[test]
    fn an_epoch_is_repeatable_and_epochs_differ() {
        let split = Split::of(&toy::Moons::default().generate(1), 1);
        let rows = |epoch| Batches::new(&split.train, 32, 20, 5, epoch).iter().collect::<Vec<_>>();
        assert_eq!(rows(3), rows(3));
        assert_ne!(rows(3), rows(4));
        assert_eq!(rows(3).len(), 20);
    }

    #[test]
    fn a_small_part_is_gone_through_several_times() {
        let split = Split::of(&toy::xor(), 1);
        let batches: Vec<_> = Batches::new(&split.train, 4, 16, 5, 1).iter().collect();
        assert_eq!(batches.len(), 16);
        for (_, labels) in &batches {
            assert_eq!(labels.iter().sum::<f32>(), 2.0, "each batch is the whole table");
        }
    }
}
