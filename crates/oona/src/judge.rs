//! A door to the checks of one entry, for the fuzz targets in `fuzz/` and for the tests that compare
//! the checks with a second, independent writing of their order. No part of the interface.

use leyline::Message;
use leyline::sign::Keyring;

use crate::check::{Checker, Refusal, Verdict};
use crate::config::Config;
use crate::entry::{EntryId, RawEntry};
use crate::live::Live;
use crate::stream::Stream;

/// What the checks say of one entry, before its nonce is claimed.
#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack for one step")]
pub enum Judgement {
    /// Another program's entry.
    Foreign,
    /// Refused, and why.
    Refused(Refusal),
    /// Admitted, if its nonce is free.
    Admitted {
        /// `<type>:<nonce>`, what will be claimed.
        nonce: Option<String>,
        /// Without the attributes.
        legacy: bool,
        /// What it says.
        message: Message,
    },
}

/// The checks of one stream.
#[derive(Debug)]
pub struct Judge(Checker);

impl Judge {
    /// Checks as a consumer of this stream would.
    pub fn new(stream: Stream, keyring: Keyring, config: &Config) -> Self {
        Self(Checker::new(stream, Live::fixed(keyring, config.limits()), config))
    }

    /// Judges an entry with these fields.
    pub fn judge(&self, id: EntryId, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Judgement {
        match self.0.check(RawEntry::new(id, fields, 1)) {
            Verdict::Foreign => Judgement::Foreign,
            Verdict::Refused(refusal) => Judgement::Refused(refusal),
            Verdict::Admitted(checked) => Judgement::Admitted {
                nonce: checked.nonce,
                legacy: checked.legacy,
                message: checked.message,
            },
        }
    }
}
