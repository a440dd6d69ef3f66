//! The read that a consumer has in flight. It goes on while the consumer does something else: it is
//! sent ahead of the work on what came before it, and heartbeats go beside it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;

use crate::entry::RawEntry;
use crate::error::LogError;
use crate::log::{Log, Reader, Seat};

type Outcome = (Reader, Result<Vec<RawEntry>, LogError>);

/// What a read has brought.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) entries: Result<Vec<RawEntry>, LogError>,
    /// How long nobody had looked: so long may the entries have lain unseen.
    pub(crate) unattended: Duration,
}

/// One reader, at rest or reading.
#[derive(Debug)]
pub(crate) struct Reading {
    log: Log,
    seat: Seat,
    state: State,
    looked: Instant,
}

#[derive(Debug)]
enum State {
    Rest(Reader),
    InFlight(ReusableBoxFuture<'static, Outcome>),
    Done(Outcome),
    /// Only while the state changes.
    Changing,
}

impl Reading {
    pub(crate) fn new(log: Log, seat: Seat) -> Self {
        let state = State::Rest(log.reader(seat.clone()));
        Self { log, seat, state, looked: Instant::now() }
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        !matches!(self.state, State::Rest(_))
    }

    /// Starts a read, unless one is in flight. It is sent when it is first looked at.
    pub(crate) fn start(&mut self, count: usize, block: Duration) {
        self.state = match std::mem::replace(&mut self.state, State::Changing) {
            State::Rest(mut reader) => State::InFlight(ReusableBoxFuture::new(async move {
                let read = reader.read(count, block).await;
                (reader, read)
            })),
            other => other,
        };
        self.looked = Instant::now();
    }

    /// Sends a read that was started; waits for nothing.
    pub(crate) async fn send(&mut self) {
        poll_fn(|context| {
            if let State::InFlight(read) = &mut self.state
                && let Poll::Ready(outcome) = read.poll(context)
            {
                self.state = State::Done(outcome);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Waits for the read in flight; for ever when there is none. Cancel safe.
    pub(crate) async fn arrived(&mut self) -> Arrived {
        let (reader, entries, unattended) = poll_fn(|context| {
            let unattended = self.looked.elapsed();
            self.looked = Instant::now();
            let outcome = match std::mem::replace(&mut self.state, State::Changing) {
                State::InFlight(mut read) => match read.poll(context) {
                    Poll::Ready(outcome) => outcome,
                    Poll::Pending => {
                        self.state = State::InFlight(read);
                        return Poll::Pending;
                    }
                },
                State::Done(outcome) => outcome,
                other => {
                    self.state = other;
                    return Poll::Pending;
                }
            };
            let (reader, entries) = outcome;
            Poll::Ready((reader, entries, unattended))
        })
        .await;
        self.state = State::Rest(reader);
        Arrived { entries, unattended }
    }

    /// Gives up the read in flight: its connection may be dead. What the log has sent on it is
    /// fetched as lost.
    pub(crate) fn give_up(&mut self) {
        if self.is_in_flight() {
            self.state = State::Rest(self.log.reader(self.seat.clone()));
        }
    }
}
