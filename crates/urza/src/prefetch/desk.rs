//! Everything in progress: which requests wait for what. Owned by one loop, which it never keeps
//! waiting.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use kernel::Digest;
use leyline::Message;
use leyline::time::now_unix_ms;
use oona::chaos::{self, Point};
use oona::{Delivery, Heartbeat, Receipt};
use tokio::time::Instant;

use super::PrefetchConfig;
use super::estimate::Estimate;
use super::holders::{Holders, Noted, PURPOSE, Pair};
use super::queue::{Queue, Rank};
use super::send::{Held, Outgoing, Sender, failed};
use super::want::{self, Asked, Variants, Want};
use crate::answer::{
    self, Answer, COMPILING, DEADLINE_EXCEEDED, Decision, INCOMPATIBLE, MISSING_ARTIFACT,
    UNAVAILABLE,
};
use crate::demand::{BuildAnswer, BuildRequest, Demand, WhyBuild};
use crate::error::LibraryError;
use crate::library::Library;
use crate::metrics::Metrics;

/// Answers that go out in one step.
const BATCH_MAX: usize = 256;

/// Rebuilds ordered for the same requests, one after the other. An order may join a build whose artifact was stored, and
/// found corrupt, a moment ago: then another is due. What is broken each time stays broken.
const REBUILDS_MAX: u32 = 3;

/// What came of one look into the library; or the panic that ended it.
pub(super) type Looked = (Want, Result<Decision, Box<dyn Any + Send>>);
type Built = (Want, Option<BuildAnswer>);

/// What came of writing leases: those of artifacts that there are not, or why none could be written.
#[derive(Debug)]
pub(super) struct Leased {
    batch: Vec<Pair>,
    began: Instant,
    outcome: Result<Vec<Pair>, LibraryError>,
}

/// A request that waits for its want.
#[derive(Debug)]
struct Waiting {
    held: Held,
    rank: Rank,
    /// When it is told that the kernel is being compiled, or was corrupt.
    until: Instant,
}

impl Waiting {
    fn wakes(&self) -> Instant {
        self.rank.deadline.map_or(self.until, |deadline| deadline.min(self.until))
    }
}

/// All who want the same.
#[derive(Debug, Default)]
struct Group {
    requests: BTreeMap<u64, Waiting>,
    /// The build has ended: the next look is the last.
    is_built: bool,
    /// The look under way began after the build had ended: what it finds missing will not come.
    is_last_look: bool,
    /// Builds that have ended and left it missing.
    rebuilds: u32,
}

/// A build that was ordered.
#[derive(Debug)]
struct Order {
    at: Instant,
}

/// What the work of one request needs. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Shop {
    pub(super) library: Library,
    pub(super) demand: Demand,
    pub(super) variants: Variants,
    pub(super) metrics: Metrics,
    pub(super) heartbeat: Heartbeat,
    pub(super) sender: Sender,
}

pub(super) struct Desk {
    shop: Shop,
    config: PrefetchConfig,
    /// Read, and not looked for yet.
    queue: Queue<(Asked, Held)>,
    groups: HashMap<Want, Group>,
    /// Wants whose look waits for a place.
    unlooked: Queue<Want>,
    /// The same, to find them by name.
    unlooked_names: HashSet<Want>,
    looking: HashSet<Want>,
    orders: HashMap<Want, Order>,
    /// When a waiting request is told something, and which it is.
    wakes: BTreeMap<(Instant, u64), Want>,
    /// Answers made and not on their way yet.
    answers: Vec<Outgoing>,
    numbers: u64,
    waiting_len: usize,
    estimate: Estimate,
    holders: Holders,
    pub(super) sends: FuturesUnordered<BoxFuture<'static, usize>>,
    pub(super) looks: FuturesUnordered<BoxFuture<'static, Looked>>,
    pub(super) builds: FuturesUnordered<BoxFuture<'static, Built>>,
    /// One step of writing leases at most; what comes meanwhile goes together into the next.
    pub(super) leasing: FuturesUnordered<BoxFuture<'static, Leased>>,
    /// Answers on their way.
    sending: usize,
}

impl Desk {
    pub(super) fn new(shop: Shop, config: PrefetchConfig) -> Self {
        Self {
            holders: Holders::new(config.lease),
            shop,
            config,
            queue: Queue::new(),
            groups: HashMap::new(),
            unlooked: Queue::new(),
            unlooked_names: HashSet::new(),
            looking: HashSet::new(),
            orders: HashMap::new(),
            wakes: BTreeMap::new(),
            answers: Vec::new(),
            numbers: 0,
            waiting_len: 0,
            estimate: Estimate::default(),
            sends: FuturesUnordered::new(),
            looks: FuturesUnordered::new(),
            builds: FuturesUnordered::new(),
            leasing: FuturesUnordered::new(),
            sending: 0,
        }
    }

    /// Requests that wait for a look or a build.
    pub(super) fn waiting_len(&self) -> usize {
        self.waiting_len
    }

    /// Everything in hand.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.waiting_len + self.answers.len() + self.sending
    }

    /// Whether another batch may be read. Those who wait for builds do not count: they have a bound
    /// of their own.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() + self.answers.len() + self.sending < self.config.in_flight_max
    }

    /// When somebody has to be told something.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.wakes.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes what was read.
    pub(super) fn take_in(&mut self, batch: Vec<Delivery>) {
        let (now, now_unix_ms) = (Instant::now(), now_unix_ms());
        for delivery in batch {
            let step = delivery.begin(&self.shop.sender.bus, "urza.prefetch");
            let (spare, received_at) = (delivery.spare(), delivery.received_at);
            let read = match &delivery.message {
                Message::PrefetchRequest(request) => {
                    Some(want::read(request, &delivery.attributes, now, now_unix_ms))
                }
                _ => None,
            };
            if let Some(Err(fault)) = &read {
                let _entered = delivery.span().entered();
                tracing::warn!(%fault, "request cannot be read, answered as incompatible");
            }
            let (message, receipt) = delivery.into_parts();
            let (Message::PrefetchRequest(request), Some(read)) = (message, read) else {
                self.drop_foreign(receipt);
                continue;
            };
            let mut held = Held { request, receipt, spare, received_at, broken: None, step };
            held.step.set("urza.blueprint", held.request.blueprint_id.as_str());
            match read {
                Ok(asked) => {
                    let rank = asked.rank;
                    self.queue.push((asked, held), rank);
                }
                Err(_) => self.answer_error(held, INCOMPATIBLE),
            }
        }
    }

    fn drop_foreign(&mut self, receipt: Receipt) {
        self.shop.metrics.foreign.inc();
        tracing::warn!(entry = %receipt.entry(), "no request, acknowledged and dropped");
        self.sends.push(Box::pin(async move {
            if let Err(error) = receipt.ack().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "acknowledgement not confirmed, the bus goes on trying"
                );
            }
            0
        }));
    }

    /// Serves what is queued, the most urgent first, as far as there is room on the way out.
    pub(super) fn dispatch(&mut self) {
        let now = Instant::now();
        while self.sends.len() < self.config.sends_max
            && (!self.queue.is_empty() || !self.answers.is_empty())
        {
            self.serve(now);
            self.send();
        }
        self.look_on(now);
        self.lease(now);
        self.shop.metrics.queued.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
        self.shop.metrics.waiting.set(i64::try_from(self.waiting_len).unwrap_or(i64::MAX));
    }

    /// Looks for one batch. Equal wants are one look; what is at hand is answered at once.
    fn serve(&mut self, now: Instant) {
        let mut wants = Vec::new();
        for _ in 0..BATCH_MAX.saturating_sub(self.answers.len()) {
            let Some((asked, held)) = self.queue.pop(now) else { break };
            let Asked { want, rank } = asked;
            if rank.deadline.is_some_and(|deadline| deadline <= now) {
                self.answer_error(held, DEADLINE_EXCEEDED);
                continue;
            }
            let is_first = !self.groups.contains_key(&want);
            if is_first {
                wants.push((want.clone(), rank));
            } else {
                self.shop.metrics.coalesced.inc();
            }
            self.join(want, Waiting { held, rank, until: now + self.config.compiling_after });
        }
        for (want, rank) in wants {
            self.look(want, rank);
        }
    }

    fn join(&mut self, want: Want, waiting: Waiting) {
        self.numbers += 1;
        self.waiting_len += 1;
        self.wakes.insert((waiting.wakes(), self.numbers), want.clone());
        self.groups.entry(want).or_default().requests.insert(self.numbers, waiting);
    }

    /// Looks at once, and waits for nothing: what memory knows is known now.
    fn look(&mut self, want: Want, rank: Rank) {
        if self.looking.contains(&want) {
            return;
        }
        if self.looks.len() >= self.config.looks_max {
            if self.unlooked_names.insert(want.clone()) {
                self.unlooked.push(want, rank);
            }
            return;
        }
        if let Some(group) = self.groups.get_mut(&want) {
            group.is_last_look = group.is_built;
        }
        let mut look = look(self.shop.clone(), want.clone());
        match look.as_mut().now_or_never() {
            Some(looked) => self.looked(looked),
            None => {
                self.looking.insert(want);
                self.looks.push(look);
            }
        }
    }

    /// Begins looks that had no place.
    fn look_on(&mut self, now: Instant) {
        while self.looks.len() < self.config.looks_max {
            let Some(want) = self.unlooked.pop(now) else { return };
            self.unlooked_names.remove(&want);
            let rank = self.groups.get(&want).and_then(Group::rank);
            if let Some(rank) = rank {
                self.look(want, rank);
            }
        }
    }

    /// Takes what a look has found.
    pub(super) fn looked(&mut self, (want, decision): Looked) {
        self.looking.remove(&want);
        let requests = self.groups.get(&want).map_or(0, |group| group.requests.len());
        chaos::points(Point::LibraryAsked, requests);
        match decision {
            Ok(Decision::Ready(record)) => {
                self.note_holders(&want, &record.digest);
                let (public_url, lease) = (self.config.public_url.clone(), self.config.lease);
                self.resolve(&want, |held| {
                    Answer::ready(&held.request, &record, public_url.as_deref(), lease)
                });
            }
            Ok(Decision::Error(reason)) => {
                self.resolve(&want, |held| Answer::error(&held.request, &reason));
            }
            Ok(Decision::Gone { reason, order }) => {
                if self.shop.demand.place(*order).is_none() {
                    tracing::warn!(%want, "rebuild not ordered, the next request orders it");
                }
                self.resolve(&want, |held| Answer::error(&held.request, reason));
            }
            Ok(Decision::Broken(reason)) => {
                let Some(group) = self.groups.get_mut(&want) else { return };
                for waiting in group.requests.values_mut() {
                    waiting.held.broken.get_or_insert(reason);
                }
                self.not_there(&want);
            }
            Ok(Decision::Missing) => self.not_there(&want),
            Err(panic) => {
                let held = self.release(&want);
                let spares = held.into_iter().map(|held| held.spare).collect();
                self.sends.push(Box::pin(async move {
                    failed(spares, panic).await;
                    0
                }));
            }
        }
    }

    /// Has it built, where that may help.
    fn not_there(&mut self, want: &Want) {
        let Some(group) = self.groups.get_mut(want) else { return };
        let is_broken = group.requests.values().any(|waiting| waiting.held.broken.is_some());
        let why = if is_broken { WhyBuild::Rebuild } else { WhyBuild::Missing };
        match (group.is_last_look, group.is_built) {
            (false, false) => self.order(want, why),
            // The look began before the build had ended.
            (false, true) => {
                let rank = group.rank();
                if let Some(rank) = rank {
                    self.look(want.clone(), rank);
                }
            }
            (true, _) if is_broken && group.rebuilds + 1 < REBUILDS_MAX => {
                group.rebuilds += 1;
                (group.is_built, group.is_last_look) = (false, false);
                self.order(want, why);
            }
            (true, _) => self.refuse(want, MISSING_ARTIFACT),
        }
    }

    /// Notes that all who want the same have it now; in memory only.
    fn note_holders(&mut self, want: &Want, digest: &Digest) {
        let Some(group) = self.groups.get(want) else { return };
        let now = Instant::now();
        for waiting in group.requests.values() {
            let run = &waiting.held.request.training_run_id;
            match self.holders.note(run, digest, now) {
                Noted::Held | Noted::Nameless => {}
                Noted::NoRoom => tracing::warn!(
                    run,
                    artifact = %digest,
                    "too many runs hold kernels, lease not taken before another is over"
                ),
            }
        }
    }

    /// Writes what leases are due, one step at a time and beside the loop.
    fn lease(&mut self, now: Instant) {
        if self.leasing.is_empty() {
            let batch = self.holders.take_due(now);
            if !batch.is_empty() {
                let (library, ttl) = (self.shop.library.clone(), self.config.lease);
                let heartbeat = self.shop.heartbeat.clone();
                self.leasing.push(Box::pin(async move {
                    let writing = library.lease_all(&batch, PURPOSE, ttl);
                    let outcome = heartbeat.over("writing leases", batch.len(), writing).await;
                    Leased { batch, began: now, outcome }
                }));
            }
        }
        let unwritten = i64::try_from(self.holders.due_len()).unwrap_or(i64::MAX);
        self.shop.metrics.leases_unwritten.set(unwritten);
    }

    /// Takes what came of writing leases.
    pub(super) fn leased(&mut self, Leased { batch, began, outcome }: Leased) {
        match outcome {
            Ok(unknown) => {
                let written = batch.len() - unknown.len();
                self.shop.metrics.leases_written.inc_by(written as u64);
                for (digest, run) in &unknown {
                    tracing::warn!(run, artifact = %digest, "artifact removed before its lease was written");
                }
                self.holders.written(&batch, &unknown, began);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    leases = batch.len(),
                    "leases not written, written again in a second"
                );
                self.holders.unwritten(batch, Instant::now());
            }
        }
    }

    /// Finishes the answers that are on their way, and writes the leases of those that are given.
    pub(super) async fn drain(&mut self) {
        while self.sends.next().await.is_some() {}
        loop {
            self.lease(Instant::now());
            let Some(leased) = self.leasing.next().await else { return };
            self.leased(leased);
        }
    }

    /// Answers all who want the same. A request whose answer cannot be made fails alone.
    fn resolve(&mut self, want: &Want, answer: impl Fn(&Held) -> Answer) {
        for held in self.release(want) {
            let made = catch_unwind(AssertUnwindSafe(|| {
                #[cfg(test)]
                super::tests::panic_on_poison(&held.request);
                answer(&held)
            }));
            match made {
                Ok(answer) => self.answers.push(Outgoing { held, answer }),
                Err(panic) => {
                    let Held { receipt, spare, .. } = held;
                    self.sends.push(Box::pin(async move {
                        drop(receipt);
                        failed(vec![spare], panic).await;
                        0
                    }));
                }
            }
        }
    }

    fn release(&mut self, want: &Want) -> Vec<Held> {
        let Some(group) = self.groups.remove(want) else { return Vec::new() };
        self.waiting_len -= group.requests.len();
        let mut held = Vec::with_capacity(group.requests.len());
        for (number, waiting) in group.requests {
            self.wakes.remove(&(waiting.wakes(), number));
            held.push(waiting.held);
        }
        held
    }

    fn answer_error(&mut self, held: Held, reason: &str) {
        let answer = Answer::error(&held.request, reason);
        self.answers.push(Outgoing { held, answer });
    }

    /// Sends the answers that are made.
    fn send(&mut self) {
        while !self.answers.is_empty() {
            let rest = self.answers.split_off(self.answers.len().min(BATCH_MAX));
            let batch = std::mem::replace(&mut self.answers, rest);
            let (sender, count) = (self.shop.sender.clone(), batch.len());
            self.sending += count;
            self.sends.push(Box::pin(async move {
                sender.send(batch).await;
                count
            }));
        }
    }

    /// So many answers are no longer on their way.
    pub(super) fn sent(&mut self, count: usize) {
        self.sending -= count;
    }

    /// Orders a build, one at a time for a want. An order that finds no room is given again at the
    /// next tick. Where too many wait already, nobody is kept waiting.
    fn order(&mut self, want: &Want, why: WhyBuild) {
        let Some(group) = self.groups.get(want) else { return };
        if !self.orders.contains_key(want) {
            let Some(rank) = group.rank() else { return };
            let trace = group.requests.values().next().and_then(|first| first.held.step.context());
            let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
            let deadline_ms = rank.deadline.map(|deadline| {
                let left = u64::try_from(left(deadline).as_millis()).unwrap_or(u64::MAX);
                now_unix_ms().saturating_add(left)
            });
            let request = BuildRequest {
                parameters: want.parameters(),
                site: want.site.clone(),
                priority: rank.priority,
                deadline_ms,
                trace,
                ..BuildRequest::of(want.blueprint.clone(), why)
            };
            if let Some(placed) = self.shop.demand.place(request) {
                self.orders.insert(want.clone(), Order { at: Instant::now() });
                let want = want.clone();
                self.builds.push(Box::pin(async move { (want, placed.answer.await.ok()) }));
            }
        }
        if self.waiting_len > self.config.waiting_max {
            let (reason, after) = self.told_to_wait(want);
            self.resolve(want, |held| {
                Answer::later(&held.request, held.broken.unwrap_or(reason), after)
            });
        }
    }

    /// What somebody is told whose kernel is not there yet, unless a corrupt one was: then that is
    /// the reason.
    fn told_to_wait(&self, want: &Want) -> (&'static str, Duration) {
        match self.orders.get(want) {
            Some(order) => (COMPILING, self.estimate.left(order.at.elapsed())),
            // Nobody has taken the order, so nothing goes on without a further request.
            None => (UNAVAILABLE, self.estimate.left(Duration::ZERO)),
        }
    }

    /// A build has ended.
    pub(super) fn built(&mut self, (want, answer): Built) {
        let order = self.orders.remove(&want);
        match answer {
            // What the library has now decides.
            Some(BuildAnswer::Built(_)) => {
                if let Some(order) = order {
                    self.estimate.observe(order.at.elapsed());
                }
                let Some(group) = self.groups.get_mut(&want) else { return };
                group.is_built = true;
                let rank = group.rank();
                if let Some(rank) = rank {
                    self.look(want, rank);
                }
            }
            // The builder went away; the tick asks the next one.
            None => {}
            Some(BuildAnswer::Unknown) => self.refuse(&want, MISSING_ARTIFACT),
            Some(BuildAnswer::Refused { reason }) => self.refuse(&want, &reason),
            Some(BuildAnswer::Failed { reason }) => {
                tracing::warn!(%want, %reason, "build failed, requests answered as missing or corrupt");
                self.refuse(&want, MISSING_ARTIFACT);
            }
        }
    }

    /// Nothing will be built. Who waits in place of a corrupt artifact learns that it was one.
    fn refuse(&mut self, want: &Want, reason: &str) {
        self.resolve(want, |held| Answer::error(&held.request, held.broken.unwrap_or(reason)));
    }

    /// Answers who has waited long enough.
    pub(super) fn wake(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.wakes.first_entry() {
            let (at, number) = *entry.key();
            if at > now {
                return;
            }
            let want = entry.remove();
            let Some(group) = self.groups.get_mut(&want) else { continue };
            let Some(waiting) = group.requests.remove(&number) else { continue };
            if group.requests.is_empty() {
                self.groups.remove(&want);
            }
            self.waiting_len -= 1;
            let Waiting { held, rank, .. } = waiting;
            let answer = if rank.deadline.is_some_and(|deadline| deadline <= now) {
                Answer::error(&held.request, DEADLINE_EXCEEDED)
            } else {
                let (reason, after) = self.told_to_wait(&want);
                Answer::later(&held.request, held.broken.unwrap_or(reason), after)
            };
            self.answers.push(Outgoing { held, answer });
        }
    }

    /// Looks whether what is waited for has arrived, by whichever process, and orders what nobody
    /// has taken yet.
    pub(super) fn look_again(&mut self) {
        let wants: Vec<(Want, Rank)> = self
            .groups
            .iter()
            .filter_map(|(want, group)| Some((want.clone(), group.rank()?)))
            .collect();
        for (want, rank) in wants {
            self.look(want, rank);
        }
    }
}

impl Group {
    /// As urgent as the most urgent of all.
    fn rank(&self) -> Option<Rank> {
        self.requests.values().map(|waiting| waiting.rank).reduce(Rank::joined)
    }
}

/// One look. A panic in it fails the requests that wait for it, and nothing else.
fn look(shop: Shop, want: Want) -> BoxFuture<'static, Looked> {
    Box::pin(async move {
        let deciding = answer::decide(&shop.library, &shop.variants, &want);
        let deciding = shop.heartbeat.over("looking", &want, deciding);
        let decision = AssertUnwindSafe(deciding).catch_unwind().await;
        (want, decision)
    })
}
