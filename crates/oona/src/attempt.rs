//! One attempt at one message. A panic of its handler is a failed attempt of that message, which
//! ends among the dead letters when its attempts are used up; the worker goes on with the next one.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::consumer::Post;
use crate::delivery::{Delivery, Receipt};
use crate::entry::EntryId;
use crate::heartbeat::Heartbeat;

impl Delivery {
    /// Has `handle` handle this delivery. While it works, `heartbeat` names the entry and
    /// [`Delivery::span`] whatever is logged; should it panic, the attempt counts as failed, with the panic's text as reason, and nothing comes
    /// back. The process's panic hook has reported the panic by then.
    ///
    /// What the handler shares with others must bear a panic in the middle: a lock that is poisoned
    /// by it fails every message after this one.
    pub async fn attempt<F, W>(
        self,
        heartbeat: &Heartbeat,
        phase: &'static str,
        handle: F,
    ) -> Option<W::Output>
    where
        F: FnOnce(Self) -> W,
        W: Future,
    {
        let spare = self.spare();
        let (span, entry) = (self.span(), self.entry);
        let work = heartbeat.over(phase, entry, async move { handle(self).await });
        // Around the heartbeat and the panic, so that what is logged of either names the message.
        let work = work.instrument(span);
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(output) => Some(output),
            Err(panic) => {
                spare.fail(panic).await;
                None
            }
        }
    }

    /// What settles this delivery should its handler panic.
    pub fn spare(&self) -> Spare {
        Spare {
            post: Arc::clone(&self.receipt.post),
            entry: self.entry,
            attempt: self.attempt,
            received_at: self.received_at,
        }
    }
}

/// Settles a delivery whose handler panicked; see [`Delivery::attempt`], which is simpler where the
/// handler is a future of its own.
#[derive(Debug)]
pub struct Spare {
    post: Arc<Post>,
    entry: EntryId,
    attempt: u32,
    received_at: Instant,
}

impl Spare {
    /// Fails the attempt with the panic's text, unless the handler had settled it before.
    pub async fn fail(self, panic: Box<dyn Any + Send>) {
        let reason = format!("its handler panicked: {}", panic_text(panic.as_ref()));
        drop(panic);
        let Self { post, entry, attempt, received_at } = self;
        let stream = post.stream;
        tracing::warn!(%stream, %entry, attempt, "handler panicked, the attempt counts as failed");
        // The panic dropped the receipt, which put the entry back; an acknowledged one is gone.
        if !post.work.is_unsettled(entry) {
            return;
        }
        let receipt = Receipt { post, entry, attempt, received_at, settled: false };
        if let Err(error) = receipt.fail(&reason).await {
            tracing::warn!(%stream, %entry, %error, "not buried, the entry comes back");
        }
    }
}

/// The text of a panic that was caught.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
