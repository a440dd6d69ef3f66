//! The client: publishes a seeded mix of signed requests at a steady rate, reads both answer streams, and asks again
//! where the contract says so. It speaks the wire contract and shares no code with the service.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::book::{Answered, Book, Request, Says, Wanted, may_ask_again};
use super::client::{Client, Reply, encode};
use super::wire::{self, Answer};

const REQUESTS: &str = "oona.kernels.requests";
const READY: &str = "oona.kernels.ready";
const ERRORS: &str = "oona.kernels.errors";
/// Blueprints that are built: all that can be grafted, the catalogue's first.
pub(super) const BUILT: u32 = 42;
/// Honest requests in a second.
const RATE: u32 = 40;
/// How long one command of the client may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause after a failed command.
const PAUSE: Duration = Duration::from_millis(50);
/// First and longest wait before asking again.
const AGAIN_MIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(4);
/// How often one kernel is asked for again.
const AGAIN_TIMES: u32 = 20;
/// How far a message may lie from the time of its append, before and after, as readers judge it.
const OLD_MS_MAX: u64 = 300_000;
const EARLY_MS_MAX: u64 = 5_000;

/// What both threads and the trial share.
#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    again: Mutex<VecDeque<Again>>,
    /// Nothing new is sent any more; asking again goes on.
    quiet: AtomicBool,
    stop: AtomicBool,
    names: AtomicU64,
}

/// A kernel to ask for again.
#[derive(Debug, Clone)]
struct Again {
    blueprint: String,
    times: u32,
    due: Instant,
    instead_of: String,
}

/// The client at work. Dropping it ends it.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Starts the client on the Redis of this port.
    pub fn start(port: u16, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            book: Mutex::default(),
            again: Mutex::default(),
            quiet: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            names: AtomicU64::new(0),
        });
        let publisher = Publisher {
            shared: Arc::clone(&shared),
            port,
            client: None,
            random: ChaCha8Rng::seed_from_u64(seed),
            seed,
            earlier: VecDeque::new(),
        };
        let reader = Reader { shared: Arc::clone(&shared), port };
        let threads = vec![
            std::thread::spawn(move || publisher.run()),
            std::thread::spawn(move || reader.run()),
        ];
        Self { shared, threads }
    }

    /// The books as they stand.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.shared.book)
    }

    /// Sends nothing new from now on.
    pub fn be_quiet(&self) {
        self.shared.quiet.store(true, Ordering::Relaxed);
    }

    /// Redis lost this request: the client sends it anew, as another request.
    pub fn forgotten(&self, id: &str) {
        let mut book = self.book();
        if !book.forgotten.insert(id.to_owned()) {
            return;
        }
        if let Some(Request { wanted: Wanted::Kernel(blueprint), .. }) = book.requests.get(id) {
            let again = Again {
                blueprint: blueprint.clone(),
                times: 0,
                due: Instant::now(),
                instead_of: id.to_owned(),
            };
            drop(book);
            lock(&self.shared.again).push_back(again);
        }
    }

    /// Ends both threads and hands out the books.
    pub fn end(mut self) -> Result<Book> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow!("the client panicked; its message stands above"))??;
        }
        Ok(std::mem::take(&mut *self.book()))
    }

    /// Whether a thread of it has ended before its time.
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What the publisher does next.
enum Next {
    Wait(Duration),
    New,
    Copy,
    Again(Again),
}

struct Publisher {
    shared: Arc<Shared>,
    port: u16,
    client: Option<Client>,
    random: ChaCha8Rng,
    seed: u64,
    /// Signed bytes of earlier requests, to copy.
    earlier: VecDeque<(Vec<u8>, String)>,
}

impl Publisher {
    fn run(mut self) -> Result<()> {
        let mut due = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.next(&mut due) {
                Next::Wait(pause) => std::thread::park_timeout(pause),
                Next::New => {
                    let wanted = self.draw();
                    self.request(wanted, None);
                }
                Next::Copy => self.copy(),
                Next::Again(again) => {
                    let wanted = Wanted::Kernel(again.blueprint.clone());
                    self.request(wanted, Some(again));
                }
            }
        }
        Ok(())
    }

    fn next(&mut self, due: &mut Instant) -> Next {
        let now = Instant::now();
        let mut again = lock(&self.shared.again);
        if let Some(at) = again.iter().position(|one| one.due <= now)
            && let Some(one) = again.remove(at)
        {
            return Next::Again(one);
        }
        drop(again);
        if self.shared.quiet.load(Ordering::Relaxed) {
            return Next::Wait(Duration::from_millis(5));
        }
        if now < *due {
            return Next::Wait((*due - now).min(Duration::from_millis(5)));
        }
        // After a time in which nothing could be sent there is no crowd of what is late.
        *due = (*due + Duration::from_secs(1) / RATE).max(now);
        match self.random.random_range(0..100) {
            0..8 if !self.earlier.is_empty() => Next::Copy,
            _ => Next::New,
        }
    }

    /// One in ten asks for what does not exist.
    fn draw(&mut self) -> Wanted {
        match self.random.random_range(0..10) {
            0 => Wanted::Nothing(format!("BP{}", self.random.random_range(900..999))),
            _ => Wanted::Kernel(format!("BP{:03}", self.random.random_range(1..=BUILT))),
        }
    }

    fn request(&mut self, wanted: Wanted, again: Option<Again>) {
        let number = self.shared.names.fetch_add(1, Ordering::Relaxed);
        let times = again.as_ref().map_or(0, |again| again.times);
        let id = format!("chaos-{}-{number}-{times}", self.seed);
        let payload = wire::prefetch_request(&id, wanted.blueprint(), wire::now_ms());
        let signature = wire::sign(&payload);
        {
            let mut book = lock(&self.shared.book);
            book.requests.insert(id.clone(), Request::new(wanted, Instant::now()));
            if let Some(again) = again
                && let Some(before) = book.requests.get_mut(&again.instead_of)
            {
                before.again = Some(id.clone());
            }
        }
        // The same bytes until Redis has said that it has them: a second copy is refused as one.
        while !self.shared.stop.load(Ordering::Relaxed) {
            if let Some(entry) = self.append(&payload, &signature) {
                let mut book = lock(&self.shared.book);
                if let Some(request) = book.requests.get_mut(&id) {
                    request.accepted = Some(Instant::now());
                    request.entries.push(entry);
                }
                break;
            }
            std::thread::park_timeout(PAUSE);
        }
        self.earlier.push_back((payload, signature));
        if self.earlier.len() > 50 {
            self.earlier.pop_front();
        }
    }

    fn copy(&mut self) {
        let at = self.random.random_range(0..self.earlier.len());
        let (payload, signature) = self.earlier[at].clone();
        if self.append(&payload, &signature).is_some() {
            lock(&self.shared.book).copies += 1;
        }
    }

    /// Appends once; `None` when Redis did not say that it has the entry.
    fn append(&mut self, payload: &[u8], signature: &str) -> Option<String> {
        if self.client.is_none() {
            self.client = Client::connect(self.port, PATIENCE).ok();
        }
        let words: [&[u8]; 7] = [
            b"XADD",
            REQUESTS.as_bytes(),
            b"*",
            b"payload",
            payload,
            b"signature",
            signature.as_bytes(),
        ];
        match self.client.as_mut()?.call(&words) {
            Ok(Reply::Text(id)) => Some(String::from_utf8_lossy(&id).into_owned()),
            Ok(_) => None,
            Err(_) => {
                self.client = None;
                None
            }
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    port: u16,
}

impl Reader {
    fn run(self) -> Result<()> {
        let (mut ready, mut errors) = ("0".to_owned(), "0".to_owned());
        let mut client: Option<Client> = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Some(connected) = &mut client else {
                client = Client::connect(self.port, PATIENCE).ok();
                if client.is_none() {
                    std::thread::park_timeout(PAUSE);
                }
                continue;
            };
            let line =
                format!("XREAD COUNT 500 BLOCK 200 STREAMS {READY} {ERRORS} {ready} {errors}");
            match connected.command(&line) {
                Ok(Reply::Error(_)) => std::thread::park_timeout(PAUSE),
                Ok(reply) => self.take(&reply, &mut ready, &mut errors),
                Err(_) => client = None,
            }
        }
        Ok(())
    }

    fn take(&self, reply: &Reply, ready: &mut String, errors: &mut String) {
        for stream in reply.list() {
            let [name, entries] = stream.list() else { continue };
            for entry in entries.list() {
                let [id, fields] = entry.list() else { continue };
                match name.bytes() == READY.as_bytes() {
                    true => *ready = id.text(),
                    false => *errors = id.text(),
                }
                self.note(&id.text(), fields);
            }
        }
    }

    fn note(&self, entry: &str, fields: &Reply) {
        let fields: BTreeMap<&[u8], &[u8]> =
            fields.list().chunks_exact(2).map(|pair| (pair[0].bytes(), pair[1].bytes())).collect();
        let (Some(payload), Some(signature)) =
            (fields.get(&b"payload"[..]), fields.get(&b"signature"[..]))
        else {
            return;
        };
        // Panics on a wrong signature and on bytes that are no message: then the service is broken.
        let (id, says) = match wire::answer(payload, signature) {
            Answer::Ready { request, path, checksum, .. } => {
                (request, Says::Ready { path, checksum })
            }
            Answer::Failed { request, reason, .. } => (request, Says::Failed(reason)),
            Answer::CatalogUpdate { .. } => return,
        };
        let at = Instant::now();
        let mut book = lock(&self.shared.book);
        let Some(request) = book.requests.get_mut(&id) else {
            book.strange += 1;
            return;
        };
        let is_first = request.answers.is_empty();
        request.answers.push(Answered {
            at,
            says: says.clone(),
            untimely: is_untimely(entry, payload),
        });
        if let (true, Wanted::Kernel(blueprint), Says::Failed(reason)) =
            (is_first, &request.wanted, &says)
            && may_ask_again(reason)
        {
            let times =
                id.rsplit('-').next().and_then(|times| times.parse::<u32>().ok()).unwrap_or(0) + 1;
            let pause = AGAIN_MIN.saturating_mul(1 << times.min(8)).min(AGAIN_MAX);
            let again = Again {
                blueprint: blueprint.clone(),
                times,
                due: at + pause,
                instead_of: id.clone(),
            };
            drop(book);
            if times <= AGAIN_TIMES {
                lock(&self.shared.again).push_back(again);
            }
        }
    }
}

/// Whether a reader that judges a message's time by its entry's would refuse it.
fn is_untimely(entry: &str, payload: &[u8]) -> bool {
    let Some(appended) = entry.split('-').next().and_then(|ms| ms.parse::<u64>().ok()) else {
        return true;
    };
    let Some(issued) =
        attribute(payload, "oona-issued-at-ms").and_then(|ms| ms.parse::<u64>().ok())
    else {
        return false;
    };
    appended.saturating_sub(issued) > OLD_MS_MAX || issued.saturating_sub(appended) > EARLY_MS_MAX
}

fn attribute(payload: &[u8], wanted: &str) -> Option<String> {
    wire::fields(payload).iter().find_map(|(number, value)| match value {
        wire::Field::Bytes(pair) if *number == 3 => {
            let pair = wire::fields(pair);
            (wire::text(&pair, 1) == wanted).then(|| wire::text(&pair, 2))
        }
        _ => None,
    })
}

/// Commands in one write of the forger.
const BATCH: u32 = 100;

/// Forged entries, ready to be sent: bad signatures over honest bytes, and plain rubbish.
#[derive(Debug)]
pub struct Forgeries {
    batches: Vec<Vec<u8>>,
}

impl Forgeries {
    /// Makes them, all of them different: signing takes longer than sending.
    pub fn make(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut batch = || {
            let mut request = Vec::new();
            for _ in 0..BATCH {
                let (bytes, signature) = forgery(&mut random, seed);
                let words: [&[u8]; 7] = [
                    b"XADD",
                    REQUESTS.as_bytes(),
                    b"*",
                    b"payload",
                    &bytes,
                    b"signature",
                    signature.as_bytes(),
                ];
                encode(&words, &mut request);
            }
            request
        };
        Self { batches: (0..50).map(|_| batch()).collect() }
    }

    /// Sends `count` of them, over and over, at most so many a second; returns how many Redis took.
    pub fn send(&self, port: u16, rate: u32, count: u32) -> Result<u64> {
        let mut client = Client::connect(port, Duration::from_secs(5))?;
        let begun = Instant::now();
        let mut taken = 0;
        for (number, batch) in (0..count / BATCH).zip(self.batches.iter().cycle()) {
            let due = begun + Duration::from_secs(1) * (number * BATCH) / rate;
            while let Some(ahead) =
                due.checked_duration_since(Instant::now()).filter(|ahead| !ahead.is_zero())
            {
                std::thread::park_timeout(ahead);
            }
            let replies = client.exchange(batch, BATCH)?;
            taken += replies.iter().filter(|reply| matches!(reply, Reply::Text(_))).count() as u64;
        }
        Ok(taken)
    }
}

fn forgery(random: &mut ChaCha8Rng, seed: u64) -> (Vec<u8>, String) {
    let kind = random.random_range(0..4);
    if kind == 0 {
        return ((0..80).map(|_| random.random()).collect(), "no signature at all".to_owned());
    }
    let id = format!("forged-{seed}-{}", random.random::<u64>());
    let bytes = wire::prefetch_request(&id, "BP001", wire::now_ms());
    let signature = if kind == 1 { wire::sign(id.as_bytes()) } else { wire::sign(&bytes[1..]) };
    (bytes, signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_judged_as_readers_do() {
        let message = |issued: u64| {
            let pair = [
                wire::bytes(1, b"oona-issued-at-ms"),
                wire::bytes(2, issued.to_string().as_bytes()),
            ]
            .concat();
            [wire::envelope(7, b""), wire::bytes(3, &pair)].concat()
        };
        assert!(!is_untimely("1000000-0", &message(1_000_000)));
        assert!(!is_untimely("1000000-0", &message(1_004_000)));
        assert!(is_untimely("1000000-0", &message(4_600_000)), "an hour ahead");
        assert!(is_untimely("4600000-0", &message(1_000_000)), "an hour behind");
        assert!(!is_untimely("1000000-0", &wire::envelope(7, b"")), "older programs say no time");
    }
}
