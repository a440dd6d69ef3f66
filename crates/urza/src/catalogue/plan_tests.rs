//! Each statement of a look-up finds its rows by an index: SQLite's own account of how it will go about it.

use std::time::Duration;

use kernel::Digest;

use super::database::{Pool, Statement};
use super::{Catalogue, records, removal, select};
use crate::config::Config;
use crate::files::Files;
use crate::job::JobKey;
use crate::record::Page;
use crate::select::{Filter, StateFilter};

async fn catalogue(dir: &std::path::Path) -> Catalogue {
    let config = Config { query_timeout: Duration::from_secs(60), ..Config::at(dir) };
    let files = Files::open(&config.artifact_dir).unwrap();
    Catalogue::open(&config, files).await.unwrap()
}

/// How SQLite would run a statement, one step a line.
async fn plan(pool: &Pool, statement: &Statement) -> String {
    let explain = Statement {
        sql: format!("EXPLAIN QUERY PLAN {}", statement.sql).into(),
        values: statement.values.clone(),
    };
    let rows = pool.rows(&explain).await.unwrap();
    rows.iter().map(|row| row.text("detail").unwrap()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn no_look_up_scans_or_sorts_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(dir.path()).await;
    let job = JobKey {
        blueprint: "BP001".into(),
        parameters: [("width".to_owned(), 0.1)].into(),
        site: "vector[32]".to_owned(),
        engine: "1".to_owned(),
    };
    let page = |filter: Filter| select::select(&filter, Page::FIRST);
    let all = Filter::default();
    let cases = [
        ("blueprint", records::find(&"BP001".into()), "records_by_blueprint"),
        ("job", records::find_job(&job), "records_by_job"),
        (
            "page of a blueprint",
            page(Filter { blueprint: Some("BP001".into()), ..all.clone() }),
            "records_by_name",
        ),
        (
            "page of a site",
            page(Filter { site: Some("vector[32]".to_owned()), ..all.clone() }),
            "records_by_site",
        ),
        (
            "page of a tag",
            page(Filter { tag: Some("nightly".to_owned()), ..all.clone() }),
            "PRIMARY KEY",
        ),
        ("page of a stage", page(Filter { stage: Some(1), ..all.clone() }), "records_by_stage"),
        (
            "page of a tier",
            page(Filter { tier: Some(leyline::wire::BlueprintTier::Safe), ..all.clone() }),
            "records_by_tier",
        ),
        (
            "page of a state",
            page(Filter { state: Some(StateFilter::Quarantined), ..all.clone() }),
            "records_by_state",
        ),
        ("page of all", page(all.clone()), "INTEGER PRIMARY KEY"),
        ("what may go", removal::candidates(None, 100), "records_by_use"),
    ];
    for (name, statement, index) in cases {
        let plan = plan(&catalogue.pool, &statement).await;
        assert!(plan.contains(index), "{name}: {plan}");
        assert!(!plan.contains("SCAN records") && !plan.contains("SCAN tags"), "{name}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{name}: {plan}");
    }
    // The few records of a digest are put in order after they are found.
    let digest = Digest::of("one").to_hex();
    let by_prefix = page(Filter { digest: Some(digest[..12].to_owned()), ..all });
    for statement in [by_prefix, records::find_digest(&Digest::of("one"))] {
        let plan = plan(&catalogue.pool, &statement).await;
        assert!(plan.contains("records_by_digest"), "{plan}");
        assert!(!plan.contains("SCAN records"), "{plan}");
    }
}
