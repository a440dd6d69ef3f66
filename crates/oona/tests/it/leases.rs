//! Of several processes on one log, one has a lease: who, for how long, and who follows.

use std::time::Duration;

use oona::{Bus, Heartbeat, Lease, LeaseKeeper, Standing};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::rig::*;

/// A process as far as leases go: a bus, its keeper and one lease.
struct Process {
    bus: Bus,
    lease: Lease,
    stop: CancellationToken,
    keeping: JoinHandle<Result<(), oona::BusError>>,
}

impl Process {
    async fn start(rig: &Rig) -> Self {
        let bus = rig.bus().await;
        let stop = CancellationToken::new();
        let keeper = LeaseKeeper { bus: bus.clone(), heartbeat: Heartbeat::detached() };
        #[expect(clippy::disallowed_methods, reason = "a test stands in for the supervisor")]
        let keeping = tokio::spawn(keeper.run(stop.clone()));
        Self { lease: bus.duty("duty"), bus, stop, keeping }
    }

    /// It is gone without a word.
    async fn kill(self) {
        self.keeping.abort();
        assert!(self.keeping.await.unwrap_err().is_cancelled());
    }

    async fn held(&mut self) -> u64 {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Standing::Held(tenure) = self.lease.standing() {
                return tenure.fencing;
            }
            tokio::time::timeout_at(patience, self.lease.changed()).await.expect("held in time");
        }
    }

    async fn not_held(&mut self) {
        let patience = Instant::now() + PATIENCE;
        while self.lease.tenure().is_some() {
            assert!(Instant::now() < patience, "held for ever");
            // A tenure that runs out sends no event.
            let _ = tokio::time::timeout(Duration::from_millis(10), self.lease.changed()).await;
        }
    }
}

#[tokio::test]
async fn a_process_that_is_alone_with_its_log_holds_every_lease() {
    let rig = Rig::embedded();
    let mut alone = Process::start(&rig).await;
    assert_eq!(alone.held().await, 1);
    assert!(alone.lease.tenure().unwrap().is_valid());
    let [shown] = &alone.bus.leases()[..] else { panic!("{:?}", alone.bus.leases()) };
    assert!(shown.is_ours && shown.name == "duty");
    assert!(shown.holder.ends_with(&format!("/{}", std::process::id())));
    alone.stop.cancel();
    alone.keeping.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_of_three_holds_it_and_another_follows_whether_it_ends_well_or_not() {
    let rig = Rig::redis();
    let mut first = Process::start(&rig).await;
    let fencing = first.held().await;
    let mut second = Process::start(&rig).await;
    let Standing::Standby { holder } = second.lease.settled().await else { panic!("two hold it") };
    assert!(holder.ends_with(&format!("/{}", std::process::id())), "{holder}");
    let mut third = Process::start(&rig).await;
    third.lease.settled().await;
    assert!(second.lease.tenure().is_none() && third.lease.tenure().is_none());
    // It stays where it is, beyond its time to live.
    let quiet = tokio::time::timeout(Duration::from_secs(3), async {
        tokio::select! {
            _ = second.held() => {}
            _ = third.held() => {}
        }
    });
    assert!(quiet.await.is_err(), "taken from a holder that lives");
    assert!(first.lease.tenure().is_some());

    let killed = Instant::now();
    first.kill().await;
    let (successor, mut other, after) = tokio::select! {
        fencing = second.held() => (second, third, fencing),
        fencing = third.held() => (third, second, fencing),
    };
    assert!(after > fencing, "the fencing number grows");
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(5), "failed over after {took:?}");
    other.lease.settled().await;
    assert!(other.lease.tenure().is_none(), "one holds it");

    let stopped = Instant::now();
    successor.stop.cancel();
    successor.keeping.await.unwrap().unwrap();
    assert!(successor.lease.tenure().is_none(), "given back before another has it");
    let last = other.held().await;
    assert!(last > after);
    let took = stopped.elapsed();
    assert!(took < Duration::from_millis(2_000), "handed over after {took:?}, not at once");

    // Whoever drops its place gives it back at once, too, and may come again.
    let back = std::mem::replace(&mut other.lease, other.bus.duty("another"));
    drop(back);
    let mut newcomer = Process::start(&rig).await;
    assert!(newcomer.held().await > last);
    other.kill().await;
    newcomer.kill().await;
}

#[tokio::test]
async fn while_the_log_is_away_nobody_acts_and_afterwards_one_does() {
    let mut rig = Rig::redis();
    let (mut first, mut second) = (Process::start(&rig).await, Process::start(&rig).await);
    first.lease.settled().await;
    second.lease.settled().await;
    let holders = |first: &Process, second: &Process| {
        u32::from(first.lease.tenure().is_some()) + u32::from(second.lease.tenure().is_some())
    };
    assert_eq!(holders(&first, &second), 1);
    let server = rig.server.as_mut().unwrap();
    server.kill();
    first.not_held().await;
    second.not_held().await;
    // Its memory is lost with it: the number grows all the same.
    server.restart();
    tokio::select! {
        _ = first.held() => {}
        _ = second.held() => {}
    }
    first.lease.settled().await;
    second.lease.settled().await;
    assert_eq!(holders(&first, &second), 1);
    first.kill().await;
    second.kill().await;
}

#[tokio::test]
async fn a_job_is_one_processs_until_it_is_done() {
    let rig = Rig::redis();
    let (mut first, mut second) = (Process::start(&rig).await, Process::start(&rig).await);
    let mut mine = first.bus.job("job");
    assert!(matches!(mine.settled().await, Standing::Held(_)));
    let mut theirs = second.bus.job("job");
    assert!(matches!(theirs.settled().await, Standing::Standby { .. }));
    let shown: Vec<String> = second.bus.leases().into_iter().map(|one| one.name).collect();
    assert_eq!(shown, ["duty"], "jobs are nobody's duty");
    drop(mine);
    let patience = Instant::now() + PATIENCE;
    while theirs.tenure().is_none() {
        tokio::time::timeout_at(patience, theirs.changed()).await.unwrap();
    }
    first.lease.settled().await;
    second.lease.settled().await;
    first.kill().await;
    second.kill().await;
}
