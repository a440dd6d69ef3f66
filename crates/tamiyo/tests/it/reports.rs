//! Field reports: stored, published, kept over restarts.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use leyline::Message;
use leyline::wire::{FieldReport, FieldReportOutcome};
use oona::{Bus, ConsumerSpec, Heartbeat, Stream};
use tamiyo::{
    FieldReports, Metrics, ReportSettings, ReportStore, Reports, StoreError, report_queue,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::rig::{PATIENCE, bus};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn report(id: &str) -> FieldReport {
    FieldReport {
        version: 1,
        report_id: id.to_owned(),
        command_id: format!("command of {id}"),
        outcome: FieldReportOutcome::Success.into(),
        issued_at: Some(leyline::time::timestamp(leyline::time::now_unix_ms())),
        ..FieldReport::default()
    }
}

fn ids(reports: &[FieldReport]) -> Vec<&str> {
    reports.iter().map(|report| report.report_id.as_str()).collect()
}

fn open(dir: &Path) -> (ReportStore, tamiyo::Recovered) {
    ReportStore::open(dir, DAY, leyline::time::now_unix_ms()).unwrap()
}

#[test]
fn a_restart_finds_what_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut store, _) = open(dir.path());
        store.append(&[report("1"), report("2")]).unwrap();
        store.append(&[report("3")]).unwrap();
        store.mark_published(&["2".to_owned()]).unwrap();
    }
    let (_, recovered) = open(dir.path());
    assert_eq!(ids(&recovered.pending), ["1", "3"]);
    assert_eq!(recovered.torn_bytes, 0);
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_was_torn_and_hides_nothing() {
    let whole = {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).0.append(&[report("1"), report("2")]).unwrap();
        fs::read(dir.path().join("reports.log")).unwrap()
    };
    for cut in 0..=whole.len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("reports.log"), &whole[..cut]).unwrap();
        let (mut store, recovered) = open(dir.path());
        let kept = recovered.pending.len();
        assert_eq!(kept, cut / (whole.len() / 2), "cut at {cut}");
        assert_eq!(recovered.torn_bytes as usize, cut - kept * whole.len() / 2);
        store.append(&[report("3")]).unwrap();
        drop(store);
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.pending.len(), kept + 1, "cut at {cut}");
        assert_eq!(recovered.pending.last().unwrap().report_id, "3");
    }
}

#[test]
fn rubbish_behind_the_last_record_is_cut_off_too() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).0.append(&[report("1")]).unwrap();
    let mut file = OpenOptions::new().append(true).open(dir.path().join("reports.log")).unwrap();
    file.write_all(&[0xff; 100]).unwrap();
    let (_, recovered) = open(dir.path());
    assert_eq!((ids(&recovered.pending), recovered.torn_bytes), (vec!["1"], 100));
}

#[test]
fn what_is_older_than_the_retention_leaves_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let now = leyline::time::now_unix_ms();
    let old = FieldReport {
        issued_at: Some(leyline::time::timestamp(now - 25 * 3_600_000)),
        ..report("old")
    };
    let (mut store, _) = open(dir.path());
    store.append(&[old, report("new"), report("sent")]).unwrap();
    store.mark_published(&["old".to_owned(), "sent".to_owned()]).unwrap();
    assert_eq!(store.expire(DAY, now).unwrap(), 1);
    assert_eq!(store.expire(DAY, now).unwrap(), 0);
    store.append(&[report("newer")]).unwrap();
    drop(store);
    let (store, recovered) = open(dir.path());
    assert_eq!(ids(&recovered.pending), ["new", "newer"]);
    drop(store);
    let later = now + 25 * 3_600_000;
    let (_, recovered) = ReportStore::open(dir.path(), DAY, later).unwrap();
    assert_eq!((recovered.pending.len(), recovered.expired), (0, 3));
    assert_eq!(fs::read(dir.path().join("reports.log")).unwrap(), b"");
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = open(dir.path());
    let second = ReportStore::open(dir.path(), DAY, 0);
    assert!(matches!(second, Err(StoreError::InUse { .. })));
}

#[test]
fn a_report_too_large_for_a_record_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let large = FieldReport { notes: "x".repeat(70_000), ..report("large") };
    let refused = store.append(&[report("1"), large]);
    assert!(matches!(refused, Err(StoreError::Oversize { .. })));
    drop(store);
    assert!(open(dir.path()).1.pending.is_empty());
}

/// A publisher over a bus, both in one directory.
struct Rig {
    bus: Bus,
    settings: ReportSettings,
    metrics: Metrics,
    dir: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus = bus(dir.path()).await;
        bus.ensure_groups(&[(Stream::Normal, "reader")]).await.unwrap();
        let metrics = Metrics::detached();
        Self { bus, settings: ReportSettings::default(), metrics, dir }
    }

    fn worker(&self) -> (Reports, FieldReports) {
        let (reports, inbox) = report_queue(&self.settings, &self.metrics);
        let worker = FieldReports {
            bus: self.bus.clone(),
            settings: self.settings.clone(),
            dir: self.dir.path().join("reports"),
            inbox,
            metrics: self.metrics.clone(),
            heartbeat: Heartbeat::detached(),
        };
        (reports, worker)
    }

    /// The ids of the next reports on the normal stream.
    async fn read(&self, count: usize) -> Vec<String> {
        let mut consumer = self.bus.consumer(ConsumerSpec::new(Stream::Normal, "reader"));
        let mut found = Vec::new();
        while found.len() < count {
            let delivery = timeout(PATIENCE, consumer.recv()).await.unwrap().unwrap();
            if let Message::FieldReport(report) = &delivery.message {
                found.push(report.report_id.clone());
            }
            delivery.ack().await.unwrap();
        }
        found
    }

    /// Runs a worker until `until` is over, then stops it.
    async fn run<T>(&self, worker: FieldReports, until: impl Future<Output = T>) -> T {
        let stop = CancellationToken::new();
        let stopping = async {
            let result = until.await;
            stop.cancel();
            result
        };
        let both = async { tokio::join!(worker.run(stop.clone()), stopping) };
        let (ended, result) = timeout(PATIENCE, both).await.unwrap();
        ended.unwrap();
        result
    }

    fn point(&self, name: &str) -> f64 {
        let name = format!("tamiyo.field_reports.{name}_total");
        self.metrics.points().into_iter().find(|point| point.name == name).unwrap().value
    }
}

#[tokio::test]
async fn what_is_offered_is_published_once() {
    let rig = Rig::new().await;
    let (reports, worker) = rig.worker();
    reports.offer([report("1"), report("2"), report("3")]);
    let found = rig.run(worker, rig.read(3)).await;
    assert_eq!(found, ["1", "2", "3"]);
    assert_eq!(rig.metrics.published_total(), 3);
    // A restart has nothing to publish again.
    let (reports, worker) = rig.worker();
    reports.offer([report("4")]);
    assert_eq!(rig.run(worker, rig.read(1)).await, ["4"]);
}

#[tokio::test]
async fn a_restart_publishes_what_the_last_one_could_not() {
    let rig = Rig::new().await;
    {
        let (mut store, _) = open(&rig.dir.path().join("reports"));
        store.append(&[report("1"), report("2")]).unwrap();
    }
    let (_reports, worker) = rig.worker();
    assert_eq!(rig.run(worker, rig.read(2)).await, ["1", "2"]);
}

#[tokio::test]
async fn a_stop_stores_and_publishes_what_stands_in_the_queue() {
    let rig = Rig::new().await;
    let (reports, worker) = rig.worker();
    reports.offer([report("1"), report("2")]);
    let stop = CancellationToken::new();
    stop.cancel();
    worker.run(stop).await.unwrap();
    assert_eq!(rig.read(2).await, ["1", "2"]);
    assert!(open(&rig.dir.path().join("reports")).1.pending.is_empty());
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_instead_of_waiting() {
    let mut rig = Rig::new().await;
    rig.settings.queue_len_max = 2;
    let (reports, _worker) = rig.worker();
    reports.offer([report("1"), report("2"), report("3")]);
    assert_eq!(rig.point("dropped"), 1.0);
}

#[tokio::test]
async fn a_bus_that_refuses_is_asked_again_and_the_report_stays_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = oona::LogChoice::Embedded { path: dir.path().join("log.redb") };
    // Two waiting entries are a full stream, so that NORMAL messages are refused.
    let config = oona::Config {
        log,
        depth_max: 2,
        backpressure_threshold: 1,
        emergency_threshold: 1,
        recovery_depth: 1,
        depth_sample_interval: Duration::ZERO,
        ..oona::Config::default()
    };
    let bus = Bus::open(config, crate::rig::keyring(), oona::Metrics::detached()).await.unwrap();
    let group = bus.config().group.clone();
    bus.ensure_groups(&[(Stream::Normal, group.as_str())]).await.unwrap();
    let mut rig =
        Rig { bus, settings: ReportSettings::default(), metrics: Metrics::detached(), dir };
    rig.settings.backoff = Duration::from_millis(1);
    rig.settings.backoff_max = Duration::from_millis(1);
    rig.settings.retries_max = 1;
    let filler = Message::from(report("filler"));
    let fill = || {
        rig.bus.publish(Stream::Normal, leyline::wire::MessagePriority::Critical, "test", &filler)
    };
    for _ in 0..4 {
        assert!(fill().await.unwrap().is_sent());
    }
    let (reports, worker) = rig.worker();
    reports.offer([report("1")]);
    let dropped = async {
        while rig.point("dropped") == 0.0 {
            tokio::task::yield_now().await;
        }
    };
    rig.run(worker, dropped).await;
    assert_eq!((rig.point("retries"), rig.metrics.published_total()), (1.0, 0));
    assert_eq!(ids(&open(&rig.dir.path().join("reports")).1.pending), ["1"]);
}
