//! The supervisor's own figures: a worker that crashes runs again, a worker that hangs is noticed.
//!
//! The real supervisor on the real runtime, beside as many idle workers as the service has. The backoff
//! is set to nothing, so that what remains is what a restart costs; the panic goes through the hook of
//! the service, backtrace and log line included.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nissa::WorkerControl;
use oona::Heartbeat;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Figure, median, milliseconds};
use crate::supervisor::{
    Build, BusPicture, Context, Criticality, Exit, Handle, Identity, RestartPolicy, Row, Setup,
    Supervisor, Watchdog, WorkerError, build,
};

/// Crashes measured of each kind.
const CRASHES: usize = 101;
/// Hangs measured of each kind; each takes its budget.
const HANGS: usize = 3;
/// The smallest that the settings allow.
const BUDGET: Duration = Duration::from_secs(2);
/// Idle workers beside the one that is measured.
const COMPANIONS: [&str; 12] = [
    "bench.1", "bench.2", "bench.3", "bench.4", "bench.5", "bench.6", "bench.7", "bench.8",
    "bench.9", "bench.10", "bench.11", "bench.12",
];
const VICTIM: &str = "bench.victim";
/// How long one event may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the supervisor could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorBenchError {
    /// An event did not come.
    #[error("{what} within {} s", PATIENCE.as_secs())]
    Late {
        /// What was waited for.
        what: &'static str,
    },
    /// The system has no thread left for the watchdog.
    #[error("no thread for the watchdog")]
    NoThread(#[from] std::io::Error),
}

/// How the measured worker goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fails,
    Panics,
    /// Waits for what never comes.
    Waits,
    /// Keeps its thread busy.
    Spins,
}

/// Measures all four. Needs the runtime of the service.
///
/// # Errors
/// When something does not happen in time.
pub async fn measure() -> Result<Vec<Figure>, SupervisorBenchError> {
    let task = milliseconds(median(bare_tasks().await));
    let mut figures = Vec::new();
    for (name, fault) in
        [("restart_after_error", Fault::Fails), ("restart_after_panic", Fault::Panics)]
    {
        let taken = milliseconds(median(crashes(fault).await?));
        figures.push(Figure::new(name, "ms", taken, task, 5.0));
    }
    let budget = milliseconds(BUDGET);
    for (name, fault) in
        [("hang_noticed_waiting", Fault::Waits), ("hang_noticed_spinning", Fault::Spins)]
    {
        let taken = milliseconds(hangs(fault).await?);
        figures.push(Figure::new(name, "ms", taken, budget, budget + 1_000.0));
    }
    Ok(figures)
}

/// The baseline of a restart: a task that ends and another one that begins.
async fn bare_tasks() -> Vec<Duration> {
    let mut spans = Vec::with_capacity(CRASHES);
    for _ in 0..CRASHES {
        let ended = tokio::task::JoinSet::from_iter([async { Instant::now() }]).join_all().await;
        let began = tokio::task::JoinSet::from_iter([async { Instant::now() }]).join_all().await;
        spans.extend(ended.iter().zip(&began).map(|(ended, began)| *began - *ended));
    }
    spans
}

async fn crashes(fault: Fault) -> Result<Vec<Duration>, SupervisorBenchError> {
    with(fault, async |bed| {
        let mut spans = Vec::with_capacity(CRASHES);
        for _ in 0..CRASHES {
            let crashed = bed.go_wrong().await?.at;
            spans.push(bed.began().await? - crashed);
        }
        Ok(spans)
    })
    .await
}

/// The longest of a few, since that is what is promised: from the last heartbeat until the worker is
/// told to end.
async fn hangs(fault: Fault) -> Result<Duration, SupervisorBenchError> {
    let mut longest = Duration::ZERO;
    for _ in 0..HANGS {
        let noticed = with(fault, async |bed| {
            let wrong = bed.go_wrong().await?;
            let noticed = timeout(PATIENCE, wrong.stop.cancelled()).await;
            let taken = wrong.at.elapsed();
            bed.release.store(true, Ordering::Relaxed);
            noticed
                .map_err(|_| SupervisorBenchError::Late { what: "no hung worker was noticed" })?;
            Ok(taken)
        });
        longest = longest.max(noticed.await?);
    }
    Ok(longest)
}

/// Runs a supervisor on this task, as the service does, and `work` beside it.
async fn with<T>(
    fault: Fault,
    work: impl AsyncFnOnce(&mut Bed) -> Result<T, SupervisorBenchError>,
) -> Result<T, SupervisorBenchError> {
    let (mut bed, run) = Bed::start(fault)?;
    let work = async {
        let begun = bed.began().await;
        let result = match begun {
            Ok(_) => work(&mut bed).await,
            Err(error) => Err(error),
        };
        bed.handle.stop(Exit::Clean);
        result
    };
    let (result, _) = tokio::join!(work, run);
    result
}

/// A worker has just gone wrong.
struct Wrong {
    at: Instant,
    /// Tells it to end.
    stop: CancellationToken,
}

/// A supervisor with a worker that goes wrong when it is told to.
struct Bed {
    handle: Handle,
    order: mpsc::Sender<()>,
    went_wrong: mpsc::Receiver<Wrong>,
    began: mpsc::Receiver<Instant>,
    /// Lets a spinning worker end.
    release: Arc<AtomicBool>,
    _watchdog: Watchdog,
}

impl Bed {
    fn start(fault: Fault) -> Result<(Self, impl Future<Output = Exit>), SupervisorBenchError> {
        let (order, orders) = mpsc::channel(1);
        let orders = Arc::new(tokio::sync::Mutex::new(orders));
        let (tell_wrong, went_wrong) = mpsc::channel(1);
        let (tell_began, began) = mpsc::channel(1);
        let release = Arc::new(AtomicBool::new(false));
        let let_go = Arc::clone(&release);
        let victim = build(move |context: Context| {
            let (orders, wrong, begin) =
                (Arc::clone(&orders), tell_wrong.clone(), tell_began.clone());
            let release = Arc::clone(&let_go);
            async move {
                let now = Instant::now();
                context.heartbeat.beat("begin");
                // Nobody listens any more only at the end.
                let _ = begin.try_send(now);
                let mut orders = orders.lock().await;
                let ordered = loop {
                    tokio::select! {
                        () = context.stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(Heartbeat::INTERVAL) => context.heartbeat.beat("wait"),
                        order = orders.recv() => break order,
                    }
                };
                drop(orders);
                if ordered.is_none() {
                    context.stop.cancelled().await;
                    return Ok(());
                }
                context.heartbeat.beat("go wrong");
                let _ = wrong.try_send(Wrong { at: Instant::now(), stop: context.stop.clone() });
                match fault {
                    Fault::Fails => Err::<(), WorkerError>("ordered to fail".into()),
                    Fault::Panics => panic!("ordered to panic"),
                    Fault::Waits => std::future::pending().await,
                    Fault::Spins => {
                        while !release.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                        Ok(())
                    }
                }
            }
        });
        let mut rows: Vec<Row> = COMPANIONS.iter().map(|name| row(name, build(idle))).collect();
        rows.push(row(VICTIM, victim));
        let (_, control) = WorkerControl::channel();
        let (watchdog, watched) = Watchdog::start()?;
        let (supervisor, handle) = Supervisor::new(Setup {
            policy: RestartPolicy {
                first_delay_max: Duration::ZERO,
                settled_after: Duration::ZERO,
                restarts_max: usize::MAX,
                ..RestartPolicy::default()
            },
            drain_timeout: Duration::from_secs(2),
            identity: Identity { version: "bench".to_owned(), log: "none".to_owned() },
            control,
            bus: watch::channel(BusPicture::default()).1,
            reload: Box::new(|| {}),
            watched,
        });
        let run = supervisor.run(Vec::new(), Box::pin(async { Ok(rows) }));
        let bed = Self { handle, order, went_wrong, began, release, _watchdog: watchdog };
        Ok((bed, run))
    }

    /// Tells the worker to go wrong; returns when it has.
    async fn go_wrong(&mut self) -> Result<Wrong, SupervisorBenchError> {
        let _ = self.order.send(()).await;
        next(&mut self.went_wrong, "no worker went wrong").await
    }

    /// When the worker began the next time.
    async fn began(&mut self) -> Result<Instant, SupervisorBenchError> {
        next(&mut self.began, "no worker began again").await
    }
}

async fn next<T>(
    from: &mut mpsc::Receiver<T>,
    what: &'static str,
) -> Result<T, SupervisorBenchError> {
    match timeout(PATIENCE, from.recv()).await {
        Ok(Some(at)) => Ok(at),
        _ => Err(SupervisorBenchError::Late { what }),
    }
}

fn row(name: &'static str, build: Build) -> Row {
    Row {
        name,
        criticality: Criticality::Parkable,
        depends_on: &[],
        heartbeat_budget: BUDGET,
        stop_group: 0,
        function: "nothing",
        build,
    }
}

async fn idle(context: Context) -> Result<(), WorkerError> {
    context.heartbeat.during("idle", context.stop.cancelled()).await;
    Ok(())
}
