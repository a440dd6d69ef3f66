//! The service as a process: up, watched, reloaded, stopped.

use rustix::process::Signal;

use crate::bed::Bed;

#[test]
fn it_starts_shows_itself_and_stops_cleanly() {
    let bed = Bed::new();
    let running = bed.start(&mut bed.command(&["serve"]));
    assert_eq!(bed.get("/livez").0, 200);
    let (status, metrics) = bed.get("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("weatherlight_uptime_seconds"), "{metrics}");

    let output = bed.run(&["status", "--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "a check that succeeds is silent"
    );

    let output = bed.run(&["status", "--json"]);
    let health: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(health["log"], "embedded");
    for worker in health["workers"].as_array().unwrap() {
        assert_ne!(worker["function"], "", "what is lost without it? {worker}");
    }
    let output = bed.run(&["workers", "list"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("oona.emergency") && table.contains("running"), "{table}");

    running.signal(Signal::TERM);
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("service has stopped"), "{log}");
}

#[test]
fn the_old_program_name_serves_too() {
    let bed = Bed::new();
    let program = env!("CARGO_BIN_EXE_esper-weatherlight-service");
    let running = bed.start(&mut bed.program(program, &[]));
    running.signal(Signal::INT);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_worker_is_restarted_by_an_operator_who_has_the_token() {
    let bed = Bed::new();
    let token = "a token of the tests, long enough";
    let mut running = bed.start(bed.command(&["serve"]).env("WEATHERLIGHT_HTTP_TOKEN", token));
    let restart = |token: Option<&str>| {
        let mut command = bed.command(&["workers", "restart", "weatherlight.telemetry"]);
        token.map(|token| command.env("WEATHERLIGHT_HTTP_TOKEN", token));
        command.output().unwrap().status.code()
    };
    assert_eq!(restart(None), Some(78));
    assert_eq!(restart(Some("another token, also long enough")), Some(78));
    assert_eq!(restart(Some(token)), Some(0));
    running.wait_for("restart asked for");
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_reload_takes_what_is_valid_and_refuses_what_is_not() {
    let bed = Bed::new();
    bed.write("weatherlight.toml", "[log]\nlevel = \"info\"\n");
    let mut running = bed.start(&mut bed.command(&["serve"]));
    bed.write("weatherlight.toml", "[log]\nlevel = \"debug\"\n[oona]\nmax_attempts = 7\n");
    running.signal(Signal::HUP);
    assert!(running.wait_for("took effect").contains("ESP_LOG_LEVEL"));
    assert!(running.wait_for("needs a restart").contains("OONA_MAX_ATTEMPTS"));
    running.wait_for("settings reloaded");

    bed.write("weatherlight.toml", "[log]\nlevel = 5\n");
    running.signal(Signal::HUP);
    assert!(running.wait_for("the old ones stay").contains("log.level"));
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn two_services_do_not_share_one_embedded_log() {
    let bed = Bed::new();
    let running = bed.start(&mut bed.command(&["serve"]));
    let second = bed.run(&["serve", "--set", "WEATHERLIGHT_HTTP_ADDR=127.0.0.1:0"]);
    let log = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(69), "{log}");
    assert!(log.contains("in use"), "{log}");
    drop(running);
}

#[test]
fn state_survives_a_kill() {
    let bed = Bed::new();
    let running = bed.start(&mut bed.command(&["serve"]));
    running.signal(Signal::KILL);
    assert_eq!(running.end().0, None);
    let running = bed.start(&mut bed.command(&["serve"]));
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}
