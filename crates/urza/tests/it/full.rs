//! A disk that is full in mid-write. What is used up is the process's own limit on a file's size
//! (`RLIMIT_FSIZE`), which the system reports as it reports a full disk, and which needs no rights to
//! set: each test runs itself again under a shell that sets it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use kernel::Digest;
use urza::store::Store;
use urza::{FetchError, Remedy, StoreError};

use crate::servers::S3;
use crate::support::count;

const UNDER_A_LIMIT: &str = "URZA_TEST_UNDER_A_LIMIT";
const LIMIT: Duration = Duration::from_secs(60);
/// What a file may have there: 100 blocks of 512 bytes.
const ROOM: usize = 51_200;

/// Runs a test of this program again, where no file may grow beyond [`ROOM`].
fn under_a_limit(test: &str) {
    let output = Command::new("sh")
        // Without the trap the system would end the process instead of reporting an error.
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(UNDER_A_LIMIT, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

fn is_under_a_limit() -> bool {
    std::env::var_os(UNDER_A_LIMIT).is_some()
}

fn bytes(len: usize) -> Bytes {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Nothing but the directories, however deep.
fn files_below(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_behind_and_what_was_there_stays() {
    if !is_under_a_limit() {
        return under_a_limit("full::a_full_disk_leaves_nothing_behind_and_what_was_there_stays");
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), None, 1 << 30, LIMIT).await.unwrap();
    let kept = store.put(bytes(ROOM)).await.unwrap();
    let before = files_below(dir.path());
    for _ in 0..2 {
        let full = store.put(bytes(ROOM + 1)).await.unwrap_err();
        let StoreError::Full { directory, wanted, free, .. } = &full else { panic!("{full:?}") };
        assert!(directory.starts_with(dir.path().canonicalize().unwrap()));
        assert_eq!(*wanted, ROOM as u64 + 1);
        assert!(*free > 0, "the file system itself has room");
        let text = full.to_string();
        assert!(text.contains(&wanted.to_string()) && text.contains("make room"), "{text}");
    }
    assert_eq!(files_below(dir.path()), before);
    assert_eq!(count(&dir.path().join("tmp")), 0);
    store.fetch(&kept, ROOM as u64).await.unwrap();
    // What fits is stored as before.
    store.put(bytes(ROOM - 1)).await.unwrap();
}

#[tokio::test]
async fn a_full_cache_says_so_and_the_bucket_keeps_its_own() {
    if is_under_a_limit() {
        let directory = std::env::var_os("URZA_TEST_CACHE").unwrap();
        let digest = Digest::of(bytes(ROOM + 1));
        let access = urza::store::BucketAccess {
            endpoint: std::env::var("URZA_TEST_ENDPOINT").ok(),
            key_id: Some(crate::servers::KEY.to_owned()),
            secret_key: Some(crate::servers::SECRET.to_owned()),
            ..urza::store::BucketAccess::default()
        };
        let url = urza::store::BucketUrl::parse("s3://kernels/team/a").unwrap();
        let config = urza::store::BucketConfig::new(url, access);
        let directory = Path::new(&directory);
        let store = Store::open(directory, Some(config), 1 << 30, LIMIT).await.unwrap();
        let full = store.fetch(&digest, ROOM as u64 + 1).await.unwrap_err();
        assert!(matches!(full, FetchError::Full { .. }), "{full:?}");
        assert_eq!(full.remedy(), Remedy::Retry);
        assert_eq!(count(&directory.join("tmp")), 0);
        // The bucket takes it, and only the cache does without.
        assert_eq!(store.put(bytes(ROOM + 1)).await.unwrap(), digest);
        return;
    }
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    let elsewhere = dir.path().join("elsewhere");
    let store = Store::open(&elsewhere, Some(s3.config()), 1 << 30, LIMIT).await.unwrap();
    let digest = store.put(bytes(ROOM + 1)).await.unwrap();
    // The child finds the server, which has no limit, by its environment.
    let cache = dir.path().join("cache");
    let child = tokio::task::spawn_blocking(move || {
        Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "full::a_full_cache_says_so_and_the_bucket_keeps_its_own",
                "--nocapture",
            ])
            .env(UNDER_A_LIMIT, "yes")
            .env("URZA_TEST_CACHE", cache)
            .env("URZA_TEST_ENDPOINT", format!("http://{}", s3.proxy.address))
            .output()
            .map(|output| (output, s3))
    });
    let (output, _s3) = child.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
    store.fetch(&digest, ROOM as u64 + 1).await.unwrap();
}
