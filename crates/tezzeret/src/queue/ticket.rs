//! What is written of a job that something is owed on.

use std::collections::BTreeMap;
use std::io;

use kernel::Digest;
use leyline::wire::MessagePriority;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::job::Job;

/// The form of the file. A newer one is left alone.
const FORMAT: u32 = 1;

/// An order, or what became of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ticket {
    /// Digest of the job's key; the name of the file.
    pub(crate) key: Digest,
    pub(crate) blueprint: String,
    pub(crate) parameters: BTreeMap<String, f64>,
    pub(crate) site: String,
    /// Engine and seed the key is of.
    pub(crate) engine: String,
    pub(crate) priority: MessagePriority,
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) standing: Standing,
}

/// Where the job stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It is to be done, and told of.
    Open,
    /// It was given up.
    Parked {
        /// Refused until then, in Unix milliseconds.
        until_ms: u64,
        /// Why, in words.
        reason: String,
    },
}

/// Why a file is not used as a ticket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TicketFault {
    #[error("its name is not the digest of its job")]
    Name,
    #[error("it is no regular file")]
    Kind,
    #[error("it is too large")]
    Size,
    #[error("it is not readable as a ticket: {0}")]
    Text(#[from] serde_json::Error),
    #[error("its digest or priority is none")]
    Field,
    #[error("it has format {0}")]
    Newer(u32),
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Form {
    format: u32,
    key: String,
    blueprint: String,
    parameters: BTreeMap<String, f64>,
    site: String,
    engine: String,
    priority: String,
    deadline_ms: Option<u64>,
    standing: Standing,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl Ticket {
    pub(crate) fn of(job: &Job, priority: MessagePriority, deadline_ms: Option<u64>) -> Self {
        let key = job.key();
        Self {
            key: key.digest(),
            blueprint: key.blueprint.to_string(),
            parameters: key.parameters,
            site: key.site,
            engine: key.engine,
            priority,
            deadline_ms,
            standing: Standing::Open,
        }
    }

    pub(crate) fn parked(job: &Job, until_ms: u64, reason: &str) -> Self {
        let standing = Standing::Parked { until_ms, reason: reason.to_owned() };
        Self { standing, ..Self::of(job, MessagePriority::Normal, None) }
    }

    /// The job, as this engine does it: an older engine's ticket is for the newer one's artifact. `None` when the
    /// blueprint, a parameter or the site is no longer what it was.
    pub(crate) fn job(&self, config: &Config) -> Option<Job> {
        let blueprint = config.catalogue.find(&self.blueprint.as_str().into())?;
        let parameters = self.parameters.iter().map(|(name, value)| (name.as_str(), *value));
        Job::with(blueprint, parameters.collect(), self.site.parse().ok()?, config).ok()
    }

    pub(super) fn text(&self) -> io::Result<String> {
        let form = Form {
            format: FORMAT,
            key: self.key.to_hex(),
            blueprint: self.blueprint.clone(),
            parameters: self.parameters.clone(),
            site: self.site.clone(),
            engine: self.engine.clone(),
            priority: self.priority.as_str_name().to_owned(),
            deadline_ms: self.deadline_ms,
            standing: self.standing.clone(),
        };
        Ok(serde_json::to_string(&form)?)
    }

    pub(super) fn read(text: &[u8]) -> Result<Self, TicketFault> {
        let Format { format } = serde_json::from_slice(text)?;
        if format != FORMAT {
            return Err(TicketFault::Newer(format));
        }
        let form: Form = serde_json::from_slice(text)?;
        let priority = MessagePriority::from_str_name(&form.priority).ok_or(TicketFault::Field)?;
        Ok(Self {
            key: form.key.parse().map_err(|_| TicketFault::Field)?,
            blueprint: form.blueprint,
            parameters: form.parameters,
            site: form.site,
            engine: form.engine,
            priority,
            deadline_ms: form.deadline_ms,
            standing: form.standing,
        })
    }
}
