//! Black-box tests: real listeners, the embedded bus, nothing but public names.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bounds;
mod contract;
#[path = "../../../urza/tests/it/front.rs"]
mod front;
mod http;
mod ingest;
mod kernels;
mod live;
#[path = "../../../urza/tests/it/proxy.rs"]
mod proxy;
mod support;
