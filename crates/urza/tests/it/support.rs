//! A library in a directory of its own, and artifacts to put into it.

use std::collections::BTreeMap;
use std::path::Path;

use kernel::Digest;
use leyline::wire::BlueprintTier;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use urza::{Config, JobKey, Library, Metrics, NewArtifact, Prewarm, Role};

pub struct Fixture {
    pub library: Library,
    pub metrics: Metrics,
    pub dir: TempDir,
}

pub async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::register(&mut Registry::default());
    let library = Library::open(Config::at(dir.path()), metrics.clone()).await.unwrap();
    Fixture { library, metrics, dir }
}

impl Fixture {
    pub async fn another_process(&self) -> Library {
        let metrics = Metrics::register(&mut Registry::default());
        Library::open(Config::at(self.dir.path()), metrics).await.unwrap()
    }

    pub fn metric(&self, name: &str) -> f64 {
        let point = self.metrics.snapshot().into_iter().find(|point| point.name == name);
        point.unwrap_or_else(|| panic!("no metric {name}")).value
    }

    pub fn quarantined(&self) -> usize {
        count(&self.dir.path().join("artifacts/quarantine"))
    }
}

pub fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

pub fn artifact(blueprint: &str, bytes: &[u8]) -> NewArtifact {
    NewArtifact {
        job: JobKey {
            blueprint: blueprint.into(),
            parameters: BTreeMap::from([("width".to_owned(), 0.1)]),
            site: "vector[32]".to_owned(),
            engine: "1".to_owned(),
        },
        role: Role::Default,
        bytes: bytes.to_vec(),
        guard_digest: Digest::of("guard"),
        guard_spec: "[]".to_owned(),
        guard_summary: "float32[8x32]".to_owned(),
        compile_ms: 12.5,
        prewarm: Prewarm::new("this machine", [1.0, 2.0, 3.0, 4.0]),
        strategy: "standard".to_owned(),
        tier: BlueprintTier::Safe,
    }
}
