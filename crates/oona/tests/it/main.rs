//! The conformance suite: one list of tests, run against both logs; and what only one log has.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod admission;
mod answers;
mod capabilities;
mod captured;
mod checks;
mod cluster;
mod connections;
mod dead;
mod delivery;
mod durable;
mod embedded;
mod failover;
mod faults;
mod flood;
mod fuzzed;
mod groups;
mod keys;
mod leases;
mod leaving;
mod model;
mod names;
mod pitfalls;
mod proxy;
mod redis;
mod redis_server;
mod rig;
mod spool;
mod stub;
mod upkeep;

/// Runs each function of this module against both logs.
macro_rules! on_both_logs {
    ($($name:ident),+ $(,)?) => {
        mod on_embedded {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::rig::Rig::embedded()).await;
            })+
        }
        mod on_redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::rig::Rig::redis()).await;
            })+
        }
    };
}
pub(crate) use on_both_logs;
