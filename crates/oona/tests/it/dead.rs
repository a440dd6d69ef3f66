//! Dead letters: found, replayed as new messages, purged; never in two places and never in none.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{BusMessageType, TelemetryPacket};
use oona::{
    Bus, Config, DeadLetter, DeadLetterFilter, EntryId, LogChoice, Mark, Metrics, ReplayError,
    Stream, attributes,
};

use crate::rig::*;

crate::on_both_logs!(
    replayed_as_a_new_message,
    history_of_a_message_that_dies_again,
    what_waited_longer_than_the_window_can_be_replayed,
    unverified_letters_stay,
    a_secret_being_rotated_out_still_vouches,
    letters_without_a_way_back,
    only_one_replay_wins,
    replay_and_purge_exclude_each_other,
    filters_and_pages,
    killed_in_the_midst_of_replays,
);

/// A message that failed its only attempt.
async fn die(bus: &Bus, message: &Message, reason: &str) -> DeadLetter {
    let before = bus.end_of(Stream::DeadLetter).await.unwrap();
    let stream = Stream::home(message.message_type()).unwrap();
    publish_on(bus, stream, message).await;
    recv(&mut consumer(bus, stream)).await.fail(reason).await.unwrap();
    let letters = bus.dead_letters(before, 10).await.unwrap();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    letter.clone()
}

async fn impatient(rig: &Rig) -> Bus {
    rig.bus_with(|config| config.attempts_max = 1).await
}

async fn replayed_as_a_new_message(rig: Rig) {
    let bus = impatient(&rig).await;
    let letter = die(&bus, &state("run", 7), "no room").await;
    assert_eq!(letter.entry.mark, Mark::Current);
    assert_eq!(bus.may_replay(&letter).unwrap(), Stream::Normal);
    let before = letter.entry.envelope.clone().unwrap().attributes;

    let (stream, entry) = bus.replay(letter.entry.id).await.unwrap();
    assert_eq!(stream, Stream::Normal);
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!((epoch(&delivery), delivery.entry, delivery.attempt), (7, entry, 1));
    let after = &delivery.attributes;
    assert_ne!(after[attributes::ID], before[attributes::ID]);
    assert_eq!(after[attributes::SOURCE], before[attributes::SOURCE]);
    assert_eq!(after[attributes::REPLAYED_FROM], letter.origin_entry.unwrap().to_string());
    assert_eq!(after[attributes::REPLAYS], "1");
    delivery.ack().await.unwrap();
    assert_eq!(bus.len(Stream::DeadLetter).await.unwrap(), 0);
    let again = bus.replay(letter.entry.id).await.unwrap_err();
    assert!(matches!(again, ReplayError::NotFound { .. }), "{again}");
}

async fn history_of_a_message_that_dies_again(rig: Rig) {
    let bus = impatient(&rig).await;
    let mut letter = die(&bus, &state("run", 1), "first").await;
    let mut places = Vec::new();
    for round in 1..=10 {
        places.push(letter.origin_entry.unwrap().to_string());
        bus.replay(letter.entry.id).await.unwrap();
        recv(&mut consumer(&bus, Stream::Normal)).await.fail("again").await.unwrap();
        letter = bus.dead_letters(EntryId::ZERO, 1).await.unwrap().remove(0);
        assert_eq!(letter.replays(), round);
        let told = &letter.entry.envelope.as_ref().unwrap().attributes[attributes::REPLAYED_FROM];
        let kept = &places[places.len().saturating_sub(8)..];
        assert_eq!(*told, kept.join(" "), "the last eight places, the latest last");
    }
}

/// Its time and its nonce would be refused; the replay's own are not.
async fn what_waited_longer_than_the_window_can_be_replayed(rig: Rig) {
    let window = Duration::from_millis(300);
    let bus = rig
        .bus_with(|config| {
            config.attempts_max = 1;
            config.freshness_window = window;
        })
        .await;
    let letter = die(&bus, &state("run", 1), "no room").await;
    let raw: Vec<(String, Vec<u8>)> = letter
        .entry
        .fields
        .iter()
        .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), value.clone()))
        .filter(|(name, _)| name == "payload" || name == "signature")
        .collect();
    let raw: Vec<(&str, &[u8])> = raw.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
    while bus.log_time_ms().await.unwrap() <= letter.entry.id.ms + 400 {
        tokio::task::yield_now().await;
    }
    bus.append_raw(Stream::Normal, &raw).await.unwrap();
    expect_refused(&bus, Stream::Normal, oona::Refusal::Stale).await;
    bus.replay(letter.entry.id).await.unwrap();
    recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
}

async fn with_secrets(rig: &Rig, current: &str, previous: Option<&str>) -> Bus {
    let previous = previous.map(Secret::new);
    let ring = Keyring::new(&Secret::new(current), previous.as_ref());
    let config = Config { consumer: Config::default().consumer, ..rig.config.clone() };
    let config = Config { attempts_max: 1, ..config };
    Bus::open(config, ring, Metrics::detached()).await.unwrap()
}

const OLD: &str = "the old secret of all";
const NEW: &str = "the new secret of all";

async fn unverified_letters_stay(rig: Rig) {
    let letter = {
        let bus = with_secrets(&rig, OLD, None).await;
        die(&bus, &state("run", 1), "no room").await
    };
    let bus = with_secrets(&rig, NEW, None).await;
    let found = bus.dead_letter(letter.entry.id).await.unwrap().unwrap();
    assert_eq!(found.entry.mark, Mark::BadSignature);
    let error = bus.replay(letter.entry.id).await.unwrap_err();
    assert!(matches!(error, ReplayError::NotVerified { .. }), "{error}");
    assert!(error.to_string().contains("ESPER_LEYLINE_SECRET_PREVIOUS"), "{error}");
    assert_eq!(bus.len(Stream::DeadLetter).await.unwrap(), 1);
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 1, "nothing was appended");
}

async fn a_secret_being_rotated_out_still_vouches(rig: Rig) {
    let letter = {
        let bus = with_secrets(&rig, OLD, None).await;
        die(&bus, &state("run", 1), "no room").await
    };
    {
        let bus = with_secrets(&rig, NEW, Some(OLD)).await;
        let found = bus.dead_letter(letter.entry.id).await.unwrap().unwrap();
        assert_eq!(found.entry.mark, Mark::Previous);
        bus.replay(letter.entry.id).await.unwrap();
    }
    // Sealed with the new secret: the old one is not needed any more.
    let bus = with_secrets(&rig, NEW, None).await;
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!(epoch(&delivery), 1);
    delivery.ack().await.unwrap();
}

/// Appended by hand: what no bus would bury, but another program might.
async fn letters_without_a_way_back(rig: Rig) {
    let bus = impatient(&rig).await;
    let mut large = Envelope::of(&state("run", 1), "oona.normal");
    large.attributes.insert("filler".to_owned(), "x".repeat(bus.config().message_bytes_max));
    let telemetry = Envelope::of(&Message::from(TelemetryPacket::default()), "oona.normal");
    let unknown = Envelope { kind: 999, ..telemetry.clone() };
    let normal = Envelope::of(&state("run", 1), "oona.normal");
    let cases = [
        (&large, "oona.normal", "oversize"),
        (&telemetry, "oona.normal", "wrong stream"),
        (&unknown, "oona.normal", "undecodable"),
        (&normal, "elsewhere", "unknown origin"),
        (&normal, "oona.deadletter", "unknown origin"),
    ];
    for (envelope, origin, expected) in cases {
        let bytes = envelope.bytes();
        let signature = keyring().sign(&bytes);
        let fields: [(&str, &[u8]); 3] = [
            ("payload", &bytes),
            ("signature", signature.as_bytes()),
            ("origin_stream", origin.as_bytes()),
        ];
        let id = bus.append_raw(Stream::DeadLetter, &fields).await.unwrap();
        let error = bus.replay(id).await.unwrap_err();
        let found = match &error {
            ReplayError::Oversize { .. } => "oversize",
            ReplayError::WrongStream { .. } => "wrong stream",
            ReplayError::Undecodable { .. } => "undecodable",
            ReplayError::UnknownOrigin { .. } => "unknown origin",
            other => panic!("{other}"),
        };
        assert_eq!(found, expected, "{error}");
        assert!(bus.dead_letter(id).await.unwrap().is_some(), "it stays where it was");
    }
    for stream in [Stream::Normal, Stream::Telemetry] {
        assert_eq!(bus.len(stream).await.unwrap(), 0);
    }
}

async fn only_one_replay_wins(rig: Rig) {
    let bus = impatient(&rig).await;
    let letter = die(&bus, &state("run", 1), "no room").await;
    let before = bus.len(Stream::Normal).await.unwrap();
    let id = letter.entry.id;
    let (a, b, c, d) = tokio::join!(bus.replay(id), bus.replay(id), bus.replay(id), bus.replay(id));
    let won = [&a, &b, &c, &d].iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 1, "{a:?} {b:?} {c:?} {d:?}");
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), before + 1);
    assert_eq!(bus.len(Stream::DeadLetter).await.unwrap(), 0);
}

async fn replay_and_purge_exclude_each_other(rig: Rig) {
    let bus = impatient(&rig).await;
    for round in 0..20 {
        let letter = die(&bus, &state("run", round), "no room").await;
        let id = letter.entry.id;
        let (replayed, purged) = tokio::join!(bus.replay(id), bus.remove_dead_letter(id));
        assert_ne!(replayed.is_ok(), purged.unwrap(), "{replayed:?}");
        if replayed.is_ok() {
            recv(&mut consumer(&bus, Stream::Normal)).await.ack().await.unwrap();
        }
        assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    }
}

async fn filters_and_pages(rig: Rig) {
    let bus = impatient(&rig).await;
    for round in 0..4 {
        die(&bus, &state("run", round), "No Room left").await;
    }
    let late = die(&bus, &request("r-1", now_ms()), "disk full").await;
    let everything = DeadLetterFilter::default();
    let count = async |filter: DeadLetterFilter| {
        bus.find_dead_letters(&filter, EntryId::ZERO, 100).await.unwrap().letters.len()
    };
    assert_eq!(count(everything.clone()).await, 5);
    assert_eq!(
        count(DeadLetterFilter { stream: Some(Stream::Normal), ..everything.clone() }).await,
        4
    );
    let reason = Some("no room".to_owned());
    assert_eq!(count(DeadLetterFilter { reason, ..everything.clone() }).await, 4);
    let kind = Some(BusMessageType::KernelPrefetchRequest);
    assert_eq!(count(DeadLetterFilter { kind, ..everything.clone() }).await, 1);
    let since = DeadLetterFilter { since_ms: Some(late.entry.id.ms), ..everything.clone() };
    assert!((1..=5).contains(&count(since).await));
    let tomorrow = Some(now_ms() + 86_400_000);
    assert_eq!(count(DeadLetterFilter { since_ms: tomorrow, ..everything.clone() }).await, 0);

    let normal = DeadLetterFilter { stream: Some(Stream::Normal), ..everything };
    let (mut after, mut seen) = (EntryId::ZERO, Vec::new());
    loop {
        let page = bus.find_dead_letters(&normal, after, 3).await.unwrap();
        assert!(page.letters.len() <= 3);
        seen.extend(page.letters.iter().map(|letter| letter.entry.id));
        let Some(next) = page.next else { break };
        after = next;
    }
    assert!(seen.len() == 4 && seen.is_sorted(), "{seen:?}");
}

const CHILD: &str = "OONA_TEST_REPLAYS_FROM";
const LETTERS: u32 = 60;

/// Not a test of its own: what the next test kills. It replays every dead letter and says so.
#[tokio::test]
async fn child_that_replays_until_killed() {
    let Ok(log) = std::env::var(CHILD) else { return };
    let log = match log.starts_with("redis:") {
        true => LogChoice::Redis { url: log },
        false => LogChoice::Embedded { path: log.into() },
    };
    let bus = Bus::open(Config { log, ..Config::default() }, keyring(), Metrics::detached());
    let bus = bus.await.unwrap();
    for letter in bus.dead_letters(EntryId::ZERO, 1000).await.unwrap() {
        bus.replay(letter.entry.id).await.unwrap();
        println!("replayed");
    }
}

/// Killed between two replays or within one: every message stands in exactly one place.
async fn killed_in_the_midst_of_replays(rig: Rig) {
    let log = match &rig.config.log {
        LogChoice::Embedded { path } => path.display().to_string(),
        LogChoice::Redis { url } => url.clone(),
    };
    {
        let bus = impatient(&rig).await;
        for number in 0..LETTERS {
            die(&bus, &state("run", number), "no room").await;
        }
        bus.flush().await.unwrap();
    }
    for replays in [1, 7, 20] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "dead::child_that_replays_until_killed", "--nocapture"])
            .env(CHILD, &log)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let told = lines.filter(|line| line.contains("replayed")).take(replays).count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(told, replays, "the child replays until it is killed");

        let bus = impatient(&rig).await;
        let mut places: BTreeMap<String, u32> = BTreeMap::new();
        for letter in bus.dead_letters(EntryId::ZERO, 1000).await.unwrap() {
            *places.entry(identity(&letter.entry)).or_default() += 1;
        }
        let left = places.len();
        for entry in bus.peek(Stream::Normal, EntryId::ZERO, 1000).await.unwrap() {
            let is_replayed =
                entry.envelope.as_ref().unwrap().attributes.contains_key(attributes::REPLAYS);
            if is_replayed {
                *places.entry(identity(&entry)).or_default() += 1;
            }
        }
        assert!(left < usize::try_from(LETTERS).unwrap(), "something was replayed");
        assert_eq!(places.len(), usize::try_from(LETTERS).unwrap(), "none is lost");
        assert!(places.values().all(|count| *count == 1), "none is there twice: {places:?}");
    }
}

fn identity(entry: &oona::Peeked) -> String {
    let envelope = entry.envelope.as_ref().unwrap();
    let message = Message::decode(envelope.message_type, &envelope.payload).unwrap();
    let Message::SystemState(packet) = message else { panic!("{message:?}") };
    packet.current_epoch.to_string()
}
