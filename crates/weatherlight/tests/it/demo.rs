//! The demo from outside: it needs nothing, ends by itself and leaves a report.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use rustix::process::Signal;

use crate::bed::Bed;

const SHORT: [&str; 4] = ["demo", "--task", "xor", "--no-compare"];

fn demo(bed: &Bed) -> Output {
    bed.command(&SHORT).env_remove("ESPER_LEYLINE_SECRET").output().unwrap()
}

#[track_caller]
fn said(output: &Output, expected: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in expected {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn it_grows_a_network_and_a_second_start_finds_its_kernels() {
    let bed = Bed::new();
    let first = demo(&bed);
    let served = karn::catalogue().iter().filter(|blueprint| blueprint.graftable()).count();
    let ready = format!("{served} kernels ready");
    said(&first, &["made one for this demo", &ready, "BP009", "kept", "report.html"]);
    let report = std::fs::read_to_string(bed.path().join("report.html")).unwrap();
    assert!(report.contains("<svg"), "the report has plots");
    let secret = std::fs::metadata(bed.path().join("var/demo-secret")).unwrap();
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);

    let runs = bed.path().join("var/tolaria/checkpoints");
    let kept: Vec<_> = std::fs::read_dir(runs).unwrap().map(|run| run.unwrap().path()).collect();
    let [run] = kept.as_slice() else { panic!("one directory per run, not {kept:?}") };
    said(&first, &["checkpoint.safetensors"]);
    let checkpoint = tolaria::Checkpoint::read(&tolaria::Checkpoint::path(run)).unwrap();
    assert!(run.ends_with(&checkpoint.run), "{run:?} holds {}", checkpoint.run);
    let names: Vec<_> = checkpoint.params.iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name.starts_with("slot-a")), "grown weights in {names:?}");

    let ready = format!("{served} kernels ready ({served} were compiled before)");
    said(&demo(&bed), &["using the one", &ready]);
}

#[test]
fn the_same_seed_gives_the_same_curve() {
    let run = || {
        let bed = Bed::new();
        let mut command = bed.command(&["--json", "demo", "--epochs", "90", "--seed", "3"]);
        let output = command.arg("--no-compare").output().unwrap();
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let figures = |name: &str| (result[name]["accuracy"].clone(), result[name]["loss"].clone());
        (result["repeatable"].clone(), figures("before"), figures("grown"))
    };
    let (first, second) = (run(), run());
    assert_eq!(first.0, true, "a kernel came late");
    assert_eq!(first, second);
}

#[test]
fn it_stays_until_it_is_told_to_go() {
    let bed = Bed::new();
    let mut command = bed.command(&SHORT);
    let running = bed.start_until(command.arg("--stay"), "the page stays up");
    assert_eq!(bed.get("/readyz").0, 200);
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_taken_port_is_no_hindrance() {
    let bed = Bed::new();
    let _taken = TcpListener::bind(bed.address).unwrap();
    said(&demo(&bed), &["is taken: the page is on another port"]);
}

#[test]
fn a_bad_row_names_file_line_and_column_and_starts_nothing() {
    let bed = Bed::new();
    bed.write("bad.csv", "a,b,kind\n1,2,x\n3,four,y\n");
    let output = bed.run(&["demo", "--data", "bad.csv", "--label", "kind"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(65), "{message}");
    assert!(message.contains("bad.csv, line 3, column b"), "{message}");
    assert!(!bed.path().join("var").exists());
}

#[test]
fn training_against_a_service_needs_redis() {
    let output = Bed::new().run(&["train"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("REDIS_URL"));
}

#[test]
fn kernels_are_built_once() {
    let bed = Bed::new();
    said(&bed.run(&["kernels", "build", "BP001"]), &["BP001 compiled in"]);
    said(&bed.run(&["kernels", "build", "bp001"]), &["BP001 was there"]);
    said(&bed.run(&["kernels", "list"]), &["BP001", "1 kernels"]);
    assert_eq!(bed.run(&["kernels", "build", "BP999"]).status.code(), Some(78));
}
