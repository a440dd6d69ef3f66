//! The embedded log: every publish is on disk before it is answered.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::BenchError;
use super::load::{self, over_the_bus, publish};
use super::report::{Row, median, micros, quantile, rate};
use super::stage::Stage;

/// Publishers at the same time.
const PUBLISHERS: usize = 256;
/// Publishes one at a time, for each slice.
const SINGLES_PER_SLICE: usize = 50;

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let messages = stage.options.slice_messages / PUBLISHERS * PUBLISHERS;
    let mut rates = Vec::new();
    for slice in 0..=stage.options.slices {
        let took = over_the_bus(stage, PUBLISHERS, messages).await?;
        if slice > 0 {
            rates.push(rate(messages, took));
        }
    }
    let entry = load::sample(stage).await?;
    let mut bytes = entry.payload;
    bytes.extend(entry.signature);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let message = stage.message("x");
    let mut file = Some(file(stage)?);
    for _ in 0..stage.options.slices * SINGLES_PER_SLICE {
        let started = Instant::now();
        publish(&stage.bus, &message).await?;
        ours.push(started.elapsed());
        let (back, took) = append_and_sync(file.take(), bytes.clone()).await?;
        file = back;
        bare.push(took);
    }
    let many = format!("{PUBLISHERS} publishers");
    Ok(vec![
        Row::new("embedded, durable, pipelined", "messages/s", median(rates))
            .at_least(50_000.0)
            .under(stage.conditions(&many)),
        Row::new("embedded, durable, one at a time, p50", "us", micros(quantile(&mut ours, 0.5)))
            .beside(micros(quantile(&mut bare, 0.5)))
            .under(stage.conditions("1 publisher; raw: write and fdatasync of the same bytes")),
    ])
}

fn path(stage: &Stage) -> std::path::PathBuf {
    stage.options.directory.join(format!("{}.raw", stage.group))
}

fn file(stage: &Stage) -> Result<File, BenchError> {
    File::create(path(stage)).map_err(|source| BenchError::Io { what: "make a file", source })
}

/// What the disk takes by itself. On a blocking thread, where the log writes as well.
async fn append_and_sync(
    file: Option<File>,
    bytes: Vec<u8>,
) -> Result<(Option<File>, Duration), BenchError> {
    let started = Instant::now();
    let written = tokio::task::spawn_blocking(move || {
        if let Some(mut file) = file.as_ref() {
            file.write_all(&bytes)?;
            file.sync_data()?;
        }
        Ok(file)
    });
    let written = written.await.map_err(|_| BenchError::Panicked)?;
    let file = written.map_err(|source| BenchError::Io { what: "write and sync", source })?;
    Ok((file, started.elapsed()))
}
