//! The runner with real tasks, on a paused clock.

use super::*;
use crate::supervisor::{Criticality, build};
use nissa::{WorkerControl, WorkerState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, thiserror::Error)]
#[error("the disk is gone")]
struct Gone;

fn row<F, R>(name: &'static str, criticality: Criticality, stop_group: u8, make: F) -> Row
where
    F: FnMut(Context) -> R + Send + 'static,
    R: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let heartbeat_budget = Duration::from_secs(10);
    Row {
        name,
        criticality,
        depends_on: &[],
        heartbeat_budget,
        stop_group,
        function: "",
        build: build(make),
    }
}

/// Beats until it is stopped.
async fn healthy(context: Context) -> Result<(), Gone> {
    context.heartbeat.during("idle", context.stop.cancelled()).await;
    Ok(())
}

struct Service {
    handle: Handle,
    control: WorkerControl,
    reloads: Arc<AtomicUsize>,
    run: Pin<Box<dyn Future<Output = Exit>>>,
}

fn service(first: Vec<Row>, boot: Boot) -> Service {
    let (control, requests) = WorkerControl::channel();
    let reloads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reloads);
    let (supervisor, handle) = Supervisor::new(Setup {
        policy: RestartPolicy::default(),
        drain_timeout: Duration::from_secs(10),
        identity: Identity { version: "test".into(), log: "embedded".into() },
        control: requests,
        bus: watch::Sender::new(BusPicture::default()).subscribe(),
        reload: Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
        watched: Watched::by_the_loop(),
    });
    Service { handle, control, reloads, run: Box::pin(supervisor.run(first, boot)) }
}

fn booted(rows: Vec<Row>) -> Boot {
    Box::pin(async move { Ok(rows) })
}

impl Service {
    /// Drives the service until the picture satisfies `until`.
    async fn drive(&mut self, until: impl Fn(&Health) -> bool) -> Health {
        let mut health = self.handle.health();
        let seen = async { health.wait_for(|health| until(health)).await.unwrap().clone() };
        tokio::select! {
            health = seen => health,
            exit = &mut self.run => panic!("left early with {exit:?}"),
        }
    }

    async fn end(self) -> Exit {
        self.handle.stop(Exit::Clean);
        self.run.await
    }
}

fn worker<'a>(health: &'a Health, name: &str) -> &'a nissa::WorkerHealth {
    health.workers.iter().find(|worker| worker.name == name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn workers_run_until_the_service_is_stopped_cleanly() {
    let rows = vec![row("a", Criticality::Critical, 1, healthy)];
    let mut service = service(vec![row("http", Criticality::Parkable, 0, healthy)], booted(rows));
    let health = service.drive(|health| health.ready).await;
    assert_eq!(health.workers.len(), 2);
    assert_eq!(service.end().await, Exit::Clean);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_crash_of_that_worker_only() {
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    let panics_once = move |context: Context| {
        let start = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_ne!(start, 0, "the first start panics");
            healthy(context).await
        }
    };
    let rows = vec![
        row("a", Criticality::Parkable, 0, panics_once),
        row("b", Criticality::Critical, 0, healthy),
    ];
    let mut service = service(vec![], booted(rows));
    let restarted = |health: &Health| {
        health.ready && worker(health, "a").restarts == 1 && health.lost.is_empty()
    };
    let health = service.drive(restarted).await;
    assert!(
        health.uptime_s < 0.2,
        "the first restart comes within 100 ms, not {}",
        health.uptime_s
    );
    let reason = worker(&health, "a").last_error.clone().unwrap();
    assert!(reason.contains("panicked") && reason.contains("the first start panics"), "{reason}");
    assert_eq!(worker(&health, "b").restarts, 0);
    assert_eq!(service.end().await, Exit::Clean);
}

#[tokio::test(start_paused = true)]
async fn a_hopeless_worker_is_parked_and_revived_by_an_operator() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = Arc::clone(&broken);
    let fails = move |context: Context| {
        let broken = seen.load(Ordering::Relaxed);
        async move { if broken { Err(Gone) } else { healthy(context).await } }
    };
    let mut service = service(
        vec![],
        booted(vec![row("a", Criticality::Parkable, 0, fails).losing("nothing is written")]),
    );
    let parked = |health: &Health| {
        health.workers.first().is_some_and(|worker| worker.state == WorkerState::Parked)
    };
    let health = service.drive(parked).await;
    assert_eq!(health.system_mode, nissa::SystemMode::Degraded);
    assert!(
        health.lost[0] == "nothing is written: a is parked: the disk is gone",
        "{:?}",
        health.lost
    );
    let recent = &worker(&health, "a").recent_restarts;
    assert_eq!(recent.len() as u64, worker(&health, "a").restarts + 1, "{recent:?}");
    assert!(recent.iter().all(|restart| restart.reason == "the disk is gone"), "{recent:?}");
    assert!(recent.is_sorted_by(|a, b| a.uptime_s < b.uptime_s), "{recent:?}");
    assert!(health.ready, "a parked worker that is not critical leaves the service ready");

    broken.store(false, Ordering::Relaxed);
    let control = service.control.clone();
    let asking = async {
        control.ask("nobody".into(), WorkerAction::Restart).await.unwrap_err();
        control.ask("a".into(), WorkerAction::Restart).await.unwrap();
        std::future::pending::<()>().await;
    };
    let health = tokio::select! {
        () = asking => unreachable!("it asks for ever"),
        health = service.drive(|health| worker(health, "a").state == WorkerState::Running) => health,
    };
    let last = worker(&health, "a").recent_restarts.last().unwrap();
    assert_eq!(last.reason, "restarted by an operator");
    assert_eq!(service.end().await, Exit::Clean);
}

#[tokio::test(start_paused = true)]
async fn an_operator_parks_a_worker_and_cannot_park_a_critical_one() {
    let rows = vec![
        row("a", Criticality::Parkable, 0, healthy).losing("nothing is written"),
        row("b", Criticality::Critical, 0, healthy),
    ];
    let mut service = service(vec![], booted(rows));
    service.drive(|health| health.ready).await;
    let control = service.control.clone();
    let asking = async {
        let refused = control.ask("b".into(), WorkerAction::Park).await.unwrap_err();
        assert_eq!(refused, ControlRefused::Critical { name: "b".into() });
        control.ask("a".into(), WorkerAction::Park).await.unwrap();
        std::future::pending::<()>().await;
    };
    let parked = |health: &Health| worker(health, "a").state == WorkerState::Parked;
    let health = tokio::select! {
        () = asking => unreachable!("it asks for ever"),
        health = service.drive(parked) => health,
    };
    assert_eq!(health.lost, ["nothing is written: a is parked: parked by an operator"]);
    assert!(health.ready);
    // An hour later it still is.
    let began = Instant::now();
    let later = |_: &Health| began.elapsed() > Duration::from_secs(3600);
    let health = service.drive(later).await;
    assert_eq!(
        (worker(&health, "a").state, worker(&health, "a").restarts),
        (WorkerState::Parked, 0)
    );
    assert_eq!(worker(&health, "b").state, WorkerState::Running);
    assert_eq!(service.end().await, Exit::Clean);
}

#[tokio::test(start_paused = true)]
async fn a_hopeless_critical_worker_stops_the_service_with_code_70() {
    let rows = vec![row("a", Criticality::Critical, 0, |_| async { Err(Gone) })];
    let service = service(vec![row("http", Criticality::Parkable, 0, healthy)], booted(rows));
    let exit = service.run.await;
    assert_eq!((exit, exit.code()), (Exit::Software, 70));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_returns_is_restarted() {
    let mut service =
        service(vec![], booted(vec![row("a", Criticality::Parkable, 0, |_| async { Ok(()) })]));
    let health =
        service.drive(|health| health.workers.first().is_some_and(|w| w.restarts > 1)).await;
    assert_eq!(worker(&health, "a").last_error.as_deref(), Some("returned without being asked to"));
    service.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hung_worker_is_found_cancelled_and_restarted() {
    let starts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&starts);
    let hangs_once = move |context: Context| {
        let start = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            if start == 0 {
                context.heartbeat.beat("reading the tape");
                std::future::pending::<()>().await;
            }
            healthy(context).await
        }
    };
    let mut service = service(vec![], booted(vec![row("a", Criticality::Parkable, 0, hangs_once)]));
    let health =
        service.drive(|health| health.workers.first().is_some_and(|w| w.restarts == 1)).await;
    let reason = worker(&health, "a").last_error.clone().unwrap();
    assert!(reason.contains("last seen in phase \"reading the tape\""), "{reason}");
    // Budget 10 s, noticed within 0.5 s, 2 s for the token, then aborted and restarted.
    assert!((12.0..13.0).contains(&health.uptime_s), "{}", health.uptime_s);
    assert_eq!(service.end().await, Exit::Clean);
}

#[tokio::test(start_paused = true)]
async fn groups_stop_in_order_and_http_is_last() {
    let ended = Arc::new(Mutex::new(Vec::new()));
    let recorded = |name: &'static str, group| {
        let ended = Arc::clone(&ended);
        row(name, Criticality::Critical, group, move |context: Context| {
            let ended = Arc::clone(&ended);
            async move {
                context.heartbeat.during("idle", context.stop.cancelled()).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                ended.lock().unwrap().push(name);
                Ok(())
            }
        })
    };
    let rows = vec![recorded("bus", 1), recorded("prefetch", 3), recorded("forge", 2)];
    let mut service = service(vec![recorded("http", 0)], booted(rows));
    service.drive(|health| health.ready).await;
    assert_eq!(service.end().await, Exit::Clean);
    assert_eq!(*ended.lock().unwrap(), ["prefetch", "forge", "bus", "http"]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_stop_is_aborted_at_the_deadline_or_by_a_second_signal() {
    for signals in [1, 2] {
        let deaf = |_| async { std::future::pending::<Result<(), Gone>>().await };
        let mut service = service(vec![], booted(vec![row("a", Criticality::Critical, 0, deaf)]));
        service.drive(|health| health.ready).await;
        let began = Instant::now();
        (0..signals).for_each(|_| service.handle.stop(Exit::Clean));
        assert_eq!(service.run.await, Exit::Software);
        let expected = if signals == 1 { Duration::from_secs(10) } else { Duration::ZERO };
        assert_eq!(began.elapsed().as_secs(), expected.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_boot_ends_what_was_started_with_its_exit() {
    let boot: Boot = Box::pin(async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err(BootFailure { exit: Exit::Unavailable, error: Box::new(Gone) })
    });
    let service = service(vec![row("http", Criticality::Parkable, 0, healthy)], boot);
    assert_eq!(service.run.await.code(), 69);
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_boot_gives_the_boot_up() {
    let mut service = service(
        vec![row("http", Criticality::Parkable, 0, healthy)],
        Box::pin(std::future::pending()),
    );
    let health = service.drive(|health| health.workers.len() == 1).await;
    assert!(!health.ready && health.reasons == ["the service is booting"]);
    assert_eq!(service.end().await, Exit::Clean);
}

#[tokio::test(start_paused = true)]
async fn reload_is_carried_out() {
    let mut service = service(vec![], booted(vec![]));
    service.drive(|health| health.ready).await;
    service.handle.reload();
    let reloads = Arc::clone(&service.reloads);
    assert_eq!(service.end().await, Exit::Clean);
    assert_eq!(reloads.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn finishing_does_not_hurry_a_stop_that_has_begun() {
    let slow = |context: Context| async move {
        context.heartbeat.during("idle", context.stop.cancelled()).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    };
    let mut service = service(vec![], booted(vec![row("a", Criticality::Critical, 0, slow)]));
    service.drive(|health| health.ready).await;
    service.handle.stop(Exit::Clean);
    service.handle.finish();
    assert_eq!(service.run.await, Exit::Clean);
}
