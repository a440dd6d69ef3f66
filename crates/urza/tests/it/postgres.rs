//! A real PostgreSQL server, started for these tests on a socket of its own and stopped with this process, however it
//! ends. Found as `cargo xtask test` finds it; a server that cannot be found fails the tests.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leyline::ids::BlueprintId;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use urza::{CatalogueUrl, Config, Library, LibraryError, OpenError};

use crate::support::{Fixture, artifact, fixture_with};

/// PostgreSQL refuses to run as root; then it runs as this user, who owns nothing else.
const NOBODY: u32 = 65_534;
/// Serves until its input ends, which it does with this process; then the server ends at once.
const GUARDIAN: &str = r#""$@" <&- & server=$!; cat >/dev/null; kill -QUIT $server; wait $server; [ -z "$REMOVE" ] || rm -rf "$REMOVE""#;

/// A server, and the directory it lives in.
pub struct Server {
    directory: PathBuf,
    programs: PathBuf,
    settings: Vec<String>,
    guardian: Child,
}

impl Server {
    /// Makes a cluster in a directory and serves it.
    fn start(directory: &Path, then: Then) -> Self {
        Self::start_with(directory, then, &["listen_addresses="], |_| ())
    }

    /// With these settings, once what it needs for them is prepared in its data directory.
    pub fn start_with(
        directory: &Path,
        then: Then,
        settings: &[&str],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let programs = programs();
        if is_root() {
            chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = Command::new(programs.join("initdb"));
        command.args(["-A", "trust", "-U", "urza", "-E", "UTF8", "--locale=C", "-N", "-D"]);
        command.arg(directory.join("data")).current_dir(directory);
        let made = unprivileged(&mut command).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        prepare(&directory.join("data"));
        let settings: Vec<_> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let guardian = serve(&programs, directory, then, &settings);
        Self { directory: directory.to_owned(), programs, settings, guardian }
    }

    /// Ends the server at once, as a crash would.
    pub fn stop(&mut self) {
        drop(self.guardian.stdin.take());
        self.guardian.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.guardian = serve(&self.programs, &self.directory, Then::Keep, &self.settings);
    }

    fn url(&self, database: &str) -> String {
        let socket = self.directory.to_str().unwrap().replace('/', "%2F");
        format!("postgres://urza@{socket}/{database}")
    }

    /// A database of its own.
    async fn database(&self, name: &str) -> String {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        connection.execute(format!("CREATE DATABASE {name}").as_str()).await.unwrap();
        connection.close().await.unwrap();
        self.url(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What becomes of the directory when the server ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    Remove,
}

fn serve(programs: &Path, directory: &Path, then: Then, settings: &[String]) -> Child {
    let mut command = Command::new("sh");
    command.arg("-c").arg(GUARDIAN).arg("guardian").arg(programs.join("postgres"));
    command.arg("-D").arg(directory.join("data")).arg("-k").arg(directory);
    for setting in ["fsync=off", "shared_buffers=32MB", "max_connections=200"] {
        command.args(["-c", setting]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    if then == Then::Remove {
        command.env("REMOVE", directory);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut guardian = unprivileged(command.current_dir(directory)).spawn().unwrap();
    let mut said = BufReader::new(guardian.stderr.take().unwrap()).lines();
    let mut before = Vec::new();
    loop {
        let line = said.next().unwrap_or_else(|| panic!("the server ended: {before:#?}")).unwrap();
        let is_ready = line.contains("ready to accept connections");
        before.push(line);
        if is_ready {
            break;
        }
    }
    // What it says later must not fill the pipe.
    std::thread::spawn(move || said.for_each(drop));
    guardian
}

/// Gives a file to whoever the server runs as, and to nobody else.
pub fn hand_over(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn unprivileged(command: &mut Command) -> &mut Command {
    if is_root() { command.uid(NOBODY).gid(NOBODY) } else { command }
}

/// The directory of `initdb` and `postgres`.
fn programs() -> PathBuf {
    let has_both = |directory: &PathBuf| {
        ["initdb", "postgres"].iter().all(|name| directory.join(name).exists())
    };
    if let Some(given) = std::env::var_os("WEATHERLIGHT_TEST_POSTGRES") {
        let given = PathBuf::from(given);
        assert!(has_both(&given), "WEATHERLIGHT_TEST_POSTGRES has no initdb and postgres");
        return given;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("postgres"));
    let on_path = on_path.filter_map(|found| Some(found.canonicalize().ok()?.parent()?.to_owned()));
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = installed.map(|version| version.path().join("bin"));
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/postgres/bin");
    on_path.chain(installed).chain([fetched]).find(has_both).unwrap_or_else(|| {
        panic!(
            "THE TESTS NEED A POSTGRESQL SERVER: run them with `cargo xtask test`, which fetches one, install one \
             (Debian: postgresql), or name the directory of initdb and postgres in WEATHERLIGHT_TEST_POSTGRES"
        )
    })
}

/// The one server that most tests share; each has a database of its own.
fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("urza-postgres-").tempdir().unwrap().keep();
        Server::start(&directory, Then::Remove)
    })
}

/// The URL of a fresh database.
pub async fn database() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = tokio::task::spawn_blocking(shared).await.unwrap();
    server.database(&format!("urza_{}", COUNT.fetch_add(1, Ordering::Relaxed))).await
}

pub fn config_at(dir: &TempDir, url: &str) -> Config {
    let catalogue = CatalogueUrl::parse(url).unwrap();
    Config { catalogue, ..Config::at(dir.path()) }
}

/// The URL of a catalogue of these tests, which has no password.
pub fn url_of(config: &Config) -> String {
    let CatalogueUrl::Postgres(url) = &config.catalogue else { panic!("not PostgreSQL") };
    url.to_string().replace("(hidden)", "urza")
}

/// A library whose catalogue is in PostgreSQL.
pub async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let config = config_at(&dir, &database().await);
    fixture_with(dir, config).await
}

/// The server goes away and comes back while the library is in use.
#[tokio::test]
async fn an_outage_is_told_apart_from_nothing_and_ends_without_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().to_owned();
    let started = tokio::task::spawn_blocking(move || Server::start(&directory, Then::Keep));
    let mut server = started.await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config_at(&dir, &server.database("urza").await);
    config.cache_fresh = Duration::ZERO;
    config.query_timeout = Duration::from_secs(1);
    let f = fixture_with(dir, config).await;
    let known = f.library.store(artifact("BP001", b"one")).await.unwrap();
    f.library.store(artifact("BP002", b"two")).await.unwrap();
    let blueprint = |id: &str| BlueprintId::from(id.to_owned());

    let mut server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .unwrap();
    let unknown = f.library.find(&blueprint("BP003")).await;
    assert!(matches!(unknown, Err(LibraryError::Unavailable(_))), "{unknown:?}");
    assert_eq!(f.library.find(&blueprint("BP001")).await.unwrap(), Some(known.clone()));
    f.library.verify(&known).await.unwrap();
    let refused = f.library.store(artifact("BP003", b"three")).await;
    assert!(matches!(refused, Err(urza::StoreError::Catalogue(_))), "{refused:?}");

    let server = tokio::task::spawn_blocking(move || {
        server.start_again();
        server
    })
    .await
    .unwrap();
    let back = async {
        loop {
            match f.library.find(&blueprint("BP003")).await {
                Ok(found) => return found,
                Err(LibraryError::Unavailable(_)) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(60), back).await.unwrap();
    assert_eq!(found, None, "what was refused is not there");
    let stored = f.library.store(artifact("BP003", b"three")).await.unwrap();
    assert_eq!(f.library.find(&blueprint("BP003")).await.unwrap(), Some(stored));
    f.library.close().await;
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_named_without_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = || urza::Metrics::register(&mut prometheus_client::registry::Registry::default());
    let nobody_there = "postgres://urza:hunter2@127.0.0.1:1/urza";
    // This server has no TLS, and the URL wants it.
    let without_tls = format!("{}?sslmode=require", database().await);
    for url in [nobody_there, &without_tls] {
        let mut config = config_at(&dir, url);
        config.query_timeout = Duration::from_millis(500);
        let refused = Library::open(config, metrics()).await.unwrap_err();
        assert!(matches!(refused, OpenError::Unreachable { .. }), "{refused:?}");
        let shown = format!("{refused} {refused:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn a_database_of_something_else_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let url = database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("CREATE TABLE records (something TEXT)").await.unwrap();
    let metrics = urza::Metrics::register(&mut prometheus_client::registry::Registry::default());
    let refused = Library::open(config_at(&dir, &url), metrics).await.unwrap_err();
    assert!(matches!(refused, OpenError::Migrate { .. }), "{refused:?}");
    let kept: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.columns WHERE table_name = 'records'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(kept, 1);
    connection.close().await.unwrap();
}
