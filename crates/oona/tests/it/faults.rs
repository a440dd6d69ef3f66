//! The server and the way to it fail in every way that can be arranged on one machine. A publisher
//! and a consumer of numbered messages work on meanwhile, with the settings of production, and then
//! the books are compared: see [`Book::balance`].
//!
//! Every recovery time is printed (`--nocapture` shows it). It is asserted with room for a loaded
//! machine; what an idle one measures stands in docs/oona.md.

mod book;
mod connection;
mod outage;
mod server;
mod trial;
