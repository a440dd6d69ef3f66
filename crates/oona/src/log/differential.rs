//! Both logs under the same random operations: whatever a caller can see must be the same.
//!
//! Ids differ, hence entries are compared by the order in which they were appended. Lag is compared
//! as long as nothing unread was removed: Redis does not know it then.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Epitaph, Log, NonceClaim, PendingOf, Replayed, Seat};
use crate::config::{Config, LogChoice};
use crate::entry::{EntryId, Fields, RawEntry};
use crate::error::LogError;
use crate::lease::record::Record;
use crate::lease::term::Step;
use crate::lease::{Ask, Candidate};

#[allow(dead_code, reason = "the conformance suite uses the rest of it")]
#[path = "../../tests/it/redis_server.rs"]
mod redis_server;

const STREAMS: [&str; 2] = ["one", "two"];
const GROUPS: [&str; 2] = ["a", "b"];
const CONSUMERS: [&str; 2] = ["x", "y"];
const DEAD: &str = "dead";
/// Blocking reads wait at least this long on Redis.
const BLOCK: Duration = Duration::from_millis(1);

/// One operation; entries are named by their number within the stream.
#[derive(Debug, Clone)]
enum Op {
    Append { stream: usize },
    Create { at: At },
    Remove { at: At },
    Read { at: At, count: usize },
    Ack { at: At, entries: Vec<usize> },
    Pending { at: At, mine: bool, count: usize },
    Claim { at: At, count: usize },
    Renew { at: At, entries: Vec<usize> },
    Bury { at: At, entry: usize },
    Tick { at: At },
    RemoveConsumer { at: At },
    Trim { stream: usize, entry: usize },
    Delete { stream: usize, entry: usize },
    Range { stream: usize, after: usize, count: usize },
    Nonces { stream: usize, nonces: Vec<(u8, usize)> },
    Replay { stream: usize },
    Newest { stream: usize },
}

#[derive(Debug, Clone, Copy)]
struct At {
    stream: usize,
    group: usize,
    consumer: usize,
}

impl At {
    fn seat(self) -> Seat {
        Seat {
            stream: STREAMS[self.stream].to_owned(),
            group: GROUPS[self.group].to_owned(),
            consumer: CONSUMERS[self.consumer].to_owned(),
        }
    }
}

fn any_op(random: &mut StdRng) -> Op {
    let stream = random.random_range(0..STREAMS.len());
    let at = At {
        stream,
        group: random.random_range(0..GROUPS.len()),
        consumer: random.random_range(0..CONSUMERS.len()),
    };
    let count = random.random_range(1..6);
    let entry = random.random_range(0..40);
    let entries = (0..count).map(|_| random.random_range(0..40)).collect();
    match random.random_range(0..100) {
        0..25 => Op::Append { stream },
        25..32 => Op::Create { at },
        32..34 => Op::Remove { at },
        34..50 => Op::Read { at, count },
        50..58 => Op::Ack { at, entries },
        58..64 => Op::Pending { at, mine: random.random(), count },
        64..70 => Op::Claim { at, count },
        70..72 => Op::Renew { at, entries },
        72..76 => Op::Bury { at, entry },
        76..79 => Op::Tick { at },
        79..82 => Op::RemoveConsumer { at },
        82..85 => Op::Trim { stream, entry },
        85..88 => Op::Delete { stream, entry },
        88..92 => Op::Range { stream, after: entry, count },
        92..96 => {
            let nonce =
                |random: &mut StdRng| (random.random_range(0..6), random.random_range(0..3));
            // One stream's: Redis tells owners apart by their id alone, the embedded log by stream and id.
            Op::Nonces { stream: 0, nonces: (0..count).map(|_| nonce(random)).collect() }
        }
        96..98 => Op::Replay { stream },
        _ => Op::Newest { stream },
    }
}

/// One of the logs, and the ids that it gave.
struct Side {
    log: Log,
    ids: BTreeMap<String, Vec<EntryId>>,
}

impl Side {
    fn id(&self, stream: &str, entry: usize) -> EntryId {
        let ids = self.ids.get(stream);
        ids.and_then(|ids| ids.get(entry).copied()).unwrap_or(EntryId { ms: 1, seq: 0 })
    }

    fn number(&self, stream: &str, id: EntryId) -> String {
        let found = self.ids.get(stream).and_then(|ids| ids.iter().position(|one| *one == id));
        found.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
    }

    fn ids(&self, stream: &str, entries: &[usize]) -> Vec<EntryId> {
        entries.iter().map(|entry| self.id(stream, *entry)).collect()
    }

    fn raw(&self, stream: &str, entries: &[RawEntry]) -> String {
        let one = |entry: &RawEntry| {
            let payload = String::from_utf8(entry.payload.clone().unwrap_or_default()).unwrap();
            format!("{}={payload}x{}", self.number(stream, entry.id), entry.deliveries)
        };
        entries.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn fields(&self, stream: &str, entries: &[(EntryId, Fields)]) -> String {
        let one = |(id, fields): &(EntryId, Fields)| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let field = |(name, value): &(Vec<u8>, Vec<u8>)| {
                // The one value that holds an id.
                let value = if name == b"entry_id" { "its id".to_owned() } else { text(value) };
                format!("{}:{value}", text(name))
            };
            let fields = fields.iter().map(field).collect::<Vec<_>>().join(",");
            format!("{}={fields}", self.number(stream, *id))
        };
        entries.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// The dead letters get their ids inside the log.
    async fn learn(&mut self, stream: &str) -> Result<(), LogError> {
        let known = self.ids.entry(stream.to_owned()).or_default();
        let last = known.last().copied().unwrap_or(EntryId::ZERO);
        let new = self.log.range(stream, last, 1000).await?;
        known.extend(new.into_iter().map(|(id, _)| id));
        Ok(())
    }

    /// What the caller of an operation sees.
    async fn act(&mut self, op: &Op, step: usize) -> Result<String, LogError> {
        let log = self.log.clone();
        Ok(match op {
            Op::Append { stream } => {
                let (stream, text) = (STREAMS[*stream], step.to_string());
                let fields: [(&[u8], &[u8]); 2] =
                    [(b"payload", text.as_bytes()), (b"signature", b"")];
                let id = log.append(stream, &fields, false).await?;
                let ids = self.ids.entry(stream.to_owned()).or_default();
                assert!(ids.last().is_none_or(|last| *last < id), "ids grow");
                ids.push(id);
                String::new()
            }
            Op::Create { at } => {
                let seat = at.seat();
                log.create_group(&seat.stream, &seat.group).await?.to_string()
            }
            Op::Remove { at } => {
                let seat = at.seat();
                log.remove_group(&seat.stream, &seat.group).await?;
                String::new()
            }
            Op::Read { at, count } => {
                let seat = at.seat();
                let read = log.reader(seat.clone()).read(*count, BLOCK).await?;
                self.raw(&seat.stream, &read)
            }
            Op::Ack { at, entries } => {
                let seat = at.seat();
                log.ack(&seat, &self.ids(&seat.stream, entries)).await?;
                String::new()
            }
            Op::Pending { at, mine, count } => {
                let seat = at.seat();
                let of = match mine {
                    true => PendingOf::Consumer(&seat.consumer),
                    false => PendingOf::Idle(Duration::ZERO),
                };
                let one = |entry: &super::PendingEntry| {
                    let number = self.number(&seat.stream, entry.id);
                    format!("{number}:{}x{}", entry.consumer, entry.deliveries)
                };
                let listed = log.pending(&seat, of, *count).await?;
                listed.iter().map(one).collect::<Vec<_>>().join(" ")
            }
            Op::Claim { at, count } => {
                let seat = at.seat();
                let mut listed =
                    log.pending(&seat, PendingOf::Idle(Duration::ZERO), *count).await?;
                listed.iter_mut().for_each(|entry| entry.idle = Duration::ZERO);
                let claimed = log.claim(&seat, &listed).await?;
                self.raw(&seat.stream, &claimed)
            }
            Op::Renew { at, entries } => {
                let seat = at.seat();
                log.renew(&seat, &self.ids(&seat.stream, entries)).await?;
                String::new()
            }
            Op::Bury { at, entry } => {
                let seat = at.seat();
                let epitaph = Epitaph { reason: "why".to_owned(), attempts: 3 };
                let id = self.id(&seat.stream, *entry);
                let buried = log.bury(&seat, id, DEAD, &epitaph).await?;
                self.learn(DEAD).await?;
                buried.to_string()
            }
            Op::Tick { at } => {
                let mut seen = log.tick(&at.seat()).await?;
                seen.sort_by(|a, b| a.name.cmp(&b.name));
                // A consumer that never gave a heartbeat and has nothing is known to Redis only.
                let one = |one: &super::ConsumerSeen| format!("{}:{}", one.name, one.pending);
                seen.iter().map(one).collect::<Vec<_>>().join(" ")
            }
            Op::RemoveConsumer { at } => {
                log.remove_consumer(&at.seat(), Duration::ZERO).await?.to_string()
            }
            Op::Trim { stream, entry } => {
                let below = self.id(STREAMS[*stream], *entry);
                log.trim(STREAMS[*stream], below, super::Spare::Nothing).await?.to_string()
            }
            Op::Delete { stream, entry } => {
                let id = self.id(STREAMS[*stream], *entry);
                log.delete(STREAMS[*stream], id).await?.to_string()
            }
            Op::Range { stream, after, count } => {
                let stream = STREAMS[*stream];
                let found = log.range(stream, self.id(stream, *after), *count).await?;
                self.fields(stream, &found)
            }
            Op::Nonces { stream, nonces } => {
                let stream = STREAMS[*stream];
                let wanted = nonces.iter().map(|(nonce, entry)| {
                    (format!("1:{nonce}"), EntryId { ms: 5, seq: u64::try_from(*entry).unwrap() })
                });
                let claims: Vec<NonceClaim> = log.claim_nonces(stream, wanted.collect()).await?;
                format!("{claims:?}")
            }
            Op::Replay { stream } => {
                let Some((id, _)) = log.range(DEAD, EntryId::ZERO, 1).await?.pop() else {
                    return Ok("nothing".to_owned());
                };
                let again: [(&[u8], &[u8]); 1] = [(b"payload", b"again")];
                let first = log.replay(DEAD, id, STREAMS[*stream], &again).await?;
                let second = log.replay(DEAD, id, STREAMS[*stream], &again).await?;
                assert_eq!(second, Replayed::Gone, "a dead letter comes back once");
                self.learn(STREAMS[*stream]).await?;
                format!("{}", matches!(first, Replayed::Appended(_)))
            }
            Op::Newest { stream } => {
                let stream = STREAMS[*stream];
                let newest = log.newest(stream).await?;
                newest.map_or_else(String::new, |id| self.number(stream, id))
            }
        })
    }

    /// Everything that can be seen at rest.
    async fn view(&self, lag: bool) -> Result<String, LogError> {
        let mut view = String::new();
        for stream in STREAMS.into_iter().chain([DEAD]) {
            let entries = self.log.range(stream, EntryId::ZERO, 1000).await?;
            let len = self.log.len(stream).await?;
            view += &format!("\n{stream} {len}: {}", self.fields(stream, &entries));
            let mut groups = self.log.groups(stream).await?;
            groups.sort_by(|a, b| a.name.cmp(&b.name));
            for group in groups {
                let unread = entries.iter().filter(|(id, _)| *id > group.last_delivered).count();
                let life = self.log.group_life(stream, &group.name).await?;
                let oldest = life.oldest_pending.map(|id| self.number(stream, id));
                view += &format!("\n  {} {} {unread} {oldest:?}", group.name, group.pending);
                if lag {
                    view += &format!(" {}", group.lag);
                }
            }
        }
        Ok(view)
    }
}

fn seen(result: Result<String, LogError>) -> String {
    match result {
        Ok(text) => text,
        Err(LogError::NoGroup { .. }) => "no group".to_owned(),
        Err(LogError::Refused { .. }) => "refused".to_owned(),
        Err(error) => panic!("{error}"),
    }
}

async fn side(log: LogChoice, prefix: u64) -> Side {
    let config = Config { log, key_prefix: format!("k{prefix}"), ..Config::default() };
    let (_, limits) = tokio::sync::watch::channel(config.limits());
    Side { log: Log::open(&config, limits).await.unwrap(), ids: BTreeMap::new() }
}

#[tokio::test]
async fn both_logs_show_the_same() {
    let server = redis_server::RedisServer::start();
    let cases = std::env::var("OONA_DIFFERENTIAL_CASES").ok().and_then(|text| text.parse().ok());
    for seed in 0..cases.unwrap_or(6) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.redb");
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
        let mut redis = side(LogChoice::Redis { url: server.url() }, seed).await;
        let mut embedded = side(LogChoice::Embedded { path: path.clone() }, seed).await;
        let mut random = StdRng::seed_from_u64(seed);
        let (mut done, mut lag) = (Vec::new(), true);
        for step in 0..120 {
            if random.random_range(0..40) == 0 {
                // The same after a restart.
                embedded.log.flush().await.unwrap();
                let ids = embedded.ids;
                drop(embedded.log);
                embedded = side(LogChoice::Embedded { path: path.clone() }, seed).await;
                embedded.ids = ids;
                for side in [&embedded, &redis] {
                    for at in all_seats() {
                        // Only heartbeats are forgotten; given anew on both sides.
                        let _ = side.log.tick(&at.seat()).await;
                    }
                }
            }
            let op = any_op(&mut random);
            lag &= !matches!(op, Op::Trim { .. } | Op::Delete { .. });
            done.push(op.clone());
            let (a, b) = (embedded.act(&op, step).await, redis.act(&op, step).await);
            let (a, b) = (seen(a), seen(b));
            assert_eq!(
                a,
                b,
                "seed {seed}, step {step}: embedded and Redis differ after {}",
                last(&done)
            );
            if step % 4 > 0 {
                continue;
            }
            let (a, b) = (embedded.view(lag).await, redis.view(lag).await);
            assert_eq!(
                seen(a),
                seen(b),
                "seed {seed}, step {step}: what is seen after {}",
                last(&done)
            );
        }
    }
}

/// The script of the server and its reference, under the same random questions.
#[tokio::test]
async fn leases_are_kept_as_the_reference_keeps_them() {
    let server = redis_server::RedisServer::start();
    let log = side(LogChoice::Redis { url: server.url() }, 0).await.log;
    let mut random = StdRng::seed_from_u64(1);
    let mut records: [Record; 3] = Default::default();
    let mut taken = 0;
    let mut last = [0_u64; 3];
    for turn in 0..600 {
        let token = ["a", "b", "c"][random.random_range(0..3)];
        let candidate = Candidate { token: token.to_owned(), holder: format!("host/{token} 1") };
        let asked: Vec<usize> = (0..3).filter(|_| random.random()).collect();
        let asks: Vec<Ask> = asked
            .iter()
            .map(|index| Ask {
                name: format!("lease-{index}"),
                step: match random.random_range(0..8) {
                    0 => Step::Release,
                    1 => Step::Hold { lapsed: Some(last[*index]) },
                    2 => Step::Hold { lapsed: Some(last[*index].saturating_sub(1)) },
                    _ => Step::Hold { lapsed: None },
                },
            })
            .collect();
        let (answers, released) = log.leases(&candidate, &asks).await.unwrap();
        assert_eq!(released, 0);
        for ((index, ask), answer) in asked.iter().zip(&asks).zip(answers) {
            // Taken just now: at the server's time, which the reference is told.
            let now_ms = if answer.version == answer.fencing { answer.version } else { 0 };
            let record = &mut records[*index];
            let expected = record.apply(ask.step, &candidate.token, &candidate.holder, now_ms);
            assert_eq!(answer, expected, "turn {turn}: {ask:?} by {token}");
            taken += u32::from(answer.version != last[*index] && answer.version == answer.fencing);
            last[*index] = answer.version;
        }
    }
    assert!(taken > 50, "{taken} changes of holder");
}

/// The end of the story.
fn last(done: &[Op]) -> String {
    let lines: Vec<String> = done.iter().rev().take(25).map(|op| format!("  {op:?}")).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn all_seats() -> Vec<At> {
    let mut seats = Vec::new();
    for stream in 0..STREAMS.len() {
        for group in 0..GROUPS.len() {
            for consumer in 0..CONSUMERS.len() {
                seats.push(At { stream, group, consumer });
            }
        }
    }
    seats
}
