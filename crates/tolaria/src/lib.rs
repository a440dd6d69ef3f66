//! The training loop: data sets, slots, state packets, checkpoints and the report.
