//! Looking through records: filters, pages, tags, lineage.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kernel::Digest;

use super::Catalogue;
use super::database::{Statement, Value};
use super::records::current;
use super::row::COLUMNS;
use crate::error::{LibraryError, StoreError};
use crate::record::{Page, Record, RecordId};
use crate::select::{Filter, folded};

/// Records in one page at most.
const PAGE_MAX: u32 = 1000;

impl Catalogue {
    /// One page of the records that a filter wants, in the order of storing; by digest when a digest is looked for.
    pub(crate) async fn select(
        &self,
        filter: &Filter,
        page: Page,
    ) -> Result<Vec<Record>, LibraryError> {
        let statement = select(filter, page);
        let rows = self.within(self.pool.rows(&statement)).await?;
        self.records(rows).await
    }

    /// One record by its row.
    pub(crate) async fn by_id(&self, id: RecordId) -> Result<Option<Record>, LibraryError> {
        let statement =
            Statement::new(format!("SELECT {COLUMNS} FROM records WHERE id = $1")).integer(id.0);
        let rows = self.within(self.pool.rows(&statement)).await?;
        Ok(self.records(rows).await?.pop())
    }

    /// What was made in an artifact's place.
    pub(crate) async fn children(&self, record: &Record) -> Result<Vec<Record>, LibraryError> {
        let statement = Statement::new(format!(
            "SELECT {COLUMNS} FROM records WHERE blueprint = $1 AND site = $2 \
             AND parent_digest = $3 ORDER BY id LIMIT 100"
        ))
        .text(record.job.blueprint.as_str())
        .text(&record.job.site)
        .text(record.digest.to_hex());
        let rows = self.within(self.pool.rows(&statement)).await?;
        self.records(rows).await
    }

    /// The tags of records, by record.
    pub(crate) async fn tags(
        &self,
        records: &[Record],
    ) -> Result<BTreeMap<RecordId, Vec<String>>, LibraryError> {
        let mut tags: BTreeMap<RecordId, Vec<String>> = BTreeMap::new();
        if records.is_empty() {
            return Ok(tags);
        }
        let places: Vec<String> = (1..=records.len()).map(|place| format!("${place}")).collect();
        let mut statement = Statement::new(format!(
            "SELECT record_id, tag FROM tags WHERE record_id IN ({}) ORDER BY record_id, folded",
            places.join(", ")
        ));
        for record in records {
            statement = statement.integer(record.id.0);
        }
        for row in self.within(self.pool.rows(&statement)).await? {
            if let (Ok(id), Ok(tag)) = (row.integer("record_id"), row.text("tag")) {
                tags.entry(RecordId(id)).or_default().push(tag);
            }
        }
        Ok(tags)
    }

    /// Adds a tag to a record; one that differs in case is replaced.
    pub(crate) async fn add_tag(&self, record: &Record, tag: &str) -> Result<(), StoreError> {
        let folded = folded(tag)?;
        let work = async {
            let mut writing = self.pool.write().await?;
            let Some(row) = current(&mut writing, record).await? else { return Ok(false) };
            let statement = Statement::new(
                "INSERT INTO tags (folded, record_id, tag) VALUES ($1, $2, $3) \
                 ON CONFLICT (folded, record_id) DO UPDATE SET tag = excluded.tag",
            )
            .text(folded)
            .integer(row.integer("id")?)
            .text(tag);
            writing.execute(&statement).await?;
            writing.commit().await?;
            Ok(true)
        };
        if self.within(work).await? { Ok(()) } else { Err(StoreError::Forgotten) }
    }

    /// Removes a tag in whatever case, and says whether it was there.
    pub(crate) async fn remove_tag(&self, record: &Record, tag: &str) -> Result<bool, StoreError> {
        let statement = Statement::new(
            "DELETE FROM tags WHERE folded = $1 AND record_id IN \
             (SELECT id FROM records WHERE job_key = $2 AND digest = $3)",
        )
        .text(folded(tag)?)
        .text(record.job.digest().to_hex())
        .text(record.digest.to_hex());
        Ok(self.within(self.pool.execute(&statement)).await? > 0)
    }

    /// Which of these digests have a record.
    pub(crate) async fn known(&self, digests: &[Digest]) -> Result<Vec<Digest>, LibraryError> {
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<String> = (1..=digests.len()).map(|place| format!("${place}")).collect();
        let mut statement = Statement::new(format!(
            "SELECT DISTINCT digest FROM records WHERE digest IN ({})",
            places.join(", ")
        ));
        for digest in digests {
            statement = statement.text(digest.to_hex());
        }
        let rows = self.within(self.pool.rows(&statement)).await?;
        Ok(rows.iter().filter_map(|row| row.text("digest").ok()?.parse().ok()).collect())
    }
}

/// The statement of a filter. Each has an index that leads to its rows in their order.
pub(super) fn select(filter: &Filter, page: Page) -> Statement {
    let mut sql = String::new();
    let mut values = vec![Value::Integer(page.after.map_or(0, |id| id.0))];
    let mut with = |condition: &str, value: Value| {
        values.push(value);
        let _ = write!(sql, " AND {condition} ${}", values.len());
    };
    let text = |text: &str| Value::Text(text.to_owned());
    if let Some(tag) = &filter.tag {
        // A text that is no tag is found nowhere.
        with("folded =", Value::Text(folded(tag).unwrap_or_default()));
    }
    if let Some(blueprint) = &filter.blueprint {
        with("blueprint =", text(blueprint.as_str()));
    }
    if let Some(site) = &filter.site {
        with("site =", text(site));
    }
    if let Some(engine) = &filter.engine {
        with("engine =", text(engine));
    }
    if let Some(parameters) = &filter.parameters {
        with("parameters =", Value::Text(crate::job::parameters_json(parameters)));
    }
    if let Some(tier) = filter.tier {
        with("tier =", Value::Integer(i64::from(tier as i32)));
    }
    if let Some(stage) = filter.stage {
        with("stage =", Value::Integer(i64::from(stage)));
    }
    if let Some(state) = filter.state {
        with("state =", text(state.text()));
    }
    if let Some(digest) = &filter.digest {
        let digest = digest.to_ascii_lowercase();
        // No hex digit follows "f".
        with("digest <", Value::Text(format!("{digest}g")));
        with("digest >=", Value::Text(digest));
    }
    let (tables, id) = match filter {
        Filter { tag: Some(_), .. } => ("tags JOIN records ON id = record_id", "record_id"),
        // The few of a digest are put in order; a walk in their order would pass all others.
        Filter { digest: Some(_), .. } => ("records", "id + 0"),
        _ => ("records", "id"),
    };
    let limit = page.limit.clamp(1, PAGE_MAX);
    let sql =
        format!("SELECT {COLUMNS} FROM {tables} WHERE {id} > $1{sql} ORDER BY {id} LIMIT {limit}");
    values.into_iter().fold(Statement::new(sql), Statement::with)
}
