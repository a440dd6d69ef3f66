//! Publishing: admission, sealing, appending.

use std::sync::PoisonError;
use std::time::Duration;

use leyline::Message;
use leyline::wire::{BusEnvelope, MessagePriority};
use prost::Message as _;
use tokio::time::Instant;

use crate::admission::Admission;
use crate::attributes;
use crate::bus::Bus;
use crate::conservative::{ConservativeBecause, Lane};
use crate::emergency;
use crate::entry::EntryId;
use crate::error::{LogError, PublishError};
use crate::log::GroupInfo;
use crate::metrics::Published;
use crate::seal::{Sealed, Unsealed, seal};
use crate::spool::NotSpooled;
use crate::stream::Stream;

/// Pause before an append is tried again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Told to a publisher that the backlog refused: a backlog takes about that long to shrink.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Told to a publisher when the spool is full: an outage that filled it rarely ends sooner.
const SPOOL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A message to publish.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The stream it is meant for.
    pub stream: Stream,
    /// Decides who gives way under pressure.
    pub priority: MessagePriority,
    /// The subsystem that sends.
    pub source: &'static str,
    /// The payload.
    pub message: &'a Message,
    /// W3C trace context to carry on.
    pub traceparent: Option<&'a str>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedBecause {
    /// The backlog of the stream's group is too long for this priority.
    Backlog,
    /// The stream is in conservative mode: its backlog was too long and is not yet low for long
    /// enough. HIGH and CRITICAL go on.
    Conservative,
    /// The origin has used up its share of the emergency lane.
    RateLimited,
    /// The log has failed several times in a row and is left alone for a while.
    BreakerOpen,
    /// The log is away, and so much waits on disk already that no more is taken.
    SpoolFull,
}

impl RefusedBecause {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Backlog, Self::Conservative, Self::RateLimited, Self::BreakerOpen, Self::SpoolFull];

    /// Its stable code: `weatherlight explain CODE` says what to do.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Backlog => "refused_backlog",
            Self::Conservative => "refused_conservative",
            Self::RateLimited => "refused_rate_limited",
            Self::BreakerOpen => "refused_breaker_open",
            Self::SpoolFull => "refused_spool_full",
        }
    }
}

/// What became of a publish. Look at it: a refused message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a refused message was not sent"]
pub enum Outcome {
    /// It stands in its stream.
    Published {
        /// Where.
        stream: Stream,
        /// Its place there.
        id: EntryId,
    },
    /// It stands in the emergency stream, since its own was too full.
    Rerouted {
        /// Where it was meant to go.
        from: Stream,
        /// Its place in the emergency stream.
        id: EntryId,
    },
    /// The log is away. The message stands on this machine's disk and is sent when it is back: in
    /// its order, behind what waits for the same stream.
    Spooled {
        /// The stream it will stand in.
        stream: Stream,
        /// Messages that wait for that stream, this one included.
        waiting: u64,
    },
    /// It was not sent.
    Refused {
        /// Why.
        reason: RefusedBecause,
        /// When trying again may help.
        retry_after: Duration,
    },
}

impl Outcome {
    /// Whether Oona answers for the message from now on: it stands in a stream, or on disk.
    pub fn is_accepted(&self) -> bool {
        match self {
            Self::Published { .. } | Self::Rerouted { .. } | Self::Spooled { .. } => true,
            Self::Refused { .. } => false,
        }
    }

    /// Whether the message stands in a stream already.
    pub fn is_sent(&self) -> bool {
        matches!(self, Self::Published { .. } | Self::Rerouted { .. })
    }
}

/// Where a message goes, and whether its append looks at the backlog on the way.
pub(crate) struct Route {
    pub(crate) lane: Stream,
    pub(crate) sample: bool,
    /// In the spool, without asking the log.
    pub(crate) must_wait: bool,
}

impl Route {
    fn to(lane: Stream) -> Self {
        Self { lane, sample: false, must_wait: false }
    }
}

/// Why a message is refused, and when trying again may help.
pub(crate) type No = (RefusedBecause, Duration);

impl Bus {
    /// Publishes a message; [`publish`](Self::publish) is the short form.
    ///
    /// # Errors
    /// [`PublishError`] when it is too large, does not travel on that stream, or the log failed.
    pub async fn send(&self, outgoing: Outgoing<'_>) -> Result<Outcome, PublishError> {
        self.send_with(outgoing, &[]).await
    }

    /// The same with attributes of the envelope beside Oona's own, given in the order of their
    /// names; none of them may begin with `oona-`.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_with(
        &self,
        outgoing: Outgoing<'_>,
        attributes: &[(&str, &str)],
    ) -> Result<Outcome, PublishError> {
        let started = Instant::now();
        let outcome = self.try_send(outgoing, attributes).await;
        let kind = match &outcome {
            Ok(Outcome::Published { .. }) => Published::Sent,
            Ok(Outcome::Rerouted { .. }) => Published::Rerouted,
            Ok(Outcome::Spooled { .. }) => Published::Spooled,
            Ok(Outcome::Refused { .. }) => Published::Refused,
            Err(_) => Published::Failed,
        };
        self.0.metrics.count_publish(outgoing.stream, kind);
        self.0.metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        outcome
    }

    async fn try_send(
        &self,
        outgoing: Outgoing<'_>,
        attributes: &[(&str, &str)],
    ) -> Result<Outcome, PublishError> {
        let kind = outgoing.message.message_type();
        if !outgoing.stream.carries(kind) {
            return Err(PublishError::WrongStream { stream: outgoing.stream, kind });
        }
        let route = match self.route(outgoing).await? {
            Ok(route) => route,
            Err((reason, retry_after)) => return Ok(Outcome::Refused { reason, retry_after }),
        };
        let lane = route.lane;
        let sealed = self.seal(outgoing, attributes, lane)?;
        let urgent = lane == Stream::Emergency;
        let let_through = |breaker: &mut crate::breaker::Breaker| breaker.admit(Instant::now());
        if route.must_wait || self.0.spool.as_ref().is_some_and(|spool| spool.waiting(lane) > 0) {
            return self.keep(lane, &sealed, None).await;
        }
        if let Err(retry_after) = self.0.pulse.breaker(urgent, let_through) {
            if self.0.spool.is_some() {
                return self.keep(lane, &sealed, None).await;
            }
            return Ok(Outcome::Refused { reason: RefusedBecause::BreakerOpen, retry_after });
        }
        let id = self.append(lane, &sealed, urgent, route.sample).await;
        self.0.pulse.breaker(urgent, |breaker| match &id {
            Err(error) if error.is_failure() => breaker.failed(Instant::now()),
            _ => breaker.succeeded(),
        });
        let id = match id.inspect_err(|_| self.0.metrics.count_log_failure()) {
            Err(error) if error.is_absence() && self.0.spool.is_some() => {
                return self.keep(lane, &sealed, Some(error)).await;
            }
            id => id?,
        };
        Ok(match lane == outgoing.stream {
            true => Outcome::Published { stream: lane, id },
            false => Outcome::Rerouted { from: outgoing.stream, id },
        })
    }

    /// Finds the stream to publish on, or why not to. Backlogs are judged as last seen; one publish
    /// in a while is told to look again. A refusal is decided on a fresh look when one is due, or it
    /// would never end.
    pub(crate) async fn route(
        &self,
        outgoing: Outgoing<'_>,
    ) -> Result<Result<Route, No>, LogError> {
        let Outgoing { stream, priority, .. } = outgoing;
        if stream == Stream::Emergency
            && let Err(retry_after) = self.take_token(outgoing)
        {
            return Ok(Err((RefusedBecause::RateLimited, retry_after)));
        }
        if priority == MessagePriority::Critical && !stream.may_reroute() {
            return Ok(Ok(Route::to(stream)));
        }
        let lanes = &self.0.pulse.lanes;
        let (mut lane, mut due) = lanes.look(stream, self.0.config.depth_sample_interval);
        let has_spool = self.0.spool.is_some();
        if has_spool && lane.pauses(stream, priority) == Some(ConservativeBecause::LogAway) {
            // NORMAL and LOW do not even ask whether the log is back.
            return Ok(Ok(Route { must_wait: true, ..Route::to(stream) }));
        }
        let mut admission = self.admit(stream, priority, &lane);
        if due && admission != Ok(Admission::Publish) {
            lane = match self.look_at_backlog(stream).await {
                Err(error) if error.is_absence() && has_spool => {
                    return Ok(Ok(Route { must_wait: true, ..Route::to(stream) }));
                }
                looked => looked?,
            };
            admission = self.admit(stream, priority, &lane);
            due = false;
        }
        if admission == Ok(Admission::Reroute) {
            if self.take_token(outgoing).is_ok() {
                return Ok(Ok(Route::to(Stream::Emergency)));
            }
            admission = Ok(self.bands().admit_at_home(priority, lane.depth()));
        }
        Ok(match admission {
            Ok(Admission::Refuse) => Err((RefusedBecause::Backlog, RETRY_AFTER)),
            Ok(Admission::Publish | Admission::Reroute) => {
                Ok(Route { sample: due, ..Route::to(stream) })
            }
            Err(no) => Err(no),
        })
    }

    /// What the mode and the bands say to a message at a backlog.
    fn admit(
        &self,
        stream: Stream,
        priority: MessagePriority,
        lane: &Lane,
    ) -> Result<Admission, No> {
        match lane.pauses(stream, priority) {
            Some(ConservativeBecause::Backlog) => {
                let retry_after = lane.retry_after(Instant::now(), &self.0.pulse.lanes.limits());
                Err((RefusedBecause::Conservative, retry_after.max(RETRY_AFTER)))
            }
            // Then the breaker decides.
            Some(ConservativeBecause::LogAway) | None => {
                Ok(self.bands().admit(stream, priority, lane.depth()))
            }
        }
    }

    /// Takes a token of the message's origin for the emergency lane, or says when there is one.
    fn take_token(&self, outgoing: Outgoing<'_>) -> Result<(), Duration> {
        let origin = emergency::origin(outgoing.source, outgoing.message);
        let mut rates = self.0.emergency_rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.allow(self.limits().emergency_per_min);
        let taken = rates.take(&origin, Instant::now());
        if taken.is_err() {
            self.0.metrics.emergency_limited.inc();
        }
        taken
    }

    pub(crate) async fn look_at_backlog(&self, stream: Stream) -> Result<Lane, LogError> {
        let groups = self.0.log.groups(self.name(stream)).await;
        if groups.as_ref().is_err_and(LogError::is_failure) {
            self.0.metrics.count_log_failure();
            self.0.pulse.breaker(false, |breaker| breaker.failed(Instant::now()));
        }
        Ok(self.note_depth(stream, &groups?))
    }

    pub(crate) fn note_depth(&self, stream: Stream, groups: &[GroupInfo]) -> Lane {
        let group = groups.iter().find(|info| info.name == self.0.config.group);
        self.0.pulse.lanes.note(stream, group.map_or(0, GroupInfo::depth))
    }

    /// Puts the attributes in and signs: exactly these bytes are sent and verified.
    pub(crate) fn seal(
        &self,
        outgoing: Outgoing<'_>,
        attributes: &[(&str, &str)],
        lane: Stream,
    ) -> Result<Sealed, PublishError> {
        let sealed = seal(
            &self.0.live.keyring(),
            Unsealed {
                kind: outgoing.message.message_type(),
                payload: &outgoing.message.encode_payload(),
                source: outgoing.source,
                stream: self.name(lane),
                traceparent: outgoing.traceparent,
                attributes,
                now_ms: self.0.log.stamp_ms(),
            },
        );
        let (bytes, bytes_max) = (sealed.len(), self.0.config.message_bytes_max);
        if bytes > bytes_max {
            return Err(PublishError::Oversize { bytes, bytes_max });
        }
        Ok(sealed)
    }

    /// Says where to and when, and signs. The nonce stays what it is.
    pub(crate) fn stamp(&self, mut envelope: BusEnvelope, lane: Stream) -> Sealed {
        let keyring = self.0.live.keyring();
        envelope.attributes.extend([
            (attributes::ISSUED_AT_MS.to_owned(), self.0.log.stamp_ms().to_string()),
            (attributes::STREAM.to_owned(), self.name(lane).to_owned()),
            (attributes::KEY_ID.to_owned(), keyring.current_id().to_string()),
        ]);
        let payload = envelope.encode_to_vec();
        let signature = keyring.sign(&payload);
        Sealed { payload, signature }
    }

    /// Puts a message on disk, where it waits for the log. `failed` is how its own append ended:
    /// where the spool is full as well, that is what the publisher has to know, since the message
    /// may have arrived all the same.
    async fn keep(
        &self,
        stream: Stream,
        sealed: &Sealed,
        failed: Option<LogError>,
    ) -> Result<Outcome, PublishError> {
        let Some(spool) = &self.0.spool else {
            panic!("only a bus with a spool puts messages there")
        };
        match spool.put(stream, &sealed.payload).await {
            Ok(waiting) => Ok(Outcome::Spooled { stream, waiting }),
            Err(NotSpooled::Disk(error)) => Err(error.into()),
            Err(NotSpooled::Full) => match failed {
                Some(error) => Err(error.into()),
                None => {
                    let reason = RefusedBecause::SpoolFull;
                    Ok(Outcome::Refused { reason, retry_after: SPOOL_RETRY_AFTER })
                }
            },
        }
    }

    /// Appends, in one round trip. Where the answer is lost the same bytes are sent again: should
    /// both arrive, the copy is refused as a replay.
    async fn append(
        &self,
        lane: Stream,
        sealed: &Sealed,
        urgent: bool,
        sample: bool,
    ) -> Result<EntryId, LogError> {
        let fields = sealed.fields();
        let name = self.name(lane);
        let after = self.0.config.publish_timeout;
        let deadline = Instant::now() + after;
        loop {
            let appended = tokio::time::timeout_at(deadline, async {
                if !sample {
                    return self.0.log.append(name, &fields, urgent).await;
                }
                let (id, groups) = self.0.log.append_and_sample(name, &fields, urgent).await?;
                self.note_depth(lane, &groups);
                Ok(id)
            });
            match appended.await {
                // With a spool there is no need to make the publisher wait.
                Ok(Err(LogError::Unreachable { .. }))
                    if self.0.spool.is_none() && Instant::now() + RETRY_PAUSE < deadline =>
                {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Ok(answer) => return answer,
                Err(_) => return Err(LogError::TimedOut { operation: "append", after }),
            }
        }
    }
}
