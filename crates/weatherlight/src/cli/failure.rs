//! How a command fails: one message for a person, one code for a program.

use std::error::Error;
use std::fmt;

use crate::supervisor::{Exit, chain};

/// Exit code for input data that cannot be used (`EX_DATAERR` of `sysexits.h`).
const DATA: u8 = 65;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The configuration cannot be used.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { code: Exit::Configuration.code(), message: message.into() }
    }

    /// Something that is needed is not there.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: Exit::Unavailable.code(), message: message.into() }
    }

    /// Something that is needed is not there, for this reason.
    pub fn unavailable_because(error: &(dyn Error + 'static)) -> Self {
        Self::unavailable(chain(error))
    }

    /// The data a person gave cannot be used.
    pub fn data(error: &(dyn Error + 'static)) -> Self {
        Self { code: DATA, message: chain(error) }
    }

    /// What was asked about cannot be used, and this says why.
    pub fn unusable(message: impl Into<String>) -> Self {
        Self { code: DATA, message: message.into() }
    }

    /// Whether it is about what was asked about, and not about the world around.
    pub fn is_data(&self) -> bool {
        self.code == DATA
    }

    /// Something went wrong in here.
    pub fn software(error: &(dyn Error + 'static)) -> Self {
        Self { code: Exit::Software.code(), message: chain(error) }
    }

    /// The exit that findings demand, with their report.
    pub fn exit(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit.code(), message: message.into() }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
