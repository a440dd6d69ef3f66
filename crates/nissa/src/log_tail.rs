//! The newest lines of the log, for a support archive and for whoever cannot reach the machine.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines that are kept.
pub const LOG_TAIL_LEN_MAX: usize = 500;
/// Longer lines are kept without what they say, only as a note.
const LINE_BYTES_MAX: usize = 64 << 10;

/// The newest lines, each a JSON object. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LogTail(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Arc<str>>,
    /// Number of the newest line; the first of the process is 1.
    newest: u64,
}

/// Lines that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLines {
    /// The oldest first.
    pub lines: Vec<Arc<str>>,
    /// Number of the last of them, to ask for what comes after.
    pub last: u64,
}

impl LogTail {
    /// Keeps a line, which is a JSON object.
    pub fn push(&self, line: String) {
        let mut kept = self.kept();
        kept.newest += 1;
        if kept.lines.len() == LOG_TAIL_LEN_MAX {
            kept.lines.pop_front();
        }
        let line = if line.len() <= LINE_BYTES_MAX { line.into() } else { "{}".into() };
        kept.lines.push_back(line);
    }

    /// The kept lines that came after the one with this number, `len_max` at most; 0 begins with
    /// the oldest.
    pub fn after(&self, number: u64, len_max: usize) -> LogLines {
        let kept = self.kept();
        let gone = kept.newest - kept.lines.len() as u64;
        let skip = usize::try_from(number.saturating_sub(gone)).unwrap_or(usize::MAX);
        let lines: Vec<_> = kept.lines.iter().skip(skip).take(len_max).cloned().collect();
        let last =
            if lines.is_empty() { kept.newest } else { gone + skip as u64 + lines.len() as u64 };
        LogLines { lines, last }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_can_be_followed() {
        let tail = LogTail::default();
        assert_eq!(tail.after(0, 10), LogLines { lines: vec![], last: 0 });
        for number in 1..=LOG_TAIL_LEN_MAX as u64 + 20 {
            tail.push(number.to_string());
        }
        let first = tail.after(0, 3);
        assert_eq!(first.lines.iter().map(|line| &**line).collect::<Vec<_>>(), ["21", "22", "23"]);
        assert_eq!(first.last, 23);
        let next = tail.after(first.last, usize::MAX);
        assert_eq!((&*next.lines[0], next.last), ("24", 520));
        assert_eq!(tail.after(520, 10), LogLines { lines: vec![], last: 520 });
        assert_eq!(tail.after(9999, 10).lines.len(), 0);
    }
}
