//! W3C trace context: the `traceparent` that joins a request, what is done for it and its answer.
//!
//! Only what a message bus needs: reading one, going on from one, beginning one. A `traceparent` that
//! cannot be read is ignored, as the recommendation demands; the message itself is as good as any.
//! Format: <https://www.w3.org/TR/trace-context/#traceparent-header>.

use std::collections::BTreeMap;
use std::fmt;

use crate::attributes::TRACEPARENT;

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// The one flag with a meaning: whoever began the trace records it.
const SAMPLED: u8 = 1;

/// One place in one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    is_sampled: bool,
}

impl TraceContext {
    /// Begins a trace that is recorded.
    pub fn begin() -> Self {
        Self { trace: not_zero(), span: not_zero(), is_sampled: true }
    }

    /// Reads a `traceparent`; `None` for one that the recommendation calls invalid.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() < LENGTH || [2, 35, 52].iter().any(|place| bytes[*place] != b'-') {
            return None;
        }
        let version = hex::<1>(&bytes[..2])?[0];
        let has_more = bytes.len() > LENGTH;
        // Later versions may say more, behind another dash; 255 is none.
        if version == 0xff || has_more && (version == 0 || bytes[LENGTH] != b'-') {
            return None;
        }
        let (trace, span) = (hex::<16>(&bytes[3..35])?, hex::<8>(&bytes[36..52])?);
        let flags = hex::<1>(&bytes[53..55])?[0];
        if trace == [0; 16] || span == [0; 8] {
            return None;
        }
        Some(Self { trace, span, is_sampled: flags & SAMPLED != 0 })
    }

    /// The trace that a message belongs to, if it says so.
    pub fn of(attributes: &BTreeMap<String, String>) -> Option<Self> {
        Self::parse(attributes.get(TRACEPARENT)?)
    }

    /// The same trace one step on: what is sent because of what was received.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: not_zero(), ..self }
    }

    /// One step on from `parent`, or the beginning of a trace where there is none.
    pub fn after(parent: Option<Self>) -> Self {
        parent.map_or_else(Self::begin, Self::child)
    }

    /// The same, recorded or not as its trace id decides: of all ids, this share (0 to 1) is.
    #[must_use]
    pub(crate) fn sampled(self, ratio: f64) -> Self {
        // The last 7 bytes are random in every version of the recommendation.
        let random = self.trace[9..].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        let bound = ratio * (1_u64 << 56) as f64;
        Self { is_sampled: (random as f64) < bound, ..self }
    }

    /// The bytes of the trace id.
    pub fn trace_bytes(self) -> [u8; 16] {
        self.trace
    }

    /// The bytes of this step's id.
    pub fn span_bytes(self) -> [u8; 8] {
        self.span
    }

    /// 32 hex digits that the whole trace shares.
    pub fn trace_id(self) -> String {
        text(&self.trace)
    }

    /// 16 hex digits of this step.
    pub fn span_id(self) -> String {
        text(&self.span)
    }

    /// Whether whoever began the trace records it.
    pub fn is_sampled(self) -> bool {
        self.is_sampled
    }
}

/// As it stands in the attribute.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-0{}", self.trace_id(), self.span_id(), u8::from(self.is_sampled))
    }
}

/// Random bytes that are not all zero, which would mean "none".
fn not_zero<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    while bytes == [0; N] {
        bytes = std::array::from_fn(|_| rand::random());
    }
    bytes
}

fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Capitals are not allowed.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let pair = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    bytes.iter().flat_map(pair).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_was_read_is_written_again() {
        let context = TraceContext::parse(VALID).unwrap();
        assert_eq!(context.to_string(), VALID);
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id(), "b7ad6b7169203331");
        assert!(context.is_sampled());
        let unsampled = TraceContext::parse(&VALID.replace("-01", "-00")).unwrap();
        assert!(!unsampled.is_sampled() && !unsampled.child().is_sampled());
        // Flags that this version does not know are not passed on.
        let flags = TraceContext::parse(&VALID.replace("-01", "-ff")).unwrap();
        assert_eq!(flags.to_string(), VALID);
    }

    #[test]
    fn the_recommendation_decides_what_is_valid() {
        let table = [
            (VALID.to_owned(), true),
            (VALID.replacen("00", "01", 1), true),
            (format!("{}-what-comes", VALID.replacen("00", "cc", 1)), true),
            (format!("{}.", VALID.replacen("00", "cc", 1)), false),
            (VALID.replacen("00", "ff", 1), false),
            (format!("{VALID}-more"), false),
            (VALID.to_uppercase(), false),
            (VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), false),
            (VALID.replace("b7ad6b7169203331", &"0".repeat(16)), false),
            (VALID.replace('b', "g"), false),
            (VALID.replace('-', "_"), false),
            (VALID[..54].to_owned(), false),
            (String::new(), false),
            ("\u{e4}".repeat(28), false),
        ];
        for (text, valid) in table {
            assert_eq!(TraceContext::parse(&text).is_some(), valid, "{text}");
        }
    }

    #[test]
    fn a_child_is_a_new_step_of_the_same_trace() {
        let parent = TraceContext::parse(VALID).unwrap();
        let child = TraceContext::after(Some(parent));
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_ne!(child.span_id(), parent.span_id());
        let begun = TraceContext::after(None);
        assert_ne!(begun.trace_id(), TraceContext::begin().trace_id());
        assert_eq!(TraceContext::parse(&begun.to_string()), Some(begun));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_ignored(text in any::<String>()) {
            let _ = TraceContext::parse(&text);
        }
    }
}
