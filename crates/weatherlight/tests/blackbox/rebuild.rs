//! Artifacts that are damaged on disk while the service runs, or before it does: they are never handed out, they are
//! built anew with the same bytes, and whoever asked is answered.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::library::flip;
use crate::redis::{Server, metric};
use crate::service::Home;
use crate::wire::{Answer, sha256_hex};
use crate::{Answers, request};

/// Far beyond what anything here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(180);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A request waits for a rebuild as long as the settings admit, however busy the machine is.
fn patient(command: &mut Command) {
    command.env("URZA_COMPILING_AFTER_MS", "60000");
}

fn kernels(home: &Home, arguments: &[&str], code: i32) -> Value {
    let mut command = home.command(&[&["kernels"], arguments, &["--json"]].concat());
    let (found, text) = home.run(&mut command);
    assert_eq!(found, code, "{arguments:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Digests of the active kernels at a site.
fn active(home: &Home, site: &str) -> Vec<String> {
    let listed = kernels(home, &["list", "--state", "active", "--site", site], 0);
    let digest = |one: &Value| one["checksum"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(digest).collect()
}

fn ready(answers: &mut Answers, wanted: &str) -> (PathBuf, String) {
    match answers.to(wanted) {
        Answer::Ready { path, checksum, .. } => (path.into(), checksum),
        other => panic!("{wanted}: {other:?}"),
    }
}

fn is_sound(path: &PathBuf, checksum: &str) -> bool {
    fs::read(path).is_ok_and(|contents| sha256_hex(&contents) == checksum)
}

#[test]
fn a_corrupt_artifact_is_quarantined_rebuilt_and_answered_when_it_is_back() {
    let redis = Server::start();
    let home = Home::new();
    let service = home.serve_with(&redis, patient);
    let (mut client, mut answers) = (redis.client(), Answers::new(&redis));
    request(&mut client, "before", "BP001");
    let (path, checksum) = ready(&mut answers, "before");

    flip(&path);
    for asked in ["first", "second"] {
        request(&mut client, asked, "BP001");
    }
    let mut answered: BTreeMap<String, (PathBuf, String)> = BTreeMap::new();
    while answered.len() < 2 {
        for answer in answers.next() {
            match answer {
                Answer::Ready { request, path, checksum, .. } => {
                    answered.insert(request, (path.into(), checksum));
                }
                Answer::Failed { .. } => panic!("{answer:?}"),
                Answer::CatalogUpdate { .. } => {}
            }
        }
    }
    for asked in ["first", "second"] {
        assert_eq!(answered[asked], (path.clone(), checksum.clone()), "{asked}: the same kernel");
    }
    assert!(is_sound(&path, &checksum));
    let quarantine = home.directory.path().join("var/urza/artifacts/quarantine");
    assert_eq!(fs::read_dir(quarantine).unwrap().count(), 1, "what was corrupt is kept");

    // Gone altogether.
    fs::remove_file(&path).unwrap();
    request(&mut client, "third", "BP001");
    assert_eq!(ready(&mut answers, "third"), (path.clone(), checksum.clone()));
    assert!(is_sound(&path, &checksum));
    let errors = metric(service.http, "urza_prefetch_answers_total", &["outcome=\"Error\""]);
    assert_eq!(errors, 0.0);
    assert_eq!(service.terminate().code(), Some(0));
}

#[test]
fn what_verify_repairs_is_back_without_a_request() {
    let redis = Server::start();
    let home = Home::new();
    const SITE: &str = "vector[8]";
    // No default of the catalogue, which a start would bring in any case.
    kernels(&home, &["build", "BP001", "--site", SITE], 0);
    let before = active(&home, SITE);
    let shown = kernels(&home, &["show", &before[0]], 0);
    let path = home.directory.path().join(shown["path"].as_str().unwrap());
    flip(&path);
    let told = kernels(&home, &["verify", "--repair"], 1);
    assert_eq!(told[0]["rebuild"], "ordered", "{told}");
    assert_eq!(active(&home, SITE), [""; 0]);

    // The order waits for a service that is started later.
    let service = home.serve_with(&redis, patient);
    until("it is back after the start", || {
        is_sound(&path, &before[0]) && active(&home, SITE) == before
    });

    // And a service that runs takes it up.
    let tickets = home.directory.path().join("var/urza/forge/jobs");
    let is_settled = || {
        let mut names = fs::read_dir(&tickets).unwrap().map(|entry| entry.unwrap().path());
        !names.any(|path| path.extension().is_some_and(|found| found == "json"))
    };
    until("the first order is settled", is_settled);
    flip(&path);
    let told = kernels(&home, &["verify", &before[0], "--repair"], 1);
    assert_eq!(told[0]["rebuild"], "ordered", "{told}");
    until("it is back", || is_sound(&path, &before[0]) && active(&home, SITE) == before);
    assert_eq!(kernels(&home, &["verify", &before[0]], 0)[0]["outcome"], "sound");
    until("the second order is settled", is_settled);
    assert_eq!(service.terminate().code(), Some(0));
}
