//! The built commands from outside: what they refuse, with which message and exit code, and how the
//! service starts and stops. Each test has its own directory and port, and leaves nothing running.

mod bed;
mod refusals;
mod service;
