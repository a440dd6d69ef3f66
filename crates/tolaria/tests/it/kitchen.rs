//! A run wired without a service: orders for kernels are answered at once by a thread, from karn's graphs.

use std::path::PathBuf;
use std::time::Duration;

use kasmina::{FetchFailure, Fetched, FetchedKernel, ORDERS_MAX, Parts, RESULTS_MAX, SeedManager};
use kernel::Digest;
use leyline::sign::{Keyring, Secret};
use leyline::wire::FieldReport;
use tamiyo::{LivePolicy, Policy};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tolaria::{
    Channels, Graft, Metrics, Outbox, Outcome, Outgoing, Prepared, Progress, TrainError, Training,
};

/// What a run gave, and what it said to the outside.
pub struct Served {
    pub outcome: Result<Outcome, TrainError>,
    pub sent: Vec<Outgoing>,
    pub reports: Vec<FieldReport>,
    pub progress: Progress,
}

/// Answers one order.
pub type Answer = fn(&Prepared, &kasmina::FetchOrder) -> Result<FetchedKernel, FetchFailure>;

/// The kernel that the forge would make.
pub fn good(
    prepared: &Prepared,
    order: &kasmina::FetchOrder,
) -> Result<FetchedKernel, FetchFailure> {
    let blueprint = karn::find(&order.blueprint).ok_or(FetchFailure::MissingArtifact)?;
    let graph = karn::build(blueprint, &blueprint.midpoints(), &prepared.site()).unwrap();
    Ok(FetchedKernel {
        blueprint: order.blueprint.clone(),
        digest: Digest::of(order.blueprint.as_str()),
        path: PathBuf::from("/nowhere"),
        latency: Duration::from_millis(1),
        prewarm_p50_ms: 0.0,
        prewarm_p95_ms: 0.0,
        parameters: graph.trainable().map(str::to_owned).collect(),
    })
}

/// Trains to the end with every order answered by `answer`.
pub fn serve(prepared: Prepared, answer: Answer, stop: &CancellationToken) -> Served {
    let metrics = Metrics::unregistered();
    let (orders, mut orders_in) = mpsc::channel::<kasmina::FetchOrder>(ORDERS_MAX);
    let (fetched_out, fetched) = mpsc::channel(RESULTS_MAX);
    let (reports, mut reports_in) = mpsc::channel(256);
    let (outbox, mut outbox_in) = Outbox::new(&metrics);
    let (progress, watched) = watch::channel(Progress::default());
    let kitchen = prepared.clone();
    let cook = std::thread::spawn(move || {
        while let Some(order) = orders_in.blocking_recv() {
            let result = answer(&kitchen, &order);
            let answer = Fetched { request: order.request, seed: order.seed, result };
            if fetched_out.blocking_send(answer).is_err() {
                return;
            }
        }
    });
    let reader = std::thread::spawn(move || {
        let mut sent = Vec::new();
        while let Some(outgoing) = outbox_in.blocking_recv() {
            sent.push(outgoing);
        }
        sent
    });
    let keyring = Keyring::new(&Secret::new("a secret for the tests"), None);
    let manager = SeedManager::new(
        prepared.kasmina_config(),
        Parts {
            run: prepared.config.run.clone(),
            keyring: Some(keyring.clone()),
            orders,
            metrics: kasmina::Metrics::register(&mut Default::default()),
        },
    );
    let config = prepared.policy_config(tamiyo::Config::default());
    let live = LivePolicy::built_in(&config.growth);
    let policy = Policy::new(config, live, keyring);
    let site = prepared.site();
    let channels = Channels { fetched, outbox, reports, progress, metrics };
    let training = Training::new(prepared, manager, policy, channels).unwrap();
    let training = training.with_opener(Box::new(move |kernel| {
        let blueprint = karn::find(&kernel.blueprint).unwrap();
        let graph = karn::build(blueprint, &blueprint.midpoints(), &site).unwrap();
        let params = graph.init_params(1);
        Ok(Graft { graph, params })
    }));
    let outcome = training.run(stop);
    cook.join().unwrap();
    let sent = reader.join().unwrap();
    let mut reported = Vec::new();
    while let Ok(report) = reports_in.try_recv() {
        reported.push(report);
    }
    let progress = watched.borrow().clone();
    Served { outcome, sent, reports: reported, progress }
}
