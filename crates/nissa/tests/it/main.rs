//! Black-box tests: real listeners, the embedded bus, nothing but public names.

mod bounds;
mod contract;
mod http;
mod ingest;
mod live;
mod support;
