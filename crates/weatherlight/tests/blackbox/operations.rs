//! Operating a service from outside: looking at it, changing it, and reports about it that give no
//! secret away.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::redis::Server;
use crate::service::{Home, Service};
use crate::wire;

const TOKEN: &str = "planted-token-of-the-tests";
const URL_PASSWORD: &str = "planted-password-of-a-url";

/// A command with everything the service was given, secrets included.
fn command(home: &Home, redis: &Server, http: u16, arguments: &[&str]) -> Command {
    let mut command = home.command(arguments);
    command
        .env("REDIS_URL", redis.url())
        .env("ESPER_LEYLINE_SECRET", wire::SECRET)
        .env("WEATHERLIGHT_HTTP_TOKEN", TOKEN)
        .env("PROMETHEUS_PUSHGATEWAY", format!("http://push:{URL_PASSWORD}@127.0.0.1:9091"))
        .env("WEATHERLIGHT_HTTP_ADDR", format!("127.0.0.1:{http}"));
    command
}

fn run(home: &Home, redis: &Server, http: u16, arguments: &[&str]) -> (i32, String) {
    let (code, text) = home.run(&mut command(home, redis, http, arguments));
    for secret in [wire::SECRET, TOKEN, URL_PASSWORD] {
        assert!(!text.contains(secret), "{arguments:?} shows a secret: {text}");
    }
    (code, text)
}

fn json(home: &Home, redis: &Server, http: u16, arguments: &[&str]) -> Value {
    let (code, text) = run(home, redis, http, arguments);
    assert_eq!(code, 0, "{arguments:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

fn serve(home: &Home, redis: &Server) -> Service {
    home.serve_with(redis, |command| {
        command.env("WEATHERLIGHT_HTTP_TOKEN", TOKEN);
    })
}

/// Looks until a worker is in this state.
fn await_state(home: &Home, redis: &Server, http: u16, name: &str, wanted: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let shown = json(home, redis, http, &["workers", "show", name, "--json"]);
        if shown["state"] == wanted {
            return;
        }
        assert!(Instant::now() < end, "{name} is not {wanted}: {shown}");
    }
}

#[test]
fn an_operator_looks_at_a_service_and_changes_it() {
    let (redis, home) = (Server::start(), Home::new());
    let service = serve(&home, &redis);
    let http = service.http;

    // The first look at the log comes after the service is ready.
    let end = Instant::now() + Duration::from_secs(20);
    let status = loop {
        let status = json(&home, &redis, http, &["status", "--json"]);
        if status["lanes"].as_array().unwrap().len() == 3 {
            break status;
        }
        assert!(Instant::now() < end, "no backlogs: {status}");
    };
    assert_eq!((&status["system_mode"], &status["ready"]), (&"operational".into(), &true.into()));
    assert!(status["figures"]["published"].is_number() && status["board"]["kernels"].is_object());
    let (_, text) = run(&home, &redis, http, &["status"]);
    for words in ["operational, running, ready", "urza.prefetch", "oldest", "kernels:"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let (code, frame) = run(&home, &redis, http, &["top", "--once"]);
    assert_eq!(code, 0, "{frame}");
    for words in ["operational", "*urza.prefetch", "oldest unacknowledged", "q quit"] {
        assert!(frame.contains(words), "{words} in {frame}");
    }
    let (code, text) = run(&home, &redis, http, &["top"]);
    assert!(code == 2 && text.contains("--once"), "it needs a terminal: {code} {text}");

    // Beside the running service: its port is its own, its version is this one.
    let findings = json(&home, &redis, http, &["doctor", "--json"]);
    let of = |check: &str| {
        let found = findings.as_array().unwrap().iter().find(|one| one["check"] == check);
        found.unwrap_or_else(|| panic!("{check} in {findings}")).clone()
    };
    for check in ["secret", "http port", "service", "log", "catalogue", "spool", "dead letters"] {
        assert_eq!(of(check)["verdict"], "ok", "{}", of(check));
    }

    let name = "urza.maintenance";
    assert_eq!(json(&home, &redis, http, &["workers", "park", name, "--json"])["asked"], "park");
    await_state(&home, &redis, http, name, "parked");
    let (_, text) = run(&home, &redis, http, &["status"]);
    assert!(text.contains("degraded") && text.contains("lost: "), "{text}");
    let (_, text) = run(&home, &redis, http, &["workers", "show", name]);
    assert!(text.contains("parked by an operator"), "{text}");
    assert_eq!(run(&home, &redis, http, &["workers", "restart", name]).0, 0);
    await_state(&home, &redis, http, name, "running");

    for (arguments, exit, code) in [
        (["workers", "park", "urza.prefetch", "--json"], 65, "worker_critical"),
        (["workers", "restart", "nobody", "--json"], 65, "worker_unknown"),
        (["workers", "show", "nobody", "--json"], 65, "worker_unknown"),
    ] {
        let (found, text) = run(&home, &redis, http, &arguments);
        let error: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!((found, &error["error"]["code"]), (exit, &code.into()), "{text}");
        assert_eq!(error["error"]["exit"], exit);
    }
    let mut wrong = command(&home, &redis, http, &["workers", "restart", name, "--json"]);
    let (found, text) = home.run(wrong.env("WEATHERLIGHT_HTTP_TOKEN", "another token than that"));
    assert!(found == 78 && text.contains("\"bad_token\""), "{found} {text}");
    assert_eq!(service.terminate().code(), Some(0));

    let (found, text) = run(&home, &redis, http, &["status", "--json"]);
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((found, &error["error"]["code"]), (69, &"unavailable".into()), "{text}");
}

/// What a bundle holds, by the name within it.
fn unpacked(path: &std::path::Path) -> BTreeMap<String, String> {
    let file = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut parts = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        parts.insert(name, String::from_utf8_lossy(&content).into_owned());
    }
    parts
}

/// Makes a bundle, and demands that no secret is in it.
fn bundle(home: &Home, redis: &Server, http: u16, name: &str) -> BTreeMap<String, String> {
    let path = home.directory.path().join(name);
    let told = json(home, redis, http, &["bundle", "--json", "--output", name]);
    let parts = unpacked(&path);
    assert_eq!(told["parts"].as_array().unwrap().len(), parts.len());
    for (part, content) in &parts {
        for secret in [wire::SECRET, TOKEN, URL_PASSWORD] {
            assert!(!content.contains(secret), "{part} holds a secret");
        }
    }
    for part in ["README.txt", "about.json", "settings.json", "doctor.json", "machine.json"] {
        assert!(parts.contains_key(part), "{part} in {:?}", parts.keys());
    }
    assert!(parts["settings.json"].contains("push:********@"), "{}", parts["settings.json"]);
    parts
}

#[test]
fn a_bundle_holds_what_a_report_needs_and_no_secret() {
    let (redis, home) = (Server::start(), Home::new());
    let down = bundle(&home, &redis, crate::redis::free_port(), "down.tar.gz");
    assert!(down["health.json.error.txt"].contains("no service answers"), "{down:?}");
    assert!(down["bus.json"].contains("kernel_requests"));

    // A message whose sender put the secret where it does not belong.
    let mut client = redis.client();
    client.call(&[
        b"XADD",
        b"oona.deadletter",
        b"*",
        b"payload",
        wire::SECRET.as_bytes(),
        b"signature",
        b"x",
        b"reason",
        format!("cannot verify with {}", wire::SECRET).as_bytes(),
        b"attempts",
        b"5",
        b"origin_stream",
        b"oona.normal",
        b"entry_id",
        b"1-1",
        b"group",
        b"g",
    ]);
    let service = serve(&home, &redis);
    let up = bundle(&home, &redis, service.http, "up.tar.gz");
    for part in
        ["health.json", "metrics.txt", "state.json", "bus.json", "kernels.json", "files.txt"]
    {
        assert!(up.contains_key(part), "{part} in {:?}", up.keys());
    }
    assert!(up["logs.json"].contains("bus is open"), "{:?}", up.get("logs.json"));
    assert!(up["dead-letters.json"].contains("cannot verify with ********"));
    assert!(up["health.json"].contains("urza.prefetch") && up["metrics.txt"].ends_with("# EOF\n"));

    service.signal("-STOP");
    let hung = bundle(&home, &redis, service.http, "hung.tar.gz");
    service.signal("-CONT");
    let error = hung.get("health.json.error.txt").cloned().unwrap_or_default();
    assert!(error.contains("did not answer"), "{error:?} in {hung:?}");
    assert!(hung["doctor.json"].contains("hung"), "{}", hung["doctor.json"]);
    assert_eq!(service.terminate().code(), Some(0));
}

#[test]
fn json_is_printed_by_everything_that_prints() {
    let (redis, home) = (Server::start(), Home::new());
    let service = serve(&home, &redis);
    let commands: [&[&str]; 17] = [
        &["status"],
        &["top", "--once"],
        &["doctor"],
        &["workers", "list"],
        &["workers", "show", "urza.prefetch"],
        &["workers", "restart", "urza.maintenance"],
        &["kernels", "list"],
        &["kernels", "build", "BP001", "BP009"],
        &["bus", "stats"],
        &["bus", "tap", "--from-start", "--count", "1"],
        &["dlq", "list"],
        &["dlq", "purge", "--all", "--yes"],
        &["config", "check"],
        &["config", "show"],
        &["config", "schema"],
        &["explain"],
        &["explain", "bad_signature"],
    ];
    // Something to tap.
    crate::request(&mut redis.client(), "tapped", "BP001");
    for arguments in commands {
        json(&home, &redis, service.http, &[arguments, &["--json"]].concat());
    }
    let errors: [(&[&str], i32, &str); 6] = [
        (&["explain", "bad_signatur"], 65, "data"),
        (&["dlq", "show", "1-1"], 65, "data"),
        (&["kernels", "build", "BP999"], 78, "configuration"),
        (&["--set", "NONSENSE=1", "status"], 78, "configuration"),
        (&["nonsense"], 2, "usage"),
        (&["top", "--nonsense"], 2, "usage"),
    ];
    for (arguments, exit, code) in errors {
        let (found, text) = run(&home, &redis, service.http, &[arguments, &["--json"]].concat());
        let error: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"));
        assert_eq!((found, &error["error"]["code"]), (exit, &code.into()), "{arguments:?}: {text}");
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(service.terminate().code(), Some(0));
}
