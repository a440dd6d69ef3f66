//! What leaves the library by itself: what was refused long ago, what was superseded long ago, what there is no room
//! for, and files that nobody knows. Never what is leased, pinned, or what a blueprint is served with.

use std::time::{Duration, SystemTime};

use kernel::Digest;
use leyline::ids::BlueprintId;
use leyline::time::now_unix_ms;
use tokio::time::Instant;

use crate::catalogue::{Candidate, Forgotten};
use crate::error::{FetchError, LibraryError};
use crate::lease::LeaseJudge;
use crate::library::Library;
use crate::record::{Record, RecordState};
use crate::store::Stored;

/// Records or files looked at in one go.
const PAGE: u32 = 200;
const DAY: Duration = Duration::from_secs(86_400);

/// How long things are kept. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// `URZA_QUARANTINE_RETENTION_S`, 30 days: how long the record of a quarantined artifact is kept.
    pub quarantined: Option<Duration>,
    /// `URZA_SUPERSEDED_RETENTION_S`, 90 days: how long an artifact is kept that a newer one of the same blueprint,
    /// site and parameters has taken the place of, from its last use.
    pub superseded: Option<Duration>,
    /// `URZA_LIBRARY_BYTES_MAX`, none: how much the artifacts may take together. Beyond it the least recently used go.
    pub bytes_max: Option<u64>,
    /// 1 h: what was used since is not removed for want of room; a trainer may be about to attach it.
    pub idle_min: Duration,
    /// 1 h: a file without a record that is younger may get one yet.
    pub orphan_age: Duration,
    /// Which files without a record go.
    pub orphans: Orphans,
}

/// Which files without a record go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// None.
    Keep,
    /// Those that were written since this catalogue began. An older one may belong to a catalogue that was set aside.
    OfThisCatalogue,
    /// All.
    All,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            quarantined: Some(30 * DAY),
            superseded: Some(90 * DAY),
            bytes_max: None,
            idle_min: Duration::from_secs(3600),
            orphan_age: Duration::from_secs(3600),
            orphans: Orphans::OfThisCatalogue,
        }
    }
}

/// Whether things are removed or only named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectMode {
    /// Only named.
    DryRun,
    /// Removed.
    Remove,
}

/// Why something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemovalReason {
    /// It was quarantined longer ago than such are kept.
    Quarantined,
    /// A newer one took its place, and it was not used for longer than such are kept.
    Superseded,
    /// The library was larger than its budget, and this was used least recently.
    Budget,
    /// No record knows the file.
    Orphan,
}

impl RemovalReason {
    /// Its name.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::Superseded => "superseded",
            Self::Budget => "budget",
            Self::Orphan => "orphan",
        }
    }
}

/// One thing that went, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Why.
    pub reason: RemovalReason,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Of which blueprint and version; `None` for a file without a record.
    pub of: Option<(BlueprintId, u64)>,
    /// Bytes that this frees; 0 when another record has the same file.
    pub bytes: u64,
    /// When it was last used or written, in Unix milliseconds.
    pub used_ms: u64,
}

/// What one round found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// What went, in the order of going.
    pub removals: Vec<Removal>,
    /// Bytes of the active artifacts before.
    pub bytes_before: u64,
    /// Bytes freed.
    pub bytes_freed: u64,
    /// Bytes that the library is still too large by: all the rest is kept by something.
    pub bytes_over: u64,
    /// Leases that were over.
    pub leases_ended: u64,
}

impl Library {
    /// Removes what need not be kept, in this order: quarantined, superseded, over budget, orphaned.
    ///
    /// # Errors
    /// [`LibraryError`]; what was removed before stays removed, and doing it again is safe.
    pub async fn collect(
        &self,
        retention: &Retention,
        judge: &mut LeaseJudge,
        mode: CollectMode,
    ) -> Result<Collected, LibraryError> {
        let mut round = Round {
            library: self,
            retention,
            mode,
            now_ms: now_unix_ms(),
            found: Collected::default(),
        };
        if mode == CollectMode::Remove {
            self.note_used().await?;
            let leases = self.leases(None).await?;
            let over = judge.over(&leases, Instant::now());
            round.found.leases_ended = self.catalogue().end_leases(&over).await?;
        }
        round.found.bytes_before = self.catalogue().bytes().await?;
        round.expired().await?;
        round.over_budget().await?;
        round.orphans().await?;
        for removal in &round.found.removals {
            if mode == CollectMode::Remove {
                self.metrics().removed(removal.reason, removal.bytes);
                let Removal { digest, bytes, .. } = removal;
                tracing::info!(artifact = %digest, reason = removal.reason.text(), bytes, "artifact removed");
            }
        }
        Ok(round.found)
    }
}

struct Round<'a> {
    library: &'a Library,
    retention: &'a Retention,
    mode: CollectMode,
    now_ms: u64,
    found: Collected,
}

impl Round<'_> {
    /// What was refused or superseded long ago.
    async fn expired(&mut self) -> Result<(), LibraryError> {
        let (quarantined, superseded) = (self.retention.quarantined, self.retention.superseded);
        if quarantined.is_none() && superseded.is_none() {
            return Ok(());
        }
        let mut after = None;
        loop {
            let page = self.library.catalogue().candidates(after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some((last.record.last_used_ms, last.record.id));
            for candidate in &page {
                if let Some(reason) = self.reason(candidate) {
                    self.remove(&candidate.record, reason).await?;
                }
            }
        }
    }

    fn reason(&self, candidate: &Candidate) -> Option<RemovalReason> {
        let record = &candidate.record;
        match &record.state {
            RecordState::Quarantined { at_ms, .. } => {
                let is_old = self.older(*at_ms, self.retention.quarantined?);
                is_old.then_some(RemovalReason::Quarantined)
            }
            RecordState::Active => {
                let is_old = self.older(record.last_used_ms, self.retention.superseded?);
                (candidate.superseded && is_old).then_some(RemovalReason::Superseded)
            }
        }
    }

    /// What there is no room for.
    async fn over_budget(&mut self) -> Result<(), LibraryError> {
        let Some(bytes_max) = self.retention.bytes_max else { return Ok(()) };
        let freed = |found: &Collected| found.bytes_before.saturating_sub(found.bytes_freed);
        let mut after = None;
        while bytes_max < freed(&self.found) {
            let page = self.library.catalogue().candidates(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.record.last_used_ms, last.record.id));
            for Candidate { record, .. } in &page {
                let is_idle = self.older(record.last_used_ms, self.retention.idle_min);
                let is_named = self.found.removals.iter().any(|gone| {
                    gone.of.as_ref() == Some(&(record.job.blueprint.clone(), record.version))
                });
                if bytes_max < freed(&self.found)
                    && is_idle
                    && !is_named
                    && record.state == RecordState::Active
                {
                    self.remove(record, RemovalReason::Budget).await?;
                }
            }
        }
        self.found.bytes_over = freed(&self.found).saturating_sub(bytes_max);
        Ok(())
    }

    /// Files that no record knows.
    async fn orphans(&mut self) -> Result<(), LibraryError> {
        let since_ms = match self.retention.orphans {
            Orphans::Keep => return Ok(()),
            Orphans::OfThisCatalogue => self.library.catalogue().born_ms().await?,
            Orphans::All => 0,
        };
        let mut after = None;
        loop {
            let page = match self.library.artifacts().list(after, PAGE as usize).await {
                Ok(page) => page,
                Err(fault) => {
                    tracing::warn!(%fault, "artifacts not listed, no orphan removed");
                    return Ok(());
                }
            };
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.digest);
            let digests: Vec<Digest> = page.iter().map(|stored| stored.digest).collect();
            let known = self.library.catalogue().known(&digests).await?;
            for stored in page.iter().filter(|stored| !known.contains(&stored.digest)) {
                let written_ms = unix_ms(stored.written);
                if since_ms <= written_ms && self.older(written_ms, self.retention.orphan_age) {
                    self.remove_orphan(stored, written_ms).await?;
                }
            }
        }
    }

    async fn remove(&mut self, record: &Record, reason: RemovalReason) -> Result<(), LibraryError> {
        let forgotten = match self.mode {
            CollectMode::DryRun => Ok(Forgotten::RowAndFile),
            CollectMode::Remove => {
                let remove = self.library.artifacts().remove(&record.digest);
                self.library.catalogue().forget(record, remove).await?
            }
        };
        let bytes = match forgotten {
            Ok(Forgotten::Kept) => return Ok(()),
            Ok(Forgotten::Row) => 0,
            // The file of a quarantined one stands in the quarantine directory, if anywhere.
            Ok(Forgotten::RowAndFile) if record.state == RecordState::Active => record.bytes,
            Ok(Forgotten::RowAndFile) => 0,
            Err(fault) => {
                not_removed(&record.digest, &fault);
                return Ok(());
            }
        };
        self.library.forgotten(record);
        self.found.bytes_freed += bytes;
        self.found.removals.push(Removal {
            reason,
            digest: record.digest,
            of: Some((record.job.blueprint.clone(), record.version)),
            bytes,
            used_ms: record.last_used_ms,
        });
        Ok(())
    }

    async fn remove_orphan(&mut self, stored: &Stored, used_ms: u64) -> Result<(), LibraryError> {
        let removed = match self.mode {
            CollectMode::DryRun => Ok(true),
            CollectMode::Remove => {
                let remove = self.library.artifacts().remove(&stored.digest);
                self.library.catalogue().forget_file(&stored.digest, remove).await?
            }
        };
        match removed {
            Ok(false) => {}
            Ok(true) => {
                let reason = RemovalReason::Orphan;
                let (digest, bytes) = (stored.digest, stored.bytes);
                self.found.removals.push(Removal { reason, digest, of: None, bytes, used_ms });
            }
            Err(fault) => not_removed(&stored.digest, &fault),
        }
        Ok(())
    }

    fn older(&self, than_ms: u64, age: Duration) -> bool {
        age < Duration::from_millis(self.now_ms.saturating_sub(than_ms))
    }
}

fn not_removed(digest: &Digest, fault: &FetchError) {
    tracing::warn!(artifact = %digest, %fault, "artifact not removed, tried again in the next round");
}

fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
