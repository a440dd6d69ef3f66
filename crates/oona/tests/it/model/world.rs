//! A case at work: real buses and consumers on a real log, each step compared with the reference.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use leyline::Message;
use leyline::wire::{MessagePriority, TelemetryPacket};
use oona::{
    Bus, Consumer, ConsumerSpec, Delivery, EntryId, LogKind, Metrics, Order, Outcome, Role, Stream,
    attributes,
};
use tokio::time::Instant;

use super::logs::LogHost;
use super::ops::{Case, Fault, Op};
use super::reference::{ATTEMPTS_MAX, LANES, Phase, Reference, VIEWS};
use crate::rig::{Envelope, keyring, now_ms, request, state};

type Checked = Result<(), String>;

const HOPELESS: &str = "never acknowledged: its handler crashed or hung each time";
/// The longest a case may take to settle everything at its end.
const DRAIN: Duration = Duration::from_secs(30);

/// A delivery that nobody has settled yet.
struct Hand {
    delivery: Delivery,
    number: usize,
}

struct Reader {
    process: usize,
    view: usize,
    consumer: Consumer,
    hands: Vec<Hand>,
}

pub struct World<'a> {
    host: LogHost<'a>,
    reference: Reference,
    processes: Vec<Bus>,
    readers: Vec<Reader>,
    /// The counters of every process there ever was.
    metrics: Vec<Metrics>,
    /// When consumers were last given time to show that they live.
    pumped: std::time::Instant,
    requests: u32,
    restarts: u32,
}

impl<'a> World<'a> {
    /// Runs a case from an empty log to the end.
    pub async fn run(case: &Case, host: LogHost<'a>) -> Checked {
        let mut world = World {
            host,
            reference: Reference::default(),
            processes: Vec::new(),
            readers: Vec::new(),
            metrics: Vec::new(),
            pumped: std::time::Instant::now(),
            requests: 0,
            restarts: 0,
        };
        world.start_process().await?;
        if world.host.kind() == LogKind::Redis {
            world.start_process().await?;
        }
        let groups: Vec<_> = VIEWS.iter().map(|view| (LANES[view.lane], view.group)).collect();
        world.processes[0].ensure_groups(&groups).await.map_err(text)?;
        for view in 0..VIEWS.len() {
            world.join(view, 0);
        }
        for (index, op) in case.ops.iter().enumerate() {
            world.step(*op).await.map_err(|fault| format!("{fault} (step {index}: {op:?})"))?;
            // Consumers are always reading, as in a service; else they would be taken for dead.
            world.pump(if world.host.kind() == LogKind::Redis { 3 } else { 1 }).await?;
        }
        world.drain().await?;
        // A dead letter is on its way to the disk when its entry has left the list of pending ones.
        world.processes[0].flush().await.map_err(text)?;
        world.check_letters().await?;
        world.check_counters()
    }

    async fn start_process(&mut self) -> Checked {
        let metrics = Metrics::detached();
        self.metrics.push(metrics.clone());
        let bus = Bus::open(self.host.config(), keyring(), metrics).await.map_err(text)?;
        self.processes.push(bus);
        Ok(())
    }

    fn join(&mut self, view: usize, process: usize) {
        let spec = ConsumerSpec::new(LANES[VIEWS[view].lane], VIEWS[view].group);
        let order = if VIEWS[view].per_key { Order::PerKey } else { Order::Arrival };
        let role = if VIEWS[view].counts { Role::Handler } else { Role::Observer };
        let consumer =
            self.processes[process].consumer(ConsumerSpec { order, role, batch_max: 5, ..spec });
        self.reference.readers[view] += 1;
        self.readers.push(Reader { process, view, consumer, hands: Vec::new() });
    }

    async fn step(&mut self, op: Op) -> Checked {
        match op {
            Op::Publish { lane, key, priority } => self.publish(lane, key, priority).await,
            Op::PublishCancelled { lane, key } => self.publish_cancelled(lane, key).await,
            Op::Append { lane, key } => self.append(lane, key).await,
            Op::Forge { lane, fault } => self.forge(lane, fault).await,
            Op::Replay { which } => self.replay(which).await,
            Op::ReplayElsewhere { which } => self.replay_elsewhere(which).await,
            Op::Pump { ms } => self.pump(ms).await,
            Op::Ack { which } => match self.take_hand(which) {
                Some((view, hand)) => self.ack(vec![(view, hand)]).await,
                None => Ok(()),
            },
            Op::AckSome { count } => {
                let hands = (0..count).filter_map(|_| self.take_hand(0)).collect();
                self.ack(hands).await
            }
            Op::Fail { which } => self.fail(which).await,
            Op::Drop { which } => {
                if let Some((view, hand)) = self.take_hand(which) {
                    self.reference.returned(view, hand.number);
                }
                Ok(())
            }
            Op::Join { view, process } => {
                let view = usize::from(view) % VIEWS.len();
                if self.readers.iter().filter(|reader| reader.view == view).count() < 3 {
                    self.join(view, usize::from(process) % self.processes.len());
                }
                Ok(())
            }
            Op::CrashConsumer { which } => {
                let index = usize::from(which) % self.readers.len().max(1);
                if index < self.readers.len() {
                    self.crash_reader(index);
                }
                Ok(())
            }
            Op::CrashProcess { which } => self.crash_process(which).await,
            Op::Restart { hard } => self.restart(hard).await,
            Op::Sweep => {
                for lane in LANES {
                    self.processes[0].sweep(lane).await.map_err(text)?;
                }
                Ok(())
            }
            Op::RemoveGroup { view, ensure } => self.remove_group(view, ensure).await,
        }
    }

    /// A message with this number in it, the same in every retelling of the case.
    fn message(&mut self, lane: usize, key: u8, number: usize) -> (Message, String) {
        let number = u32::try_from(number).unwrap();
        if LANES[lane] != Stream::KernelRequests {
            let key = format!("run-{key}");
            return (state(&key, number), key);
        }
        let Message::PrefetchRequest(mut body) = request(&format!("k-{key}"), now_ms()) else {
            unreachable!("a request is one")
        };
        body.blueprint_id = number.to_string();
        (body.into(), format!("k-{key}"))
    }

    async fn publish(&mut self, lane: u8, key: u8, priority: u8) -> Checked {
        let lane = usize::from(lane) % LANES.len();
        let number = self.reference.messages.len();
        let (message, key) = self.message(lane, key, number);
        let priority = [
            MessagePriority::Normal,
            MessagePriority::Low,
            MessagePriority::High,
            MessagePriority::Critical,
        ][usize::from(priority) % 4];
        let bus = &self.processes[number % self.processes.len()];
        let published = bus.publish(LANES[lane], priority, "model", &message).await;
        let outcome = match published {
            Ok(outcome) => outcome,
            // After an outage an answer may be lost, and the message stand there all the same.
            Err(_) if self.restarts > 0 && self.host.kind() == LogKind::Redis => {
                self.reference.add(lane, key, None);
                return Ok(());
            }
            Err(error) => return Err(text(error)),
        };
        match outcome {
            Outcome::Published { id, .. } => self.reference.add(lane, key, Some(id)),
            Outcome::Rerouted { id, .. } => self.reference.add(1, key, Some(id)),
            // Never sent: it must never come.
            _ => self.reference.add(LANES.len(), key, None),
        };
        Ok(())
    }

    async fn publish_cancelled(&mut self, lane: u8, key: u8) -> Checked {
        let lane = usize::from(lane) % LANES.len();
        let number = self.reference.messages.len();
        let (message, key) = self.message(lane, key, number);
        let bus = self.processes[0].clone();
        let publish = bus.publish(LANES[lane], MessagePriority::Normal, "model", &message);
        let outcome = tokio::select! {
            biased;
            outcome = publish => Some(outcome.map_err(text)?),
            () = tokio::task::yield_now() => None,
        };
        let id = match outcome {
            Some(Outcome::Published { id, .. }) => Some(id),
            _ => None,
        };
        self.reference.add(lane, key, id);
        Ok(())
    }

    async fn append(&mut self, lane: u8, key: u8) -> Checked {
        let lane = usize::from(lane) % LANES.len();
        let number = self.reference.messages.len();
        let (message, mut key) = self.message(lane, key, number);
        let bus = &self.processes[0];
        let name = bus.config().streams.name(LANES[lane]).to_owned();
        let envelope = match message {
            Message::PrefetchRequest(mut body) => {
                self.requests += 1;
                key = format!("legacy-{}", self.requests);
                body.request_id.clone_from(&key);
                Envelope::legacy(&body.into())
            }
            other => Envelope::of(&other, &name),
        };
        let id = envelope.append(bus, LANES[lane]).await;
        self.reference.add(lane, key, Some(id));
        Ok(())
    }

    async fn forge(&mut self, lane: u8, fault: Fault) -> Checked {
        let lane = usize::from(lane) % LANES.len();
        let stream = LANES[lane];
        let bus = &self.processes[0];
        let name = bus.config().streams.name(stream).to_owned();
        let message = match stream {
            Stream::KernelRequests => request("forged", now_ms()),
            _ => state("forged", u32::MAX),
        };
        let mut envelope = Envelope::of(&message, &name);
        let bytes = envelope.bytes();
        let raw: Option<Vec<(&str, &[u8])>> = match fault {
            Fault::NoSignature => Some(vec![("payload", &bytes)]),
            Fault::SignatureIsNone => Some(vec![("payload", &bytes), ("signature", b"\xffnone")]),
            Fault::Foreign => Some(vec![("bootstrap", b"1")]),
            _ => None,
        };
        if let Some(fields) = raw {
            bus.append_raw(stream, &fields).await.map_err(text)?;
        } else {
            match fault {
                Fault::OtherSecret => envelope.secret = "a secret of somebody else".to_owned(),
                Fault::Undecodable => envelope.payload = b"\xff\xff\xff".to_vec(),
                Fault::UnknownType => envelope.kind = 999,
                Fault::WrongType => {
                    let other = match stream {
                        // It takes all but kernel traffic.
                        Stream::Emergency => request("forged", now_ms()),
                        _ => TelemetryPacket::default().into(),
                    };
                    envelope = Envelope::of(&other, &name);
                }
                Fault::WrongStream => envelope = envelope.with(attributes::STREAM, "elsewhere"),
                Fault::Stale => envelope = envelope.with(attributes::ISSUED_AT_MS, 1),
                Fault::Future => {
                    envelope = envelope.with(attributes::ISSUED_AT_MS, now_ms() + 60_000);
                }
                Fault::Oversize => envelope = envelope.with("filler", "x".repeat(4096)),
                Fault::NoAttributes => {
                    if stream == Stream::KernelRequests {
                        // There they may lack; without its nonce it is malformed.
                        return Ok(());
                    }
                    envelope = Envelope::legacy(&message);
                }
                Fault::NoSignature | Fault::SignatureIsNone | Fault::Foreign => {}
            }
            envelope.append(bus, stream).await;
        }
        if let Some(reason) = fault.refusal() {
            self.reference.refuse(lane, reason);
        }
        Ok(())
    }

    /// The fields of an earlier message, read back from its stream; `None` once it is trimmed.
    async fn recorded(
        &self,
        which: u8,
    ) -> Result<Option<(usize, Vec<(Vec<u8>, Vec<u8>)>)>, String> {
        let known: Vec<usize> = (0..self.reference.messages.len())
            .filter(|number| !self.reference.messages[*number].entries.is_empty())
            .collect();
        let Some(number) = known.get(usize::from(which) % known.len().max(1)) else {
            return Ok(None);
        };
        let message = &self.reference.messages[*number];
        let id = message.entries[0];
        let before = match id.seq.checked_sub(1) {
            Some(seq) => EntryId { ms: id.ms, seq },
            None => EntryId { ms: id.ms - 1, seq: u64::MAX },
        };
        let found = self.processes[0].peek(LANES[message.lane], before, 1).await.map_err(text)?;
        let entry = found.into_iter().find(|entry| entry.id == id);
        Ok(entry.map(|entry| (*number, entry.fields)))
    }

    async fn append_fields(
        &self,
        stream: Stream,
        fields: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<EntryId, String> {
        let fields: Vec<(&str, &[u8])> = fields
            .iter()
            .map(|(name, value)| (std::str::from_utf8(name).unwrap(), value.as_slice()))
            .collect();
        self.processes[0].append_raw(stream, &fields).await.map_err(text)
    }

    async fn replay(&mut self, which: u8) -> Checked {
        let Some((number, fields)) = self.recorded(which).await? else { return Ok(()) };
        let lane = self.reference.messages[number].lane;
        let id = self.append_fields(LANES[lane], &fields).await?;
        self.reference.messages[number].entries.push(id);
        self.reference.refuse(lane, oona::Refusal::Replay);
        Ok(())
    }

    async fn replay_elsewhere(&mut self, which: u8) -> Checked {
        let Some((number, fields)) = self.recorded(which).await? else { return Ok(()) };
        let lane = (self.reference.messages[number].lane + 1) % LANES.len();
        self.append_fields(LANES[lane], &fields).await?;
        self.reference.refuse(lane, oona::Refusal::WrongStream);
        Ok(())
    }

    /// Gives all consumers time to read; notes what they hand out.
    async fn pump(&mut self, ms: u16) -> Checked {
        self.mind_the_gap();
        let deadline = Instant::now() + Duration::from_millis(ms.into());
        loop {
            let next = tokio::time::timeout_at(deadline, next_delivery(&mut self.readers)).await;
            let Ok((index, delivery)) = next else { break };
            self.take_in(index, delivery.map_err(text)?)?;
        }
        self.pumped = std::time::Instant::now();
        Ok(())
    }

    /// On a machine that stood still for long, live consumers look dead, and rightly so.
    fn mind_the_gap(&mut self) {
        let stood_still = self.pumped.elapsed() > Duration::from_millis(400);
        if self.host.kind() == LogKind::Redis && stood_still {
            for view in 0..VIEWS.len() {
                self.reference.interrupted(view);
            }
        }
    }

    fn take_in(&mut self, index: usize, delivery: Delivery) -> Checked {
        let number = match &delivery.message {
            Message::SystemState(packet) => packet.current_epoch as usize,
            Message::PrefetchRequest(body) => body.blueprint_id.parse().unwrap_or(usize::MAX),
            other => return Err(format!("handed out {other:?}, which nobody published")),
        };
        let reader = &mut self.readers[index];
        if let Some(message) = self.reference.messages.get_mut(number)
            && !message.certain
            && message.lane < LANES.len()
        {
            // Nobody was told where it went; it may have been rerouted.
            message.lane = VIEWS[reader.view].lane;
        }
        self.reference.handed_out(reader.view, number, delivery.entry, delivery.attempt).map_err(
            |fault| format!("{fault}; group {} on {}", VIEWS[reader.view].group, delivery.stream),
        )?;
        let message = &mut self.reference.messages[number];
        if !message.certain {
            // It stands in the log after all.
            message.certain = true;
            message.entries.push(delivery.entry);
        }
        reader.hands.push(Hand { delivery, number });
        Ok(())
    }

    /// Takes one of all unsettled deliveries.
    fn take_hand(&mut self, which: u8) -> Option<(usize, Hand)> {
        let total: usize = self.readers.iter().map(|reader| reader.hands.len()).sum();
        let mut index = usize::from(which) % total.max(1);
        for reader in &mut self.readers {
            if index < reader.hands.len() {
                return Some((reader.view, reader.hands.remove(index)));
            }
            index -= reader.hands.len();
        }
        None
    }

    async fn ack(&mut self, hands: Vec<(usize, Hand)>) -> Checked {
        let (mut settled, mut deliveries) = (Vec::new(), Vec::new());
        for (view, hand) in hands {
            settled.push((view, hand.number));
            deliveries.push(hand.delivery);
        }
        let acked = Delivery::ack_all(deliveries).await;
        for (view, number) in settled {
            let standing = self.reference.standing(view, number);
            standing.phase = Phase::Handled;
            // The consumer goes on trying; should it die first, the message comes again.
            standing.may_repeat |= acked.is_err();
        }
        Ok(())
    }

    async fn fail(&mut self, which: u8) -> Checked {
        let Some((view, hand)) = self.take_hand(which) else { return Ok(()) };
        let (entry, attempt) = (hand.delivery.entry, hand.delivery.attempt);
        let reason = format!("failed {} times", attempt);
        let failed = hand.delivery.fail(&reason).await;
        let standing = self.reference.standing(view, hand.number);
        standing.may_repeat |= failed.is_err();
        // Of a message in two hands, as after a vanished group, one may have been acknowledged.
        if standing.phase != Phase::Handled {
            standing.phase = Phase::Returned;
        }
        if attempt >= ATTEMPTS_MAX && failed.is_ok() && standing.phase != Phase::Handled {
            standing.phase = Phase::Dead;
            if !standing.may_repeat {
                let attempts = attempt;
                let letter = super::reference::Letter { view, entry, reason, attempts };
                self.reference.letters.push(letter);
            }
        }
        Ok(())
    }

    /// Consumer and deliveries go at once, as with their process.
    fn crash_reader(&mut self, index: usize) {
        let reader = self.readers.remove(index);
        let held: Vec<usize> = reader.hands.iter().map(|hand| hand.number).collect();
        self.reference.crashed(reader.view, &held);
        drop(reader.consumer);
        drop(reader.hands);
    }

    async fn crash_process(&mut self, which: u8) -> Checked {
        if self.host.kind() == LogKind::Embedded {
            return self.restart(true).await;
        }
        let process = usize::from(which) % self.processes.len();
        while let Some(index) = self.readers.iter().position(|reader| reader.process == process) {
            self.crash_reader(index);
        }
        let before = self.processes.len();
        self.start_process().await?;
        let fresh = self.processes.swap_remove(before);
        self.processes[process] = fresh;
        Ok(())
    }

    async fn restart(&mut self, hard: bool) -> Checked {
        self.restarts += 1;
        match self.host.kind() {
            LogKind::Redis => {
                for view in 0..VIEWS.len() {
                    self.reference.interrupted(view);
                }
                self.host.kill();
                // They notice.
                self.pump(5).await?;
                self.host.revive();
                let bus = self.processes[0].clone();
                self.wait_for_the_log(&bus).await
            }
            LogKind::Embedded => {
                if hard {
                    self.host.kill();
                }
                while !self.readers.is_empty() {
                    self.crash_reader(0);
                }
                if hard {
                    (0..VIEWS.len()).for_each(|view| self.reference.forgotten(view));
                }
                self.processes.clear();
                self.start_process().await
            }
        }
    }

    /// What follows expects a log that answers; how outages are borne is tested elsewhere.
    async fn wait_for_the_log(&mut self, bus: &Bus) -> Checked {
        let deadline = std::time::Instant::now() + DRAIN;
        while bus.ping().await.is_err() {
            if std::time::Instant::now() > deadline {
                return Err("the log was not found again".to_owned());
            }
            self.pump(5).await?;
        }
        for process in &self.processes {
            // Its breaker as well.
            let _ = process.ping().await;
        }
        Ok(())
    }

    async fn remove_group(&mut self, view: u8, ensure: bool) -> Checked {
        let number = usize::from(view) % VIEWS.len();
        let (view, bus) = (VIEWS[number], self.processes[0].clone());
        self.reference.forgotten(number);
        bus.remove_group(LANES[view.lane], view.group).await.map_err(text)?;
        if !ensure {
            self.pump(10).await?;
        }
        bus.ensure_groups(&[(LANES[view.lane], view.group)]).await.map_err(text)
    }

    /// Settles everything: at the end nothing may be pending anywhere.
    async fn drain(&mut self) -> Checked {
        let begun = Instant::now();
        loop {
            for view in 0..VIEWS.len() {
                if self.readers.iter().all(|reader| reader.view != view) {
                    self.join(view, 0);
                }
            }
            self.pump(5).await?;
            let mut hands = Vec::new();
            while let Some(hand) = self.take_hand(0) {
                hands.push(hand);
            }
            let quiet = hands.is_empty();
            self.ack(hands).await?;
            if quiet && self.depths().await?.iter().all(|depth| *depth == 0) {
                return Ok(());
            }
            if begun.elapsed() > DRAIN {
                let depths = self.depths().await?;
                return Err(format!(
                    "pending for ever: {depths:?} by view; {}",
                    self.inspect().await
                ));
            }
        }
    }

    /// What the server says of the groups, for a failure's report.
    async fn inspect(&self) -> String {
        let Some(server) = &self.host.server else { return String::new() };
        let name = &self.processes[0].config().streams.normal;
        let groups: redis::Value = server.ask(&["XINFO", "GROUPS", name]).await;
        let stream: redis::Value = server.ask(&["XINFO", "STREAM", name]).await;
        format!("{groups:?} {stream:?}")
    }

    async fn depths(&self) -> Result<Vec<u64>, String> {
        let mut depths = Vec::new();
        for view in VIEWS {
            let depth = self.processes[0].depth(LANES[view.lane], view.group).await;
            depths.push(depth.map_err(text)?);
        }
        Ok(depths)
    }

    /// Every dead letter has its right; every message is handled or died.
    async fn check_letters(&self) -> Checked {
        let letters = self.processes[0].dead_letters(EntryId::ZERO, 1000).await.map_err(text)?;
        let mut died = Vec::new();
        for letter in &letters {
            let names = &self.processes[0].config().streams;
            let view = VIEWS.iter().position(|view| {
                view.group == letter.group && *names.name(LANES[view.lane]) == letter.origin_stream
            });
            let (Some(view), Some(entry)) = (view, letter.origin_entry) else {
                return Err(format!("a dead letter from nowhere: {letter:?}"));
            };
            let by_handler = letter.reason == format!("failed {} times", letter.attempts);
            let known = letter.reason == HOPELESS || by_handler;
            let used_up = match self.reference.is_exact(view) {
                true => letter.attempts == ATTEMPTS_MAX,
                false => letter.attempts >= ATTEMPTS_MAX,
            };
            if !known || !used_up {
                let (reason, attempts) = (&letter.reason, letter.attempts);
                return Err(format!("dead letter {entry}: {reason}, {attempts} attempts"));
            }
            if self.reference.is_exact(view) && died.contains(&(view, entry)) {
                return Err(format!("entry {entry} died twice"));
            }
            died.push((view, entry));
        }
        for expected in &self.reference.letters {
            let found = letters.iter().any(|letter| {
                letter.origin_entry == Some(expected.entry)
                    && letter.group == VIEWS[expected.view].group
                    && (&letter.reason, letter.attempts) == (&expected.reason, expected.attempts)
            });
            if !found {
                return Err(format!("no such dead letter: {expected:?} in {letters:?}"));
            }
        }
        self.reference
            .all_settled(&died)
            .map_err(|fault| format!("{fault}; dead letters: {died:?}"))
    }

    /// What the handlers refused is what there was to refuse.
    fn check_counters(&self) -> Checked {
        for (view_number, view) in VIEWS.iter().enumerate().filter(|(_, view)| view.counts) {
            for reason in oona::Refusal::ALL {
                let stream = LANES[view.lane];
                let found: u64 =
                    self.metrics.iter().map(|one| one.refused_total(stream, reason)).sum();
                let due = self.reference.refused.get(&(view.lane, reason.label()));
                let due = due.copied().unwrap_or(0);
                let exact = self.reference.is_exact(view_number);
                // After a crash entries may be read, and refused, once more; never less often.
                let most = due * (1 + self.reference.disturbances(view_number));
                let bad = if exact { found != due } else { found < due || found > most };
                // A publish of unknown fate may have arrived twice, the copy being a replay.
                if bad && (exact || reason != oona::Refusal::Replay) {
                    return Err(format!("{stream} refused {found} as {reason}, due were {due}"));
                }
            }
        }
        Ok(())
    }
}

/// The next message of any consumer. The others' waits are cancelled.
async fn next_delivery(readers: &mut [Reader]) -> (usize, Result<Delivery, oona::BusError>) {
    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Delivery, oona::BusError>> + 'a>>;
    let mut waits: Vec<Wait<'_>> =
        readers.iter_mut().map(|reader| Box::pin(reader.consumer.recv()) as Wait<'_>).collect();
    std::future::poll_fn(|context| {
        for (index, wait) in waits.iter_mut().enumerate() {
            if let Poll::Ready(delivery) = wait.as_mut().poll(context) {
                return Poll::Ready((index, delivery));
            }
        }
        Poll::Pending
    })
    .await
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn text(error: impl std::fmt::Display) -> String {
    format!("unexpected error: {error}")
}
