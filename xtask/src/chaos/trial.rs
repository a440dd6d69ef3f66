//! One trial: a Redis, services, a client, a fault in the middle, and the books at the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;

use super::book::{Book, Says, Tally};
use super::client::Reply;
use super::place::Place;
use super::server::{Server, Sync};
use super::service::Service;
use super::traffic::Traffic;
use super::wire;

/// Between two looks at everything.
const TURN: Duration = Duration::from_millis(5);
/// How long the last answers may take once nothing new is sent.
const SETTLE_MAX: Duration = Duration::from_secs(75);
/// How long an orderly stop may take.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How a row ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the books say.
    pub tally: Tally,
    /// Why it did not come to rest, if so.
    pub unsettled: Option<String>,
    /// Entries that services refused, as far as they were seen alive.
    pub refused: u64,
    /// Copies and forged entries that were sent to be refused.
    pub to_refuse: u64,
    /// Services killed by the trial.
    pub kills: usize,
    /// Ends of services that nobody asked for.
    pub crashes: Vec<String>,
    /// What was otherwise than the row says.
    pub note: Option<String>,
    /// Longest time from a start to readiness.
    pub boot: Option<Duration>,
}

impl Outcome {
    /// Whether everything that was promised was kept.
    pub fn is_good(&self) -> bool {
        self.tally.is_good() && self.unsettled.is_none()
    }
}

/// What a row works with.
pub struct Trial<'a> {
    /// The run's directory and programs.
    pub place: &'a Place,
    /// This row's directory.
    pub directory: PathBuf,
    /// Seeded for this row.
    pub random: ChaCha8Rng,
    /// The log.
    pub redis: Server,
    /// The services.
    pub services: Vec<Service>,
    /// The client.
    pub traffic: Traffic,
    /// When faults ended.
    pub ends: Vec<Instant>,
    /// Redis itself may lose what it acknowledged in this row.
    pub redis_may_forget: bool,
    /// What was otherwise than the row says.
    pub note: Option<String>,
    boot: Option<Duration>,
}

impl<'a> Trial<'a> {
    /// Starts Redis and the client; services are added by the row.
    pub fn begin(place: &'a Place, row: &str, seed: u64, sync: Sync) -> Result<Self> {
        let directory = place.directory.join(row);
        fs::create_dir_all(&directory)?;
        let redis = Server::start(place, directory.join("redis"), sync)?;
        let traffic = Traffic::start(redis.port, seed);
        Ok(Self {
            place,
            directory,
            random: ChaCha8Rng::seed_from_u64(seed ^ 0x6661_756c_7473),
            redis,
            services: Vec::new(),
            traffic,
            ends: Vec::new(),
            redis_may_forget: false,
            note: None,
            boot: None,
        })
    }

    /// Adds a service with its own directory.
    pub fn add_service(&mut self) -> Result<&mut Service> {
        let home = self.directory.join(format!("service-{}", self.services.len()));
        self.add_service_at(home)
    }

    /// The same with this directory.
    pub fn add_service_at(&mut self, home: PathBuf) -> Result<&mut Service> {
        let log = self.directory.join(format!("service-{}.log", self.services.len()));
        self.services.push(Service::new(self.place, home, log, self.redis.port)?);
        self.services.last_mut().context("just added")
    }

    /// Lets everything run until something holds.
    pub fn until(
        &mut self,
        patience: Duration,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            for service in &mut self.services {
                service.tend()?;
                self.boot = self.boot.max(service.boot);
            }
            ensure!(!self.traffic.is_broken(), "the client ended before its time");
            if holds(self)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not within {patience:?}: {what}");
            }
            // What is waited for are processes and sockets of several kinds; there is no one event.
            std::thread::park_timeout(TURN);
        }
    }

    /// Lets everything run for so long.
    pub fn run_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.until(time + TURN * 100, "time passes", |_| Ok(Instant::now() >= end))
    }

    /// Waits until all services are ready.
    pub fn until_ready(&mut self) -> Result<()> {
        let all = |trial: &mut Self| Ok(trial.services.iter().all(Service::is_ready));
        self.until(Duration::from_secs(60), "the services are ready", all)
    }

    /// A fault is over; from here on recovery is measured.
    pub fn fault_over(&mut self) {
        self.ends.push(Instant::now());
    }

    /// Sends nothing new, waits for the last answers, stops the services in order, and adds up.
    pub fn finish(mut self) -> Result<Outcome> {
        self.traffic.be_quiet();
        let mut checked = Instant::now();
        let settled = |trial: &mut Self| {
            if trial.redis_may_forget && checked.elapsed() > Duration::from_millis(500) {
                checked = Instant::now();
                trial.find_forgotten()?;
            }
            let tally = trial.traffic.book().judge(&[]);
            Ok(tally.lost == 0 && tally.unserved == 0 && trial.is_drained()?)
        };
        let in_time = self.until(SETTLE_MAX, "everything is answered and acknowledged", settled);
        for service in &mut self.services {
            service.look();
            service.keep = false;
            service.signal(Signal::TERM)?;
        }
        let stopped = |trial: &mut Self| Ok(!trial.services.iter().any(Service::runs));
        self.until(STOP_MAX, "an orderly stop", stopped)?;
        let book = self.traffic.end()?;
        let mut tally = book.judge(&self.ends);
        tally.wrong += kernels_at_fault(&book);
        Ok(Outcome {
            tally,
            unsettled: in_time.err().map(|error| format!("{error:#}")),
            refused: self.services.iter().map(Service::refused).sum(),
            to_refuse: book.copies + book.forged,
            kills: self.services.iter().map(Service::kills).sum(),
            crashes: self.services.iter().flat_map(Service::crashes).collect(),
            note: self.note,
            boot: self.boot,
        })
    }

    /// Nothing is pending or unread in the requests' group.
    fn is_drained(&self) -> Result<bool> {
        let mut client = self.redis.client()?;
        let groups = client.command("XINFO GROUPS oona.kernels.requests")?;
        let of = |group: &Reply, field: &str| {
            group
                .list()
                .chunks_exact(2)
                .find(|pair| pair[0].text() == field)
                .map(|pair| pair[1].clone())
        };
        let ours = Reply::Text(b"weatherlight".to_vec());
        let group = groups.list().iter().find(|group| of(group, "name").as_ref() == Some(&ours));
        Ok(group.is_some_and(|group| of(group, "pending") == Some(Reply::Number(0))))
    }

    /// Open requests of which Redis has no entry any more.
    fn find_forgotten(&self) -> Result<()> {
        let mut client = self.redis.client()?;
        let open: Vec<(String, Vec<String>)> = self
            .traffic
            .book()
            .open()
            .map(|(id, request)| (id.clone(), request.entries.clone()))
            .collect();
        for (id, entries) in open {
            let mut gone = true;
            for entry in entries {
                let found =
                    client.command(&format!("XRANGE oona.kernels.requests {entry} {entry}"))?;
                gone &= found.list().is_empty();
            }
            if gone {
                self.traffic.forgotten(&id);
            }
        }
        Ok(())
    }
}

/// Kernels whose last answer names a file that is not what it says.
fn kernels_at_fault(book: &Book) -> u64 {
    let mut last: BTreeMap<&str, (Instant, &Says)> = BTreeMap::new();
    for request in book.requests.values() {
        for answer in &request.answers {
            let blueprint = request.wanted.blueprint();
            let newer = last.get(blueprint).is_none_or(|(at, _)| *at < answer.at);
            if newer && matches!(answer.says, Says::Ready { .. }) {
                last.insert(blueprint, (answer.at, &answer.says));
            }
        }
    }
    let is_at_fault = |says: &Says| match says {
        Says::Ready { path, checksum } => {
            fs::read(path).map_or(true, |bytes| wire::sha256_hex(&bytes) != *checksum)
        }
        Says::Failed(_) => false,
    };
    last.values().filter(|(_, says)| is_at_fault(says)).count() as u64
}
