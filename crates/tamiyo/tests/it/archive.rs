//! Policies on disk: kept over restarts, damaged ones moved aside, and the way back.

use std::fs;
use std::path::{Path, PathBuf};

use tamiyo::{ArchiveError, Config, PolicyStore, Weights};

use crate::updates::{Desk, patient, payload};

fn config(dir: &Path) -> Config {
    Config::at(dir)
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir.join("policies")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths
        .filter(|path| path.file_name().unwrap().to_string_lossy().ends_with(ending))
        .collect();
    found.sort();
    found
}

fn patience(store: &PolicyStore) -> u32 {
    store.live().load().weights.plateau.patience_epochs
}

#[tokio::test]
async fn a_restart_finds_the_policy_and_what_it_may_not_fall_behind() {
    let dir = tempfile::tempdir().unwrap();
    {
        let desk = Desk::new(dir.path()).await;
        desk.take(payload(&patient(7), 3)).await;
        desk.take(payload(&patient(8), 4)).await;
    }
    let (store, damaged) = PolicyStore::open(&config(dir.path())).unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    assert_eq!(patience(&store), 8);
    assert_eq!(store.live().load().identity.sequence, 4);
    let previous = store.live().previous().unwrap();
    assert_eq!(previous.weights.plateau.patience_epochs, 7);
    drop(store);
    let desk = Desk::new(dir.path()).await;
    desk.refused(payload(&patient(9), 4), tamiyo::Rejection::StaleUpdate).await;
    assert_eq!(patience(&desk.store), 8);
}

#[tokio::test]
async fn only_the_two_policies_that_matter_stay_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(dir.path()).await;
    for sequence in 1..=5 {
        desk.take(payload(&patient(sequence), sequence.into())).await;
    }
    assert_eq!(files(dir.path(), ".safetensors").len(), 2);
    assert!(files(dir.path(), ".tmp").is_empty());
}

#[tokio::test]
async fn a_rollback_is_kept_and_what_it_left_cannot_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Desk::new(dir.path()).await;
    assert!(matches!(desk.store.rollback(), Err(ArchiveError::NothingEarlier)));
    desk.take(payload(&patient(7), 3)).await;
    desk.take(payload(&patient(8), 4)).await;
    let identity = desk.store.rollback().unwrap();
    assert_eq!((identity.sequence, patience(&desk.store)), (3, 7));
    desk.refused(payload(&patient(8), 4), tamiyo::Rejection::StaleUpdate).await;
    desk.take(payload(&patient(9), 5)).await;
    assert_eq!(patience(&desk.store), 9);
    desk.store.rollback().unwrap();
    drop(desk);
    let (store, _) = PolicyStore::open(&config(dir.path())).unwrap();
    assert_eq!(patience(&store), 7);
}

async fn kept(dir: &Path) {
    let desk = Desk::new(dir).await;
    desk.take(payload(&patient(7), 3)).await;
}

fn built_in() -> u32 {
    Weights::built_in(&tamiyo::Growth::default()).plateau.patience_epochs
}

#[tokio::test]
async fn a_damaged_policy_is_moved_aside_and_the_built_in_one_used() {
    for damage in [&b"not what it was"[..], b"", b"\x80\x04\x95"] {
        let dir = tempfile::tempdir().unwrap();
        kept(dir.path()).await;
        let file = files(dir.path(), ".safetensors").remove(0);
        fs::write(&file, damage).unwrap();
        let (store, damaged) = PolicyStore::open(&config(dir.path())).unwrap();
        assert_eq!(patience(&store), built_in());
        assert_eq!(damaged.len(), 1);
        assert_eq!(damaged[0].file, file);
        assert_eq!(fs::read(&damaged[0].moved_to).unwrap(), damage, "it is kept for a look");
        assert!(!file.exists());
        drop(store);
        // The next start finds nothing to complain about, and still takes nothing older.
        let desk = Desk::new(dir.path()).await;
        desk.refused(payload(&patient(7), 3), tamiyo::Rejection::StaleUpdate).await;
        desk.take(payload(&patient(7), 4)).await;
    }
}

#[tokio::test]
async fn a_damaged_state_file_is_moved_aside_too() {
    let dir = tempfile::tempdir().unwrap();
    kept(dir.path()).await;
    fs::write(dir.path().join("policies/policy.json"), "{").unwrap();
    let (store, damaged) = PolicyStore::open(&config(dir.path())).unwrap();
    assert_eq!((patience(&store), damaged.len()), (built_in(), 1));
    assert!(damaged[0].to_string().contains("policy.json"), "{}", damaged[0]);
    drop(store);
    let desk = Desk::new(dir.path()).await;
    desk.refused(payload(&patient(6), 2), tamiyo::Rejection::StaleUpdate).await;
    desk.refused(payload(&patient(6), 3), tamiyo::Rejection::StaleUpdate).await;
    desk.take(payload(&patient(6), 4)).await;
}

#[tokio::test]
async fn a_policy_file_that_is_gone_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    kept(dir.path()).await;
    fs::remove_file(files(dir.path(), ".safetensors").remove(0)).unwrap();
    let (store, damaged) = PolicyStore::open(&config(dir.path())).unwrap();
    assert_eq!((patience(&store), damaged.len()), (built_in(), 1));
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("policies"), "a file").unwrap();
    let error = PolicyStore::open(&config(dir.path())).unwrap_err();
    assert!(error.to_string().contains("policies"), "{error}");
}
