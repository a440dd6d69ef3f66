//! What only the embedded log has: a file, a lock, and crashes of our own process.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use leyline::wire::MessagePriority;
use oona::{Bus, BusError, Config, LogChoice, LogError, Metrics, PublishError, Stream};

use crate::rig::*;

#[tokio::test]
async fn what_was_published_survives_a_restart() {
    let rig = Rig::embedded();
    let mut published = Vec::new();
    for round in 0..3 {
        let bus = rig.bus().await;
        published.push(publish(&bus, &state("run", round)).await);
    }
    assert!(published.is_sorted(), "ids grow over restarts: {published:?}");
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    for (round, id) in published.into_iter().enumerate() {
        let delivery = recv(&mut reader).await;
        assert_eq!(delivery.entry, id);
        assert_eq!(usize::try_from(epoch(&delivery)), Ok(round));
        delivery.ack().await.unwrap();
    }
    bus.flush().await.unwrap();
    drop((reader, bus));
    let bus = rig.bus().await;
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0, "acknowledged is acknowledged");
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 3);
}

#[tokio::test]
async fn a_second_holder_is_told_who_has_the_log() {
    let rig = Rig::embedded();
    let _bus = rig.bus().await;
    let error = Bus::open(rig.config.clone(), keyring(), Metrics::detached()).await.unwrap_err();
    let BusError::Locked { pid, command, host, held_for, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, Some(std::process::id()));
    let program = std::env::args().next().unwrap();
    assert!(command.as_ref().is_some_and(|command| command.starts_with(&program)), "{command:?}");
    assert!(host.is_none() && held_for.is_some_and(|time| time < PATIENCE));
    let text = error.to_string();
    assert!(text.contains("log.redb") && text.contains("REDIS_URL"), "{text}");
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let rig = Rig::embedded();
    let LogChoice::Embedded { path } = &rig.config.log else { unreachable!() };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "no log at all").unwrap();
    let error = Bus::open(rig.config.clone(), keyring(), Metrics::detached()).await.unwrap_err();
    assert!(error.to_string().contains("log.redb"), "{error}");
    assert!(matches!(error, BusError::Damaged { .. }), "what to do is said by its kind: {error:?}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let rig = Rig::embedded();
    let LogChoice::Embedded { path } = &rig.config.log else { unreachable!() };
    std::fs::write(path.parent().unwrap(), "in the way").unwrap();
    let error = Bus::open(rig.config.clone(), keyring(), Metrics::detached()).await.unwrap_err();
    assert!(matches!(error, BusError::Open { .. }), "{error}");
}

const CHILD: &str = "OONA_TEST_PUBLISHES_INTO";

/// Not a test of its own: what the next test kills. It publishes and says so, until killed.
#[tokio::test]
async fn child_that_publishes_until_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let log = LogChoice::Embedded { path: path.into() };
    let config = Config { log, ..Config::default() };
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let mut reader = consumer(&bus, Stream::Normal);
    for number in 0..1_000_000 {
        publish(&bus, &state("run", number)).await;
        println!("published {number}");
        if number % 3 == 0 {
            let delivery = recv(&mut reader).await;
            println!("took {}", epoch(&delivery));
            drop(delivery);
        }
    }
}

/// Kill -9: whatever was reported as published is there, in order, exactly once.
#[tokio::test]
async fn nothing_published_is_lost_by_kill_9() {
    let rig = Rig::embedded();
    let LogChoice::Embedded { path } = &rig.config.log else { unreachable!() };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::child_that_publishes_until_killed", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut reported = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(number) = line.rsplit_once("published ").map(|(_, number)| number) {
            reported = number.trim().parse::<u32>().unwrap() + 1;
        }
        if reported == 200 {
            child.kill().unwrap();
            break;
        }
    }
    child.wait().unwrap();
    let bus = rig.bus().await;
    let mut reader = consumer(&bus, Stream::Normal);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 200 {
        let delivery = recv(&mut reader).await;
        assert!(seen.insert(epoch(&delivery)), "handed out twice");
        delivery.ack().await.unwrap();
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
}

const SMALL: &str = "OONA_TEST_FILLS_ITS_DISK";

/// Not a test of its own: what the next test runs. Its files may only grow so far, then further.
#[tokio::test]
async fn child_whose_disk_is_full_for_a_while() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let Ok(path) = std::env::var(SMALL) else { return };
    let config = Config { log: LogChoice::Embedded { path: path.into() }, ..Config::default() };
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    bus.ensure_groups(&[(Stream::Normal, GROUP)]).await.unwrap();
    let usual = getrlimit(Resource::Fsize);
    let full = rustix::process::Rlimit { current: Some(3 << 20), ..usual };
    setrlimit(Resource::Fsize, full).unwrap();
    let filling = "x".repeat(100_000);
    let (mut published, mut number) = (Vec::new(), 0);
    let refused = loop {
        match bus
            .publish(Stream::Normal, MessagePriority::Critical, "test", &state(&filling, number))
            .await
        {
            Ok(outcome) => assert!(outcome.is_sent(), "{outcome:?}"),
            Err(error) => break error,
        }
        published.push(number);
        number += 1;
        assert!(number < 1000, "the limit does nothing");
    };
    let text = refused.to_string();
    assert!(
        matches!(refused, PublishError::Log(LogError::NotStored { free_bytes: Some(_), .. })),
        "{text}"
    );
    assert!(text.contains("not stored") && text.contains("log.redb"), "{text}");
    // What was acknowledged before is still handed out.
    let mut reader = consumer(&bus, Stream::Normal);
    for number in &published {
        let delivery = recv(&mut reader).await;
        assert_eq!(epoch(&delivery), *number);
        delivery.ack().await.unwrap();
    }
    setrlimit(Resource::Fsize, usual).unwrap();
    let freed = tokio::time::Instant::now();
    let last = number + 1;
    // The breaker may be open; what the log itself says is tried through it.
    while bus.append_raw(Stream::Telemetry, &[("payload", b"x")]).await.is_err() {
        assert!(freed.elapsed() < PATIENCE, "the log does not go on by itself");
    }
    println!("went on after {} ms", freed.elapsed().as_millis());
    bus.ping().await.unwrap();
    publish(&bus, &state("run", last)).await;
    let delivery = recv(&mut reader).await;
    assert_eq!(epoch(&delivery), last, "what was refused does not appear");
    delivery.ack().await.unwrap();
    bus.flush().await.unwrap();
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
    println!("all is well");
}

/// A full disk refuses and recovers: the limit on the size of files stands for the disk.
#[tokio::test]
async fn a_full_disk_is_a_typed_error_and_no_end() {
    let rig = Rig::embedded();
    let LogChoice::Embedded { path } = &rig.config.log else { unreachable!() };
    // The limit is the whole process's, and its signal must not end it: the shell ignores it first.
    let command = "trap '' XFSZ; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", command])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::child_whose_disk_is_full_for_a_while", "--nocapture"])
        .env(SMALL, path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("all is well"), "{text}\n{errors}");
    let bus = rig.bus().await;
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

#[tokio::test]
async fn a_log_beyond_its_bound_refuses_until_it_is_trimmed() {
    let rig = Rig::embedded();
    let bus = rig
        .bus_with(|config| {
            config.embedded_bytes_max = 16 << 20;
            config.message_ttl = std::time::Duration::from_millis(1);
        })
        .await;
    let filling = "x".repeat(200_000);
    let mut published = 0;
    let refused = loop {
        match bus
            .publish(Stream::Normal, MessagePriority::Critical, "test", &state(&filling, published))
            .await
        {
            Ok(_) => published += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, PublishError::Log(LogError::Full { .. })), "{refused}");
    assert!(refused.to_string().contains("OONA_EMBEDDED_MAX_BYTES"), "{refused}");
    assert!((30..45).contains(&published), "{published}");
    let mut reader = consumer(&bus, Stream::Normal);
    for _ in 0..published {
        recv(&mut reader).await.ack().await.unwrap();
    }
    bus.flush().await.unwrap();
    bus.sweep(Stream::Normal).await.unwrap();
    publish(&bus, &state(&filling, published)).await;
    let LogChoice::Embedded { path } = &rig.config.log else { unreachable!() };
    assert!(std::fs::metadata(path).unwrap().len() <= 17 << 20);
}

const VICTIM: &str = "OONA_TEST_CRASHES_ON";

/// Not a test of its own: what the next test runs. Its handler takes the process down at once.
#[tokio::test]
async fn child_that_crashes_on_its_first_message() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let config = Config { log: LogChoice::Embedded { path: path.into() }, ..Config::default() };
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    let _delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
        .unwrap();
}

/// Even a handler that kills the process before the log could write is counted.
#[tokio::test]
async fn poison_that_kills_the_process_becomes_a_dead_letter() {
    let rig = Rig::embedded();
    let LogChoice::Embedded { path } = &rig.config.log else { unreachable!() };
    let bus = rig.bus().await;
    publish(&bus, &state("run", 1)).await;
    drop(bus);
    for _ in 0..rig.config.attempts_max {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedded::child_that_crashes_on_its_first_message"])
            .env(VICTIM, path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success());
    }
    let bus = rig.bus().await;
    publish(&bus, &state("run", 2)).await;
    let delivery = recv(&mut consumer(&bus, Stream::Normal)).await;
    assert_eq!(epoch(&delivery), 2);
    delivery.ack().await.unwrap();
    let letters = bus.dead_letters(oona::EntryId::ZERO, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].attempts, rig.config.attempts_max);
}
