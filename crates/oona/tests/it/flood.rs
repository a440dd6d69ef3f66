//! A flood of forged entries ahead of an honest one: what it costs, what it takes of memory, and what
//! of it reaches the log file.
//!
//! The flood runs in a process of its own, so that its memory and its time are nobody else's. Debug
//! builds send fewer entries; `OONA_TEST_FLOOD=100000` sends the full number, as
//! `cargo test --release -p oona --test it flood:: -- --nocapture` does by itself.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use leyline::sign::{Keyring, Secret};
use oona::{Bus, Config, ConsumerSpec, EntryId, LogChoice, Metrics, Refusal, Stream};

use crate::captured::Captured;
use crate::redis_server::RedisServer;
use crate::rig::*;

const CHILD: &str = "OONA_TEST_IS_FLOODED";
const PAYLOAD_BYTES: usize = 512;
/// The honest message may wait for so many times what the bare commands and checks take. On an idle
/// machine it waits for less than twice as long; the rest is for busy ones.
const RATIO_MAX: f64 = 4.0;
/// Under that no ratio says anything.
const NOISE: Duration = Duration::from_millis(250);
/// How much the process may grow while it works the flood off.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

fn flood_len() -> usize {
    let told = std::env::var("OONA_TEST_FLOOD").ok().and_then(|text| text.parse().ok());
    told.unwrap_or(if cfg!(debug_assertions) { 10_000 } else { 100_000 })
}

#[test]
fn an_honest_message_waits_for_no_more_than_the_checks_on_redis() {
    let server = RedisServer::start();
    check(&measure(&server.url()));
}

#[test]
fn an_honest_message_waits_for_no_more_than_the_checks_on_the_embedded_log() {
    let directory = tempfile::tempdir().unwrap();
    check(&measure(directory.path().join("log.redb").to_str().unwrap()));
}

/// What the flooded process measured, by name.
fn measure(log: &str) -> BTreeMap<String, f64> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "flood::child_that_is_flooded", "--nocapture"])
        .env(CHILD, log)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let number = |line: &str| {
        let (name, number) = line.strip_prefix("measured ")?.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.lines().filter_map(number).collect()
}

fn check(measured: &BTreeMap<String, f64>) {
    let of = |name: &str| *measured.get(name).unwrap_or_else(|| panic!("{name} in {measured:?}"));
    let bare = of("hmac_seconds") + of("raw_seconds");
    println!(
        "{} forged entries: honest one after {:.3} s; bare HMAC {:.3} s, raw reading and acknowledging {:.3} s; ratio {:.2}; grown by {:.0} KiB",
        of("entries"),
        of("delay_seconds"),
        of("hmac_seconds"),
        of("raw_seconds"),
        of("delay_seconds") / bare,
        of("grown_kib"),
    );
    let allowed = bare * RATIO_MAX + NOISE.as_secs_f64();
    assert!(of("delay_seconds") <= allowed, "{measured:?}");
    assert!(of("grown_kib") <= GROWTH_KIB_MAX as f64, "{measured:?}");
    assert_eq!(of("refused"), of("entries"), "every forged entry is counted");
    assert_eq!(of("left"), 0.0, "every forged entry is acknowledged");
    assert!(
        (1.0..=3.0).contains(&of("log_lines")),
        "sampled: one line in ten seconds, {measured:?}"
    );
}

/// Not a test of its own: the process that is flooded.
#[tokio::test]
async fn child_that_is_flooded() {
    let Ok(place) = std::env::var(CHILD) else { return };
    let log = match place.starts_with("redis:") {
        true => LogChoice::Redis { url: place.clone() },
        false => LogChoice::Embedded { path: place.clone().into() },
    };
    let config = Config { log, message_ttl: Duration::from_secs(3600), ..Config::default() };
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let len = flood_len();
    let (forged, signature) = forged();
    append_flood(&bus, &forged, &signature, len).await;
    publish(&bus, &state("honest", 1)).await;

    let hmac = bare_checks(&forged, &signature, len);
    let raw = match place.starts_with("redis:") {
        true => raw_redis(&place, len + 1).await,
        false => raw_reads(&bus, len + 1).await.saturating_sub(hmac),
    };
    let log = Captured::begin();
    let before = resident_kib();
    let began = Instant::now();
    let mut reader = bus.consumer(ConsumerSpec::new(Stream::Normal, GROUP));
    let delivery = tokio::time::timeout(Duration::from_secs(300), reader.recv()).await;
    let delivery = delivery.expect("the honest one arrives").unwrap();
    let delay = began.elapsed();
    let grown = resident_kib().saturating_sub(before);
    assert_eq!(epoch(&delivery), 1);
    delivery.ack().await.unwrap();

    let text = log.end();
    let payload = String::from_utf8_lossy(&forged);
    for secret in ["a secret that only tests know", &signature, payload.trim(), "filler"] {
        assert!(!text.contains(secret), "the log shows {secret}: {text}");
    }
    let warned = text.lines().filter(|line| line.contains("entry refused")).count();
    let refused = bus.metrics().refused_total(Stream::Normal, Refusal::BadSignature);
    for (name, number) in [
        ("entries", len as f64),
        ("delay_seconds", delay.as_secs_f64()),
        ("hmac_seconds", hmac.as_secs_f64()),
        ("raw_seconds", raw.as_secs_f64()),
        ("grown_kib", grown as f64),
        ("refused", refused as f64),
        ("left", bus.depth(Stream::Normal, GROUP).await.unwrap() as f64),
        ("log_lines", warned as f64),
    ] {
        println!("measured {name} {number}");
    }
}

/// As long and as well-formed as an honest one, but signed with another secret.
fn forged() -> (Vec<u8>, String) {
    let envelope = Envelope::of(&state("forged", 0), "oona.normal");
    let room = PAYLOAD_BYTES - envelope.bytes().len();
    let bytes = envelope.with("filler", "x".repeat(room)).bytes();
    let signature = Keyring::new(&Secret::new("some other secret"), None).sign(&bytes);
    (bytes, signature)
}

async fn append_flood(bus: &Bus, forged: &[u8], signature: &str, len: usize) {
    const AT_ONCE: usize = 500;
    let fields: [(&str, &[u8]); 2] = [("payload", forged), ("signature", signature.as_bytes())];
    for begin in (0..len).step_by(AT_ONCE) {
        let count = AT_ONCE.min(len - begin);
        let mut waiting = Vec::with_capacity(count);
        for _ in 0..count {
            waiting.push(Box::pin(bus.append_raw(Stream::Normal, &fields)));
        }
        all(waiting).await;
    }
}

/// Polls all futures together, so that a log can take them in one go.
async fn all<F: Future<Output = Result<EntryId, oona::BusError>> + Unpin>(mut waiting: Vec<F>) {
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| match std::pin::Pin::new(future).poll(context) {
            std::task::Poll::Ready(appended) => {
                appended.unwrap();
                false
            }
            std::task::Poll::Pending => true,
        });
        match waiting.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}

fn bare_checks(forged: &[u8], signature: &str, len: usize) -> Duration {
    let ring = keyring();
    let began = Instant::now();
    for _ in 0..len {
        assert!(ring.verify(std::hint::black_box(forged), signature).is_err());
    }
    began.elapsed()
}

/// The commands of a consumer that checks nothing: read as a group of its own, acknowledge.
async fn raw_redis(url: &str, len: usize) -> Duration {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut make = redis::cmd("XGROUP");
    make.arg(&["CREATE", "oona.normal", "raw", "0"]);
    make.query_async::<()>(&mut connection).await.unwrap();
    let began = Instant::now();
    let mut seen = 0;
    while seen < len {
        let mut read = redis::cmd("XREADGROUP");
        read.arg(&["GROUP", "raw", "one", "COUNT", "256", "STREAMS", "oona.normal", ">"]);
        let reply: redis::streams::StreamReadReply =
            read.query_async(&mut connection).await.unwrap();
        let ids: Vec<&str> = reply.keys[0].ids.iter().map(|entry| entry.id.as_str()).collect();
        seen += ids.len();
        let mut ack = redis::cmd("XACK");
        ack.arg("oona.normal").arg("raw").arg(&ids);
        ack.query_async::<()>(&mut connection).await.unwrap();
    }
    began.elapsed()
}

/// The embedded log has no raw commands: looking at the entries has to do as the baseline. A look
/// verifies each of them, which the caller takes off again.
async fn raw_reads(bus: &Bus, len: usize) -> Duration {
    let began = Instant::now();
    let (mut after, mut seen) = (EntryId::ZERO, 0);
    while seen < len {
        let page = bus.peek(Stream::Normal, after, 256).await.unwrap();
        seen += page.len();
        after = page.last().unwrap().id;
    }
    began.elapsed()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
