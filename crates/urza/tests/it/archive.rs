//! Export and import: the same bytes for the same records, nothing half imported, nothing hostile taken.

use std::fs;
use std::path::Path;

use kernel::Digest;
use serde_json::json;
use urza::{ArchiveError, Archived, Filter, Measurement, Page};

use crate::support::{Fixture, artifact, fixture, on_both};

on_both!(what_is_exported_is_imported_once);

async fn what_is_exported_is_imported_once(f: Fixture) {
    let mut one = artifact("BP001", b"one");
    one.extras.insert("safety".to_owned(), json!({ "stage": 2 }));
    let one = f.library.store(one).await.unwrap();
    let two = f.library.store(artifact("BP002", b"two, longer")).await.unwrap();
    f.library.add_tag(&one, "Nightly").await.unwrap();
    f.library.pin(&two).await.unwrap();
    let measured = Measurement { samples_ms: vec![0.5, 0.25], ..Measurement::default() };
    f.library.set_measurement(&one.digest, "here", "1", &measured).await.unwrap();
    let (first, second) = (f.dir.path().join("first.tar"), f.dir.path().join("second.tar"));
    let exported = f.library.export(&Filter::default(), &first).await.unwrap();
    assert_eq!(exported, Archived { records: 2, artifacts: 2, bytes: 14, new: 2 });
    f.library.export(&Filter::default(), &second).await.unwrap();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    let again = f.library.export(&Filter::default(), &first).await;
    assert!(matches!(again, Err(ArchiveError::File { .. })), "a file that is there stays");

    let other = fixture().await;
    let imported = other.library.import(&first).await.unwrap();
    assert_eq!((imported.records, imported.new), (2, 2));
    let found = other.library.find(&"BP001".into()).await.unwrap().unwrap();
    assert_eq!(
        (found.digest, found.stage, found.extras.clone()),
        (one.digest, Some(2), one.extras)
    );
    assert_eq!(found.created_at_ms, one.created_at_ms);
    other.library.verify(&found).await.unwrap();
    assert_eq!(
        other.library.tags(std::slice::from_ref(&found)).await.unwrap()[&found.id],
        ["Nightly"]
    );
    let there = other.library.measurement(&one.digest, "here", "1").await.unwrap();
    assert_eq!(there, Some(measured));
    assert!(other.library.find(&"BP002".into()).await.unwrap().unwrap().pinned);
    // Once more, and out again: nothing new, the same bytes.
    assert_eq!(other.library.import(&first).await.unwrap().new, 0);
    let back = other.dir.path().join("back.tar");
    other.library.export(&Filter::default(), &back).await.unwrap();
    assert_eq!(fs::read(&back).unwrap(), fs::read(&first).unwrap());
}

/// Entries of an archive: name, contents, kind.
type Entries = Vec<(String, Vec<u8>, tar::EntryType)>;

fn unpacked(path: &Path) -> Entries {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut contents = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut contents).unwrap();
        (name, contents, entry.header().entry_type())
    });
    entries.collect()
}

fn pack(path: &Path, entries: &Entries) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, contents, kind) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_entry_type(*kind);
        // Written as it is: the library for archives would refuse some of these names.
        header.as_mut_bytes()[..100].fill(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, &contents[..]).unwrap();
    }
    tar.finish().unwrap();
}

/// Other records, with the digest that makes the header right.
fn with_records(entries: &mut Entries, change: impl Fn(String) -> String) {
    let records = change(String::from_utf8(entries[1].1.clone()).unwrap());
    let mut header: serde_json::Value = serde_json::from_slice(&entries[0].1).unwrap();
    header["records_sha256"] = Digest::of(&records).to_hex().into();
    entries[0].1 = header.to_string().into_bytes();
    entries[1].1 = records.into_bytes();
}

#[tokio::test]
async fn a_hostile_or_broken_archive_changes_nothing() {
    let f = fixture().await;
    f.library.store(artifact("BP001", b"one")).await.unwrap();
    f.library.store(artifact("BP002", b"two")).await.unwrap();
    let good = f.dir.path().join("good.tar");
    f.library.export(&Filter::default(), &good).await.unwrap();
    type Change = fn(&mut Entries);
    let cases: [(&str, Change); 12] = [
        ("an artifact was changed", |entries| entries[2].1[0] ^= 1),
        ("an artifact is missing", |entries| drop(entries.pop())),
        ("an artifact is there twice", |entries| entries.push(entries[2].clone())),
        ("an artifact has another size", |entries| entries[2].1.push(0)),
        ("a path leads out", |entries| entries[2].0 = "../../etc/passwd".to_owned()),
        ("an absolute path", |entries| entries[2].0 = "/etc/passwd".to_owned()),
        ("a link", |entries| {
            (entries[2].1, entries[2].2) = (Vec::new(), tar::EntryType::Symlink);
        }),
        ("a file nobody wants", |entries| {
            entries.push(("letter".to_owned(), b"x".to_vec(), tar::EntryType::Regular));
        }),
        ("records were changed", |entries| entries[1].1[10] ^= 1),
        ("a newer format", |entries| {
            entries[0].1 = br#"{"format":2,"records_sha256":""}"#.to_vec();
        }),
        ("an oversized artifact", |entries| {
            with_records(entries, |text| text.replace("\"bytes\":3", "\"bytes\":3000000000"));
        }),
        ("an unknown tier", |entries| {
            with_records(entries, |text| text.replace("\"tier\":1", "\"tier\":0"));
        }),
    ];
    let other = fixture().await;
    for (name, change) in cases {
        let mut entries = unpacked(&good);
        change(&mut entries);
        let path = f.dir.path().join("bad.tar");
        pack(&path, &entries);
        let outcome = other.library.import(&path).await;
        assert!(matches!(outcome, Err(ArchiveError::Refused { .. })), "{name}: {outcome:?}");
        assert_eq!(other.library.list(Page::FIRST).await.unwrap(), [], "{name}");
    }
    let mut cut = fs::read(&good).unwrap();
    cut.truncate(cut.len() / 2);
    let path = f.dir.path().join("cut.tar");
    fs::write(&path, cut).unwrap();
    assert!(matches!(other.library.import(&path).await, Err(ArchiveError::Refused { .. })));
    let left = fs::read_dir(other.dir.path().join("artifacts/tmp")).unwrap().count();
    assert_eq!(left, 0, "what was unpacked is gone");
    // The archive that was packed by the same means is taken.
    pack(&path, &unpacked(&good));
    assert_eq!(other.library.import(&path).await.unwrap().new, 2);
}
