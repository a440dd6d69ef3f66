//! The artifact library and the prefetch worker.
