//! A run wired without a service: orders for kernels are answered at once by a thread, from karn's graphs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kasmina::{FetchFailure, Fetched, FetchedKernel, ORDERS_MAX, Parts, RESULTS_MAX, SeedManager};
use kernel::artifact::{Kernel, Manifest, write_bytes};
use kernel::{Execution, Fallback};
use leyline::sign::{Keyring, Secret};
use prometheus_client::registry::Registry;
use tamiyo::{LivePolicy, Policy};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tolaria::{
    Channels, Metrics, Outbox, Outcome, Outgoing, Prepared, Progress, TrainError, Training,
};

/// What a run gave, and what it said to the outside.
pub struct Served {
    pub outcome: Result<Outcome, TrainError>,
    pub sent: Vec<Outgoing>,
    pub progress: Progress,
    pub counted: String,
}

impl Served {
    /// What a counter of the run stands at.
    pub fn count(&self, name: &str) -> u64 {
        let line = self.counted.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
    }
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
    let params = graph.init_params(1);
    let (name, site) = (order.blueprint.as_str(), prepared.site().to_string().into());
    let manifest = Manifest::new(name, BTreeMap::new(), site, graph, &params, 1e-4).unwrap();
    let (bytes, digest) = write_bytes(&manifest, &params).unwrap();
    Ok(FetchedKernel {
        blueprint: order.blueprint.clone(),
        digest,
        execution: Execution::Plan,
        kernel: Arc::new(Kernel::parse(&bytes, &digest).unwrap()),
        path: PathBuf::from("/nowhere"),
        latency: Duration::from_millis(1),
        prewarm_p50_ms: 0.0,
        prewarm_p95_ms: 0.0,
        in_use: kasmina::InUse::default(),
    })
}

/// The same kernel, of which the forge has found that its plan is not its graph.
pub fn interpreted(
    prepared: &Prepared,
    order: &kasmina::FetchOrder,
) -> Result<FetchedKernel, FetchFailure> {
    let reason = Fallback::Asked { reason: "its plan is not its graph".to_owned() };
    Ok(FetchedKernel { execution: Execution::Interpreter { reason }, ..good(prepared, order)? })
}

/// Trains to the end with every order answered by `answer`.
pub fn serve(prepared: Prepared, answer: Answer, stop: &CancellationToken) -> Served {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (orders, mut orders_in) = mpsc::channel::<kasmina::FetchOrder>(ORDERS_MAX);
    let (fetched_out, fetched) = mpsc::channel(RESULTS_MAX);
    let config = prepared.policy_config(tamiyo::Config::default());
    let tamiyo_metrics = tamiyo::Metrics::register(&mut Default::default());
    let (reports, _inbox) = tamiyo::report_queue(&config.reports, &tamiyo_metrics);
    let (outbox, outbox_in) = Outbox::new(&metrics);
    let (progress, watched) = watch::channel(Progress::default());
    let kitchen = prepared.clone();
    let cook = std::thread::spawn(move || {
        while let Some(order) = orders_in.blocking_recv() {
            let result = answer(&kitchen, &order);
            let answer = Fetched { step: None, request: order.request, seed: order.seed, result };
            if fetched_out.blocking_send(answer).is_err() {
                return;
            }
        }
    });
    let reader = std::thread::spawn(move || {
        let mut sent = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            while let Some(outgoing) = outbox_in.recv().await {
                sent.push(outgoing);
            }
        });
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
    let live = LivePolicy::built_in(&config.growth);
    let policy = Policy::new(config, live, keyring);
    let channels = Channels { fetched, outbox, reports, progress, metrics };
    let training = Training::new(prepared, manager, policy, channels).unwrap();
    let outcome = training.run(stop);
    cook.join().unwrap();
    let sent = reader.join().unwrap();
    let progress = watched.borrow().clone();
    let mut counted = String::new();
    prometheus_client::encoding::text::encode(&mut counted, &registry).unwrap();
    Served { outcome, sent, progress, counted }
}
