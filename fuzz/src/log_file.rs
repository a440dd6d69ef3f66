//! Damaged files of the embedded log, the store and its two journals. The bytes are a list of changes
//! to honest files, closed or as a crash leaves them; or, behind a first byte of 255, one of the files
//! itself. Whatever is read from them, only what was signed is admitted.
//!
//! The honest files are made anew by each process, with its times and nonces.

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;

use leyline::Message;
use leyline::wire::{KernelPrefetchRequest, MessagePriority, SystemStatePacket};
use oona::judge::Judgement;
use oona::{Bus, Config, ConsumerSpec, LogChoice, Metrics, Stream};

use super::bytes::Bytes;
use super::oracle;

/// Unit of the changes: the store's page.
const PAGE: usize = 4096;

/// # Panics
/// When the file yields an entry that is admitted and was never written.
pub fn run(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let honest = honest();
    let files = match bytes.byte() {
        255 => {
            let mut files = honest.files[0].clone();
            files[bytes.choice(3)] = bytes.rest().to_vec();
            files
        }
        which => changed(honest.files[usize::from(which & 1)].clone(), &mut bytes),
    };
    let Some(entries) = entries(&files) else { return };
    for (id, fields) in entries {
        for stream in [Stream::Normal, Stream::KernelRequests] {
            let judgement = oracle::judge(stream, false).judge(id, fields.clone());
            if let Judgement::Admitted { .. } = judgement {
                let payload = fields.iter().rev().find(|(name, _)| name == b"payload");
                let known = payload.is_some_and(|(_, bytes)| honest.payloads.contains(bytes));
                assert!(known, "the file yields an entry that nobody wrote");
            }
        }
    }
}

/// The store and its journals.
type Files = [Vec<u8>; 3];

fn entries(files: &Files) -> Option<Vec<oona::fuzzing::Entry>> {
    oona::fuzzing::embedded_files(files.each_ref().map(Vec::as_slice))
}

fn changed(mut files: Files, bytes: &mut Bytes<'_>) -> Files {
    for _ in 0..16 {
        if bytes.is_empty() {
            break;
        }
        let file = &mut files[bytes.choice(3)];
        if !file.is_empty() {
            change(file, bytes);
        }
    }
    files
}

fn change(file: &mut Vec<u8>, bytes: &mut Bytes<'_>) {
    let page_len = PAGE.min(file.len());
    // Pages of zeros say nothing; the changes go where something is written.
    let written = |page: &usize| file[page * PAGE..].iter().take(PAGE).any(|byte| *byte != 0);
    let mut used: Vec<usize> = (0..file.len().div_ceil(PAGE)).filter(written).collect();
    if used.is_empty() {
        used.push(0);
    }
    let choose = |bytes: &mut Bytes<'_>, len: usize| {
        let page = used[usize::from(bytes.short()) % used.len()] * PAGE;
        page.min(len - page_len)
    };
    let page = choose(bytes, file.len());
    let within = usize::from(bytes.short()) % page_len;
    match bytes.choice(8) {
        0..3 => file[page + within] ^= bytes.byte().max(1),
        3 => file[page..page + page_len].fill(0),
        4 => file[page + within..page + page_len].fill(0),
        5 => file.truncate(page + within),
        6 => {
            let from = choose(bytes, file.len());
            file.copy_within(from..from + page_len, page);
        }
        _ => {
            let more = bytes.take(8);
            let end = (page + within + more.len()).min(page + page_len);
            file[page + within..end].copy_from_slice(&more[..end - page - within]);
        }
    }
}

/// A log that was used: entries, a group with some pending, claims.
struct Honest {
    /// As a crash leaves it, and closed.
    files: [Files; 2],
    payloads: HashSet<Vec<u8>>,
}

fn honest() -> &'static Honest {
    static HONEST: OnceLock<Honest> = OnceLock::new();
    HONEST.get_or_init(|| {
        // A thread of its own: the caller may be inside a runtime.
        let made = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            runtime.and_then(|runtime| runtime.block_on(make())).expect("a log can be made")
        });
        made.join().expect("a log can be made")
    })
}

async fn make() -> std::io::Result<Honest> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("log.redb");
    let log = LogChoice::Embedded { path: path.clone() };
    let config = Config { log, ..oracle::config(false).clone() };
    let open = Bus::open(config, oracle::keyring(), Metrics::detached()).await;
    let bus = open.map_err(std::io::Error::other)?;
    let mut payloads = HashSet::new();
    for number in 0..40_u32 {
        let (stream, message) = message(number);
        let sent = bus.publish(stream, MessagePriority::Normal, "fuzz", &message).await;
        assert!(sent.map_err(std::io::Error::other)?.is_sent(), "an empty log takes 40 messages");
    }
    for stream in [Stream::Normal, Stream::KernelRequests] {
        let entries = bus.peek(stream, oona::EntryId::ZERO, 100).await;
        for entry in entries.map_err(std::io::Error::other)? {
            payloads.extend(entry.fields.into_iter().map(|(_, value)| value));
        }
        let mut consumer = bus.consumer(ConsumerSpec::new(stream, "group"));
        for number in 0..10 {
            let delivery = consumer.recv().await.map_err(std::io::Error::other)?;
            if number % 2 == 0 {
                delivery.ack().await.map_err(std::io::Error::other)?;
            }
        }
    }
    bus.flush().await.map_err(std::io::Error::other)?;
    let crashed = files(&path)?;
    drop(bus);
    let closed = closed(&path)?;
    for files in [&crashed, &closed] {
        let found = entries(files).map_or(0, |entries| entries.len());
        assert_eq!(found, 40, "the honest files hold what was published");
    }
    Ok(Honest { files: [crashed, closed], payloads })
}

/// The file once its last user has closed it: its lock is free then.
fn closed(path: &Path) -> std::io::Result<Files> {
    let lock = std::fs::File::open(path.with_extension("redb.lock"))?;
    lock.lock()?;
    files(path)
}

fn files(path: &Path) -> std::io::Result<Files> {
    let journal = |end| std::fs::read(path.with_extension(end)).unwrap_or_default();
    Ok([std::fs::read(path)?, journal("redb.journal-a"), journal("redb.journal-b")])
}

fn message(number: u32) -> (Stream, Message) {
    if number.is_multiple_of(2) {
        let training_run_id = format!("run-{number}");
        let packet = SystemStatePacket { training_run_id, ..Default::default() };
        return (Stream::Normal, packet.into());
    }
    let request_id = format!("request-{number}");
    let request = KernelPrefetchRequest { request_id, ..Default::default() };
    (Stream::KernelRequests, request.into())
}
