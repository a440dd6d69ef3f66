//! The bucket over TLS: whom a library trusts, and what it says of whom it does not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use urza::OpenError;
use urza::store::{BucketConfig, BucketFault, Store};

use crate::front::{Authority, Front};
use crate::servers::S3;

const LIMIT: Duration = Duration::from_secs(60);
/// Where the bucket is, in a process of which the system's own authorities are others.
const ENDPOINT: &str = "URZA_TEST_TLS_ENDPOINT";
/// What opening it comes to there.
const EXPECTED: &str = "URZA_TEST_TLS_EXPECTED";

fn over_tls(s3: &S3, endpoint: String, ca_file: Option<PathBuf>) -> BucketConfig {
    let mut config = s3.config();
    config.access.endpoint = Some(endpoint);
    config.access.ca_file = ca_file;
    config
}

async fn open(directory: &Path, config: BucketConfig) -> Result<Store, OpenError> {
    Store::open(directory, Some(config), 1 << 30, LIMIT).await
}

#[tokio::test]
async fn a_bucket_behind_tls_serves_when_its_authority_is_named() {
    let (s3, authority, dir) = (S3::start(), Authority::new(), tempfile::tempdir().unwrap());
    let front = Front::start(s3.address(), &authority, "server");
    let config = || over_tls(&s3, front.url(), Some(authority.file("ca.pem")));
    let store = open(&dir.path().join("here"), config()).await.unwrap();
    let elsewhere = open(&dir.path().join("elsewhere"), config()).await.unwrap();
    for len in [100_000, 10 << 20] {
        let sent = Bytes::from(vec![7; len]);
        let digest = store.put(sent.clone()).await.unwrap();
        let path = elsewhere.fetch(&digest, len as u64).await.unwrap();
        assert!(std::fs::read(path).unwrap() == sent, "{len} bytes");
    }
    assert!(front.connections() > 1);
}

#[tokio::test]
async fn a_server_that_is_not_trusted_is_asked_once_and_the_cause_is_told() {
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    let (authority, stranger) = (Authority::new(), Authority::new());
    let front = Front::start(s3.address(), &authority, "server");
    let expired = Front::start(s3.address(), &authority, "expired");
    let other_name = front.url().replace("localhost", "127.0.0.1");
    let without_tls = format!("https://{}", s3.proxy.address);
    let [ca, strangers] = [&authority, &stranger].map(|it| Some(it.file("ca.pem")));
    for (endpoint, ca_file, expected) in [
        (front.url(), strangers, "an authority that is not trusted here"),
        (front.url(), None, "an authority that is not trusted here"),
        (other_name, ca.clone(), "made out to another name"),
        (expired.url(), ca.clone(), "has expired"),
        (without_tls, ca, "does not speak TLS"),
    ] {
        let asked = || front.connections() + expired.connections() + s3.proxy.connections();
        let before = asked();
        let refused = open(dir.path(), over_tls(&s3, endpoint, ca_file)).await.unwrap_err();
        let OpenError::Bucket(fault @ BucketFault::Untrusted { .. }) = &refused else {
            panic!("{expected}: {refused:?}")
        };
        let told = format!("{fault} {refused:?}");
        assert!(told.contains(expected) && told.contains("AWS_CA_BUNDLE"), "{expected}: {told}");
        assert!(!told.contains(crate::servers::SECRET), "{told}");
        assert_eq!(asked() - before, 1, "{expected}: another attempt would not have helped");
    }
}

#[tokio::test]
async fn a_file_of_authorities_that_cannot_be_used_is_named() {
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for file in [Path::new("/nonexistent/ca.pem"), &empty] {
        let config = over_tls(&s3, "https://localhost:1".to_owned(), Some(file.to_owned()));
        let refused = open(&dir.path().join("artifacts"), config).await.unwrap_err();
        let OpenError::Bucket(fault @ BucketFault::Unusable { .. }) = &refused else {
            panic!("{refused:?}")
        };
        assert!(fault.to_string().contains(file.to_str().unwrap()), "{fault}");
    }
}

/// `SSL_CERT_FILE` takes the place of the system's authorities; beside it the named file counts.
#[tokio::test]
async fn the_systems_authorities_are_those_of_its_environment() {
    let (s3, authority, stranger) = (S3::start(), Authority::new(), Authority::new());
    let front = Front::start(s3.address(), &authority, "server");
    let plain = format!("http://{}", s3.address());
    for (endpoint, file, expected) in [
        (front.url(), authority.file("ca.pem"), "opened"),
        (front.url(), stranger.file("ca.pem"), "not trusted here"),
        // A system without authorities trusts nobody, and needs none where nothing is encrypted.
        (front.url(), "/nonexistent".into(), "not trusted here"),
        (plain, "/nonexistent".into(), "opened"),
    ] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "tls::a_library_with_an_environment_of_its_own", "--nocapture"])
            .env("SSL_CERT_FILE", file)
            .env_remove("SSL_CERT_DIR")
            .env(ENDPOINT, endpoint)
            .env(EXPECTED, expected);
        let ended = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        let complained = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}\n{complained}");
    }
}

/// Does nothing but in a process that the test above has started.
#[tokio::test]
async fn a_library_with_an_environment_of_its_own() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
    let expected = std::env::var(EXPECTED).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), crate::servers::config_at(endpoint)).await;
    let told = match &opened {
        Ok(_) => "opened".to_owned(),
        Err(OpenError::Bucket(fault)) => fault.to_string(),
        Err(other) => panic!("{other:?}"),
    };
    assert!(told.contains(&expected), "{expected}: {told}");
}
