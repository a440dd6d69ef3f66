//! What growth is compared with: the host alone, and a fixed network of the grown size, each trained for as many epochs
//! on a thread of its own.

use std::time::Instant;

use kasmina::BlendMode;
use leyline::ids::SeedId;
use tokio_util::sync::CancellationToken;

use crate::batches::Batches;
use crate::error::TrainError;
use crate::host::Mode;
use crate::network::{Graft, Network};
use crate::prepared::Prepared;
use crate::progress::Figures;

/// One finished comparison run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) figures: Figures,
    /// Test accuracy after each epoch.
    pub(crate) accuracy: Vec<f32>,
}

/// Both; what did not run is absent.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) host_alone: Option<Run>,
    pub(crate) fixed: Option<Run>,
}

/// Trains both at once.
///
/// # Errors
/// [`TrainError`]
pub(crate) fn both(
    prepared: &Prepared,
    grafts: Vec<(SeedId, Graft, BlendMode)>,
    epochs: u32,
    stop: &CancellationToken,
) -> Result<Compared, TrainError> {
    std::thread::scope(|scope| {
        let alone = scope.spawn(|| train(prepared, &[], epochs, stop));
        let fixed = if grafts.is_empty() { None } else { train(prepared, &grafts, epochs, stop)? };
        let host_alone = alone.join().map_err(|_| TrainError::Comparison)??;
        Ok(Compared { host_alone, fixed })
    })
}

/// A network whose grafts are layers like any other, from their weights as compiled.
fn train(
    prepared: &Prepared,
    grafts: &[(SeedId, Graft, BlendMode)],
    epochs: u32,
    stop: &CancellationToken,
) -> Result<Option<Run>, TrainError> {
    let began = Instant::now();
    let config = &prepared.config;
    let slots: Vec<SeedId> = grafts.iter().map(|(seed, ..)| seed.clone()).collect();
    let mut network =
        Network::new(prepared.shape, &slots, prepared.batch, config.rate, config.seed)?;
    for (seed, graft, blend) in grafts {
        network.attach(seed, graft.clone(), blend.clone(), config.rate)?;
        network.set_mode(seed, Mode::Joint)?;
    }
    let mut accuracy = Vec::with_capacity(epochs as usize);
    for epoch in 1..=epochs {
        if stop.is_cancelled() {
            return Ok(None);
        }
        let batches = Batches::new(
            &prepared.split.train,
            prepared.batch,
            prepared.epoch_steps,
            config.seed,
            epoch,
        );
        for (features, labels) in batches.iter() {
            network.step(&features, &labels)?;
        }
        accuracy.push(network.evaluate(&prepared.split.test)?.accuracy);
    }
    let score = network.evaluate(&prepared.split.test)?;
    let figures = Figures {
        accuracy: score.accuracy,
        loss: score.loss,
        parameters: network.parameter_count(),
        epochs,
        seconds: began.elapsed().as_secs_f64(),
    };
    Ok(Some(Run { figures, accuracy }))
}
