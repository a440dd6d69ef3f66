//! Publishing beside a raw `XADD` of the same bytes.

use std::sync::Arc;

use tokio::time::Instant;

use super::BenchError;
use super::load::{self, PUBLISHERS, bare, over_the_bus, publish};
use super::report::{Row, median, micros, quantile, rate};
use super::stage::Stage;
use crate::stream::Stream;

/// Publishes one at a time, for each slice.
const SINGLES_PER_SLICE: usize = 500;

pub(super) async fn measure(stage: &Stage) -> Result<Vec<Row>, BenchError> {
    let mut raw = stage.raw().await?;
    let entry = Arc::new(load::sample(stage).await?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let messages = stage.options.slice_messages;
    for slice in 0..=stage.options.slices {
        stage.empty(&mut raw).await?;
        let took = over_the_bus(stage, PUBLISHERS, messages).await?;
        stage.empty(&mut raw).await?;
        let bare_took = bare(stage, &raw, &entry, PUBLISHERS, messages).await?;
        // The first slice warms both up.
        if slice > 0 {
            ours.push(rate(messages, took));
            theirs.push(rate(messages, bare_took));
        }
    }
    let at_once = format!("{PUBLISHERS} publishers, one connection; raw: XADD of the same bytes");
    Ok(vec![
        Row::new("publish, pipelined", "messages/s", median(ours))
            .beside(median(theirs))
            .at_least_ratio(0.85)
            .under(stage.conditions(&at_once)),
        one_at_a_time(stage, &entry).await?,
    ])
}

/// Single publishes and single raw appends in turn.
async fn one_at_a_time(stage: &Stage, entry: &load::RawEntry) -> Result<Row, BenchError> {
    let mut raw = stage.raw().await?;
    stage.empty(&mut raw).await?;
    let message = stage.message("x");
    let name = stage.name(Stream::Normal);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..stage.options.slices * SINGLES_PER_SLICE {
        let started = Instant::now();
        publish(&stage.bus, &message).await?;
        ours.push(started.elapsed());
        let started = Instant::now();
        let _id: String = entry.xadd(name).query_async(&mut raw).await?;
        theirs.push(started.elapsed());
    }
    Ok(Row::new("publish, one at a time, p50", "us", micros(quantile(&mut ours, 0.5)))
        .beside(micros(quantile(&mut theirs, 0.5)))
        .at_most_above(15.0)
        .under(stage.conditions("1 publisher; raw: XADD of the same bytes")))
}
