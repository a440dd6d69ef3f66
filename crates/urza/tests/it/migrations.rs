//! The schema's versions, up and down, with data in each, on both databases.

use prometheus_client::registry::Registry;
use sqlx::{Connection as _, Executor as _};
use urza::{Config, Library, Metrics, OpenError, Page, SCHEMA_VERSION, migrate_to};

use crate::support::{Fixture, artifact, on_both};

on_both!(
    every_version_goes_up_and_down_and_keeps_the_records,
    a_catalogue_of_a_newer_version_is_refused_untouched,
    a_version_that_does_not_exist_is_refused,
);

async fn execute(config: &Config, statement: &str) {
    match &config.catalogue {
        urza::CatalogueUrl::Sqlite(path) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            connection.execute(statement).await.unwrap();
            connection.close().await.unwrap();
        }
        urza::CatalogueUrl::Postgres(_) => {
            let url = crate::postgres::url_of(config);
            let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
            connection.execute(statement).await.unwrap();
            connection.close().await.unwrap();
        }
    }
}

/// What the first version of this program wrote.
fn row_of_version_1(blueprint: &str, engine: &str, digest: &str) -> String {
    let job = urza::JobKey {
        blueprint: blueprint.into(),
        parameters: [("width".to_owned(), 0.1)].into(),
        site: "vector[32]".to_owned(),
        engine: engine.to_owned(),
    };
    format!(
        "INSERT INTO records (blueprint, job_key, parameters, site, engine, role, digest, bytes, \
         guard_digest, guard_spec, guard_summary, compile_ms, prewarm_machine, prewarm_samples, \
         strategy, tier, created_at_ms, state) VALUES ('{blueprint}', '{}', '{{\"width\":0.1}}', \
         'vector[32]', '{engine}', 'default', '{digest}', 3, '{digest}', '[]', 'float32[8x32]', \
         12.5, 'm', '[1.0,2.0]', 'standard', 1, 1700000000000, 'active')",
        job.digest().to_hex()
    )
}

fn metrics() -> Metrics {
    Metrics::register(&mut Registry::default())
}

async fn every_version_goes_up_and_down_and_keeps_the_records(f: Fixture) {
    f.library.close().await;
    let hex = |text: &str| kernel::Digest::of(text).to_hex();
    // Down to the first version, which is empty, and filled as its program did.
    assert_eq!(migrate_to(&f.config, 1).await.unwrap(), (SCHEMA_VERSION, 1));
    for (blueprint, engine, text) in [("BP001", "1", "a"), ("BP001", "2", "b"), ("BP002", "1", "c")]
    {
        execute(&f.config, &row_of_version_1(blueprint, engine, &hex(text))).await;
    }
    for round in 0..2 {
        for version in 2..=SCHEMA_VERSION {
            assert_eq!(migrate_to(&f.config, version).await.unwrap(), (version - 1, version));
        }
        let library = Library::open(f.config.clone(), metrics()).await.unwrap();
        let records = library.list(Page::FIRST).await.unwrap();
        let seen: Vec<_> = records
            .iter()
            .map(|record| (record.job.blueprint.as_str(), record.version, record.digest.to_hex()))
            .collect();
        let wanted = [("BP001", 1, hex("a")), ("BP001", 2, hex("b")), ("BP002", 1, hex("c"))];
        assert_eq!(seen, wanted, "round {round}");
        let first = &records[0];
        assert_eq!(first.prewarm.samples_ms, [1.0, 2.0]);
        assert_eq!(
            (first.created_at_ms, first.last_used_ms),
            (1_700_000_000_000, 1_700_000_000_000)
        );
        assert_eq!((first.compile_ms, first.extras.len(), first.pinned), (12.5, 0, false));
        library.add_tag(first, "Stable").await.unwrap();
        library.close().await;
        for version in (1..SCHEMA_VERSION).rev() {
            assert_eq!(migrate_to(&f.config, version).await.unwrap(), (version + 1, version));
        }
    }
    // As the program of today meets an old catalogue: it brings it up by itself, and numbers go on.
    let library = Library::open(f.config.clone(), metrics()).await.unwrap();
    let mut next = artifact("BP001", b"new");
    next.job.engine = "3".to_owned();
    let next = library.store(next).await.unwrap();
    assert_eq!(next.version, 3);
    let parent = next.parent.unwrap();
    assert_eq!((parent.digest.to_hex(), parent.engine.as_str()), (hex("b"), "2"));
}

async fn a_catalogue_of_a_newer_version_is_refused_untouched(f: Fixture) {
    let stored = f.library.store(artifact("BP001", b"one")).await.unwrap();
    let checksum = match &f.config.catalogue {
        urza::CatalogueUrl::Sqlite(_) => "x'00'",
        urza::CatalogueUrl::Postgres(_) => "'\\x00'",
    };
    let insert = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'from the future', TRUE, {checksum}, 0)"
    );
    execute(&f.config, &insert).await;
    for outcome in [
        Library::open(f.config.clone(), metrics()).await.map(drop),
        migrate_to(&f.config, 1).await.map(drop),
        migrate_to(&f.config, SCHEMA_VERSION).await.map(drop),
    ] {
        let refused = outcome.unwrap_err();
        assert!(matches!(refused, OpenError::Newer { version: 99, .. }), "{refused}");
    }
    execute(&f.config, "DELETE FROM _sqlx_migrations WHERE version = 99").await;
    let again = f.another_process().await;
    assert_eq!(again.find(&"BP001".into()).await.unwrap(), Some(stored));
}

async fn a_version_that_does_not_exist_is_refused(f: Fixture) {
    for version in [-1, 0, SCHEMA_VERSION + 1] {
        let refused = migrate_to(&f.config, version).await.unwrap_err();
        assert!(matches!(refused, OpenError::NoSuchVersion { .. }), "{refused}");
    }
}
