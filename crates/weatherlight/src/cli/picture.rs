//! What a running service shows of itself, put together from its endpoints: `status`, `top` and
//! `bundle` read the same.

use std::fs;
use std::path::Path;

use nissa::Health;
use serde::{Deserialize, Serialize};

use super::asking::{get, health};
use super::failure::Failure;
use crate::client;
use crate::settings::EsperSettings;

/// Two hexadecimal digits.
const SHELF_NAME_LEN: usize = 2;

/// Everything at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Picture {
    #[serde(flatten)]
    pub(super) health: Health,
    /// Runs, seeds, kernels and alerts; absent where the service did not tell.
    pub(super) board: Option<Board>,
    /// Running totals and levels; absent where the service did not tell.
    pub(super) figures: Option<Figures>,
    /// Artifacts in URZA_ARTIFACT_DIR, as this machine sees it; absent where there is none.
    pub(super) artifacts: Option<Artifacts>,
}

/// What `/v1/state` tells, as far as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Board {
    pub(super) now_ms: u64,
    pub(super) runs: Vec<RunLine>,
    /// The newest run.
    pub(super) run: Option<Run>,
    pub(super) kernels: Kernels,
    pub(super) alerts: Alerts,
    pub(super) messages: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunLine {
    pub(super) id: String,
    pub(super) epoch: u32,
    pub(super) last_ms: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) epoch: u32,
    pub(super) step: u64,
    pub(super) last_ms: u64,
    pub(super) seeds: Vec<Seed>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Seed {
    pub(super) id: String,
    pub(super) stage: String,
    pub(super) alpha: Option<f32>,
    pub(super) blueprint: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kernels {
    pub(super) requested: u64,
    pub(super) ready: u64,
    pub(super) errors: u64,
    pub(super) waiting: u64,
    pub(super) compiled: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Alerts {
    pub(super) active: Vec<Alert>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Alert {
    pub(super) rule: String,
    pub(super) source: String,
    pub(super) value: f64,
    pub(super) since_ms: u64,
}

/// Sums of what `/metrics` counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Messages published by this service.
    pub(super) published: f64,
    /// Entries handled by this service.
    pub(super) handled: f64,
    /// Entries refused before a handler saw them.
    pub(super) refused: f64,
    /// Entries that became dead letters.
    pub(super) dead_letters: f64,
    /// Requests for kernels answered.
    pub(super) answered: f64,
    /// Messages that wait on disk for the log.
    pub(super) spooled: f64,
    /// Compile jobs waiting or running.
    pub(super) build_queue: f64,
}

impl Figures {
    /// Reads the exposition text.
    pub(super) fn read(text: &str) -> Self {
        Self {
            published: sum(text, "oona_publish_total", &["published", "rerouted"]),
            handled: sum(text, "oona_consume_total", &["handled"]),
            refused: sum(text, "oona_refused_total", &[]),
            dead_letters: sum(text, "oona_dead_letter_total", &[]),
            answered: sum(text, "urza_prefetch_answers_total", &[]),
            spooled: sum(text, "oona_spool_messages", &[]),
            build_queue: sum(text, "tezzeret_jobs_waiting", &[]),
        }
    }
}

/// The sum over the samples of one name, of these outcomes or of all.
fn sum(text: &str, name: &str, outcomes: &[&str]) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let wanted = |outcome: &&str| labels.contains(&format!("outcome=\"{outcome}\""));
        let is_wanted = outcomes.is_empty() || outcomes.iter().any(wanted);
        if !is_wanted {
            return None;
        }
        value.split(' ').next()?.parse::<f64>().ok()
    };
    // Not `sum`: of nothing it is -0.
    text.lines().filter_map(value).fold(0.0, |total, value| total + value)
}

/// Files in the artifact directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Artifacts {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Artifacts {
    /// Counts what stands there; a directory that cannot be read is not told about.
    pub(super) fn count(directory: &Path) -> Option<Self> {
        let mut found = Self::default();
        // They stand in directories named by the first byte of their digest.
        for shelf in fs::read_dir(directory).ok()?.flatten() {
            let is_shelf = shelf.file_name().len() == SHELF_NAME_LEN;
            let Ok(entries) = fs::read_dir(shelf.path()) else { continue };
            for entry in entries.flatten().filter(|_| is_shelf) {
                if let Ok(about) = entry.metadata()
                    && about.is_file()
                {
                    found.files += 1;
                    found.bytes += about.len();
                }
            }
        }
        Some(found)
    }
}

impl Picture {
    /// Asks the service. Its health it must tell; what else it does not tell stays absent.
    pub(super) async fn take(settings: &EsperSettings) -> Result<Self, Failure> {
        let metrics = client::request(settings.http_addr, "GET", "/metrics", None);
        let (health, board, metrics) =
            tokio::join!(health(settings), get::<Board>(settings, "/v1/state"), metrics);
        let figures = metrics
            .ok()
            .filter(|answer| answer.status == 200)
            .map(|answer| Figures::read(&answer.body));
        Ok(Self {
            health: health?,
            board: board.ok(),
            figures,
            artifacts: Artifacts::count(&settings.urza_artifact_dir),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_sums_over_their_labels() {
        let text = "# TYPE oona_publish counter\n\
            oona_publish_total{stream=\"normal\",outcome=\"published\"} 3\n\
            oona_publish_total{stream=\"policy\",outcome=\"published\"} 4\n\
            oona_publish_total{stream=\"policy\",outcome=\"refused\"} 9\n\
            oona_spool_messages 2\noona_spool_messages_other 7\n# EOF\n";
        let figures = Figures::read(text);
        assert_eq!((figures.published, figures.spooled, figures.handled), (7.0, 2.0, 0.0));
        assert_eq!(figures.handled.to_string(), "0");
    }

    #[test]
    fn a_board_of_another_version_is_read_as_far_as_it_is_known() {
        let board: Board = serde_json::from_str(
            r#"{"run":{"id":"r","seeds":[{"id":"a","stage":"blending","new":1}]},"more":[]}"#,
        )
        .unwrap();
        assert_eq!(board.run.unwrap().seeds[0].stage, "blending");
    }

    #[test]
    fn only_artifacts_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Artifacts::count(&directory.path().join("none")), None);
        for shelf in ["ab", "tmp", "quarantine"] {
            fs::create_dir(directory.path().join(shelf)).unwrap();
            fs::write(directory.path().join(shelf).join("x.safetensors"), [0; 10]).unwrap();
        }
        assert_eq!(Artifacts::count(directory.path()), Some(Artifacts { files: 1, bytes: 10 }));
    }
}
