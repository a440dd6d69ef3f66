//! How a consumer gets its next batch: what lost consumers left, what is to be retried, and what is
//! new; then the checks, the claims of the nonces, and the acknowledgement of what was refused.
//!
//! A batch whose claims could not be made is kept and tried again: it is neither read twice nor
//! counted as delivered twice because the log failed.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use crate::breaker::Breaker;
use crate::chaos::{self, Point};
use crate::check::{Checked, Checker, Refusal, Verdict};
use crate::consumer::{Post, Role};
use crate::entry::{EntryId, RawEntry};
use crate::error::{BusError, LogError};
use crate::log::NonceClaim;
use crate::metrics::Consumed;
use crate::reading::{Arrived, Reading};
use crate::stream::Stream;
use crate::unseen::Unseen;

/// Longest time between two heartbeats.
const BEAT_MAX: Duration = Duration::from_secs(2);
/// First and longest pause after a failure of the log.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// For so long after a failure the server may still carry out a read that was given up.
const DOUBT: Duration = Duration::from_secs(10);
/// An outage is reported when it begins, and then this often.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(30);
/// A batch of large entries is checked in steps of this many bytes, others run between.
const CHECK_BYTES: usize = 1 << 20;
/// One reason on one consumer is logged at most this often.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// Times that a consumer keeps to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) read_block: Duration,
    pub(crate) consumer_ttl: Duration,
    pub(crate) claim_idle: Duration,
    /// Entries read in one step, and held at once.
    pub(crate) batch_max: usize,
    pub(crate) in_work_max: usize,
    pub(crate) breaker: crate::breaker::Limits,
}

impl Limits {
    /// Between two heartbeats: one may be late without anybody taking the consumer for dead. And
    /// often enough to know how long nobody has looked after the read in flight.
    pub(crate) fn beat_interval(&self) -> Duration {
        BEAT_MAX.min(self.consumer_ttl * 2 / 5).min(self.claim_idle / 5)
    }
}

/// A message that may be handed out.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) checked: Checked,
}

/// What was read, on its way through the last steps.
#[derive(Debug, Default)]
struct Batch {
    checked: Vec<Checked>,
    /// Refused or foreign: to be acknowledged and forgotten.
    refused: Vec<EntryId>,
    claimed: bool,
}

enum Event {
    Read(Arrived),
    /// An acknowledgement is owed, or a retry was added.
    Nudged,
    /// Time for a heartbeat, a look or a retry.
    Due,
}

/// Fetches batches for one consumer. Moves into the future that fetches, and out again.
#[derive(Debug)]
pub(crate) struct Filler {
    pub(crate) post: Arc<Post>,
    checker: Checker,
    pub(crate) reading: Reading,
    pub(crate) limits: Limits,
    pub(crate) batch_max: usize,
    breaker: Breaker,
    /// Whether the group is known to have existed.
    ensured: bool,
    next_beat: Instant,
    /// When to look for lost consumers and lost entries.
    pub(crate) next_look: Instant,
    /// When the last heartbeat was answered.
    beaten: Instant,
    /// Until then nobody's silence is held against them: the log itself was silent.
    pub(crate) judging_from: Instant,
    /// The log has failed since the last heartbeat.
    failed: bool,
    /// Until then what was read may have something lost before it.
    doubt_until: Instant,
    /// Read, and held back until it is known that nothing before it is lost.
    unsure: Vec<RawEntry>,
    pub(crate) unseen: Unseen,
    pause: Duration,
    /// When the outage that lasts was last reported.
    outage_logged: Option<Instant>,
    batch: Option<Batch>,
    samples: [Sample; Refusal::ALL.len()],
}

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    logged: Option<Instant>,
    unlogged: u64,
}

impl Filler {
    pub(crate) fn new(post: Arc<Post>, checker: Checker, limits: Limits) -> Self {
        let reading = Reading::new(post.log.clone(), post.seat.clone());
        Self {
            post,
            checker,
            reading,
            limits,
            batch_max: limits.batch_max.max(1),
            breaker: Breaker::new(limits.breaker),
            ensured: false,
            next_beat: Instant::now(),
            next_look: Instant::now(),
            beaten: Instant::now(),
            judging_from: Instant::now(),
            failed: false,
            doubt_until: Instant::now(),
            unsure: Vec::new(),
            unseen: Unseen::default(),
            pause: PAUSE_MIN,
            outage_logged: None,
            batch: None,
            samples: Default::default(),
        }
    }

    /// Works until there is something to hand out. Waits out the log's outages.
    pub(crate) async fn fill(mut self) -> (Self, Result<Vec<Ready>, BusError>) {
        loop {
            match self.step().await {
                Ok(ready) => {
                    self.recovered();
                    if !ready.is_empty() {
                        return (self, Ok(ready));
                    }
                }
                Err(error) if error.is_final() => return (self, Err(error.into())),
                Err(LogError::NoGroup { .. }) => self.recreate_group().await,
                Err(error) => self.wait_out(&error).await,
            }
        }
    }

    /// One step: from reading to handing out.
    async fn step(&mut self) -> Result<Vec<Ready>, LogError> {
        if !self.ensured {
            self.post.log.create_group(&self.post.seat.stream, &self.post.seat.group).await?;
            self.ensured = true;
        }
        self.pay_owed().await?;
        if self.batch.is_none() {
            let entries = self.gather().await?;
            self.pass(Point::RequestRead, entries.len());
            self.post.work.take_in(entries.iter().map(|entry| entry.id));
            let batch = self.check(entries).await;
            self.pass(Point::RequestVerified, batch.checked.len());
            self.batch = Some(batch);
        }
        self.claim().await?;
        let Some(batch) = self.batch.take() else { return Ok(Vec::new()) };
        self.pass(Point::NonceClaimed, batch.checked.len());
        if let Err(error) = self.post.log.ack(&self.post.seat, &batch.refused).await {
            self.batch = Some(batch);
            return Err(error);
        }
        self.post.work.let_go_all(&batch.refused);
        Ok(batch.checked.into_iter().map(|checked| Ready { checked }).collect())
    }

    /// Passes a point of the path of requests; other streams have none.
    fn pass(&self, point: Point, requests: usize) {
        if self.post.stream == Stream::KernelRequests && self.post.role == Role::Handler {
            chaos::points(point, requests);
        }
    }

    /// Acknowledgements that failed earlier.
    async fn pay_owed(&mut self) -> Result<(), LogError> {
        let owed = self.post.work.owed();
        if !owed.is_empty() {
            self.post.log.ack(&self.post.seat, &owed).await?;
            self.post.work.paid(&owed);
        }
        Ok(())
    }

    /// What others lost first, then what is due again, then what is new.
    async fn gather(&mut self) -> Result<Vec<RawEntry>, LogError> {
        if !self.unsure.is_empty() {
            return self.read_for_sure().await;
        }
        loop {
            let now = Instant::now();
            if self.next_beat <= now {
                self.beat().await?;
            }
            if self.post.work.take_look() {
                self.next_look = now;
            }
            if self.next_look <= now {
                let taken = self.look().await?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
            }
            let due = self.post.work.due(now);
            if !due.is_empty() {
                return self.retry(&due).await;
            }
            self.reading.start(self.batch_max, self.limits.read_block);
            match self.next_event().await {
                Event::Read(arrived) => return self.take(arrived).await,
                Event::Nudged => return Ok(Vec::new()),
                Event::Due => {}
            }
        }
    }

    /// Waits beside the read. Only receives: the read goes on when something else comes first.
    async fn next_event(&mut self) -> Event {
        let mut due = self.next_beat.min(self.next_look);
        if let Some(retry) = self.post.work.next_due() {
            due = due.min(retry);
        }
        let post = Arc::clone(&self.post);
        tokio::select! {
            biased;
            arrived = self.reading.arrived() => Event::Read(arrived),
            () = post.work.nudged.notified() => Event::Nudged,
            () = tokio::time::sleep_until(due) => Event::Due,
        }
    }

    /// Shows that this consumer lives, and renews what it holds.
    async fn beat(&mut self) -> Result<(), LogError> {
        self.post.beat().await?;
        self.next_beat = Instant::now() + self.limits.beat_interval();
        self.after_beat();
        self.renew().await
    }

    /// What was read. Where more waits behind it, that is sent for before anything is done with
    /// this: the log works on it meanwhile.
    async fn take(&mut self, arrived: Arrived) -> Result<Vec<RawEntry>, LogError> {
        let mut read = arrived.entries?;
        if arrived.unattended > self.limits.claim_idle / 4 {
            read = self.still_mine(read).await?;
        }
        let now = Instant::now();
        if self.doubt_until <= now {
            let room = self.post.work.len() + 2 * self.batch_max <= self.limits.in_work_max;
            if room && read.len() >= self.batch_max && now < self.next_look {
                self.reading.start(self.batch_max, self.limits.read_block);
                self.reading.send().await;
            }
            return Ok(read);
        }
        if read.is_empty() {
            return Ok(read);
        }
        // Taken in first: it would look lost itself.
        self.post.work.take_in(read.iter().map(|entry| entry.id));
        self.unsure = read;
        self.read_for_sure().await
    }

    /// What was read, or what was lost before it: order must hold over lost replies, too.
    async fn read_for_sure(&mut self) -> Result<Vec<RawEntry>, LogError> {
        let first = self.unsure.first().map_or(EntryId::MAX, |entry| entry.id);
        let lost = self.fetch_lost(first).await?;
        Ok(if lost.is_empty() { std::mem::take(&mut self.unsure) } else { lost })
    }

    /// After an outage everybody's heartbeat is old, that of the living too: they are given time to
    /// show themselves before their entries are taken away.
    fn after_beat(&mut self) {
        let now = Instant::now();
        if std::mem::take(&mut self.failed) {
            if now - self.beaten > self.limits.consumer_ttl / 2 {
                self.judging_from = now + self.limits.consumer_ttl;
            }
            // Said at once: the read that follows may block for a second, and publishers wait.
            self.post.pulse.log_is_alive();
        }
        self.beaten = now;
    }

    /// Everything that needs no log.
    async fn check(&mut self, entries: Vec<RawEntry>) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.size();
            if bytes > CHECK_BYTES {
                bytes = 0;
                tokio::task::yield_now().await;
            }
            let id = entry.id;
            match self.checker.check(entry) {
                Verdict::Admitted(checked) => batch.checked.push(checked),
                Verdict::Refused(reason) => {
                    self.refused(id, reason);
                    batch.refused.push(id);
                }
                Verdict::Foreign => {
                    self.post.metrics.count_consume(self.post.stream, Consumed::Foreign);
                    batch.refused.push(id);
                }
            }
        }
        batch
    }

    /// Claims the nonces of the batch; replayed copies go to the refused.
    async fn claim(&mut self) -> Result<(), LogError> {
        let Some(batch) = self.batch.as_ref().filter(|batch| !batch.claimed) else {
            return Ok(());
        };
        let named = |checked: &Checked| Some((checked.nonce.clone()?, checked.id));
        let nonces: Vec<_> = batch.checked.iter().filter_map(named).collect();
        let claims = match nonces.is_empty() {
            true => Vec::new(),
            false => self.post.log.claim_nonces(&self.post.seat.stream, nonces).await?,
        };
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        let mut claims = claims.into_iter();
        for checked in std::mem::take(&mut batch.checked) {
            let claim = checked.nonce.as_ref().and_then(|_| claims.next());
            if claim == Some(NonceClaim::Replay) {
                self.refused(checked.id, Refusal::Replay);
                batch.refused.push(checked.id);
                continue;
            }
            if checked.legacy && claim != Some(NonceClaim::Again) {
                self.post.metrics.count_legacy(self.post.stream);
            }
            batch.checked.push(checked);
        }
        batch.claimed = true;
        self.batch = Some(batch);
        Ok(())
    }

    /// Counts every refusal and logs some. Neither payload nor signature is ever logged.
    fn refused(&mut self, id: EntryId, reason: Refusal) {
        let stream = self.post.stream;
        self.post.metrics.count_refused(stream, reason);
        if self.post.role == Role::Observer {
            return;
        }
        let index = Refusal::ALL.iter().position(|one| *one == reason).unwrap_or(0);
        let sample = &mut self.samples[index];
        if sample.logged.is_some_and(|at| at.elapsed() < SAMPLE_INTERVAL) {
            sample.unlogged += 1;
            return;
        }
        let unlogged = std::mem::take(&mut sample.unlogged);
        sample.logged = Some(Instant::now());
        tracing::warn!(%stream, entry = %id, %reason, unlogged, "entry refused");
    }

    fn recovered(&mut self) {
        if self.outage_logged.take().is_some() {
            tracing::info!(stream = %self.post.stream, "the log answers again");
        }
        self.pause = PAUSE_MIN;
        self.breaker.succeeded();
        self.show_breaker();
        self.post.pulse.log_is_alive();
    }

    /// The group has vanished with a flush or a failover: it is made again, from the beginning.
    async fn recreate_group(&mut self) {
        let seat = &self.post.seat;
        match self.post.log.create_group(&seat.stream, &seat.group).await {
            Ok(true) => {
                self.post.metrics.count_group_recreated(self.post.stream);
                tracing::warn!(stream = %self.post.stream, group = %seat.group, "group had vanished and was made again");
            }
            // Somebody else was faster.
            Ok(false) => {}
            Err(error) => return self.wait_out(&error).await,
        }
        // Should it vanish at once again, this is no hot loop.
        self.pause().await;
    }

    async fn wait_out(&mut self, error: &LogError) {
        let post = Arc::clone(&self.post);
        if self.outage_logged.is_none_or(|at| at.elapsed() >= OUTAGE_LOG_INTERVAL) {
            self.outage_logged = Some(Instant::now());
            tracing::warn!(stream = %post.stream, error = error as &dyn std::error::Error, "the log does not answer, retrying");
        }
        post.metrics.count_log_failure();
        if error.is_failure() {
            self.breaker.failed(Instant::now());
            self.show_breaker();
        }
        // What got lost in a reply is looked for before anything new is read.
        let now = Instant::now();
        (self.failed, self.doubt_until) = (true, now + DOUBT);
        (self.next_beat, self.next_look) = (now, now);
        self.reading.give_up();
        self.pause().await;
        while self.breaker.admit(Instant::now()).is_err() {
            // An open breaker only asks whether the log is back.
            if post.log.now_ms().await.is_ok() {
                self.breaker.log_is_alive(Instant::now());
            } else {
                self.pause().await;
            }
            self.show_breaker();
        }
    }

    async fn pause(&mut self) {
        let jitter = rand::rng().random_range(0.5..=1.0);
        tokio::time::sleep(self.pause.mul_f64(jitter)).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn show_breaker(&self) {
        self.post.show_breaker(self.breaker.position());
    }
}
