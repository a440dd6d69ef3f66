//! The line that says who is left while the service stops.

use std::fmt;
use std::time::Duration;

use super::core::Core;
use super::picture::Seen;

/// Between two lines in the log, when nothing changes.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Who is left, and for how long they may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    workers: Vec<(&'static str, &'static str)>,
    time: Duration,
}

impl Left {
    /// Looks at `at` since the service began; `None` while it does not stop, or when nobody is left.
    pub(super) fn look(at: Duration, core: &Core, seen: &[Seen]) -> Option<Self> {
        let time = core.drain_deadline()?.saturating_sub(at);
        let alive = core.workers().iter().zip(seen).filter(|(worker, _)| worker.has_task());
        let phase = |seen: &Seen| seen.sighting.as_ref().map_or("gone", |sighting| sighting.phase);
        let workers: Vec<_> = alive.map(|(worker, seen)| (worker.spec.name, phase(seen))).collect();
        (!workers.is_empty()).then_some(Self { workers, time })
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> =
            self.workers.iter().map(|(name, phase)| format!("{name} ({phase})")).collect();
        write!(f, "{} s left for {}", self.time.as_secs(), names.join(", "))
    }
}

/// Writes the line into the log: at the beginning of a drain, then each second, and from the second
/// one on also when somebody is through. A drain that ends at once, as most do, is one line.
#[derive(Debug, Default)]
pub(super) struct DrainLog {
    began: Option<Duration>,
    written: Duration,
    names: Vec<&'static str>,
}

impl DrainLog {
    /// Writes the line if it is due at `at`. Returns whether it was.
    pub(super) fn show(&mut self, at: Duration, left: &Left) -> bool {
        let names: Vec<&'static str> = left.workers.iter().map(|(name, _)| *name).collect();
        let is_due = match self.began {
            None => true,
            Some(began) => {
                let is_long = at >= began + LINE_EVERY;
                at >= self.written + LINE_EVERY || (is_long && names != self.names)
            }
        };
        if is_due {
            self.began.get_or_insert(at);
            (self.written, self.names) = (at, names);
            tracing::info!(%left, "stopping");
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_drain_is_told_of_each_second_and_at_each_change() {
        let left = |names: &[&'static str]| Left {
            workers: names.iter().map(|name| (*name, "draining")).collect(),
            time: Duration::from_millis(8_700),
        };
        let (both, one) = (left(&["a", "b"]), left(&["b"]));
        assert_eq!(both.to_string(), "8 s left for a (draining), b (draining)");
        let mut log = DrainLog::default();
        let mut show = |ms, left| log.show(Duration::from_millis(ms), left);
        assert!(show(500, &both), "the first line");
        assert!(!show(600, &one), "most drains are over by now");
        assert!(show(1_500, &both), "a second later");
        assert!(!show(1_600, &both));
        assert!(show(1_700, &one), "somebody is through");
        assert!(!show(2_600, &one));
        assert!(show(2_700, &one), "nothing changes, and it says so");
    }
}
