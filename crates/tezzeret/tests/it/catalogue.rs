//! The whole catalogue through a forge, and again after a restart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use karn::Site;
use kernel::artifact::Kernel;
use leyline::sign::{Keyring, Secret};
use oona::{Bus, Heartbeat, LogChoice};
use prometheus_client::registry::Registry;
use tezzeret::{Config, Desk, Forge, Handle, Metrics, Progress};
use tokio_util::sync::CancellationToken;
use urza::Library;

/// The whole catalogue, cold, in this profile.
const COLD_MAX: Duration = Duration::from_secs(30);

/// Library, bus and desk below one directory: what a process has, and loses when it is killed.
pub struct Process {
    pub library: Library,
    pub bus: Bus,
    pub desk: Desk,
    pub handle: Handle,
    pub metrics: Metrics,
    pub queue_dir: PathBuf,
}

impl Process {
    pub async fn start(root: &Path) -> Self {
        let metrics = urza::Metrics::register(&mut Registry::default());
        let library =
            Library::open(urza::Config::at(root), metrics).await.expect("a fresh library");
        let config = oona::Config {
            log: LogChoice::Embedded { path: root.join("log.redb") },
            ..oona::Config::default()
        };
        let keyring = Keyring::new(&Secret::new("a secret of the tests, long enough"), None);
        let metrics = oona::Metrics::register(&mut Registry::default());
        let bus = Bus::open(config, keyring, metrics).await.expect("a fresh log");
        let (desk, _, handle) = Desk::open();
        let metrics = Metrics::register(&mut Registry::default());
        Self { library, bus, desk, handle, metrics, queue_dir: root.join("forge/jobs") }
    }

    pub fn forge(&self, config: Config) -> Forge {
        Forge {
            config,
            library: self.library.clone(),
            bus: Some(self.bus.clone()),
            queue_dir: self.queue_dir.clone(),
            desk: self.desk.clone(),
            metrics: self.metrics.clone(),
            heartbeat: Heartbeat::detached(),
        }
    }

    /// Runs a forge until `wanted` holds of its progress.
    async fn run_until(&self, config: Config, wanted: impl FnMut(&Progress) -> bool) -> Progress {
        let stop = CancellationToken::new();
        let mut progress = self.handle.progress();
        let waiting = async {
            let seen = tokio::time::timeout(2 * COLD_MAX, progress.wait_for(wanted)).await;
            stop.cancel();
            seen.expect("the catalogue is done in time").expect("the desk stands").clone()
        };
        let (ended, progress) = tokio::join!(self.forge(config).run(stop.clone()), waiting);
        ended.expect("the forge runs");
        progress
    }
}

/// How many blueprints are compiled without being asked for.
fn served() -> usize {
    karn::catalogue().iter().filter(|blueprint| blueprint.graftable()).count()
}

#[tokio::test]
async fn the_graftable_catalogue_cold_and_warm() {
    let served = served();
    for site in [Site::Vector { features: 32 }, Site::Image { channels: 4, height: 8, width: 8 }] {
        let root = tempfile::tempdir().unwrap();
        let process = Process::start(root.path()).await;
        let config = Config { site, ..Config::default() };
        let started = Instant::now();
        let cold = process.run_until(config.clone(), |progress| progress.finished).await;
        println!("{site}: {served} blueprints cold in {:?}", started.elapsed());
        assert!(started.elapsed() < COLD_MAX, "{:?}", started.elapsed());
        assert_eq!(
            (cold.total, cold.done, cold.failed),
            (served, served, 0),
            "{:?}",
            cold.failures
        );

        let mut digests = BTreeSet::new();
        for blueprint in karn::catalogue().iter().filter(|blueprint| blueprint.graftable()) {
            let record = process.library.find(blueprint.id()).await.unwrap().expect("it was built");
            let path = process.library.verify(&record).await.unwrap();
            let kernel = Kernel::open(&path, &record.digest).unwrap();
            assert_eq!(kernel.manifest().blueprint, blueprint.id().as_str());
            assert_eq!(record.prewarm.samples_ms.len(), 20);
            digests.insert(record.digest);
        }
        assert_eq!(digests.len(), served, "no two kernels are the same");

        let (desk, _, handle) = Desk::open();
        let process = Process { desk, handle, ..process };
        let started = Instant::now();
        let warm = process.run_until(config, |progress| progress.finished).await;
        println!("{site}: found again in {:?}", started.elapsed());
        assert_eq!((warm.done, warm.found), (served, served));
    }
}

#[tokio::test]
async fn after_an_interruption_only_the_rest_is_compiled() {
    let served = served();
    let root = tempfile::tempdir().unwrap();
    let before = {
        let process = Process::start(root.path()).await;
        let config = Config { jobs_max: 1, ..Config::default() };
        let stop = CancellationToken::new();
        let mut progress = process.handle.progress();
        // Dropping the forge in mid-work is what a kill leaves behind.
        let forge = process.forge(config).run(stop);
        tokio::select! {
            ended = forge => panic!("nobody stopped it: {ended:?}"),
            seen = progress.wait_for(|progress| progress.done >= 5) => drop(seen.unwrap()),
        }
        process.library.close().await;
        process.handle.progress().borrow().done
    };
    let process = Process::start(root.path()).await;
    let after = process.run_until(Config::default(), |progress| progress.finished).await;
    assert_eq!((after.done, after.failed), (served, 0));
    assert!((before..served).contains(&after.found), "{before} were done, {} found", after.found);
}
