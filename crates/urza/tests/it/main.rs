//! Black-box tests of the library and its workers, on real files, SQLite and the embedded bus, and on
//! a real S3 server.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod archive;
mod catalogue;
mod collect;
mod front;
mod full;
mod leases;
mod library;
mod maintenance;
mod migrations;
mod postgres;
mod postgres_tls;
mod prefetch;
mod proxy;
mod servers;
mod stores;
mod support;
mod tls;
