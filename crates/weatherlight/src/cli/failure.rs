//! How a command fails: one message for a person, one code for a program.

use std::error::Error;
use std::fmt;

use serde_json::json;

use crate::supervisor::{Exit, chain};

/// Exit code for input data that cannot be used (`EX_DATAERR` of `sysexits.h`).
const DATA: u8 = 65;
/// Exit code for a command line that cannot be read, as `clap` ends with.
const USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: u8,
    word: &'static str,
    message: String,
}

impl Failure {
    /// The configuration cannot be used.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::exit(Exit::Configuration, message)
    }

    /// Something that is needed is not there.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::exit(Exit::Unavailable, message)
    }

    /// Something that is needed is not there, for this reason.
    pub fn unavailable_because(error: &(dyn Error + 'static)) -> Self {
        Self::unavailable(chain(error))
    }

    /// The bus failed: what is needed is not there, and the error has a code of its own.
    pub fn bus(error: &oona::BusError) -> Self {
        let word = match error {
            oona::BusError::Log(error) => error.code(),
            error => error.code(),
        };
        Self::unavailable_because(error).named(word)
    }

    /// The data a person gave cannot be used.
    pub fn data(error: &(dyn Error + 'static)) -> Self {
        Self::unusable(chain(error))
    }

    /// What was asked about cannot be used, and this says why.
    pub fn unusable(message: impl Into<String>) -> Self {
        Self { exit: DATA, word: "data", message: message.into() }
    }

    /// The command line cannot be read.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, word: "usage", message: message.into() }
    }

    /// Whether it is about what was asked about, and not about the world around.
    pub fn is_data(&self) -> bool {
        self.exit == DATA
    }

    /// Something went wrong in here.
    pub fn software(error: &(dyn Error + 'static)) -> Self {
        Self::exit(Exit::Software, chain(error))
    }

    /// The exit that findings demand, with their report.
    pub fn exit(exit: Exit, message: impl Into<String>) -> Self {
        let word = match exit {
            Exit::Clean => "clean",
            Exit::Unavailable => "unavailable",
            Exit::Software => "software",
            Exit::Configuration => "configuration",
        };
        Self { exit: exit.code(), word, message: message.into() }
    }

    /// The same, under a code of its own that `weatherlight explain` knows.
    #[must_use]
    pub fn named(self, word: &'static str) -> Self {
        Self { word, ..self }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.exit
    }

    /// Its stable code: `weatherlight explain CODE` says what to do.
    pub fn word(&self) -> &'static str {
        self.word
    }

    /// For programs: `{"error":{"code","message","exit"}}` on one line.
    pub fn as_json(&self) -> String {
        let Self { exit, word, message } = self;
        json!({ "error": { "code": word, "message": message, "exit": exit } }).to_string()
    }

    /// For people: the message, and where to read more when it has a code of its own.
    pub fn as_text(&self) -> String {
        match self.word {
            "clean" | "unavailable" | "software" | "configuration" | "data" | "usage" => {
                format!("error: {}", self.message)
            }
            word => format!("error: {}\n  see `weatherlight explain {word}`", self.message),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_a_code_that_is_explained() {
        let failures = [
            Failure::configuration("x"),
            Failure::unavailable("x"),
            Failure::unusable("x"),
            Failure::usage("x"),
            Failure::software(&std::fmt::Error),
            Failure::bus(&oona::BusError::Log(oona::LogError::Reply { operation: "XADD" })),
        ];
        let words = failures.each_ref().map(Failure::word);
        let wanted = ["configuration", "unavailable", "data", "usage", "software", "log_reply"];
        assert_eq!(words, wanted);
        for failure in &failures {
            assert_eq!(
                crate::codes::find(failure.word()).len(),
                1 + usize::from(failure.word() == "unavailable")
            );
            let json: serde_json::Value = serde_json::from_str(&failure.as_json()).unwrap();
            assert_eq!(json["error"]["exit"], failure.code());
            assert_eq!(json["error"]["code"], failure.word());
        }
        assert!(failures[5].as_text().ends_with("see `weatherlight explain log_reply`"));
        assert_eq!(failures[0].as_text(), "error: x");
    }
}
