//! The watchdog's thread beside real runtimes whose threads are really blocked.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use nissa::{Health, WorkerControl, WorkerHealth};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::sync::watch;

use super::*;
use crate::supervisor::{
    Boot, BusPicture, Context, Criticality, Handle, Identity, RestartPolicy, Row, Setup, Stuck,
    Supervisor, WorkerError, build,
};

const BUDGET: Duration = Duration::from_millis(300);
/// Longer than anything here takes; a test that waits for so long has failed.
const FAR: Duration = Duration::from_secs(60);

fn patience(blocked_max: Duration) -> Patience {
    Patience {
        look_every: Duration::from_millis(20),
        turn_budget: Duration::from_secs(2),
        blocked_max,
        ..Patience::default()
    }
}

fn row<F, R>(name: &'static str, make: F) -> Row
where
    F: FnMut(Context) -> R + Send + 'static,
    R: Future<Output = Result<(), WorkerError>> + Send + 'static,
{
    Row {
        name,
        criticality: Criticality::Critical,
        depends_on: &[],
        heartbeat_budget: BUDGET,
        stop_group: 0,
        function: "",
        build: build(make),
    }
}

/// Beats every 50 ms until it is stopped, and counts.
async fn busy(context: Context, turns: Arc<AtomicUsize>) -> Result<(), WorkerError> {
    while !context.stop.is_cancelled() {
        context.heartbeat.beat("counting");
        turns.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A row whose first start spins over message `17-0` until it is released.
fn spins_once(released: &Arc<AtomicBool>) -> Row {
    let (released, starts) = (Arc::clone(released), AtomicUsize::new(0));
    row("spinner", move |context: Context| {
        let (released, start) = (Arc::clone(&released), starts.fetch_add(1, Ordering::Relaxed));
        async move {
            if start == 0 {
                context.heartbeat.beat_about("adding up", "17-0");
                while !released.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
            context.heartbeat.during("idle", context.stop.cancelled()).await;
            Ok(())
        }
    })
}

fn supervisor(watched: Watched) -> (Supervisor, Handle) {
    let (_, control) = WorkerControl::channel();
    Supervisor::new(Setup {
        policy: RestartPolicy {
            delay_min: Duration::from_millis(20),
            delay_max: Duration::from_millis(20),
            ..RestartPolicy::default()
        },
        drain_timeout: Duration::from_secs(10),
        identity: Identity { version: "test".into(), log: "embedded".into() },
        control,
        bus: watch::Sender::new(BusPicture::default()).subscribe(),
        reload: Box::new(|| {}),
        watched,
    })
}

fn booted(rows: Vec<Row>) -> Boot {
    Box::pin(async move { Ok(rows) })
}

fn worker<'a>(health: &'a Health, name: &str) -> &'a WorkerHealth {
    health.workers.iter().find(|worker| worker.name == name).unwrap()
}

/// Releases spinning threads also when the test fails.
struct Release(Arc<AtomicBool>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_worker_that_spins_is_found_named_abandoned_and_replaced_while_others_go_on() {
    let released = Arc::new(AtomicBool::new(false));
    let release = Release(Arc::clone(&released));
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let rows = vec![
        row("counter", move |context| busy(context, Arc::clone(&counted))),
        spins_once(&released),
    ];
    let never: EndProcess = Box::new(|blocked| panic!("{blocked}"));
    let no_feed = Feed::from_environment();
    let (watchdog, watched) = Watchdog::with(patience(FAR), no_feed, never).unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
    let (exit, health, hung) = runtime.block_on(async {
        let (supervisor, handle) = supervisor(watched);
        let mut seen = handle.health();
        let watching = async {
            let found = seen.wait_for(|health| health.hung == ["spinner"]).await.unwrap().clone();
            // Its thread still spins: it was abandoned, not ended.
            let replaced = |health: &Health| worker(health, "spinner").last_restart_ms.is_some();
            let health = seen.wait_for(replaced).await.unwrap().clone();
            handle.stop(Exit::Clean);
            (health, found)
        };
        let (exit, (health, hung)) = tokio::join!(supervisor.run(vec![], booted(rows)), watching);
        (exit, health, hung)
    });
    drop(release);
    drop(watchdog);
    drop(runtime);

    assert_eq!(exit, Exit::Clean);
    let noticed = worker(&hung, "spinner").heartbeat_age_ms.unwrap();
    let limit = BUDGET + Duration::from_secs(1);
    assert!(u128::from(noticed) <= limit.as_millis(), "noticed after {noticed} ms");
    assert_eq!(worker(&hung, "spinner").last_about.as_deref(), Some("17-0"));
    let spinner = worker(&health, "spinner");
    let reason = spinner.last_error.clone().unwrap();
    assert!(
        reason.contains("phase \"adding up\"") && reason.ends_with("working on 17-0"),
        "{reason}"
    );
    assert_eq!((spinner.restarts, spinner.state), (1, nissa::WorkerState::Running));
    assert_eq!(worker(&health, "counter").restarts, 0);
    assert!(health.hung.is_empty() && health.ready, "{health:?}");
    // 4 s of patience with the spinner went by, at 20 turns a second.
    let turns = turns.load(Ordering::Relaxed);
    assert!(turns > 20, "the other worker had {turns} turns only");
}

#[test]
fn a_blocked_runtime_is_reported_not_fed_and_ended() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(FAR)).unwrap();
    let feed = Feed::to(path.into_os_string(), Duration::from_millis(60));

    let released = Arc::new(AtomicBool::new(false));
    let release = Release(Arc::clone(&released));
    let (ended, end) = mpsc::channel();
    let hook: EndProcess = Box::new(move |blocked| ended.send(blocked.clone()).unwrap());
    let blocked_max = Duration::from_secs(3);
    let (watchdog, watched) = Watchdog::with(patience(blocked_max), feed, hook).unwrap();

    // One thread for everything: the spinner takes it from the supervisor, too.
    let row = spins_once(&released);
    let spinning = std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (supervisor, handle) = supervisor(watched);
            let stopping = async {
                let mut seen = handle.health();
                seen.wait_for(|health| health.ready).await.unwrap();
                // The spinner was released by now.
                handle.stop(Exit::Clean);
            };
            tokio::join!(supervisor.run(vec![], booted(vec![row])), stopping).0
        })
    });

    let blocked = end.recv_timeout(FAR).unwrap();
    assert_eq!(blocked.what, Stuck::Loop);
    assert!(blocked.silence > blocked_max && blocked.silence < FAR, "{:?}", blocked.silence);
    let [seen] = blocked.seen.as_slice() else { panic!("{blocked}") };
    assert_eq!((seen.worker, seen.phase), ("spinner", "adding up"));
    assert_eq!(seen.about.as_deref(), Some("17-0"));
    // Fed while the spinner was within its budget at most, and not once since: what is in the
    // socket is of the first moments.
    manager.set_nonblocking(true).unwrap();
    let fed = std::iter::from_fn(|| manager.recv(&mut [0; 64]).ok()).count();
    let possible = (BUDGET.as_millis() / 20) as usize + 2;
    assert!(fed <= possible, "fed {fed} times, {possible} before the spinner was hung");

    drop(release);
    assert_eq!(spinning.join().unwrap(), Exit::Clean);
    drop(watchdog);
}

#[test]
fn systemd_is_fed_while_all_is_well() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(FAR)).unwrap();
    let feed = Feed::to(path.into_os_string(), Duration::from_millis(60));
    let never: EndProcess = Box::new(|blocked| panic!("{blocked}"));
    let (watchdog, watched) = Watchdog::with(patience(FAR), feed, never).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (supervisor, handle) = runtime.block_on(async { supervisor(watched) });
    let row = row("counter", |context| busy(context, Arc::default()));
    let listening = std::thread::spawn(move || {
        for _ in 0..5 {
            let mut buffer = [0; 64];
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"WATCHDOG=1");
        }
        handle.stop(Exit::Clean);
    });
    let exit = runtime.block_on(supervisor.run(vec![], booted(vec![row])));
    listening.join().unwrap();
    assert_eq!(exit, Exit::Clean);
    drop(watchdog);
}

#[test]
fn a_crashed_worker_tells_how_long_it_took_to_run_again() {
    let never: EndProcess = Box::new(|blocked| panic!("{blocked}"));
    let no_feed = Feed::from_environment();
    let (watchdog, watched) = Watchdog::with(patience(FAR), no_feed, never).unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let took = runtime.block_on(async {
        let (supervisor, handle) = supervisor(watched);
        let starts = AtomicUsize::new(0);
        let crasher = row("crasher", move |context: Context| {
            let start = starts.fetch_add(1, Ordering::Relaxed);
            async move {
                context.heartbeat.beat("about to crash");
                assert!(start >= 5, "it crashes five times");
                context.heartbeat.during("idle", context.stop.cancelled()).await;
                Ok(())
            }
        });
        let mut seen = handle.health();
        let watching = async {
            let is_back = |health: &Health| {
                let crasher = health.workers.first();
                crasher
                    .is_some_and(|worker| worker.restarts == 5 && worker.last_restart_ms.is_some())
            };
            let took = worker(&seen.wait_for(is_back).await.unwrap(), "crasher").last_restart_ms;
            handle.stop(Exit::Clean);
            took.unwrap()
        };
        tokio::join!(supervisor.run(vec![], booted(vec![crasher])), watching).1
    });
    drop(watchdog);
    // How long is a figure (`weatherlight bench --supervisor`); here a busy machine may take its time.
    assert!(took > 0.0 && took < 10_000.0, "{took} ms");
}
