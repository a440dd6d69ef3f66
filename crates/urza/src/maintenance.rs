//! The maintenance worker: expires this process's cache, and, where this process is the one of all that
//! keeps the library, scrubs artifacts and removes abandoned files.

use std::time::Duration;

use oona::{Heartbeat, Lease};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::withdraw;
use crate::collect::{CollectMode, Collected, Retention};
use crate::demand::Demand;
use crate::error::{LibraryError, Remedy};
use crate::lease::{LeaseJudge, LeaseWatch};
use crate::library::Library;
use crate::rebuilds::Rebuilds;
use crate::record::{Page, Record, RecordState};

/// Settings of the maintenance worker. Defaults stand beside each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceConfig {
    /// 60 s between two rounds of expiry and clearing away; shorter than a cached file's grace after its use, so that a
    /// lease is known by then.
    pub tidy_interval: Duration,
    /// 10 min between two looks for what need not be kept.
    pub collect_interval: Duration,
    /// How long things are kept.
    pub retention: Retention,
    /// 1 h between two scrubs. A scrub reads every artifact once, one after the other.
    pub scrub_interval: Duration,
    /// 1 h: a temporary file older than this belongs to no running writer.
    pub orphan_age: Duration,
}

impl Default for MaintenanceConfig {
    fn default() -> Self {
        Self {
            tidy_interval: Duration::from_secs(60),
            collect_interval: Duration::from_secs(600),
            retention: Retention::default(),
            scrub_interval: Duration::from_secs(3600),
            orphan_age: Duration::from_secs(3600),
        }
    }
}

/// Keeps the library sound. Holds nothing that must outlive it. Done by two processes at once, its
/// steps harm nothing: the lease saves the work.
#[derive(Debug)]
pub struct Maintenance {
    /// The library.
    pub library: Library,
    /// Who rebuilds what a scrub found corrupt.
    pub demand: Demand,
    /// Which process keeps the library; [`Maintenance::LEASE`] at [`Library::id`].
    pub lease: Lease,
    /// Settings.
    pub config: MaintenanceConfig,
    /// Sign of life.
    pub heartbeat: Heartbeat,
}

/// What a scrub found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Artifacts that are what their records say.
    pub sound: u64,
    /// Artifacts that were put into quarantine and ordered anew.
    pub quarantined: u64,
    /// Artifacts that could not be read this time.
    pub unreadable: u64,
}

impl Maintenance {
    /// Name of the lease of whoever keeps a library.
    pub const LEASE: &str = "urza.maintenance";

    /// Runs until `stop`. Faults are logged and met again in the next round.
    ///
    /// # Errors
    /// None so far; the type is what the boot table expects of every worker.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LibraryError> {
        let (mut tidied, mut scrubbed) = (Instant::now(), Instant::now());
        let (mut collected, mut judge) =
            (Instant::now(), LeaseJudge::Watching(LeaseWatch::default()));
        let mut rebuilds = Rebuilds::default();
        self.protect_leased().await;
        loop {
            self.heartbeat.beat(if self.lease.tenure().is_some() { "waiting" } else { "standby" });
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(Heartbeat::INTERVAL) => {}
            }
            rebuilds.look(&self.demand);
            if tidied.elapsed() >= self.config.tidy_interval {
                self.library.expire_cache();
                self.note_used().await;
                self.protect_leased().await;
                if self.lease.tenure().is_some() {
                    self.tidy().await;
                }
                tidied = Instant::now();
            }
            if collected.elapsed() >= self.config.collect_interval {
                if self.lease.tenure().is_some() {
                    self.collect(&mut judge).await;
                }
                collected = Instant::now();
            }
            // Whoever takes over scrubs when it would have been due here: no scrub is left out.
            let due = scrubbed.elapsed() >= self.config.scrub_interval;
            if due && self.lease.tenure().is_some() {
                if let Err(error) = self.scrub_into(&stop, &mut rebuilds).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "scrub broken off");
                }
                scrubbed = Instant::now();
            }
        }
    }

    /// What each process has used is noted by itself.
    async fn note_used(&self) {
        if let Err(error) = self.heartbeat.during("noting use", self.library.note_used()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "use of artifacts not noted, noted with the next round"
            );
        }
    }

    /// Each process has a cache of its own, and keeps in it what is under a lease.
    async fn protect_leased(&self) {
        let protecting = self.library.protect_leased();
        if let Err(error) = self.heartbeat.during("reading leases", protecting).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "leases not read, the cache keeps what was leased before"
            );
        }
    }

    async fn collect(&self, judge: &mut LeaseJudge) {
        let collecting = self.library.collect(&self.config.retention, judge, CollectMode::Remove);
        match self.heartbeat.during("collecting", collecting).await {
            Ok(Collected { bytes_over, .. }) if bytes_over > 0 => tracing::warn!(
                bytes_over,
                "library larger than URZA_LIBRARY_BYTES_MAX, all the rest is leased, pinned, served or just used"
            ),
            Ok(_) => {}
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "collecting broken off, gone on with in the next round"
            ),
        }
    }

    async fn tidy(&self) {
        let tidying = self.library.tidy(self.config.orphan_age);
        match self.heartbeat.during("tidying", tidying).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "abandoned temporary files removed"),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "abandoned temporary files not removed"
            ),
        }
    }

    /// Hashes every active artifact, newest records last, until done, told to stop, or no longer the
    /// one who does it. What is quarantined is ordered anew.
    ///
    /// # Errors
    /// [`LibraryError`] when the list cannot be read.
    pub async fn scrub(&self, stop: &CancellationToken) -> Result<Scrubbed, LibraryError> {
        self.scrub_into(stop, &mut Rebuilds::default()).await
    }

    async fn scrub_into(
        &self,
        stop: &CancellationToken,
        rebuilds: &mut Rebuilds,
    ) -> Result<Scrubbed, LibraryError> {
        let mut found = Scrubbed::default();
        let mut page = Some(Page::FIRST);
        while let Some(wanted) = page {
            // Collected first: a page is read to its end before anything is changed.
            let records = self.library.list(wanted).await?;
            page = wanted.next(&records);
            for record in records.iter().filter(|record| record.state == RecordState::Active) {
                if stop.is_cancelled() || self.lease.tenure().is_none() {
                    return Ok(found);
                }
                self.scrub_one(record, &mut found, rebuilds).await;
            }
        }
        tracing::info!(
            sound = found.sound,
            quarantined = found.quarantined,
            unreadable = found.unreadable,
            "artifacts scrubbed"
        );
        Ok(found)
    }

    async fn scrub_one(&self, record: &Record, found: &mut Scrubbed, rebuilds: &mut Rebuilds) {
        // Hashing has a time-out of its own, so beating meanwhile hides nothing.
        match self.heartbeat.during("scrubbing", self.library.scrub(record)).await {
            Ok(_) => found.sound += 1,
            Err(fault) if fault.remedy() == Remedy::Retry => {
                tracing::warn!(artifact = %record.digest, %fault, "artifact not scrubbed");
                found.unreadable += 1;
            }
            Err(fault) => {
                withdraw(&self.library, record, &fault).await;
                rebuilds.owe(record, &self.demand);
                found.quarantined += 1;
            }
        }
    }
}
