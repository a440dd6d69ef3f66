//! Measures the embedded log: durable publishing by many and by one, consuming, both together, and
//! beside them what the disk can do with the same bytes. Everything is on: envelope, signature,
//! checks, claims.
//!
//! `cargo run --release -p oona --example embedded_speed [DIRECTORY] [SECONDS]`

#![allow(clippy::disallowed_methods, reason = "a measurement is its own supervisor")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leyline::Message;
use leyline::sign::{Keyring, Secret};
use leyline::wire::{MessagePriority, TelemetryPacket};
use oona::{Bus, Config, ConsumerSpec, Delivery, LogChoice, Metrics, Stream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const GROUP: &str = "speed";
const PUBLISHERS: usize = 256;
const PAYLOAD_BYTES: usize = 512;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| "./var/speed".to_owned()));
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let time = Duration::from_secs(seconds);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join("log.redb");
    let _ = std::fs::remove_file(&path);

    let bus = open(&path).await?;
    bus.ensure_groups(&[(Stream::Telemetry, GROUP)]).await?;
    let sync = disk(&directory, 1024, time / 5)?;
    println!("disk: 1 KiB and fdatasync          {sync:>9.0}/s  {:>7.1} us each", 1e6 / sync);
    let one = publish(&bus, 1, time).await?;
    println!("publish, 1 publisher               {one:>9.0}/s  {:.2} of the disk", one / sync);
    let group = disk(&directory, PUBLISHERS * 1024, time / 5)?;
    println!(
        "disk: {PUBLISHERS} KiB and fdatasync        {group:>9.0}/s  {:>7.1} us each",
        1e6 / group
    );
    let many = publish(&bus, PUBLISHERS, time).await?;
    println!("publish, {PUBLISHERS} publishers           {many:>9.0}/s");
    let (count, took) = consume(&bus, None).await?;
    println!("consume                            {:>9.0}/s  of {count}", rate(count, took));

    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (bus, stop) = (bus.clone(), Arc::clone(&stop));
        async move { consume(&bus, Some(stop)).await }
    });
    let both = publish(&bus, PUBLISHERS, time).await?;
    stop.store(true, Ordering::Relaxed);
    let (count, took) = reader.await??;
    println!("together: publish {both:.0}/s, consume {:.0}/s", rate(count, took));
    let bytes = std::fs::metadata(&path)?.len();
    println!("file {} MiB, resident {} MiB", bytes >> 20, resident_kib() >> 10);
    Ok(())
}

async fn open(path: &Path) -> Result<Bus, Failure> {
    let config = Config {
        log: LogChoice::Embedded { path: path.to_owned() },
        publish_timeout: Duration::from_secs(10),
        ..Config::default()
    };
    let keyring = Keyring::new(&Secret::new("a secret of this measurement"), None);
    Ok(Bus::open(config, keyring, Metrics::detached()).await?)
}

/// Publishes for a while; messages a second.
async fn publish(bus: &Bus, publishers: usize, time: Duration) -> Result<f64, Failure> {
    let message = Arc::new(Message::from(TelemetryPacket {
        packet_id: "x".repeat(PAYLOAD_BYTES),
        ..TelemetryPacket::default()
    }));
    let sent = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..publishers {
        let (bus, message, sent) = (bus.clone(), Arc::clone(&message), Arc::clone(&sent));
        tasks.push(tokio::spawn(async move {
            while started.elapsed() < time {
                let outcome =
                    bus.publish(Stream::Telemetry, MessagePriority::Normal, "speed", &message);
                if !outcome.await?.is_sent() {
                    return Err("refused".into());
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Failure>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(rate(sent.load(Ordering::Relaxed), started.elapsed()))
}

/// Consumes until nothing has come for a while, or until told to stop.
async fn consume(bus: &Bus, stop: Option<Arc<AtomicBool>>) -> Result<(u64, Duration), Failure> {
    let mut consumer = bus.consumer(ConsumerSpec::new(Stream::Telemetry, GROUP));
    let (started, mut count, mut last) = (Instant::now(), 0, Instant::now());
    while !stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
        let batch =
            tokio::time::timeout(Duration::from_millis(500), consumer.recv_batch(256)).await;
        let Ok(batch) = batch else { break };
        let batch = batch?;
        count += u64::try_from(batch.len())?;
        Delivery::ack_all(batch).await?;
        last = Instant::now();
    }
    Ok((count, last - started))
}

/// Writes so many bytes to the end of a file and waits for the disk, again and again; times a second.
fn disk(directory: &Path, bytes: usize, time: Duration) -> Result<f64, Failure> {
    let path = directory.join("disk");
    let mut file = std::fs::File::create(&path)?;
    // As in the log's file, the room is there before it is written.
    let room = 256 << 20;
    file.set_len(room)?;
    let (block, started, mut count) = (vec![7; bytes], Instant::now(), 0);
    while started.elapsed() < time {
        file.write_all(&block)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = rate(count, started.elapsed());
    std::fs::remove_file(&path)?;
    Ok(rate)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a measurement stay far below 2^52")]
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
