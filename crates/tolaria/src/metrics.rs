//! What a training run counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::pass::PassCounts;

type Float = Gauge<f64, AtomicU64>;

/// Metrics of the training loop. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) epochs: Counter,
    pub(crate) steps: Counter,
    pub(crate) validation_loss: Float,
    pub(crate) validation_accuracy: Float,
    pub(crate) parameters: Gauge,
    pub(crate) kernels_in_flight: Gauge,
    pub(crate) kernels_late: Counter,
    pub(crate) rollbacks: Counter,
    interpreted_passes: Counter,
    stale_passes: Counter,
    pub(crate) hook_seconds: Histogram,
    pub(crate) epoch_seconds: Histogram,
    pub(crate) outbox_dropped: Counter,
    pub(crate) published: Counter,
    pub(crate) publish_failed: Counter,
}

impl Metrics {
    /// Registers everything.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        let Self {
            epochs,
            steps,
            validation_loss,
            validation_accuracy,
            parameters,
            kernels_in_flight,
            kernels_late,
            rollbacks,
            interpreted_passes,
            stale_passes,
            hook_seconds,
            epoch_seconds,
            outbox_dropped,
            published,
            publish_failed,
        } = metrics.clone();
        registry.register("tolaria_epochs", "Epochs trained", epochs);
        registry.register("tolaria_steps", "Optimiser steps", steps);
        registry.register("tolaria_validation_loss", "Newest validation loss", validation_loss);
        registry.register(
            "tolaria_validation_accuracy",
            "Newest validation accuracy, 0 to 1",
            validation_accuracy,
        );
        registry.register(
            "tolaria_parameters",
            "Numbers in the parameters the host sees",
            parameters,
        );
        registry.register(
            "tolaria_kernels_in_flight",
            "Kernels asked for and not attached yet",
            kernels_in_flight,
        );
        registry.register(
            "tolaria_kernels_late",
            "Kernels that missed their place in the schedule",
            kernels_late,
        );
        registry.register(
            "tolaria_rollbacks",
            "Times the host was brought back to before a graft",
            rollbacks,
        );
        registry.register(
            "tolaria_interpreted_passes",
            "Passes of the network that run by the interpreter, counted when they are made",
            interpreted_passes,
        );
        registry.register(
            "tolaria_stale_passes",
            "Passes that were made for something else by their guard, and made anew",
            stale_passes,
        );
        registry.register(
            "tolaria_hook_seconds",
            "State, decision and command of an epoch",
            hook_seconds,
        );
        registry.register("tolaria_epoch_seconds", "One epoch without its pause", epoch_seconds);
        registry.register(
            "tolaria_outbox_dropped",
            "Messages that found the outbox full",
            outbox_dropped,
        );
        registry.register("tolaria_published", "Messages put on the bus", published);
        registry.register(
            "tolaria_publish_failed",
            "Messages the bus did not take",
            publish_failed,
        );
        metrics
    }

    /// Counts what has become of passes.
    pub(crate) fn passes(&self, counts: PassCounts) {
        let PassCounts { composed: _, interpreted, stale } = counts;
        self.interpreted_passes.inc_by(interpreted);
        self.stale_passes.inc_by(stale);
    }

    /// Metrics nobody reads, for tests and examples.
    pub fn unregistered() -> Self {
        Self {
            epochs: Counter::default(),
            steps: Counter::default(),
            validation_loss: Float::default(),
            validation_accuracy: Float::default(),
            parameters: Gauge::default(),
            kernels_in_flight: Gauge::default(),
            kernels_late: Counter::default(),
            rollbacks: Counter::default(),
            interpreted_passes: Counter::default(),
            stale_passes: Counter::default(),
            hook_seconds: Histogram::new(exponential_buckets(1e-5, 2.0, 16)),
            epoch_seconds: Histogram::new(exponential_buckets(1e-4, 2.0, 18)),
            outbox_dropped: Counter::default(),
            published: Counter::default(),
            publish_failed: Counter::default(),
        }
    }
}
