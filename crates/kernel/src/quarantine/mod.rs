//! Quarantine: a kernel that nobody trusts is run beside everything, on a thread of its own and within budgets, and
//! what it does wrong is found and named.

mod permit;

pub use permit::Permit;
