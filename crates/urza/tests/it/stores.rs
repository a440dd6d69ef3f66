//! One suite for both stores: a directory, and a bucket on a real S3 server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kernel::Digest;
use urza::store::{BucketConfig, Store};
use urza::{FetchError, Mismatch, OpenError, Remedy, StoreError};

use crate::proxy::Fault;
use crate::servers::{Parts, S3};
use crate::support::count;

const LIMIT: Duration = Duration::from_secs(60);

/// A store of one kind, and where its bytes truly are.
struct Place {
    dir: tempfile::TempDir,
    s3: Option<S3>,
}

impl Place {
    fn both() -> [Self; 2] {
        [None, Some(S3::start())].map(|s3| Self { dir: tempfile::tempdir().unwrap(), s3 })
    }

    /// With a short wait for a server that says nothing.
    fn impatient(&self) -> Option<BucketConfig> {
        let config = self.bucket()?;
        Some(BucketConfig { idle_timeout: Duration::from_secs(4), ..config })
    }

    fn bucket(&self) -> Option<BucketConfig> {
        self.s3.as_ref().map(S3::config)
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("artifacts")
    }

    async fn open(&self) -> Store {
        Store::open(&self.cache(), self.bucket(), 1 << 30, LIMIT).await.unwrap()
    }

    /// The same store, seen from a machine that has nothing of it.
    async fn elsewhere(&self) -> Store {
        let cache = match self.s3 {
            Some(_) => self.dir.path().join("elsewhere"),
            None => self.cache(),
        };
        if self.s3.is_some() {
            drop(std::fs::remove_dir_all(&cache));
        }
        Store::open(&cache, self.bucket(), 1 << 30, LIMIT).await.unwrap()
    }

    /// The file that counts.
    fn file(&self, digest: &Digest) -> PathBuf {
        let name = name(digest);
        match &self.s3 {
            Some(s3) => s3.object(&name),
            None => self.cache().join(name),
        }
    }

    fn quarantine(&self) -> PathBuf {
        match &self.s3 {
            Some(s3) => s3.object("quarantine"),
            None => self.cache().join("quarantine"),
        }
    }

    fn leaves_nothing_unfinished(&self) {
        assert_eq!(count(&self.cache().join("tmp")), 0, "temporary files");
        if let Some(s3) = &self.s3 {
            let left = s3.uploads();
            assert!(left.is_empty(), "uploads and parts of them: {left:?}");
        }
    }
}

fn name(digest: &Digest) -> String {
    let hex = digest.to_hex();
    format!("{}/{hex}.safetensors", &hex[..2])
}

fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

fn read(path: &Path) -> Bytes {
    std::fs::read(path).unwrap().into()
}

#[tokio::test]
async fn what_was_put_is_had_here_and_elsewhere_and_putting_it_again_changes_nothing() {
    for place in Place::both() {
        let store = place.open().await;
        let sent = bytes(100_000, 1);
        let digest = store.put(sent.clone()).await.unwrap();
        assert_eq!(digest, Digest::of(&sent));
        assert_eq!(store.put(sent.clone()).await.unwrap(), digest);
        assert_eq!(read(&place.file(&digest)), sent);
        for store in [store, place.elsewhere().await] {
            let path = store.fetch(&digest, 100_000).await.unwrap();
            assert!(path.is_absolute());
            assert_eq!(path, store.path(&digest));
            assert_eq!(read(&path), sent);
        }
        assert_eq!(place.open().await.id(), place.elsewhere().await.id());
        place.leaves_nothing_unfinished();
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_orders_a_rebuild() {
    for place in Place::both() {
        let missing = place.open().await.fetch(&Digest::of("nothing"), 7).await.unwrap_err();
        assert!(matches!(missing, FetchError::NotFound { .. }), "{missing:?}");
        assert_eq!(missing.remedy(), Remedy::Compile);
    }
}

#[tokio::test]
async fn corrupt_and_truncated_artifacts_are_refused_quarantined_and_healed() {
    for place in Place::both() {
        let sent = bytes(50_000, 2);
        let digest = place.open().await.put(sent.clone()).await.unwrap();
        let mut flipped = sent.to_vec();
        flipped[40_000] ^= 1;
        for (at, damage) in [(1, flipped.as_slice()), (2, &sent[..40_000]), (3, &[])] {
            std::fs::write(place.file(&digest), damage).unwrap();
            let store = place.elsewhere().await;
            let fault = store.fetch(&digest, 50_000).await.unwrap_err();
            assert_eq!(fault.remedy(), Remedy::Quarantine, "{fault}");
            let FetchError::Corrupt { found, .. } = &fault else { panic!("{fault:?}") };
            assert_eq!(matches!(found, Mismatch::Digest(_)), damage.len() == 50_000, "{found}");
            assert!(!store.quarantine(&digest, 50_000, at).await.unwrap());
            assert!(!place.file(&digest).exists());
            assert_eq!(count(&place.quarantine()), at as usize);
            store.put(sent.clone()).await.unwrap();
            assert_eq!(read(&store.fetch(&digest, 50_000).await.unwrap()), sent);
        }
        place.leaves_nothing_unfinished();
    }
}

#[tokio::test]
async fn putting_an_artifact_heals_one_that_is_not_sound() {
    for place in Place::both() {
        let (store, sent) = (place.open().await, bytes(50_000, 3));
        let digest = store.put(sent.clone()).await.unwrap();
        std::fs::write(place.file(&digest), bytes(50_000, 4)).unwrap();
        store.put(sent.clone()).await.unwrap();
        assert_eq!(read(&place.file(&digest)), sent);
    }
}

#[tokio::test]
async fn a_sound_artifact_is_not_put_into_quarantine() {
    for place in Place::both() {
        let (store, sent) = (place.open().await, bytes(50_000, 5));
        let digest = store.put(sent.clone()).await.unwrap();
        assert!(store.quarantine(&digest, 50_000, 1).await.unwrap());
        assert_eq!(read(&place.file(&digest)), sent);
    }
}

#[tokio::test]
async fn many_writers_of_one_artifact_are_as_good_as_one() {
    for place in Place::both() {
        let (one, two, sent) = (place.open().await, place.elsewhere().await, bytes(300_000, 6));
        let writers = (0..8).map(|at| if at % 2 == 0 { &one } else { &two });
        let put = futures_util::future::join_all(writers.map(|store| store.put(sent.clone())));
        for digest in put.await {
            assert_eq!(digest.unwrap(), Digest::of(&sent));
        }
        assert_eq!(read(&place.file(&Digest::of(&sent))), sent);
        place.leaves_nothing_unfinished();
    }
}

#[tokio::test]
async fn a_large_artifact_goes_in_parts_and_comes_whole() {
    for place in Place::both() {
        let len = 64 << 20;
        let sent = bytes(len, 7);
        let digest = place.open().await.put(sent.clone()).await.unwrap();
        let path = place.elsewhere().await.fetch(&digest, len as u64).await.unwrap();
        assert!(read(&path) == sent, "other bytes came back");
        place.leaves_nothing_unfinished();
    }
}

#[tokio::test]
async fn a_list_is_complete_in_order_and_in_pages() {
    for place in Place::both() {
        let store = place.open().await;
        let mut expected = Vec::new();
        for at in 0..23 {
            expected.push(store.put(bytes(1000 + at, 8)).await.unwrap());
        }
        expected.sort_unstable();
        let file = place.file(&expected[0]);
        std::fs::write(file.with_file_name("stranger.safetensors"), "x").unwrap();
        std::fs::write(file.with_file_name(name(&expected[22]).replace('/', "-")), "x").unwrap();
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = store.list(after, 10).await.unwrap();
            assert!(page.len() <= 10);
            let Some(last) = page.last() else { break };
            after = Some(last.digest);
            listed.extend(page);
        }
        assert_eq!(listed.iter().map(|stored| stored.digest).collect::<Vec<_>>(), expected);
        assert_eq!(listed.iter().map(|stored| stored.bytes).sum::<u64>(), 23 * 1000 + 22 * 23 / 2);
    }
}

#[tokio::test]
async fn what_was_removed_is_gone_and_removing_it_again_is_safe() {
    for place in Place::both() {
        let store = place.open().await;
        let digest = store.put(bytes(1000, 9)).await.unwrap();
        store.remove(&digest).await.unwrap();
        store.remove(&digest).await.unwrap();
        assert!(!place.file(&digest).exists());
        let gone = store.fetch(&digest, 1000).await.unwrap_err();
        assert!(matches!(gone, FetchError::NotFound { .. }), "{gone:?}");
    }
}

// What only a bucket can do.

#[tokio::test]
async fn a_cached_file_that_is_not_sound_is_fetched_anew() {
    let place = Place { dir: tempfile::tempdir().unwrap(), s3: Some(S3::start()) };
    let (store, sent) = (place.open().await, bytes(50_000, 10));
    let digest = store.put(sent.clone()).await.unwrap();
    std::fs::write(store.path(&digest), bytes(50_000, 11)).unwrap();
    assert_eq!(read(&store.fetch(&digest, 50_000).await.unwrap()), sent);
    assert_eq!(count(&place.cache().join("quarantine")), 1);
}

#[tokio::test]
async fn the_cache_keeps_its_bound_and_what_is_in_use() {
    let place = Place { dir: tempfile::tempdir().unwrap(), s3: Some(S3::start()) };
    let store = Store::open(&place.cache(), place.bucket(), 250_000, LIMIT).await.unwrap();
    let mut digests = Vec::new();
    for at in 0..4 {
        digests.push(store.put(bytes(100_000, 20 + at)).await.unwrap());
    }
    let here = |digest: &Digest| store.path(digest).exists();
    // All were handed out a moment ago, so all stay although they are too many.
    assert!(digests.iter().all(here));
    // The third was used last, the first is leased; all were used long ago.
    for (digest, age) in digests.iter().zip([4000, 3000, 1000, 2000]) {
        let file = std::fs::File::options().write(true).open(store.path(digest)).unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(age);
        file.set_times(std::fs::FileTimes::new().set_accessed(at)).unwrap();
    }
    store.protect([digests[0]].into());
    assert_eq!(store.make_room(0).await, 2);
    assert_eq!(digests.iter().map(here).collect::<Vec<_>>(), [true, false, true, false]);
    // What went comes again.
    store.fetch(&digests[1], 100_000).await.unwrap();
    assert!(here(&digests[1]));
}

#[tokio::test]
async fn a_broken_way_to_the_bucket_is_tried_again_and_nothing_wrong_arrives() {
    let place = Place { dir: tempfile::tempdir().unwrap(), s3: Some(S3::start()) };
    let proxy = &place.s3.as_ref().unwrap().proxy;
    let sent = bytes(2_000_000, 12);
    let digest = place.open().await.put(sent.clone()).await.unwrap();
    for (at, faults) in [
        vec![Fault::CutAfter(400_000), Fault::CutAfter(300_000)],
        vec![Fault::Error500, Fault::Error500],
        vec![Fault::Silent],
        vec![Fault::Garble(1_000_000)],
    ]
    .into_iter()
    .enumerate()
    {
        // A client of its own, whose connections are all new, but for the one that opened it.
        let cache = place.dir.path().join(format!("fault-{at}"));
        proxy.faults([Fault::CutAfter(700)]);
        let store = Store::open(&cache, place.impatient(), 1 << 30, LIMIT).await.unwrap();
        proxy.faults(faults.clone());
        let path = store.fetch(&digest, 2_000_000).await;
        let path = path.unwrap_or_else(|error| panic!("{faults:?}: {error:?}"));
        assert_eq!(read(&path), sent, "{faults:?}");
        assert_eq!(count(&cache.join("tmp")), 0);
    }
}

#[tokio::test]
async fn uploads_survive_a_broken_way() {
    let place = Place { dir: tempfile::tempdir().unwrap(), s3: Some(S3::start()) };
    let proxy = &place.s3.as_ref().unwrap().proxy;
    for (at, fault) in [Fault::CutAfter(0), Fault::Error500, Fault::Silent].into_iter().enumerate()
    {
        for len in [100_000, 10 << 20] {
            proxy.faults([Fault::CutAfter(700)]);
            let cache = place.dir.path().join(format!("fault-{at}-{len}"));
            let store = Store::open(&cache, place.impatient(), 1 << 30, LIMIT).await.unwrap();
            proxy.faults([fault]);
            let sent = bytes(len, 30 + at as u8);
            let digest = store.put(sent.clone()).await;
            let digest = digest.unwrap_or_else(|error| panic!("{fault:?} {len}: {error:?}"));
            assert_eq!(read(&place.file(&digest)), sent, "{fault:?} {len}");
        }
    }
}

/// The least size of a part, and one attempt.
fn in_parts(s3: &S3) -> BucketConfig {
    BucketConfig { part_bytes: PART, retries_max: 0, ..s3.config() }
}

const PART: usize = 5 << 20;

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing_at_the_server() {
    let place = Place { dir: tempfile::tempdir().unwrap(), s3: Some(S3::start()) };
    let s3 = place.s3.as_ref().unwrap();
    let sent = bytes(PART + 1000, 40);
    // The second part has a connection of its own.
    let cut = [Fault::CutAfter(0)];
    for (parts, faults, seconds) in
        [(Parts::Fail, &[][..], 60), (Parts::AfterFirst, &cut, 60), (Parts::Hold, &[], 5)]
    {
        let config = BucketConfig { total_timeout: Duration::from_secs(seconds), ..in_parts(s3) };
        let store = Store::open(&place.cache(), Some(config), 1 << 30, LIMIT).await.unwrap();
        s3.proxy.faults(faults.iter().copied());
        s3.parts(parts);
        let broken = store.put(sent.clone()).await.unwrap_err();
        assert!(matches!(broken, StoreError::Bucket(_)), "{parts:?}: {broken:?}");
        assert_eq!(s3.uploads(), Vec::<String>::new(), "{parts:?}");
        assert!(!place.file(&Digest::of(&sent)).exists(), "{parts:?}");
    }
    s3.parts(Parts::Take);
    let store = Store::open(&place.cache(), Some(in_parts(s3)), 1 << 30, LIMIT).await.unwrap();
    let digest = store.put(sent.clone()).await.unwrap();
    assert!(read(&place.file(&digest)) == sent);
    place.leaves_nothing_unfinished();
}

#[tokio::test]
async fn an_upload_that_nobody_waits_for_any_more_is_aborted() {
    let place = Place { dir: tempfile::tempdir().unwrap(), s3: Some(S3::start()) };
    let s3 = place.s3.as_ref().unwrap();
    let store = Store::open(&place.cache(), Some(in_parts(s3)), 1 << 30, LIMIT).await.unwrap();
    s3.parts(Parts::Hold);
    let is_sent = |name: &String| name.ends_with(".part-1");
    tokio::select! {
        _ = store.put(bytes(PART + 1000, 41)) => panic!("it is held"),
        () = until(|| s3.uploads().iter().any(is_sent)) => {}
    }
    until(|| s3.uploads().is_empty()).await;
}

/// Waits until it is so, within a bound.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("it comes to be so");
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_says_what_to_do_and_no_secret() {
    let s3 = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let secret = "another-secret-of-some-length";
    let with = |change: &dyn Fn(&mut BucketConfig)| {
        let mut config = s3.config();
        (config.retries_max, config.connect_timeout) = (1, Duration::from_millis(500));
        change(&mut config);
        config
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases = [
        (
            with(&|config| {
                config.url = urza::store::BucketUrl::parse("s3://nobody-made-this/x").unwrap();
            }),
            "does not exist; make it",
        ),
        (
            with(&|config| config.access.secret_key = Some(secret.to_owned())),
            "refused the credentials (SignatureDoesNotMatch)",
        ),
        (
            with(&|config| config.access.key_id = Some("stranger".to_owned())),
            "refused the credentials",
        ),
        (
            with(&|config| config.access.endpoint = Some(format!("http://{closed}"))),
            "cannot be reached; check AWS_ENDPOINT_URL",
        ),
        (
            with(&|config| config.access.endpoint = Some("127.0.0.1".to_owned())),
            "neither http:// nor https://",
        ),
        (with(&|config| config.access.secret_key = None), "one is missing"),
    ];
    for (config, expected) in cases {
        let fault = Store::open(dir.path(), Some(config), 1, LIMIT).await.unwrap_err();
        let OpenError::Bucket(fault) = fault else { panic!("{fault:?}") };
        let text = format!("{fault} {fault:?}");
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(!text.contains(secret) && !text.contains(crate::servers::SECRET), "{text}");
    }
}
