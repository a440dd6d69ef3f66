//! Oona owns delivery: one [`Bus`] handle, and behind it either Redis Streams or an embedded
//! durable log. It gives at-least-once delivery with exactly-once effect, authenticates every entry
//! before anything parses it, and loses nothing that it accepted. What a message means is left to
//! its handlers; of a body Oona reads only the nonce, the time and the ordering key.
//!
//! Reading order: [`Stream`] (the lanes and what they carry), [`Config`], [`Bus`] (publishing),
//! [`Consumer`] and [`Delivery`] (handling), `check` (what is refused, and in which order), `log`
//! (what both logs have to offer), [`Housekeeping`] (what keeps a log small).
//!
//! Nothing here spawns: the supervisor runs [`Housekeeping`] and [`EmergencyLane`] as workers.

mod admission;
mod answer;
mod attempt;
pub mod attributes;
pub mod bench;
mod breaker;
mod bucket;
mod bus;
#[doc(hidden)]
pub mod chaos;
mod check;
mod config;
mod conservative;
mod consumer;
mod dead_letter;
mod delivery;
mod durability;
mod emergency;
mod entry;
mod error;
mod fill;
#[doc(hidden)]
pub mod fuzzing;
mod heartbeat;
mod housekeeping;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
#[doc(hidden)]
pub mod judge;
mod lease;
mod leaving;
mod live;
mod log;
mod metrics;
mod publish;
mod reading;
mod replay;
mod seal;
mod shared;
mod span;
mod spool;
mod standing;
mod stream;
mod sync;
mod takeover;
mod trace;
mod unseen;
mod work;

pub use answer::{Reply, Unanswered};
pub use attempt::{Spare, panic_text};
pub use breaker::{BreakerPosition, BreakerStanding};
pub use bus::Bus;
pub use check::Refusal;
pub use config::{Config, ConfigFault, LogChoice, LogKind, RedisAccess, StreamNames};
pub use conservative::ConservativeBecause;
pub use consumer::{Consumer, ConsumerSpec, Order, Role};
pub use dead_letter::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, Mark, NEVER_ACKNOWLEDGED, Peeked, RECEIVER_BUSY,
    RECEIVER_GONE,
};
pub use delivery::{Delivery, Receipt};
pub use durability::{Durabilities, Durability, DurabilityFault};
pub use emergency::EmergencyLane;
pub use entry::{BadEntryId, EntryId};
pub use error::{BusError, LogError, PublishError};
pub use heartbeat::{Heartbeat, Over, Sighting};
pub use housekeeping::Housekeeping;
pub use lease::{Lease, LeaseKeeper, LeaseStanding, Standing, Tenure};
pub use live::{Limits, Live};
pub use log::{About, Capabilities, ServerKind, check_url, probe};
pub use metrics::Metrics;
pub use publish::{Outcome, Outgoing, RefusedBecause};
pub use replay::ReplayError;
pub use span::{FinishedSpan, Span, SpanKind, SpanValue, Tracer};
pub use spool::{SpoolConfig, SpoolError, SpoolSender, SpoolStanding};
pub use standing::{
    Backlog, ConsumerStanding, GroupStanding, KeyRole, KeyStanding, StreamStanding,
};
pub use stream::Stream;
pub use trace::TraceContext;
