//! A catalogue in PostgreSQL over TLS: a real server with a certificate, and whom a library trusts.

use std::path::Path;
use std::time::Duration;

use sqlx::{Connection as _, Executor as _, PgConnection};
use urza::{Library, OpenError};

use crate::front::{Authority, named};
use crate::postgres::{Server, Then, config_at, hand_over};

/// `local` is the tests' own way in. Over the network nobody comes in without TLS, and `vera` not without her certificate.
const ACCESS: &str = "local all all trust\n\
    hostssl all vera all cert\n\
    hostssl all all all trust\n";
const SETTINGS: [&str; 6] = [
    "listen_addresses=127.0.0.1",
    "ssl=on",
    "ssl_cert_file=server.pem",
    "ssl_key_file=server.key",
    "ssl_ca_file=ca.pem",
    "unix_socket_permissions=0777",
];

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server's certificate becomes the one of this name.
fn install(authority: &Authority, name: &str, data: &Path) {
    let files = [("ca.pem", "ca.pem".to_owned())];
    let certificate =
        [("server.pem", format!("{name}.pem")), ("server.key", format!("{name}.key"))];
    for (to, from) in files.into_iter().chain(certificate) {
        std::fs::copy(authority.file(&from), data.join(to)).unwrap();
        hand_over(&data.join(to));
    }
}

/// What opening a library there comes to.
async fn opening(url: &str) -> Result<(), OpenError> {
    let dir = tempfile::tempdir().unwrap();
    let metrics = urza::Metrics::register(&mut prometheus_client::registry::Registry::default());
    let mut config = config_at(&dir, url);
    config.query_timeout = Duration::from_secs(30);
    let library = Library::open(config, metrics).await?;
    library.close().await;
    Ok(())
}

#[tokio::test]
async fn a_server_is_trusted_as_far_as_the_url_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.sign("vera", named("vera", &["vera"]));
    stranger.sign("vera", named("vera", &["vera"]));
    let home = tempfile::tempdir().unwrap();
    let port = free_port();
    let (directory, port_setting) = (home.path(), format!("port={port}"));
    let settings: Vec<&str> = SETTINGS.into_iter().chain([port_setting.as_str()]).collect();
    let prepare = |data: &Path| {
        install(&authority, "server", data);
        std::fs::write(data.join("pg_hba.conf"), ACCESS).unwrap();
    };
    let mut server = Server::start_with(directory, Then::Keep, &settings, prepare);
    let socket = directory.to_str().unwrap().replace('/', "%2F");
    let mut own =
        PgConnection::connect(&format!("postgres://urza@{socket}:{port}/postgres")).await.unwrap();
    own.execute("CREATE DATABASE kernels").await.unwrap();
    own.execute("CREATE ROLE vera LOGIN SUPERUSER").await.unwrap();
    own.close().await.unwrap();

    let file = |of: &Authority, name: &str| of.file(name).to_str().unwrap().to_owned();
    let url = |user: &str, host: &str, options: &str| {
        format!("postgres://{user}:hunter2@{host}:{port}/kernels?{options}")
    };
    let ca = file(&authority, "ca.pem");
    let full = format!("sslmode=verify-full&sslrootcert={ca}");
    let authority_only = format!("sslmode=verify-ca&sslrootcert={ca}");
    let strangers = format!("sslmode=verify-full&sslrootcert={}", file(&stranger, "ca.pem"));
    let with = |of: &Authority| {
        let (certificate, key) = (file(of, "vera.pem"), file(of, "vera.key"));
        format!("{full}&sslcert={certificate}&sslkey={key}")
    };
    for trusted in [
        url("urza", "localhost", &full),
        url("urza", "localhost", &authority_only),
        // Encrypted, and nobody looks who it is.
        url("urza", "localhost", "sslmode=require"),
        url("urza", "127.0.0.1", "sslmode=require"),
        url("urza", "localhost", "sslmode=prefer"),
        url("vera", "localhost", &with(&authority)),
    ] {
        opening(&trusted).await.unwrap_or_else(|fault| panic!("{trusted}: {fault:?}"));
    }
    let missing = full.replace("ca.pem", "nothing.pem");
    for (refused, expected) in [
        (url("urza", "localhost", &strangers), "an authority that is not trusted here"),
        (url("urza", "localhost", "sslmode=verify-full"), "an authority that is not trusted here"),
        (url("urza", "127.0.0.1", &full), "made out to another name"),
        // The driver looks at the name in this mode too.
        (url("urza", "127.0.0.1", &authority_only), "made out to another name"),
        (url("urza", "localhost", &missing), "nothing.pem cannot be read"),
        (url("vera", "localhost", &with(&stranger)), "does not trust the client certificate"),
    ] {
        let fault = opening(&refused).await.unwrap_err();
        assert!(matches!(fault, OpenError::Untrusted { .. }), "{refused}: {fault:?}");
        let told = format!("{fault} {fault:?}");
        assert!(told.contains(expected) && told.contains("sslrootcert"), "{refused}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    // What the server says about it itself.
    for (refused, expected) in [
        (url("urza", "localhost", "sslmode=disable"), "no encryption"),
        (url("vera", "localhost", &full), "valid client certificate"),
    ] {
        let fault = opening(&refused).await.unwrap_err();
        let OpenError::Unreachable { source, .. } = &fault else { panic!("{refused}: {fault:?}") };
        assert!(source.to_string().contains(expected), "{refused}: {source}");
        let told = format!("{fault} {fault:?}");
        assert!(told.contains("sslmode") && !told.contains("hunter2"), "{told}");
    }

    server.stop();
    install(&authority, "expired", &directory.join("data"));
    server.start_again();
    let fault = opening(&url("urza", "localhost", &full)).await.unwrap_err();
    assert!(matches!(fault, OpenError::Untrusted { .. }), "{fault:?}");
    assert!(fault.to_string().contains("has expired"), "{fault}");
    opening(&url("urza", "localhost", "sslmode=require")).await.unwrap();
}
