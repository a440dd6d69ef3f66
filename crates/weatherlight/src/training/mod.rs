//! A training run from the command line: what was asked for, its thread, what a person sees of it.
//!
//! Reading order: [`Ask`] (the options), `thread` (the run itself), `forge` and `watch` (what is
//! shown meanwhile), `result` (what is shown at the end).

mod ask;
mod forge;
mod result;
mod thread;
mod watch;

pub use ask::{Ask, Task};
pub use forge::wait_for_kernels;
pub use result::{print, summary, write_report};
pub use thread::{Run, start};
pub use watch::follow;
