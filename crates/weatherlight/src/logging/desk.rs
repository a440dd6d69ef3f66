//! Between whoever logs and the thread that writes: folded, bounded, never waited for.
//!
//! An event is put down under a short lock and written by a thread of its own, so that a full pipe
//! behind standard error stops that thread and nothing else. What finds no room is counted, and a line
//! says so once there is room again.

use std::collections::VecDeque;
use std::hash::{Hash, RandomState};
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nissa::LogTail;
use tracing::Level;

use super::fold::{Fold, Repeated};
use super::form::{self, Colours};
use super::metrics::LogMetrics;
use super::record::Record;

/// Lines that may wait for the writer.
const QUEUE_LEN_MAX: usize = 4096;
/// Lines written in one go.
const BATCH_LEN_MAX: usize = 64;
/// Repetitions within this time become one line.
pub(super) const FOLD_WINDOW: Duration = Duration::from_secs(10);
/// Kinds of events that are watched for repetitions at once.
const FOLD_WINDOWS_MAX: usize = 256;

/// The form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text(Colours),
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Record>,
    fold: Fold<u128, Record>,
    /// Lines without room that no line has told of.
    dropped: u64,
    is_writing: bool,
    has_ended: bool,
}

/// What is shared by all who log and the one who writes.
#[derive(Debug)]
pub(super) struct Desk {
    form: Form,
    state: Mutex<State>,
    /// There is something to write, or to look at.
    wake: Condvar,
    /// Everything was written.
    drained: Condvar,
    began: Instant,
    began_unix_ms: u64,
    seeds: [RandomState; 2],
    metrics: LogMetrics,
    tail: LogTail,
}

impl Desk {
    pub(super) fn new(form: Form, metrics: LogMetrics, tail: LogTail) -> Self {
        let state = State {
            lines: VecDeque::new(),
            fold: Fold::new(FOLD_WINDOW, FOLD_WINDOWS_MAX),
            dropped: 0,
            is_writing: false,
            has_ended: false,
        };
        Self {
            form,
            state: Mutex::new(state),
            wake: Condvar::new(),
            drained: Condvar::new(),
            began: Instant::now(),
            began_unix_ms: leyline::time::now_unix_ms(),
            seeds: [RandomState::new(), RandomState::new()],
            metrics,
            tail,
        }
    }

    pub(super) fn metrics(&self) -> &LogMetrics {
        &self.metrics
    }

    pub(super) fn tail(&self) -> &LogTail {
        &self.tail
    }

    /// Puts an event down. Never waits for the writer.
    pub(super) fn put(&self, record: Record, callsite: &impl Hash) {
        // Who asks for debug lines wants to see each of them.
        let folds = record.level <= Level::INFO;
        let key = folds.then(|| record.key(callsite, &self.seeds));
        let mut state = self.state();
        let written = match key {
            None => Some(record),
            Some(key) => {
                let (evicted, written) = state.fold.offer(self.began.elapsed(), key, record);
                if let Some(repeated) = evicted {
                    self.push(&mut state, self.told(repeated));
                }
                written
            }
        };
        match written {
            Some(record) => self.push(&mut state, record),
            None => {
                self.metrics.folded.inc();
            }
        }
    }

    fn push(&self, state: &mut State, record: Record) {
        if state.lines.len() < QUEUE_LEN_MAX {
            state.lines.push_back(record);
            self.wake.notify_one();
        } else {
            state.dropped += 1;
            self.metrics.dropped.inc();
        }
    }

    fn told(&self, repeated: Repeated<Record>) -> Record {
        let since = u64::try_from(repeated.since.as_millis()).unwrap_or(u64::MAX);
        Record::of_repeated(repeated, self.began_unix_ms.saturating_add(since))
    }

    /// Writes what there is until [`end`](Self::end). The body of the writer's thread.
    pub(super) fn write_all(&self, sink: &mut impl Write) {
        while let Some(batch) = self.next_batch() {
            // Nobody is there to be told that nobody reads.
            if self.write(&batch, sink).is_err() {
                self.metrics.dropped.inc_by(batch.len() as u64);
            }
            let mut state = self.state();
            state.is_writing = false;
            if state.lines.is_empty() {
                self.drained.notify_all();
            }
        }
    }

    /// Waits for lines, and closes windows whose time has come.
    fn next_batch(&self) -> Option<Vec<Record>> {
        let mut state = self.state();
        loop {
            let now = self.began.elapsed();
            let closed = state.fold.close_due(now);
            // They were events once and have room of their own: as many as there are windows.
            state.lines.extend(closed.into_iter().map(|repeated| self.told(repeated)));
            if !state.lines.is_empty() {
                break;
            }
            if state.has_ended {
                return None;
            }
            let until = state.fold.next_close().map(|close| close.saturating_sub(now));
            state = match until {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let waited = self.wake.wait_timeout(state, limit);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state.is_writing = true;
        let len = state.lines.len().min(BATCH_LEN_MAX);
        let mut batch: Vec<Record> = state.lines.drain(..len).collect();
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        if dropped > 0 {
            let message = format!("{dropped} log lines were dropped: whoever reads them is slow");
            batch.push(Record::own(leyline::time::now_unix_ms(), Level::WARN, message));
        }
        Some(batch)
    }

    fn write(&self, batch: &[Record], sink: &mut impl Write) -> io::Result<()> {
        let mut lines = String::new();
        for record in batch {
            let json = form::json(record);
            match self.form {
                Form::Json => lines.push_str(&json),
                Form::Text(colours) => lines.push_str(&form::text(record, colours)),
            }
            lines.push('\n');
            self.tail.push(json);
            self.metrics.written(record.level);
        }
        sink.write_all(lines.as_bytes())?;
        sink.flush()
    }

    /// Tells all that was counted so far and waits until everything is written, or for that long.
    pub(super) fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.state();
        let closed = state.fold.close_all();
        state.lines.extend(closed.into_iter().map(|repeated| self.told(repeated)));
        self.wake.notify_one();
        while !state.lines.is_empty() || state.is_writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.drained.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the writer end once everything is written.
    #[cfg(test)]
    fn end(&self) {
        self.state().has_ended = true;
        self.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    fn desk() -> Arc<Desk> {
        Arc::new(Desk::new(Form::Json, LogMetrics::default(), LogTail::default()))
    }

    fn record(message: &str) -> Record {
        Record::own(0, Level::WARN, message.to_owned())
    }

    fn messages(written: &[u8]) -> Vec<(String, Option<u64>)> {
        let lines = std::str::from_utf8(written).unwrap().lines();
        let read = lines.map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["message"].as_str().unwrap().to_owned(), line["repeated"].as_u64())
        });
        read.collect()
    }

    #[test]
    fn repetitions_are_told_with_their_count_before_the_end() {
        let desk = desk();
        for _ in 0..5 {
            desk.put(record("again"), &1);
        }
        desk.put(record("again"), &2);
        desk.put(record("other"), &1);
        let (thread, writer) = (Arc::clone(&desk), desk.clone());
        let writing = std::thread::spawn(move || {
            let mut sink = Vec::new();
            thread.write_all(&mut sink);
            sink
        });
        desk.flush(Duration::from_secs(10));
        writer.end();
        let written = messages(&writing.join().unwrap());
        let told = |text: &str, count| (text.to_owned(), count);
        let expected =
            [told("again", None), told("again", None), told("other", None), told("again", Some(4))];
        assert_eq!(written, expected);
        assert_eq!(desk.metrics.folded.get(), 4);
        assert_eq!(desk.tail.after(0, 10).lines.len(), 4);
    }

    /// A pipe whose reader takes a line only when it is told to.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // The sender is gone once the test has seen enough.
            let _ = self.0.recv();
            let _ = self.1.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_blocks_nobody_and_learns_what_it_missed() {
        let desk = desk();
        let (allow, allowed) = mpsc::channel();
        let (written_sender, written) = mpsc::channel();
        let thread = Arc::clone(&desk);
        let writing = std::thread::spawn(move || {
            thread.write_all(&mut Slow(allowed, written_sender));
        });
        // All different, so that nothing folds; the last do not fit, whatever the writer has taken.
        let extra = 100;
        let all = QUEUE_LEN_MAX + BATCH_LEN_MAX + extra;
        for number in 0..all {
            desk.put(record(&format!("line {number}")), &1);
        }
        let dropped = desk.metrics.dropped.get();
        assert!((extra as u64..=(extra + BATCH_LEN_MAX) as u64).contains(&dropped), "{dropped}");
        // Nor does the end of the process wait for such a reader.
        desk.flush(Duration::from_millis(1));
        desk.end();
        drop(allow);
        writing.join().unwrap();
        let written: Vec<_> = written.iter().flat_map(|lines| messages(&lines)).collect();
        let told = format!("{dropped} log lines were dropped: whoever reads them is slow");
        assert_eq!(written.iter().filter(|(text, _)| *text == told).count(), 1);
        assert_eq!(written.len() as u64 - 1 + dropped, all as u64);
    }
}
