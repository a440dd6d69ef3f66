//! Locks, by one name: the standard library's, or, under the feature `shuttle`, those of a scheduler
//! that tries interleavings. Only the tests of `interleavings` are built with that feature.

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Mutex, MutexGuard};
