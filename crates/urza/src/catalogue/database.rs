//! One way to ask either database: statements with `$1`-style parameters, rows read by column name, and
//! transactions that write alone.

use std::borrow::Cow;

use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Postgres, Row as _, Sqlite};

/// Writers of several rows take turns by this lock of PostgreSQL, as SQLite's writers do by themselves: nobody
/// deadlocks, and what a transaction has read is still true when it writes.
const WRITERS: i64 = 0x7572_7a61; // "urza"

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    MaybeInteger(Option<i64>),
    Real(f64),
    Text(String),
    MaybeText(Option<String>),
}

/// A statement and its parameters, `$1` first. Both databases read this spelling.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statement {
    pub(crate) sql: Cow<'static, str>,
    pub(crate) values: Vec<Value>,
}

impl Statement {
    pub(crate) fn new(sql: impl Into<Cow<'static, str>>) -> Self {
        Self { sql: sql.into(), values: Vec::new() }
    }

    pub(crate) fn text(self, value: impl Into<String>) -> Self {
        self.with(Value::Text(value.into()))
    }

    pub(crate) fn integer(self, value: i64) -> Self {
        self.with(Value::Integer(value))
    }

    pub(crate) fn with(mut self, value: Value) -> Self {
        self.values.push(value);
        self
    }
}

macro_rules! query {
    ($database:ty, $statement:expr) => {{
        let mut query = sqlx::query::<$database>(&$statement.sql);
        for value in &$statement.values {
            query = match value {
                Value::Integer(value) => query.bind(*value),
                Value::MaybeInteger(value) => query.bind(*value),
                Value::Real(value) => query.bind(*value),
                Value::Text(value) => query.bind(value.as_str()),
                Value::MaybeText(value) => query.bind(value.as_deref()),
            };
        }
        query
    }};
}

/// A row of either.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(crate) fn integer(&self, column: &str) -> Result<i64, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    pub(crate) fn maybe_integer(&self, column: &str) -> Result<Option<i64>, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    pub(crate) fn real(&self, column: &str) -> Result<f64, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    pub(crate) fn text(&self, column: &str) -> Result<String, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    pub(crate) fn maybe_text(&self, column: &str) -> Result<Option<String>, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

/// Connections to one of the databases.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// What both pools share: a bound, and a time-out for whoever waits for a connection.
pub(super) fn options<D: sqlx::Database>(
    connections_max: u32,
    wait: std::time::Duration,
) -> PoolOptions<D> {
    PoolOptions::new().max_connections(connections_max).acquire_timeout(wait)
}

impl Pool {
    pub(crate) async fn rows(&self, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => {
                let rows = query!(Sqlite, statement).fetch_all(pool).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(pool) => {
                let rows = query!(Postgres, statement).fetch_all(pool).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    pub(crate) async fn row(&self, statement: &Statement) -> Result<Option<Row>, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => {
                query!(Sqlite, statement).fetch_optional(pool).await?.map(Row::Sqlite)
            }
            Self::Postgres(pool) => {
                query!(Postgres, statement).fetch_optional(pool).await?.map(Row::Postgres)
            }
        })
    }

    /// Runs one statement by itself, and says how many rows it touched.
    pub(crate) async fn execute(&self, statement: &Statement) -> Result<u64, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => query!(Sqlite, statement).execute(pool).await?.rows_affected(),
            Self::Postgres(pool) => {
                query!(Postgres, statement).execute(pool).await?.rows_affected()
            }
        })
    }

    /// Begins a transaction that writes alone. Dropped without a commit it has changed nothing.
    pub(crate) async fn write(&self) -> Result<Writing, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Writing::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(pool) => {
                let mut writing = Writing::Postgres(pool.begin().await?);
                let lock = Statement::new("SELECT pg_advisory_xact_lock($1)");
                writing.execute(&lock.integer(WRITERS)).await?;
                writing
            }
        })
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }

    /// The database's own clock in Unix milliseconds, as an expression: one clock for every machine that shares it.
    pub(crate) const fn now_ms(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
            Self::Postgres(_) => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}

/// A transaction that writes alone.
#[derive(Debug)]
pub(crate) enum Writing {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Writing {
    pub(crate) async fn rows(&mut self, statement: &Statement) -> Result<Vec<Row>, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(transaction) => {
                let rows = query!(Sqlite, statement).fetch_all(&mut **transaction).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(transaction) => {
                let rows = query!(Postgres, statement).fetch_all(&mut **transaction).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    pub(crate) async fn row(&mut self, statement: &Statement) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.rows(statement).await?.into_iter().next())
    }

    pub(crate) async fn execute(&mut self, statement: &Statement) -> Result<u64, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(transaction) => {
                query!(Sqlite, statement).execute(&mut **transaction).await?.rows_affected()
            }
            Self::Postgres(transaction) => {
                query!(Postgres, statement).execute(&mut **transaction).await?.rows_affected()
            }
        })
    }

    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}
