//! What stops a start: each with one message that names the fault and the remedy, and the exit code
//! of the specification.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::bed::{Bed, SECRET};

/// Runs `serve` and checks its exit code and what its message says.
#[track_caller]
fn refused(bed: &Bed, environment: &[(&str, &str)], code: i32, expected: &[&str]) {
    let mut command = bed.command(&["serve"]);
    for (name, value) in environment {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for text in expected {
        assert!(message.contains(text), "{text:?} is missing in\n{message}");
    }
    assert!(!message.contains(SECRET), "the secret is shown in\n{message}");
}

#[test]
fn a_missing_secret() {
    let names = ["secret", "ESPER_LEYLINE_SECRET_FILE", "openssl rand"];
    refused(&Bed::new(), &[("ESPER_LEYLINE_SECRET", "")], 78, &names);
}

#[test]
fn a_weak_secret() {
    let bed = Bed::new();
    refused(&bed, &[("ESPER_LEYLINE_SECRET", "hunter2")], 78, &["weak", "16 bytes"]);
    let output = bed.command(&["doctor"]).env("ESPER_LEYLINE_SECRET", "hunter2").output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("hunter2"));
}

#[test]
fn every_fault_of_the_settings_at_once() {
    let bed = Bed::new();
    bed.write("weatherlight.toml", "[oona]\nmax_attempt = 3\n[log]\nlevel = 7\n");
    bed.write(".env", "OONA_CLAIM_IDLE_MS=soon\n");
    let expected = [
        "4 faults",
        "weatherlight.toml:2:1: there is no setting oona.max_attempt; did you mean oona.max_attempts?",
        "weatherlight.toml:4:9: log.level must be",
        ".env:1: OONA_CLAIM_IDLE_MS must be a duration in ms",
        "environment variable TAMIYO_STEP_TIMEOUT_MS",
    ];
    refused(&bed, &[("TAMIYO_STEP_TIMEOUT_MS", "never")], 78, &expected);
}

#[test]
fn a_settings_file_that_is_not_there() {
    let output = Bed::new().run(&["--config", "nowhere.toml", "config", "check"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.toml"));
}

#[test]
fn a_redis_that_cannot_be_reached() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("redis://:hunter2@{closed}/0");
    let bed = Bed::new();
    refused(&bed, &[("REDIS_URL", &url)], 69, &["cannot be reached", "REDIS_URL", "********"]);
}

#[test]
fn a_directory_that_cannot_be_written() {
    let bed = Bed::new();
    bed.write("file", "in the way");
    let expected = ["cannot write to file/artifacts", "URZA_ARTIFACT_DIR"];
    refused(&bed, &[("URZA_ARTIFACT_DIR", "file/artifacts")], 78, &expected);
}

#[test]
fn a_port_that_is_taken() {
    let bed = Bed::new();
    let _taken = TcpListener::bind(bed.address).unwrap();
    refused(&bed, &[], 78, &["cannot listen", "WEATHERLIGHT_HTTP_ADDR"]);
}

#[test]
fn all_findings_are_reported_together() {
    let bed = Bed::new();
    let _taken = TcpListener::bind(bed.address).unwrap();
    bed.write("file", "in the way");
    let environment = [("ESPER_LEYLINE_SECRET", "short"), ("URZA_ARTIFACT_DIR", "file/artifacts")];
    refused(&bed, &environment, 78, &["weak", "file/artifacts", "cannot listen"]);
}

#[test]
fn status_without_a_service_says_how_to_start_one() {
    let output = Bed::new().run(&["status"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("weatherlight serve"));
}

#[test]
fn a_check_of_what_is_not_ready_says_why() {
    let bed = Bed::new();
    let checked = || {
        let output = bed.run(&["status", "--check"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.stdout.is_empty());
        (output.status.code(), message)
    };
    let (code, message) = checked();
    assert_eq!(code, Some(69));
    assert!(message.contains("weatherlight serve"), "{message}");

    let listener = TcpListener::bind(bed.address).unwrap();
    let body = r#"{"ready":false,"reasons":["the service is booting","the log is silent"]}"#;
    let service = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 512];
        let length = stream.read(&mut request).unwrap();
        assert!(request[..length].starts_with(b"GET /readyz "));
        write!(stream, "HTTP/1.0 503 Service Unavailable\r\n\r\n{body}").unwrap();
    });
    let (code, message) = checked();
    service.join().unwrap();
    assert_eq!(code, Some(69));
    assert!(message.contains("the service is booting; the log is silent"), "{message}");
}
