//! What the catalogue knows of an artifact.

use std::fmt;
use std::path::PathBuf;

use kernel::Digest;
use leyline::wire::BlueprintTier;

use crate::extras::Extras;
use crate::job::JobKey;
use crate::prewarm::Prewarm;

/// The record's extra that says what runs the kernel: `{"by": "plan"}`, or `{"by": "interpreter", "reason": ..}` where the
/// forge found that its plan is not its graph.
pub const EXECUTION: &str = "execution";

/// A row of the catalogue. Never used twice; storing an artifact again gives its record a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub(crate) i64);

impl std::str::FromStr for RecordId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether an artifact may be offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordState {
    /// It may.
    Active,
    /// It was found missing or corrupt; kept for a person to look at.
    Quarantined {
        /// Why, in words.
        reason: String,
        /// When, in Unix milliseconds.
        at_ms: u64,
    },
}

/// Whether [`crate::Library::find`] offers an artifact for its blueprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The blueprint's artifact for whoever asks by blueprint alone; the newest one wins.
    Default,
    /// Found only by its job.
    Variant,
}

impl Role {
    pub(crate) fn read(text: &str) -> Option<Self> {
        [Self::Default, Self::Variant].into_iter().find(|role| role.text() == text)
    }

    /// Its name.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Variant => "variant",
        }
    }
}

/// A freshly compiled artifact, to be stored.
#[derive(Debug, Clone)]
pub struct NewArtifact {
    /// The job that made it. Its parameters must be finite.
    pub job: JobKey,
    /// Whether it becomes the blueprint's default.
    pub role: Role,
    /// The whole file. Its SHA-256 becomes its name.
    pub bytes: Vec<u8>,
    /// Digest of the guard spec, as executors check it.
    pub guard_digest: Digest,
    /// The guard spec as canonical JSON.
    pub guard_spec: String,
    /// One line for people.
    pub guard_summary: String,
    /// Milliseconds that compiling took.
    pub compile_ms: f64,
    /// Latencies measured on the machine that compiled.
    pub prewarm: Prewarm,
    /// How it was compiled (`standard`, `conservative`, `eager`).
    pub strategy: String,
    /// Tier of its blueprint; never unspecified.
    pub tier: BlueprintTier,
    /// What else is said of it, by name.
    pub extras: Extras,
}

/// What an artifact was made in the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// SHA-256 of the earlier artifact of the same blueprint, parameters and site. It may be gone since.
    pub digest: Digest,
    /// The engine that it was of.
    pub engine: String,
}

/// One artifact of the library.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its row.
    pub id: RecordId,
    /// The job that made it.
    pub job: JobKey,
    /// Whether it is offered for its blueprint.
    pub role: Role,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Where the file stands on this machine; it follows from the digest.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Digest of the guard spec.
    pub guard_digest: Digest,
    /// The guard spec as canonical JSON.
    pub guard_spec: String,
    /// One line for people.
    pub guard_summary: String,
    /// Milliseconds that compiling took.
    pub compile_ms: f64,
    /// The last latencies measured, with the machine that measured them.
    pub prewarm: Prewarm,
    /// How it was compiled.
    pub strategy: String,
    /// Tier of its blueprint.
    pub tier: BlueprintTier,
    /// Stage of the curriculum, where the safety sheet in the extras names one.
    pub stage: Option<u32>,
    /// What else is said of it, by name.
    pub extras: Extras,
    /// Its number among the versions of its blueprint, from 1; never changed, never used twice.
    pub version: u64,
    /// What it was made in the place of; `None` for the first of its kind.
    pub parent: Option<Parent>,
    /// Whether it is kept whatever room is wanted.
    pub pinned: bool,
    /// When it was last used, in Unix milliseconds, as far as noted: some minutes may be missing.
    pub last_used_ms: u64,
    /// When it was first stored, in Unix milliseconds.
    pub created_at_ms: u64,
    /// Whether it may be offered.
    pub state: RecordState,
}

impl Record {
    /// Whether the forge found that its plan is not its graph, so that the interpreter must run it. A record that does
    /// not say was made when only plans were kept.
    pub fn is_interpreted(&self) -> bool {
        let by = self.extras.get(EXECUTION).and_then(|said| said.get("by"));
        by.is_some_and(|by| by == "interpreter")
    }
}

/// A part of the whole list, in the order of storing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Records after this one; `None` for the first page.
    pub after: Option<RecordId>,
    /// At most this many, 1 to 1000.
    pub limit: u32,
}

impl Page {
    /// The first page, of 100 records.
    pub const FIRST: Self = Self { after: None, limit: 100 };

    /// The page behind the one that held `records`; `None` behind the last.
    pub fn next(self, records: &[Record]) -> Option<Self> {
        let full = records.len() as u64 >= u64::from(self.limit);
        records.last().filter(|_| full).map(|last| Self { after: Some(last.id), ..self })
    }
}
