//! Three services on one Redis and one library: they share the work, one of them does what one must do,
//! and when it ends another does, whether it was killed or asked to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::redis::{Client, Server, get, metric};
use crate::service::{Home, Service};
use crate::wire::Answer;
use crate::{Answers, REQUESTS, request};

const DUTIES: [&str; 3] = ["oona.housekeeping", "tezzeret.forge", "urza.maintenance"];
/// A killed holder is followed within 5 s, one that stops within 1 s, on a machine with time to spare. A busy one may take
/// longer, a broken lease takes for ever.
const FAILOVER_MAX: Duration = Duration::from_secs(20);
/// Far beyond what anything else takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what another process shows and has no event for.
fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    began.elapsed()
}

/// Which of these services say that they hold a duty.
fn holders(services: &[Service], duty: &str) -> Vec<u32> {
    let label = format!("lease=\"{duty}\"");
    let holds = |service: &&Service| metric(service.http, "oona_lease_held", &[&label]) > 0.0;
    services.iter().filter(holds).map(Service::id).collect()
}

/// Every duty has one holder, and everybody knows who it is.
fn settled(services: &[Service]) -> bool {
    DUTIES.iter().all(|duty| {
        let [holder] = holders(services, duty)[..] else { return false };
        services.iter().all(|service| {
            let health: serde_json::Value =
                serde_json::from_str(&get(service.http, "/healthz").1).unwrap();
            let leases = health["leases"].as_array().unwrap();
            // A service shows what it has looked at, and knows no holder before it has seen one.
            let shown = leases.iter().find(|lease| lease["name"] == *duty);
            let Some(shown) = shown else { return false };
            let name = shown["holder"].as_str();
            let named = name.is_some_and(|name| name.ends_with(&format!("/{holder}")));
            named && shown["mine"] == (service.id() == holder)
        })
    })
}

/// The phase that a worker of this service reports.
fn phase(service: &Service, worker: &str) -> String {
    let health: serde_json::Value = serde_json::from_str(&get(service.http, "/healthz").1).unwrap();
    let workers = health["workers"].as_array().unwrap();
    let found = workers.iter().find(|one| one["name"] == worker).unwrap();
    found["last_phase"].as_str().unwrap_or_default().to_owned()
}

fn compiled(services: &[Service]) -> f64 {
    let count = |one: &Service| metric(one.http, "tezzeret_jobs_total", &["outcome=\"Compiled\""]);
    services.iter().map(count).sum()
}

/// Sends requests, numbered from there.
fn send(client: &mut Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        request(client, &format!("request-{number}"), &format!("BP{:03}", number % 18 + 1));
    }
}

/// Every answer to these requests, as far as they have been given when the last one is.
fn collect(
    answers: &mut Answers,
    known: &mut BTreeMap<String, Vec<Answer>>,
    numbers: std::ops::Range<usize>,
) {
    while numbers.clone().any(|number| !known.contains_key(&format!("request-{number}"))) {
        for answer in answers.next() {
            if let Answer::Ready { request, .. } | Answer::Failed { request, .. } = &answer {
                known.entry(request.clone()).or_default().push(answer);
            }
        }
    }
}

#[test]
fn three_services_share_the_work_and_one_follows_another() {
    let redis = Server::start();
    let home = Home::new();
    let mut client = redis.client();
    let mut services: Vec<Service> =
        ["one", "two", "three"].iter().map(|replica| home.serve_as(&redis, replica)).collect();
    let mut answers = Answers::new(&redis);
    let mut known = BTreeMap::new();

    // Shared: each takes what it can; alone: the catalogue is compiled once.
    until("one holder of each duty", || settled(&services));
    send(&mut client, 0..300);
    collect(&mut answers, &mut known, 0..300);
    let served = karn::catalogue().iter().filter(|blueprint| blueprint.graftable()).count() as f64;
    until("the whole catalogue is compiled", || compiled(&services) >= served);
    assert_eq!(compiled(&services), served, "nothing is compiled twice");
    let [forge] = holders(&services, "tezzeret.forge")[..] else { panic!("one holds it") };
    until("the others say that they stand by", || {
        services
            .iter()
            .filter(|one| one.id() != forge)
            .all(|one| phase(one, "tezzeret.forge") == "standby")
    });

    // Killed: within five seconds another has each of its duties.
    let held: Vec<&str> =
        DUTIES.into_iter().filter(|duty| holders(&services, duty) == [forge]).collect();
    assert!(!held.is_empty());
    send(&mut client, 300..400);
    let at = services.iter().position(|one| one.id() == forge).unwrap();
    let victim = services.remove(at);
    let killed = Instant::now();
    victim.kill();
    send(&mut client, 400..500);
    until("another holds what the killed one held", || {
        held.iter().all(|duty| holders(&services, duty).len() == 1)
    });
    let took = killed.elapsed();
    println!("{held:?} failed over {took:?} after kill -9");
    assert!(took < FAILOVER_MAX, "{held:?} failed over after {took:?}");
    collect(&mut answers, &mut known, 300..500);
    until("everybody knows who", || settled(&services));

    // Asked to stop under load: at once, and nothing is answered twice.
    let [leaver] = holders(&services, "oona.housekeeping")[..] else { panic!("one holds it") };
    let at = services.iter().position(|one| one.id() == leaver).unwrap();
    let leaving = services.remove(at);
    let before: BTreeSet<String> = known.keys().cloned().collect();
    send(&mut client, 500..800);
    let asked = Instant::now();
    let status = leaving.terminate();
    assert_eq!(status.code(), Some(0));
    let stopped = Instant::now();
    send(&mut client, 800..900);
    collect(&mut answers, &mut known, 500..900);
    println!("stopped after {:?}, all answered after {:?}", stopped - asked, asked.elapsed());
    let took = stopped.elapsed();
    assert!(took < FAILOVER_MAX, "the last was answered {took:?} after the stop");
    until("the last one holds everything", || {
        DUTIES.iter().all(|duty| holders(&services, duty).len() == 1)
    });
    let took = stopped.elapsed();
    println!("all duties handed over {took:?} after the stop");
    assert!(took < FAILOVER_MAX, "handed over after {took:?}");
    for (id, given) in &known {
        assert!(given.iter().all(|one| one == &given[0]), "{id}: {given:?}");
        assert!(matches!(given[0], Answer::Ready { .. }), "{id}: {given:?}");
        if !before.contains(id) {
            assert_eq!(given.len(), 1, "{id} was answered twice by an orderly stop");
        }
    }

    // It does the work: what the others left in the log is cleared away.
    let [last] = &services[..] else { panic!("one is left") };
    let names = |client: &mut Client| {
        let reply = client.command(&format!("XINFO CONSUMERS {REQUESTS} weatherlight"));
        reply.list().len()
    };
    until("the names of those that are gone are removed", || names(&mut client) == 1);
    let refused = metric(last.http, "oona_refused_total", &["reason=\"replay\""]);
    assert_eq!(refused, 0.0, "a redelivery is no replay");
    let pending = client.command(&format!("XPENDING {REQUESTS} weatherlight"));
    assert_eq!(pending.list()[0].number(), 0);
    assert_eq!(services.remove(0).terminate().code(), Some(0));
}
