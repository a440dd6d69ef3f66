//! SIGTERM with a thousand requests in flight, and what becomes of them after the next start.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Figure;
use super::client::Client;
use super::life::milliseconds;
use super::process::{Home, Redis};
use super::wire::{Answer, answer, now_ms, prefetch_request, sign};

const REQUESTS: usize = 1_000;
const STREAM: &str = "oona.kernels.requests";
const STOP_MS: f64 = 2_000.0;
/// How long the next start may take to answer what is left.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn measure(program: &Path, redis: &Redis, runs: usize) -> Result<Vec<Figure>> {
    let home = Home::new(Some(redis))?;
    home.compile_catalogue(program)?;
    let mut client = redis.client()?;
    let mut answers = Answers::new(redis.client()?);
    let (mut stops, mut before, mut rest) = (vec![], vec![], vec![]);
    let (mut lost, mut twice) = (vec![], vec![]);
    for run in 0..runs {
        let (service, _) = home.start(program)?;
        answers.forget();
        // Frozen, so that all of them are there when the first is handled.
        service.freeze()?;
        for number in 0..REQUESTS {
            // Four in five of what is built, one of what does not exist.
            let blueprint = match number % 5 {
                4 => "BP999".to_owned(),
                _ => format!("BP{:03}", number % 18 + 1),
            };
            let payload = prefetch_request(&format!("{run}-{number}"), &blueprint, now_ms());
            client.add(STREAM, &payload, &sign(&payload));
        }
        service.thaw()?;
        let deadline = Instant::now() + PATIENCE;
        while answers.of.is_empty() {
            ensure!(Instant::now() < deadline, "nothing is answered");
            answers.read();
        }
        stops.push(milliseconds(service.stop()?));
        answers.read();
        before.push(answers.of.len() as f64);
        let (service, _) = home.start(program)?;
        let started = Instant::now();
        let deadline = started + PATIENCE;
        while answers.of.len() < REQUESTS && Instant::now() < deadline {
            answers.read();
            std::thread::park_timeout(Duration::from_millis(20));
        }
        rest.push(milliseconds(started.elapsed()));
        // What comes now would come twice.
        service.stop()?;
        answers.read();
        lost.push((REQUESTS - answers.of.len()) as f64);
        twice.push(answers.of.values().filter(|told| told.len() > 1).count() as f64);
        for (request, told) in &answers.of {
            let same = told.iter().all(|other| other == &told[0]);
            ensure!(same, "two answers to {request} that differ: {told:?}");
        }
    }
    let name = |what: &str| format!("SIGTERM with {REQUESTS} requests in flight: {what}");
    Ok(vec![
        Figure::new(name("exit"), "ms", stops).target(STOP_MS),
        Figure::new(name("answered before the exit"), "", before),
        Figure::new(name("the rest answered after the next start"), "ms", rest),
        Figure::new(name("lost after the next start"), "", lost).target(0.0),
        Figure::new(name("answered twice, alike"), "", twice),
    ])
}

/// Everything on the two answer streams, by request.
struct Answers {
    client: Client,
    ready: String,
    errors: String,
    of: BTreeMap<String, Vec<Answer>>,
}

impl Answers {
    fn new(client: Client) -> Self {
        Self { client, ready: "0".to_owned(), errors: "0".to_owned(), of: BTreeMap::new() }
    }

    fn forget(&mut self) {
        self.read();
        self.of.clear();
    }

    /// Reads what is there, without waiting.
    fn read(&mut self) {
        let (ready, errors) = (self.ready.clone(), self.errors.clone());
        let reply = self.client.call(&[
            b"XREAD",
            b"STREAMS",
            b"oona.kernels.ready",
            b"oona.kernels.errors",
            ready.as_bytes(),
            errors.as_bytes(),
        ]);
        for stream in reply.list() {
            let [name, entries] = stream.list() else { panic!("XREAD answers pairs") };
            for entry in entries.list() {
                let [id, pairs] = entry.list() else { panic!("an entry is a pair") };
                let id = String::from_utf8_lossy(id.bytes()).into_owned();
                match name.bytes() {
                    b"oona.kernels.ready" => self.ready = id,
                    _ => self.errors = id,
                }
                let pairs: BTreeMap<&[u8], &[u8]> =
                    pairs.list().chunks(2).map(|pair| (pair[0].bytes(), pair[1].bytes())).collect();
                let told = answer(pairs[&b"payload"[..]], pairs[&b"signature"[..]]);
                if let Answer::Ready { request, .. } | Answer::Failed { request, .. } = &told {
                    self.of.entry(request.clone()).or_default().push(told);
                }
            }
        }
    }
}
