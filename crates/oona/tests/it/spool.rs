//! The log goes away: what was accepted meanwhile arrives, in order, once.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leyline::wire::{EmergencySignal, MessagePriority as P};
use oona::{
    Bus, Config, Consumer, Durability, Heartbeat, LogChoice, Metrics, Outcome, PublishError,
    Refusal, RefusedBecause, SpoolConfig, SpoolSender, Stream,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::rig::*;

/// A server, a bus with a spool, and where the spool is.
struct Outage {
    rig: Rig,
    bus: Bus,
    directory: TempDir,
}

impl Outage {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut SpoolConfig)) -> Self {
        let (rig, directory) = (Rig::redis(), tempfile::tempdir().unwrap());
        let mut spool = SpoolConfig::new(directory.path());
        change(&mut spool);
        let bus = rig.bus_with(|config| config.spool = Some(spool)).await;
        Self { rig, bus, directory }
    }

    /// A bus as another process with the same spool directory has it.
    async fn another(&self) -> Bus {
        let spool = SpoolConfig::new(self.directory.path());
        self.rig.bus_with(|config| config.spool = Some(spool)).await
    }

    fn kill(&mut self) {
        self.rig.server.as_mut().unwrap().kill();
    }

    fn restart(&mut self) {
        self.rig.server.as_mut().unwrap().restart();
    }

    fn signal_server(&self, signal: Signal) {
        let pid = i32::try_from(self.rig.server.as_ref().unwrap().pid()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }
}

async fn send(bus: &Bus, epoch: u32) -> Outcome {
    bus.publish(Stream::Normal, P::Normal, "test", &state("run", epoch)).await.unwrap()
}

async fn spool(bus: &Bus, epoch: u32) {
    let outcome = send(bus, epoch).await;
    assert!(matches!(outcome, Outcome::Spooled { stream: Stream::Normal, .. }), "{outcome:?}");
}

/// Runs the sender of a bus while something else is awaited.
async fn while_sending<T>(bus: &Bus, work: impl Future<Output = T>) -> T {
    let stop = CancellationToken::new();
    let sender = SpoolSender { bus: bus.clone(), heartbeat: Heartbeat::detached() };
    let work = async {
        let done = work.await;
        stop.cancel();
        done
    };
    let both = async { tokio::join!(sender.run(stop.clone()), work) };
    let (ended, done) = tokio::time::timeout(2 * PATIENCE, both).await.expect("in time");
    ended.unwrap();
    done
}

/// Receives exactly these, in this order, each for the first time.
async fn expect_in_order(bus: &Bus, epochs: std::ops::Range<u32>) {
    expect_next(&mut consumer(bus, Stream::Normal), epochs).await;
    assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
}

async fn expect_next(reader: &mut Consumer, epochs: std::ops::Range<u32>) {
    for expected in epochs {
        let delivery = recv(reader).await;
        assert_eq!((epoch(&delivery), delivery.attempt), (expected, 1));
        delivery.ack().await.unwrap();
    }
}

async fn until_empty(bus: &Bus) {
    let start = Instant::now();
    while bus.spool().unwrap().messages > 0 {
        assert!(start.elapsed() < PATIENCE, "{:?} still wait", bus.spool());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

#[tokio::test]
async fn order_is_kept_over_an_outage_and_emergencies_go_first() {
    let mut outage = Outage::new().await;
    let bus = outage.bus.clone();
    for number in 0..5 {
        assert!(send(&bus, number).await.is_sent());
    }
    expect_in_order(&bus, 0..5).await;
    outage.kill();
    for number in 5..400 {
        let outcome = send(&bus, number).await;
        let Outcome::Spooled { stream: Stream::Normal, waiting } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(waiting, u64::from(number) - 4);
    }
    let signal = EmergencySignal { reason: "halt".to_owned(), ..Default::default() }.into();
    let sent = bus.publish(Stream::Emergency, P::Critical, "test", &signal).await.unwrap();
    assert!(matches!(sent, Outcome::Spooled { stream: Stream::Emergency, waiting: 1 }), "{sent:?}");
    assert_eq!(bus.spool().unwrap().messages, 396);
    assert_eq!(files(outage.directory.path(), "spool").len(), 1);

    let back = while_sending(&bus, async {
        // The sender finds nobody for a while.
        tokio::time::sleep(Duration::from_millis(700)).await;
        outage.restart();
        let back = Instant::now();
        // Published while the spool is being sent: behind what waits, whichever way it goes.
        for number in 400..500 {
            assert!(send(&bus, number).await.is_accepted());
        }
        let mut lane = consumer(&bus, Stream::Emergency);
        let urgent = recv(&mut lane).await;
        assert_eq!(urgent.message, signal);
        let found = back.elapsed();
        let mut reader = consumer(&bus, Stream::Normal);
        let first = recv(&mut reader).await;
        assert!(urgent.entry.ms <= first.entry.ms, "{} after {}", urgent.entry, first.entry);
        assert_eq!(epoch(&first), 5);
        first.ack().await.unwrap();
        urgent.ack().await.unwrap();
        expect_next(&mut reader, 6..500).await;
        assert_eq!(bus.depth(Stream::Normal, GROUP).await.unwrap(), 0);
        until_empty(&bus).await;
        found
    })
    .await;
    println!("recovery began {back:?} after the server was back");
    assert!(back < Duration::from_secs(1), "recovery began after {back:?}");
    assert!(send(&bus, 500).await.is_sent(), "nothing waits any more");
    assert_eq!(files(outage.directory.path(), "spool"), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn beyond_its_bounds_the_spool_refuses_and_drops_nothing() {
    let mut outage = Outage::with(|spool| spool.messages_max = 3).await;
    let bus = outage.bus.clone();
    outage.kill();
    for number in 0..3 {
        spool(&bus, number).await;
    }
    let outcome = send(&bus, 3).await;
    let Outcome::Refused { reason: RefusedBecause::SpoolFull, retry_after } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(retry_after > Duration::ZERO && !outcome.is_accepted());
    // Another stream: nothing waits there, so its own append is tried and may have arrived.
    let other = bus.publish(Stream::Telemetry, P::High, "test", &telemetry()).await;
    assert!(matches!(other, Err(PublishError::Log(_))), "{other:?}");
    outage.restart();
    while_sending(&bus, expect_in_order(&bus, 0..3)).await;
}

fn telemetry() -> leyline::Message {
    leyline::wire::TelemetryPacket::default().into()
}

/// The append times out, but the server has the command: the copy that waited is refused.
#[tokio::test]
async fn an_append_that_arrived_after_all_is_not_handled_twice() {
    let outage = Outage::new().await;
    let bus = outage.bus.clone();
    assert!(send(&bus, 0).await.is_sent());
    expect_in_order(&bus, 0..1).await;
    outage.signal_server(Signal::STOP);
    spool(&bus, 1).await;
    spool(&bus, 2).await;
    outage.signal_server(Signal::CONT);
    while_sending(&bus, async {
        until_empty(&bus).await;
        expect_in_order(&bus, 1..3).await;
    })
    .await;
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 4, "the first one stands there twice");
    assert_eq!(bus.metrics().refused_total(Stream::Normal, Refusal::Replay), 1);
}

/// No replica is there that the stream's class asks for. What waited is appended once, not again and
/// again.
#[tokio::test]
async fn a_durability_that_is_not_reached_adds_no_copies() {
    let mut outage = Outage::new().await;
    let directory = outage.directory.path().to_owned();
    let bus = outage
        .rig
        .bus_with(|config| {
            config.spool = Some(SpoolConfig::new(directory));
            config.durability.usual = Durability::Wait { replicas: 1 };
            config.durability_timeout = Duration::from_millis(50);
        })
        .await;
    outage.kill();
    for number in 0..300 {
        spool(&bus, number).await;
    }
    outage.restart();
    while_sending(&bus, async {
        expect_in_order(&bus, 0..300).await;
        until_empty(&bus).await;
    })
    .await;
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 300);
}

/// The breaker opens: nobody waits for a time-out any more, and the mode is shown.
#[tokio::test]
async fn an_open_breaker_sends_everything_to_disk_at_once() {
    let mut outage = Outage::new().await;
    let bus = outage.bus.clone();
    outage.kill();
    while_sending(&bus, async {
        spool(&bus, 0).await;
        while bus.conservative().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(bus.conservative().len(), Stream::ALL.len());
        let asked = Instant::now();
        let sent = bus.publish(Stream::Telemetry, P::High, "test", &telemetry()).await.unwrap();
        assert!(matches!(sent, Outcome::Spooled { .. }), "{sent:?}");
        let sent = bus.publish(Stream::Telemetry, P::Low, "test", &telemetry()).await.unwrap();
        assert!(matches!(sent, Outcome::Spooled { waiting: 2, .. }), "{sent:?}");
        // Each of the two would wait that long for the log.
        assert!(asked.elapsed() < 2 * bus.config().publish_timeout, "{:?}", asked.elapsed());
        outage.restart();
        until_empty(&bus).await;
    })
    .await;
    assert_eq!(bus.conservative(), []);
    expect_in_order(&bus, 0..1).await;
}

#[tokio::test]
async fn many_publishers_share_the_disk() {
    let mut outage = Outage::new().await;
    let bus = outage.bus.clone();
    outage.kill();
    spool(&bus, 0).await;
    let publishers = (1..=64_u32).map(|run| {
        let bus = bus.clone();
        async move {
            for number in 0..20 {
                let message = state(&format!("run-{run}"), number);
                let sent = bus.publish(Stream::Normal, P::High, "test", &message).await.unwrap();
                assert!(matches!(sent, Outcome::Spooled { .. }), "{sent:?}");
            }
        }
    });
    let mut set = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for publisher in publishers {
        set.spawn(publisher);
    }
    set.join_all().await;
    println!("1280 messages of 64 publishers on disk in {:?}", begun.elapsed());
    assert_eq!(bus.spool().unwrap().messages, 1281);
    outage.restart();
    while_sending(&bus, async {
        let mut reader = consumer(&bus, Stream::Normal);
        let mut next = std::collections::HashMap::<String, u32>::new();
        for _ in 0..1281 {
            let delivery = recv(&mut reader).await;
            let leyline::Message::SystemState(packet) = &delivery.message else { panic!() };
            let next = next.entry(packet.training_run_id.clone()).or_default();
            assert_eq!(packet.current_epoch, *next, "each publisher's order");
            *next += 1;
            delivery.ack().await.unwrap();
        }
    })
    .await;
}

/// Whoever writes into the file can make a message wait for ever, but not have one signed.
#[tokio::test]
async fn a_tampered_spool_yields_nothing_signed() {
    const WAITING: redb::TableDefinition<'_, (u8, u64), &[u8]> =
        redb::TableDefinition::new("waiting");
    let mut outage = Outage::new().await;
    outage.kill();
    for number in 0..3 {
        spool(&outage.bus, number).await;
    }
    let [file] = files(outage.directory.path(), "spool").try_into().unwrap();
    outage.restart();
    let Outage { rig, bus, directory } = outage;
    drop(bus);
    {
        use redb::ReadableTable as _;
        let db = redb::Database::open(&file).unwrap();
        let write = db.begin_write().unwrap();
        {
            let mut table = write.open_table(WAITING).unwrap();
            let rows: Vec<((u8, u64), Vec<u8>)> = table
                .iter()
                .unwrap()
                .map(|row| row.map(|(place, value)| (place.value(), value.value().to_vec())))
                .collect::<Result<_, _>>()
                .unwrap();
            // One is changed, one is copied to another place; the last one stays as it is.
            let mut changed = rows[0].1.clone();
            *changed.last_mut().unwrap() ^= 1;
            table.insert(rows[0].0, changed.as_slice()).unwrap();
            table.insert(rows[1].0, rows[2].1.as_slice()).unwrap();
        }
        write.commit().unwrap();
    }
    let spool = SpoolConfig::new(directory.path());
    let bus = rig.bus_with(|config| config.spool = Some(spool)).await;
    while_sending(&bus, expect_in_order(&bus, 2..3)).await;
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 1, "nothing else was sent");
    assert_eq!(files(directory.path(), "spool"), [] as [PathBuf; 0]);
    assert_eq!(files(directory.path(), "set-aside").len(), 1, "it is kept for whoever looks");
}

/// Damaged files are set aside and hold up nothing.
#[tokio::test]
async fn damaged_files_are_set_aside() {
    let mut outage = Outage::new().await;
    outage.kill();
    for number in 0..20 {
        spool(&outage.bus, number).await;
    }
    let [file] = files(outage.directory.path(), "spool").try_into().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(outage.directory.path().join(name), bytes).unwrap();
    };
    write("00-garbage.spool", &[0x5a; 10_000]);
    write("01-cut.spool", &whole[..whole.len() / 2]);
    let mut holes = whole.clone();
    holes[4096..].iter_mut().step_by(7).for_each(|byte| *byte = 0xff);
    write("02-holes.spool", &holes);
    outage.restart();
    let bus = outage.bus.clone();
    while_sending(&bus, expect_in_order(&bus, 0..20)).await;
    assert_eq!(bus.len(Stream::Normal).await.unwrap(), 20);
    assert_eq!(files(outage.directory.path(), "set-aside").len(), 3);
}

const CHILD: &str = "OONA_TEST_SPOOLS_INTO";

/// Not a test of its own: it publishes from the moment it is told to until it is killed or its disk
/// is full, and says what became of it.
#[tokio::test]
async fn child_that_publishes_while_the_log_is_away() {
    let Ok(places) = std::env::var(CHILD) else { return };
    let (url, directory) = places.split_once(' ').unwrap();
    let config = Config {
        log: LogChoice::Redis { url: url.to_owned() },
        spool: Some(SpoolConfig::new(directory)),
        publish_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let bus = Bus::open(config, keyring(), Metrics::detached()).await.unwrap();
    println!("\nopen");
    std::io::stdin().lines().next().unwrap().unwrap();
    for number in 0..1_000_000 {
        match bus.publish(Stream::Normal, P::Normal, "test", &state("run", number)).await {
            Ok(Outcome::Spooled { .. }) => println!("spooled {number}"),
            Err(PublishError::Spool(error)) => {
                println!("failed {number} {error}");
                // Somebody frees space.
                let limit = Rlimit { current: None, maximum: None };
                setrlimit(Resource::Fsize, limit).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Starts the child, takes the log away, and reads what it says until `enough`.
fn run_child(outage: &mut Outage, limit: &str, mut enough: impl FnMut(&str) -> bool) -> Child {
    let url = outage.rig.server.as_ref().unwrap().url();
    let script = format!("trap '' XFSZ; {limit} exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "spool::child_that_publishes_while_the_log_is_away", "--nocapture"])
        .env(CHILD, format!("{url} {}", outage.directory.path().display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "open" {
            outage.kill();
            child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        }
        if enough(&line) {
            break;
        }
    }
    child
}

/// Kill -9 of the publisher while the log is away: another process sends what it had accepted.
#[tokio::test]
async fn what_a_killed_publisher_had_spooled_is_adopted() {
    let mut outage = Outage::new().await;
    let mut spooled = 0;
    let mut child = run_child(&mut outage, "", |line| {
        spooled += u32::from(line.starts_with("spooled "));
        spooled == 100
    });
    child.kill().unwrap();
    child.wait().unwrap();
    outage.restart();
    let heir = outage.another().await;
    while_sending(&heir, async {
        expect_next(&mut consumer(&heir, Stream::Normal), 0..100).await;
        until_empty(&heir).await;
    })
    .await;
    assert_eq!(files(outage.directory.path(), "spool"), [] as [PathBuf; 0]);
}

/// The disk is full: a typed error. What was accepted before is whole, and once there is space again
/// the same process accepts more.
#[tokio::test]
async fn a_full_disk_is_a_typed_error_and_spoils_nothing() {
    let mut outage = Outage::new().await;
    let (mut spooled, mut failures) = (Vec::new(), Vec::new());
    // In units of 512 bytes; soft, so that the child can lift it.
    let mut child = run_child(&mut outage, "ulimit -S -f 4200;", |line| {
        let number = |rest: &str| rest.split(' ').next().unwrap().parse::<u32>().unwrap();
        if let Some(rest) = line.strip_prefix("spooled ") {
            spooled.push(number(rest));
        } else if let Some(rest) = line.strip_prefix("failed ") {
            assert!(rest.contains("check disk space"), "{rest:?}");
            failures.push((number(rest), spooled.len()));
        }
        failures.last().is_some_and(|(_, before)| spooled.len() == before + 100)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(failures.as_slice(), [(_, 1..)]), "full once, and not at first: {failures:?}");
    outage.restart();
    let heir = outage.another().await;
    while_sending(&heir, async {
        let mut reader = consumer(&heir, Stream::Normal);
        for expected in spooled {
            let delivery = recv(&mut reader).await;
            assert_eq!(epoch(&delivery), expected);
            delivery.ack().await.unwrap();
        }
    })
    .await;
}
