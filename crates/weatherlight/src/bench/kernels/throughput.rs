//! A thousand requests outstanding, all the time: prefetches a second, for small artifacts and for
//! large ones, beside a bare client that makes the same commands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use leyline::Message;
use leyline::wire::MessagePriority;
use oona::{Bus, Delivery, Stream};
use tokio::sync::Semaphore;

use super::figure::Figure;
use super::raw::RawLoop;
use super::stage::{Kind, SIZES, Stage, request};
use super::{Bench, BenchError};

const OUTSTANDING: usize = 1000;
/// Publishes in progress: they share connection and round trips.
const PUBLISHING: usize = 256;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn measure(bench: &Bench) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for kind in Kind::of(bench) {
        let mut stage = Stage::open(bench, kind).await?;
        let measured = measure_on(bench, &mut stage, kind).await;
        let closed = stage.close().await;
        figures.extend(measured?);
        closed?;
    }
    Ok(figures)
}

async fn measure_on(
    bench: &Bench,
    stage: &mut Stage,
    kind: Kind,
) -> Result<Vec<Figure>, BenchError> {
    let (slices, requests) = (bench.rounds(7, 3), bench.rounds(20_000, 8_000));
    let mut raw = RawLoop::new(stage).await?;
    let mut rates = [const { Vec::new() }; SIZES.len()];
    let mut raw_rates = Vec::new();
    for slice in 0..=slices {
        for ((blueprint, _, _), rates) in SIZES.iter().zip(&mut rates) {
            let rate = drive(stage, blueprint, requests).await?;
            if slice > 0 {
                rates.push(rate);
            }
        }
        if let Some(raw) = &mut raw {
            let rate = raw.run(requests).await?;
            if slice > 0 {
                raw_rates.push(rate);
            }
        }
    }
    let [small, large] = rates.map(middle);
    let name = |size: &str| format!("throughput_{}_{size}", kind.name());
    let conditions = format!(
        "{OUTSTANDING} outstanding, median of {slices} slices of {requests}; asker, worker and \
         baseline on this machine"
    );
    let mut one = Figure::new(name(SIZES[0].1), "prefetches/s", small);
    if !raw_rates.is_empty() {
        one = one.beside(middle(raw_rates)).under(format!(
            "{conditions}; baseline: a bare client with the same commands in batches of 256"
        ));
    } else {
        one = one.under(&conditions);
    }
    if kind == Kind::Redis {
        one = one.at_least(20_000.0);
    }
    let other = Figure::new(name(SIZES[1].1), "prefetches/s", large)
        .beside(small)
        .ratio_at_least(0.9)
        .under(format!("{conditions}; baseline: the same for artifacts of 1 KiB"));
    Ok(vec![one, other])
}

fn middle(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

/// So many requests for one blueprint; answers a second.
async fn drive(stage: &mut Stage, blueprint: &str, requests: usize) -> Result<f64, BenchError> {
    let places = Arc::new(Semaphore::new(OUTSTANDING));
    let begun = Instant::now();
    let asking = ask(stage.bus.clone(), blueprint.to_owned(), requests, Arc::clone(&places));
    #[expect(clippy::disallowed_methods, reason = "a measurement has no supervisor")]
    let asking = tokio::spawn(asking);
    let mut answered = 0;
    while answered < requests {
        let batch = tokio::time::timeout(ANSWER_TIMEOUT, stage.answers.recv_batch(256))
            .await
            .map_err(|_| BenchError::Unanswered(ANSWER_TIMEOUT))??;
        let fault =
            batch.iter().find(|delivery| !matches!(delivery.message, Message::PrefetchReady(_)));
        if let Some(fault) = fault {
            return Err(BenchError::Answered(format!("{:?}", fault.message)));
        }
        answered += batch.len();
        places.add_permits(batch.len());
        Delivery::ack_all(batch).await?;
    }
    let took = begun.elapsed();
    asking.await.map_err(|_| BenchError::Panicked)??;
    Ok(requests as f64 / took.as_secs_f64())
}

async fn ask(
    bus: Bus,
    blueprint: String,
    requests: usize,
    places: Arc<Semaphore>,
) -> Result<(), BenchError> {
    let mut publishing = FuturesUnordered::new();
    for _ in 0..requests {
        if publishing.len() >= PUBLISHING {
            accepted(publishing.next().await)?;
        }
        // Answers free places; publishing goes on meanwhile.
        let place = loop {
            tokio::select! {
                biased;
                place = places.acquire() => break place,
                done = publishing.next(), if !publishing.is_empty() => accepted(done)?,
            }
        };
        place.map_err(|_| BenchError::Refused)?.forget();
        let (_, message) = request(&blueprint);
        let bus = bus.clone();
        publishing.push(async move {
            bus.publish(Stream::KernelRequests, MessagePriority::High, "weatherlight", &message)
                .await
        });
    }
    while let Some(done) = publishing.next().await {
        accepted(Some(done))?;
    }
    Ok(())
}

fn accepted(done: Option<Result<oona::Outcome, oona::PublishError>>) -> Result<(), BenchError> {
    match done {
        Some(outcome) => outcome?.is_sent().then_some(()).ok_or(BenchError::Refused),
        None => Ok(()),
    }
}
