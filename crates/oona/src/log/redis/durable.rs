//! Appends that wait for replicas or for the disk. `WAIT` and `WAITAOF` block their connection, so
//! these appends have connections of their own; and one wait serves all that came meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use redis::{Cmd, RedisError, Value};
use tokio::sync::oneshot;

use super::link::Link;
use super::reply::{entry_id, items, number};
use crate::durability::Durability;
use crate::entry::EntryId;

/// Appends that share one wait. More would make the first of them wait for the writing of all.
const BATCH_MAX: usize = 512;

/// Why an append did not come to its end.
#[derive(Debug, Clone)]
pub(super) enum Shortfall {
    /// It was not appended, or nobody knows.
    Failed(RedisError),
    /// No answer in time.
    TimedOut,
    /// The answer has not the shape it should have.
    Reply,
    /// It was appended, and is less safe than asked for: on so many disks and replicas.
    Weak { entry: EntryId, disks: u32, replicas: u32 },
}

type Answer = Result<EntryId, Shortfall>;
type Running = Shared<BoxFuture<'static, ()>>;

/// The appends of one class.
pub(super) struct Durable {
    link: Link,
    class: Durability,
    /// How long the server may wait for replicas and disk.
    wait: Duration,
    /// How long all of it may take.
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// The batch on its way. All its callers drive it: whoever gives up takes nobody along.
    running: Option<Running>,
}

struct Waiting {
    command: Cmd,
    answer: oneshot::Sender<Answer>,
}

impl Durable {
    pub(super) fn new(link: Link, class: Durability, wait: Duration, limit: Duration) -> Arc<Self> {
        Arc::new(Self { link, class, wait, limit, state: Mutex::default() })
    }

    pub(super) fn class(&self) -> Durability {
        self.class
    }

    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// Appends, and returns when the entry is as safe as its class says.
    pub(super) async fn append(&self, command: Cmd) -> Answer {
        let (sender, mut answer) = oneshot::channel();
        self.lock().queue.push_back(Waiting { command, answer: sender });
        loop {
            let running = self.running();
            tokio::select! {
                biased;
                // The sender is dropped unused only with a batch that everybody gave up.
                answered = &mut answer => return answered.unwrap_or(Err(Shortfall::TimedOut)),
                () = running => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The batch on its way; when that has ended, the next one.
    fn running(&self) -> Running {
        let mut state = self.lock();
        match &state.running {
            Some(running) if running.peek().is_none() => running.clone(),
            _ => {
                let mut batch = Vec::new();
                while batch.len() < BATCH_MAX
                    && let Some(waiting) = state.queue.pop_front()
                {
                    // Whoever has given up meanwhile is not served.
                    if !waiting.answer.is_closed() {
                        batch.push(waiting);
                    }
                }
                let running = self.send(batch);
                state.running = Some(running.clone());
                running
            }
        }
    }

    fn send(&self, batch: Vec<Waiting>) -> Running {
        if batch.is_empty() {
            return std::future::ready(()).boxed().shared();
        }
        let mut pipe = redis::pipe();
        for waiting in &batch {
            pipe.add_command(waiting.command.clone());
        }
        pipe.add_command(wait_command(self.class, self.wait));
        pipe.ignore_errors();
        let (mut link, class, limit) = (self.link.clone(), self.class, self.limit);
        async move {
            type Answers = Vec<Result<Value, RedisError>>;
            let asked = tokio::time::timeout(limit, pipe.query_async::<Answers>(&mut link)).await;
            let answers = match asked {
                Ok(answers) => answers.map_err(Shortfall::Failed),
                Err(_) => Err(Shortfall::TimedOut),
            };
            settle(batch, answers, class);
        }
        .boxed()
        .shared()
    }
}

fn settle(
    batch: Vec<Waiting>,
    answers: Result<Vec<Result<Value, RedisError>>, Shortfall>,
    class: Durability,
) {
    let mut answers = match answers {
        Ok(answers) => answers,
        Err(shortfall) => {
            for waiting in batch {
                let _ = waiting.answer.send(Err(shortfall.clone()));
            }
            return;
        }
    };
    let reached = match answers.pop() {
        Some(Ok(value)) => reached(class, value).ok_or(Shortfall::Reply),
        Some(Err(error)) => Err(Shortfall::Failed(error)),
        None => Err(Shortfall::Reply),
    };
    for (waiting, answer) in batch.into_iter().zip(answers) {
        let entry = match answer {
            Ok(value) => entry_id(&value).ok_or(Shortfall::Reply),
            Err(error) => Err(Shortfall::Failed(error)),
        };
        let answer = match (entry, &reached) {
            (Err(shortfall), _) => Err(shortfall),
            (Ok(entry), Ok((disks, replicas))) if is_enough(class, *disks, *replicas) => Ok(entry),
            (Ok(entry), Ok((disks, replicas))) => {
                Err(Shortfall::Weak { entry, disks: *disks, replicas: *replicas })
            }
            // Appended, and nothing is known about the rest.
            (Ok(entry), Err(_)) => Err(Shortfall::Weak { entry, disks: 0, replicas: 0 }),
        };
        let _ = waiting.answer.send(answer);
    }
}

fn wait_command(class: Durability, wait: Duration) -> Cmd {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    match class {
        Durability::WaitAof { replicas } => {
            let mut command = redis::cmd("WAITAOF");
            command.arg(1).arg(replicas).arg(wait_ms);
            command
        }
        Durability::Wait { replicas } => {
            let mut command = redis::cmd("WAIT");
            command.arg(replicas).arg(wait_ms);
            command
        }
        Durability::None | Durability::Fsync => {
            unreachable!("only what waits has a Durable; `RedisLog::open` makes no other")
        }
    }
}

/// Disks and replicas that have it.
fn reached(class: Durability, value: Value) -> Option<(u32, u32)> {
    let small = |value: &Value| u32::try_from(number(value)?).ok();
    match class {
        Durability::WaitAof { .. } => {
            let parts = items(value)?;
            let [disks, replicas] = parts.as_slice() else { return None };
            Some((small(disks)?, small(replicas)?))
        }
        _ => Some((0, small(&value)?)),
    }
}

fn is_enough(class: Durability, disks: u32, replicas: u32) -> bool {
    match class {
        Durability::WaitAof { replicas: wanted } => disks >= 1 && replicas >= wanted,
        Durability::Wait { replicas: wanted } => replicas >= wanted,
        Durability::None | Durability::Fsync => true,
    }
}
