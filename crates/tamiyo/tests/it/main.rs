//! Black-box tests of the policy: decisions on scripted runs, updates and reports over an embedded
//! bus.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod archive;
mod decide;
mod observe;
mod reports;
mod rig;
mod strange;
mod updates;
