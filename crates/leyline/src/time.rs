//! Conversions between the wire's `Timestamp` and Unix milliseconds.

use std::time::{SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// The timestamp of a moment in Unix milliseconds.
pub fn timestamp(unix_ms: u64) -> Timestamp {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(unix_ms % 1000).unwrap_or(0) * 1_000_000;
    Timestamp { seconds, nanos }
}

/// Unix milliseconds of a timestamp, rounded down; `None` for a moment before 1970 or a
/// timestamp whose nanoseconds are outside one second.
pub fn unix_ms(timestamp: &Timestamp) -> Option<u64> {
    let seconds = u64::try_from(timestamp.seconds).ok()?;
    let nanos = u64::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    seconds.checked_mul(1000)?.checked_add(nanos / 1_000_000)
}

/// This machine's wall clock in Unix milliseconds; 0 for a clock set before 1970.
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_survive_the_round_trip() {
        for ms in [0, 1, 999, 1000, 1_700_000_000_123] {
            assert_eq!(unix_ms(&timestamp(ms)), Some(ms));
        }
    }

    #[test]
    fn a_moment_that_cannot_be_is_none() {
        assert_eq!(unix_ms(&Timestamp { seconds: -1, nanos: 0 }), None);
        assert_eq!(unix_ms(&Timestamp { seconds: 1, nanos: 1_000_000_000 }), None);
        assert_eq!(unix_ms(&Timestamp { seconds: 1, nanos: -1 }), None);
        assert_eq!(unix_ms(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}
