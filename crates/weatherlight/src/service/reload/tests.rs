use super::*;
use crate::settings::{Sources, resolve};
use std::fs;
use std::path::Path;
use std::sync::Mutex as StdMutex;
use tempfile::TempDir;

use super::super::live::{self, InForce as Live};

const SECRET: &str = "the first secret of all";

/// A keeper over real files in a directory of its own.
struct Bench {
    directory: TempDir,
    keeper: Keeper,
    live: Live,
    port: nissa::ReloadPort,
    filters: Arc<StdMutex<Vec<String>>>,
}

/// Reads the file and the secret of a directory, as `Sources::gather` does of the working directory.
fn read(directory: &Path) -> Result<Resolved, Faults> {
    let path = directory.join("weatherlight.toml");
    let file = fs::read_to_string(&path).ok().map(|text| (path, text));
    let secret = directory.join("secret").display().to_string();
    let environment = vec![("ESPER_LEYLINE_SECRET_FILE".to_owned(), secret)];
    resolve(&Sources { file, environment, ..Sources::default() })
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), SECRET).unwrap();
        fs::write(directory.path().join("weatherlight.toml"), "").unwrap();
        let resolved = read(directory.path()).unwrap();
        let (senders, live) = live::channel(Values::of(&resolved.settings).unwrap());
        let (port, requests) = nissa::ReloadPort::channel();
        let filters = Arc::new(StdMutex::new(Vec::new()));
        let (reader, seen) = (directory.path().to_owned(), Arc::clone(&filters));
        let source = Source {
            read: Arc::new(move || read(&reader)),
            paths: vec![directory.path().join("weatherlight.toml")],
            set_log_filter: Box::new(move |filter| {
                anyhow::ensure!(filter != "TRACE", "this one cannot be set");
                seen.lock().unwrap().push(filter.to_owned());
                Ok(())
            }),
        };
        let keeper = Keeper::new(source, resolved, senders, requests);
        Self { directory, keeper, live, port, filters }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    async fn asked(&mut self) -> ReloadReport {
        self.keeper.reload(Because::Asked).await
    }

    fn low(&self) -> u64 {
        self.live.bus.limits.borrow().backpressure_threshold
    }

    /// Whether a message signed with this secret is understood.
    fn understands(&self, secret: &str) -> bool {
        let secret = leyline::sign::Secret::new(secret);
        let signature = leyline::sign::Keyring::new(&secret, None).sign(b"message");
        self.live.bus.keyring.borrow().verify(b"message", signature).is_ok()
    }
}

fn outcomes(report: &ReloadReport) -> Vec<(&str, ChangeOutcome)> {
    report.changes.iter().map(|change| (change.setting.as_str(), change.outcome)).collect()
}

#[tokio::test]
async fn every_changed_setting_is_told_what_became_of_it() {
    use ChangeOutcome::{NeedsRestart, NoEffect, TookEffect};
    let mut bench = Bench::new();
    bench.write(
        "weatherlight.toml",
        "[oona]\nbackpressure_threshold = 8000\nmax_attempts = 3\n[kernel]\nnonce_cache_size = 64\n\
         [log]\nlevel = \"DEBUG\"\n[nissa]\nbsds_elevated_risk_threshold = 0.5\n\
         [weatherlight]\ntelemetry_interval_s = 3\nhttp_token = \"a token, long enough\"\n",
    );
    let report = bench.asked().await;
    assert!(report.applied, "{report:?}");
    let mut found = outcomes(&report);
    found.sort_by_key(|(name, _)| *name);
    let expected = [
        ("ESP_LOG_LEVEL", TookEffect),
        ("KERNEL_NONCE_CACHE_SIZE", NoEffect),
        ("NISSA_BSDS_ELEVATED_RISK_THRESHOLD", TookEffect),
        ("OONA_BACKPRESSURE_THRESHOLD", TookEffect),
        ("OONA_MAX_ATTEMPTS", NeedsRestart),
        ("WEATHERLIGHT_HTTP_TOKEN", TookEffect),
        ("WEATHERLIGHT_TELEMETRY_INTERVAL_S", TookEffect),
    ];
    assert_eq!(found, expected);
    assert_eq!(bench.low(), 8000);
    assert_eq!(bench.live.thresholds.borrow().elevated_risk, 0.5);
    assert_eq!(*bench.live.telemetry_interval.borrow(), Duration::from_secs(3));
    assert!(bench.live.token.borrow().is_some());
    assert_eq!(*bench.filters.lock().unwrap(), ["DEBUG"]);
    let change =
        report.changes.iter().find(|change| change.setting == "OONA_MAX_ATTEMPTS").unwrap();
    assert_eq!((change.was.as_deref(), change.now.as_deref()), (Some("5"), Some("3")));
    assert!(change.origin.ends_with("weatherlight.toml:3:16"), "{change:?}");
    let shown = format!("{report:?}");
    assert!(!shown.contains("a token, long enough"), "{shown}");
}

#[tokio::test]
async fn with_one_fault_everything_stays_as_it_was() {
    let mut bench = Bench::new();
    let good = "[oona]\nbackpressure_threshold = 8000\nemergency_max_per_min = 7\n";
    for bad in [
        "max_attempts = 0\n".to_owned(),
        "max_atempts = 3\n".to_owned(),
        // Each value is right, and both together are not.
        "emergency_threshold = 9000\n".to_owned(),
        // Right as a text, refused by the log itself.
        "[log]\nlevel = \"TRACE\"\n".to_owned(),
        "[leyline]\nsecret_previous_file = \"/nonexistent\"\n".to_owned(),
    ] {
        bench.write("weatherlight.toml", &format!("{good}{bad}"));
        let report = bench.asked().await;
        assert!(!report.applied && report.changes.is_empty(), "{bad}: {report:?}");
        assert_eq!(report.faults.len(), 1, "{bad}: {report:?}");
        assert_eq!(bench.low(), 7500, "{bad}");
        assert_eq!(bench.live.bus.limits.borrow().emergency_per_min, 120, "{bad}");
        assert!(bench.understands(SECRET));
    }
    for (name, text) in
        [("secret", "short"), ("weatherlight.toml", "[weatherlight]\nhttp_token = \"short\"\n")]
    {
        bench.write("weatherlight.toml", good);
        bench.write("secret", SECRET);
        bench.write(name, text);
        let report = bench.asked().await;
        assert!(!report.applied && !format!("{report:?}").contains("\"short\""), "{report:?}");
        assert!(bench.understands(SECRET) && bench.live.token.borrow().is_none());
    }
    bench.write("weatherlight.toml", good);
    // A secret that is gone would leave nothing to sign with.
    bench.write("weatherlight.toml", good);
    fs::remove_file(bench.directory.path().join("secret")).unwrap();
    assert!(!bench.asked().await.applied);
    assert!(bench.understands(SECRET));
    bench.write("secret", SECRET);
    assert!(bench.asked().await.applied);
    assert_eq!(bench.low(), 8000);
}

#[tokio::test]
async fn a_secret_is_rotated_by_its_file() {
    const NEW: &str = "the other secret of all";
    let mut bench = Bench::new();
    let previous = format!("[leyline]\nsecret_previous = \"{SECRET}\"\n");
    bench.write("weatherlight.toml", &previous);
    bench.write("secret", NEW);
    let report = bench.asked().await;
    assert_eq!(report.changes.len(), 2, "{report:?}");
    assert!(bench.understands(NEW) && bench.understands(SECRET));
    bench.write("weatherlight.toml", "");
    assert!(bench.asked().await.applied);
    assert!(bench.understands(NEW) && !bench.understands(SECRET));
}

#[tokio::test]
async fn files_that_change_are_read_once_they_stand_still() {
    let mut bench = Bench::new();
    let pause = SETTLE_INTERVAL;
    // The first look reads them in any case.
    assert_eq!(bench.keeper.look().await, pause);
    assert_eq!(bench.keeper.look().await, LOOK_INTERVAL);
    assert_eq!(bench.keeper.look().await, LOOK_INTERVAL);
    bench.write("weatherlight.toml", "[oona]\nbackpressure");
    assert_eq!(bench.keeper.look().await, pause);
    bench.write("weatherlight.toml", "[oona]\nbackpressure_threshold = 8000\n");
    assert_eq!(bench.keeper.look().await, pause);
    assert_eq!(bench.low(), 7500, "nothing is read half-way");
    assert_eq!(bench.keeper.look().await, LOOK_INTERVAL);
    assert_eq!(bench.low(), 8000);
    // By a rename, and the secret beside it.
    bench.write("new", "[oona]\nbackpressure_threshold = 9000\n");
    let path = |name: &str| bench.directory.path().join(name);
    fs::rename(path("new"), path("weatherlight.toml")).unwrap();
    bench.write("secret", "the other secret of all");
    assert_eq!(bench.keeper.look().await, pause);
    assert_eq!(bench.keeper.look().await, LOOK_INTERVAL);
    assert_eq!(bench.low(), 9000);
    assert!(bench.understands("the other secret of all"));
    // Emptied: left alone until somebody asks.
    bench.write("weatherlight.toml", "");
    assert_eq!(bench.keeper.look().await, pause);
    assert_eq!(bench.keeper.look().await, LOOK_INTERVAL);
    assert_eq!(bench.low(), 9000);
    assert!(bench.asked().await.applied);
    assert_eq!(bench.low(), 7500);
}

#[tokio::test]
async fn the_worker_answers_who_asks_and_stops_when_told() {
    let Bench { directory, keeper, port, live, .. } = Bench::new();
    let path = directory.path().join("weatherlight.toml");
    fs::write(path, "[oona]\nbackpressure_threshold = 8000\n").unwrap();
    let worker =
        Settings { keeper: Arc::new(Mutex::new(keeper)), heartbeat: Heartbeat::detached() };
    let stop = CancellationToken::new();
    let asking = async {
        let report = port.ask().await.unwrap();
        stop.cancel();
        report
    };
    let (ended, report) = tokio::join!(worker.run(stop.clone()), asking);
    ended.unwrap();
    assert_eq!(outcomes(&report), [("OONA_BACKPRESSURE_THRESHOLD", ChangeOutcome::TookEffect)]);
    assert_eq!(live.bus.limits.borrow().backpressure_threshold, 8000);
    assert!(port.ask().await.is_err(), "nobody reads any more");
}
