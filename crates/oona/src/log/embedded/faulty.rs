//! A log on a disk that fails, and on a machine that stops: random operations, random failures of
//! writes, waits and growth, random ends. Checked after each end: whatever was acknowledged is there,
//! once and in order, and whatever was refused is not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use redb::StorageBackend;

use super::medium::{Disk, Part};
use super::{EmbeddedLog, Handle, Shared};
use crate::entry::EntryId;
use crate::error::{BusError, LogError};
use crate::log::Seat;

const STREAM: &str = "stream";
const GROUP: &str = "group";
/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file as the system shows it, and what of it would survive a loss of power.
#[derive(Debug, Clone, Default)]
struct Image {
    shown: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last wait for the disk.
    loose: Vec<(usize, Vec<u8>)>,
}

type Files = BTreeMap<Part, Arc<Mutex<Image>>>;

#[derive(Debug, Default)]
struct TestDisk {
    files: Mutex<Files>,
    /// Operations until they begin to fail; negative for never.
    fuse: Arc<AtomicI64>,
}

impl TestDisk {
    fn of(files: Files) -> Arc<Self> {
        Arc::new(Self { files: Mutex::new(files), fuse: Arc::new(AtomicI64::new(-1)) })
    }

    /// What a machine finds that starts again: after the end of the process, or of the power.
    fn after(&self, end: End, random: &mut StdRng) -> Files {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let survives = |image: &Image, random: &mut StdRng| match end {
            End::Kill => image.shown.clone(),
            End::PowerLoss => {
                let mut bytes = image.durable.clone();
                for (at, written) in &image.loose {
                    // Nothing, half or all of what nobody waited for is on the disk.
                    let kept = match random.random_range(0..3) {
                        0 => 0,
                        1 => random.random_range(0..=written.len()),
                        _ => written.len(),
                    };
                    bytes[*at..at + kept].copy_from_slice(&written[..kept]);
                }
                bytes
            }
        };
        files
            .iter()
            .map(|(part, image)| {
                let bytes = survives(&image.lock().unwrap(), random);
                let image = Image { shown: bytes.clone(), durable: bytes, loose: Vec::new() };
                (*part, Arc::new(Mutex::new(image)))
            })
            .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    PowerLoss,
}

impl Disk for TestDisk {
    fn open(&self, part: Part) -> io::Result<Box<dyn StorageBackend>> {
        let mut files = self.files.lock().unwrap();
        let image = Arc::clone(files.entry(part).or_default());
        Ok(Box::new(TestFile { image, fuse: Arc::clone(&self.fuse) }))
    }

    fn size(&self, part: Part) -> io::Result<u64> {
        self.open(part)?.len()
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(0)
    }
}

#[derive(Debug)]
struct TestFile {
    image: Arc<Mutex<Image>>,
    fuse: Arc<AtomicI64>,
}

impl TestFile {
    fn burn(&self) -> io::Result<()> {
        let left = self.fuse.load(Ordering::Relaxed);
        match left {
            ..0 => Ok(()),
            0 => Err(io::ErrorKind::StorageFull.into()),
            1.. => {
                self.fuse.store(left - 1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut image = self.image.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let place = image.shown.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(data);
        image.loose.push((at, data.to_vec()));
        Ok(())
    }
}

impl StorageBackend for TestFile {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.image.lock().unwrap().shown.len()).unwrap())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.image.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(
            image.shown.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.burn()?;
        let mut image = self.image.lock().unwrap();
        let len = usize::try_from(len).unwrap();
        image.shown.resize(len, 0);
        image.durable.resize(len, 0);
        image.loose.retain(|(at, data)| at + data.len() <= len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.burn()?;
        let mut image = self.image.lock().unwrap();
        image.loose.clear();
        image.durable = image.shown.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Err(error) = self.burn() {
            // As much as there was room for.
            self.put(offset, &data[..data.len() / 2])?;
            return Err(error);
        }
        self.put(offset, data)
    }
}

fn open(disk: &Arc<TestDisk>) -> Result<EmbeddedLog, BusError> {
    let disk: Arc<dyn Disk> = Arc::clone(disk) as _;
    let shared = Shared::open(PathBuf::from("test"), disk, u64::MAX, 60_000, None)?;
    Ok(EmbeddedLog(Arc::new(Handle(Arc::new(shared)))))
}

/// What the test knows to be true.
#[derive(Default)]
struct Truth {
    stored: BTreeMap<EntryId, u64>,
    refused: BTreeSet<u64>,
    /// Acknowledged, and the acknowledgement flushed.
    settled: BTreeSet<EntryId>,
    acknowledged: BTreeSet<EntryId>,
    numbers: u64,
    refusals: u64,
}

fn seat() -> Seat {
    Seat { stream: STREAM.to_owned(), group: GROUP.to_owned(), consumer: "one".to_owned() }
}

async fn append(log: &EmbeddedLog, truth: &mut Truth) -> Result<(), LogError> {
    truth.numbers += 1;
    let number = truth.numbers;
    let filling = vec![7; usize::try_from(number * 37 % 3000).unwrap()];
    let fields: [(&[u8], &[u8]); 2] = [(b"payload", &number.to_le_bytes()), (b"x", &filling)];
    let appended = tokio::time::timeout(PATIENCE, log.append(STREAM, &fields)).await;
    match appended.expect("an answer in time") {
        Ok(id) => drop(truth.stored.insert(id, number)),
        Err(error) => {
            assert!(matches!(error, LogError::NotStored { free_bytes: Some(0), .. }), "{error}");
            truth.refused.insert(number);
            truth.refusals += 1;
            return Err(error);
        }
    }
    Ok(())
}

/// Several at once, so that a frame holds more than one.
async fn append_some(log: &EmbeddedLog, truth: &mut Truth, random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        // A refusal is one of the answers that are looked for.
        let _ = append(log, truth).await;
    }
}

async fn consume(log: &EmbeddedLog, truth: &mut Truth, random: &mut StdRng) {
    let count = random.random_range(1..5);
    let mut reader = log.reader(seat());
    // While the store is away what is not in memory cannot be read.
    let Ok(entries) = reader.read(count, Duration::ZERO).await else { return };
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
    for id in &ids {
        assert!(truth.stored.contains_key(id), "{id} was never acknowledged");
    }
    if random.random() {
        log.ack(&seat(), &ids).await.unwrap();
        truth.acknowledged.extend(ids);
    }
}

async fn check(log: &EmbeddedLog, truth: &Truth, end: Option<End>) {
    let found = log.range(STREAM, EntryId::ZERO, usize::MAX).await.unwrap();
    let mut stored = truth.stored.iter().peekable();
    for (id, fields) in &found {
        let number = u64::from_le_bytes(fields[0].1.as_slice().try_into().unwrap());
        if stored.peek().is_some_and(|(next, _)| *next == id) {
            assert_eq!(stored.next(), Some((id, &number)));
        } else {
            // Refused at the moment when the power went: on the disk or not, nobody can tell.
            let allowed = end == Some(End::PowerLoss) && truth.refused.contains(&number);
            assert!(allowed, "{number} was refused and stands at {id}");
        }
    }
    assert_eq!(stored.next(), None, "an acknowledged entry is gone");
    assert_eq!(log.len(STREAM).await.unwrap(), u64::try_from(found.len()).unwrap());
    if found.is_empty() {
        return;
    }
    let info = &log.groups(STREAM).await.unwrap()[0];
    let behind = found.iter().filter(|(id, _)| *id > info.last_delivered).count();
    assert_eq!(info.lag, u64::try_from(behind).unwrap());
    let all = crate::log::PendingOf::Idle(Duration::ZERO);
    for entry in log.pending(&seat(), all, usize::MAX).await.unwrap() {
        assert!(!truth.settled.contains(&entry.id), "{} was settled for good", entry.id);
    }
    for id in &truth.settled {
        assert!(*id <= info.last_delivered, "{id} comes back");
    }
}

/// Says how many appends were refused.
async fn run(seed: u64) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = TestDisk::of(Files::default());
    let mut log = open(&disk).unwrap();
    log.create_group(STREAM, GROUP).await.unwrap();
    let mut truth = Truth::default();
    for _ in 0..60 {
        match random.random_range(0..100) {
            0..50 => append_some(&log, &mut truth, &mut random).await,
            50..75 => consume(&log, &mut truth, &mut random).await,
            75..80 => {
                if log.flush().await.is_ok() {
                    truth.settled.extend(&truth.acknowledged);
                }
            }
            80..85 => {
                // Into the store, or at least an attempt.
                let shared = Arc::clone(log.shared());
                let flights: Vec<_> = shared.core().flights.iter().map(Arc::clone).collect();
                // Its failure is tried again by the log itself.
                let _ = shared.absorb(&flights);
            }
            85..93 => disk.fuse.store(random.random_range(0..40), Ordering::Relaxed),
            _ => {
                let end = if random.random() { End::Kill } else { End::PowerLoss };
                let files = disk.after(end, &mut random);
                drop(log);
                disk = TestDisk::of(files);
                log = open(&disk).unwrap();
                log.create_group(STREAM, GROUP).await.unwrap();
                check(&log, &truth, Some(end)).await;
                truth.acknowledged = truth.settled.clone();
                // A power loss may have let refused ones through; they count as stored now.
                for (id, fields) in log.range(STREAM, EntryId::ZERO, usize::MAX).await.unwrap() {
                    let number = u64::from_le_bytes(fields[0].1.as_slice().try_into().unwrap());
                    truth.refused.remove(&number);
                    truth.stored.insert(id, number);
                }
            }
        }
    }
    disk.fuse.store(-1, Ordering::Relaxed);
    let healed = tokio::time::Instant::now();
    while append(&log, &mut truth).await.is_err() {
        assert!(healed.elapsed() < PATIENCE, "it does not go on by itself");
    }
    check(&log, &truth, None).await;
    truth.refusals
}

#[test]
fn a_failing_disk_and_a_sudden_end_lose_nothing() {
    let cases = std::env::var("OONA_FAULTY_CASES").ok().and_then(|text| text.parse().ok());
    let mut refusals = 0;
    for seed in 0..cases.unwrap_or(8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        println!("seed {seed}");
        refusals += runtime.block_on(run(seed));
    }
    assert!(refusals > 0, "the disk never failed");
}

/// What is acknowledged while nothing can be written is written later.
#[tokio::test]
async fn acknowledgements_on_a_full_disk_are_kept() {
    let disk = TestDisk::of(Files::default());
    let (log, mut truth) = (open(&disk).unwrap(), Truth::default());
    log.create_group(STREAM, GROUP).await.unwrap();
    for _ in 0..10 {
        append(&log, &mut truth).await.unwrap();
    }
    disk.fuse.store(0, Ordering::Relaxed);
    append(&log, &mut truth).await.unwrap_err();
    let entries = log.reader(seat()).read(20, Duration::ZERO).await.unwrap();
    assert_eq!(entries.len(), 10, "reading goes on");
    let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
    log.ack(&seat(), &ids).await.unwrap();
    log.flush().await.unwrap_err();
    disk.fuse.store(-1, Ordering::Relaxed);
    log.flush().await.unwrap();
    let files = disk.after(End::PowerLoss, &mut StdRng::seed_from_u64(1));
    drop(log);
    let log = open(&TestDisk::of(files)).unwrap();
    let info = &log.groups(STREAM).await.unwrap()[0];
    assert_eq!((info.pending, info.lag), (0, 0));
    assert_eq!(log.len(STREAM).await.unwrap(), 10);
}

/// Bytes turned over anywhere: a log with nothing but what was stored, or an error that names damage.
#[tokio::test]
async fn damage_is_named_or_harmless() {
    let disk = TestDisk::of(Files::default());
    let (log, mut truth) = (open(&disk).unwrap(), Truth::default());
    log.create_group(STREAM, GROUP).await.unwrap();
    let mut images = Vec::new();
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..40 {
        append(&log, &mut truth).await.unwrap();
    }
    images.push(disk.after(End::Kill, &mut random));
    let shared = Arc::clone(log.shared());
    drop(log);
    // Its end is when the store has taken everything in.
    while !shared.core().flights.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(shared);
    images.push(disk.after(End::Kill, &mut random));
    let (mut opened, mut named) = (0, 0);
    for case in 0..300 {
        let files = copy(&images[case % 2]);
        let part = [Part::Store, Part::Journal, Part::OtherJournal][random.random_range(0..3)];
        {
            let mut image = files[&part].lock().unwrap();
            let used = image.shown.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if used == 0 {
                continue;
            }
            match random.random_range(0..3) {
                0 => image.shown.truncate(random.random_range(0..used)),
                1 => {
                    let at = random.random_range(0..used);
                    image.shown[at] ^= random.random_range(1..=255_u8);
                }
                _ => {
                    let at = random.random_range(0..used);
                    let end = (at + random.random_range(1..5000)).min(used);
                    image.shown[at..end].fill(0);
                }
            }
            image.durable = image.shown.clone();
        }
        match open(&TestDisk::of(files)) {
            Err(BusError::Damaged { .. } | BusError::Open { .. }) => named += 1,
            Err(other) => panic!("{other}"),
            Ok(log) => {
                opened += 1;
                let Ok(found) = log.range(STREAM, EntryId::ZERO, usize::MAX).await else {
                    continue;
                };
                for (id, fields) in found {
                    let payload = fields.first().map(|(_, value)| value.clone());
                    let stored = truth.stored.get(&id).map(|number| number.to_le_bytes().to_vec());
                    if stored.is_some() {
                        // A value turned over is what the signature is for.
                        continue;
                    }
                    panic!("invented: {id} {payload:?}");
                }
            }
        }
    }
    assert!(opened > 20 && named > 20, "{opened} opened, {named} named");
}

/// A file that was large once gives its room back.
#[tokio::test]
async fn an_empty_log_gives_its_room_back() {
    let disk = TestDisk::of(Files::default());
    let log = open(&disk).unwrap();
    let value = vec![7; 100_000];
    for _ in 0..60 {
        log.append(STREAM, &[(b"payload", &value)]).await.unwrap();
    }
    log.trim(STREAM, EntryId::MAX).await.unwrap();
    let flights = || log.shared().core().flights.iter().map(Arc::clone).collect::<Vec<_>>();
    log.shared().absorb(&flights()).unwrap();
    let size = || disk.open(Part::Store).unwrap().len().unwrap();
    let large = size();
    log.shared().compact_if_large(1 << 20);
    assert!(large > 1 << 20 && size() < large / 2, "{large} to {}", size());
    let id = log.append(STREAM, &[(b"payload", b"next")]).await.unwrap();
    let found = log.range(STREAM, EntryId::ZERO, 10).await.unwrap();
    assert_eq!(found, [(id, vec![(b"payload".to_vec(), b"next".to_vec())])]);
}

fn copy(files: &Files) -> Files {
    let one = |(part, image): (&Part, &Arc<Mutex<Image>>)| {
        (*part, Arc::new(Mutex::new(image.lock().unwrap().clone())))
    };
    files.iter().map(one).collect()
}

const ANSWERS: &str = "answers";

/// Requests that are answered before the disk has them: whenever the machine stops, a request that
/// was accepted is still to be answered, or its answer stands. Never is it acknowledged without.
async fn check_answers(seed: u64) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = TestDisk::of(Files::default());
    let log = open(&disk).unwrap();
    log.shared().core().make_prompt([STREAM, ANSWERS].map(str::to_owned));
    log.create_group(STREAM, GROUP).await.unwrap();
    log.create_group(ANSWERS, GROUP).await.unwrap();
    let mut reader = log.reader(seat());
    let mut accepted = Vec::new();
    for number in 0..random.random_range(1..40_u64) {
        let name = number.to_le_bytes();
        let fields: [(&[u8], &[u8]); 2] = [(b"payload", &name), (b"x", b"")];
        let publishing = log.append(STREAM, &fields);
        let answering = async {
            let read = reader.read(1, PATIENCE).await.unwrap();
            let id = read.first().expect("the request is seen").id;
            log.answer(&[(ANSWERS, fields)], &seat(), &[id]).await.unwrap();
        };
        // Answered while its publisher may still wait for the disk.
        let ((), published) = tokio::join!(answering, publishing);
        accepted.push((published.unwrap(), number));
    }
    let shown = log.range(ANSWERS, EntryId::ZERO, usize::MAX).await.unwrap();
    assert_eq!(shown.len(), accepted.len(), "answers are seen at once");
    let end = if random.random() { End::Kill } else { End::PowerLoss };
    let files = disk.after(end, &mut random);
    drop(log);
    let log = open(&TestDisk::of(files)).unwrap();
    let number = |fields: &crate::entry::Fields| {
        u64::from_le_bytes(fields[0].1.as_slice().try_into().unwrap())
    };
    let requests = log.range(STREAM, EntryId::ZERO, usize::MAX).await.unwrap();
    let stored: Vec<_> = requests.iter().map(|(id, fields)| (*id, number(fields))).collect();
    assert_eq!(stored, accepted, "an accepted request is lost");
    let answers = log.range(ANSWERS, EntryId::ZERO, usize::MAX).await.unwrap();
    let answered: BTreeSet<u64> = answers.iter().map(|(_, fields)| number(fields)).collect();
    let all = crate::log::PendingOf::Idle(Duration::ZERO);
    let pending = log.pending(&seat(), all, usize::MAX).await.unwrap();
    let info = &log.groups(STREAM).await.unwrap()[0];
    let mut open_ones = 0;
    for (id, number) in &accepted {
        let is_open = *id > info.last_delivered || pending.iter().any(|entry| entry.id == *id);
        open_ones += usize::from(is_open);
        assert!(is_open || answered.contains(number), "{number} is acknowledged and not answered");
    }
    (open_ones, answered.len())
}

#[test]
fn what_a_crash_takes_it_takes_from_the_end() {
    let (mut open_ones, mut answered) = (0, 0);
    for seed in 0..60 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (open, stood) = runtime.block_on(check_answers(seed));
        open_ones += open;
        answered += stood;
    }
    assert!(open_ones > 0 && answered > 0, "{open_ones} to be answered again, {answered} answered");
}

/// While the disk fails nothing is shown before it is written, and no answer is taken.
#[tokio::test]
async fn a_failing_disk_shows_nothing_early() {
    let disk = TestDisk::of(Files::default());
    let (log, mut truth) = (open(&disk).unwrap(), Truth::default());
    log.shared().core().make_prompt([STREAM.to_owned()]);
    log.create_group(STREAM, GROUP).await.unwrap();
    append(&log, &mut truth).await.unwrap();
    disk.fuse.store(0, Ordering::Relaxed);
    // Seen when it was made, and owed from then on.
    append(&log, &mut truth).await.unwrap_err();
    assert_eq!(log.len(STREAM).await.unwrap(), 2);
    append(&log, &mut truth).await.unwrap_err();
    assert_eq!(log.len(STREAM).await.unwrap(), 2, "given up, and never seen");
    let fields: [(&[u8], &[u8]); 2] = [(b"payload", b"12345678"), (b"x", b"")];
    log.answer(&[(STREAM, fields)], &seat(), &[]).await.unwrap_err();
    disk.fuse.store(-1, Ordering::Relaxed);
    log.flush().await.unwrap();
    append(&log, &mut truth).await.unwrap();
    let files = disk.after(End::PowerLoss, &mut StdRng::seed_from_u64(1));
    drop(log);
    let log = open(&TestDisk::of(files)).unwrap();
    assert_eq!(log.len(STREAM).await.unwrap(), 3);
}
