//! Orders for whichever service runs on the same queue, now or later.

use std::path::Path;

use leyline::wire::MessagePriority;

use crate::config::Config;
use crate::job::Job;
use crate::queue::{Queue, QueueError, Ticket};

/// Puts jobs into the durable queue of a directory and leaves them there. Blocks. A service that runs on this directory
/// takes them up within seconds, one that is started later at its start; a job that is in the library already is settled
/// without being compiled.
///
/// # Errors
/// [`QueueError`]; the jobs before the one that did not fit are in the queue.
pub fn detach<'a>(
    dir: &Path,
    jobs: impl IntoIterator<Item = &'a Job>,
    config: &Config,
) -> Result<(), QueueError> {
    let queue = Queue::open(dir, config.queue_len_max)?;
    for job in jobs {
        let ticket = Ticket::of(job, MessagePriority::Normal, None);
        queue.owe(ticket.key);
        queue.write(&ticket)?;
    }
    Ok(())
}
