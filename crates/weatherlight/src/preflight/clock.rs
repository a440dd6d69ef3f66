//! Whether clocks agree well enough for freshness to mean something.

use leyline::time::now_unix_ms;

use super::{Finding, Verdict};

/// 2024-01-01: no build of this program is older, so an earlier clock was never set.
const EARLIEST_MS: u64 = 1_704_067_200_000;
/// Readers refuse messages that lie further in the future than this.
const AHEAD_MS_MAX: i64 = 5_000;
/// Requests for kernels are stale beyond this.
const BEHIND_MS_MAX: i64 = 60_000;
/// Beyond this a person should look at it.
const DRIFT_MS_WARN: i64 = 2_000;

const CHECK: &str = "clock";
const REMEDY: &str = "synchronise both machines' clocks (NTP)";

/// The machine's clock by itself.
pub(super) fn alone() -> Finding {
    if now_unix_ms() < EARLIEST_MS {
        return Finding::new(
            CHECK,
            Verdict::Unavailable,
            "this machine's clock was never set",
            REMEDY,
        );
    }
    Finding::good(CHECK, "set")
}

/// This machine's clock against the log's, both in Unix milliseconds.
pub(super) fn against(ours_ms: u64, logs_ms: u64) -> Finding {
    let ahead_ms = ours_ms.cast_signed() - logs_ms.cast_signed();
    let message = format!("this machine is {ahead_ms} ms ahead of the log");
    if ahead_ms > AHEAD_MS_MAX || -ahead_ms > BEHIND_MS_MAX {
        let message = format!("{message}, so readers will refuse its messages");
        return Finding::new(CHECK, Verdict::Unavailable, message, REMEDY);
    }
    if ahead_ms.abs() > DRIFT_MS_WARN {
        return Finding::new(CHECK, Verdict::Warning, message, REMEDY);
    }
    Finding::good(CHECK, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tolerance_is_that_of_the_readers() {
        let verdict = |ours, logs| against(ours, logs).verdict;
        assert_eq!(verdict(100_000, 100_500), Verdict::Good);
        assert_eq!(verdict(103_000, 100_000), Verdict::Warning);
        assert_eq!(verdict(106_000, 100_000), Verdict::Unavailable);
        assert_eq!(verdict(100_000, 130_000), Verdict::Warning);
        assert_eq!(verdict(100_000, 170_000), Verdict::Unavailable);
    }
}
