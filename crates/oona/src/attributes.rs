//! The envelope attributes that this project adds. All stand inside the signed bytes.

/// The message's nonce: a UUID of version 7, unique and ordered by time.
pub const ID: &str = "oona-id";
/// Unix milliseconds when the message was signed.
pub const ISSUED_AT_MS: &str = "oona-issued-at-ms";
/// The subsystem that sent it.
pub const SOURCE: &str = "oona-source";
/// Name of the stream it was signed for; a copy appended elsewhere is refused.
pub const STREAM: &str = "oona-stream";
/// Which secret signed it: the first 8 hex digits of the secret's SHA-256.
pub const KEY_ID: &str = "oona-key-id";
/// Where a replayed message died before: the places in its stream, separated by spaces, the latest
/// last; at most 8.
pub const REPLAYED_FROM: &str = "oona-replayed-from";
/// How often a message was replayed out of the dead letters.
pub const REPLAYS: &str = "oona-replays";
/// On a request for a kernel: the slot it is for, in the builder's spelling (`vector[64]`).
pub const KERNEL_SITE: &str = "kernel-site";
/// On a request for a kernel: its parameters, a JSON object of numbers.
pub const KERNEL_PARAMETERS: &str = "kernel-parameters";
/// On a request for a kernel: milliseconds after its issue when nobody wants the answer any more.
pub const KERNEL_DEADLINE_MS: &str = "kernel-deadline-ms";
/// On a request for a kernel: the very artifact that is meant, by its SHA-256 in hex.
pub const KERNEL_DIGEST: &str = "kernel-digest";
/// On a ready answer: for how long the asking run has the kernel under a lease.
pub const KERNEL_LEASE_MS: &str = "kernel-lease-ms";
/// On a request for a kernel: `critical`, `high`, `normal` or `low`.
pub const KERNEL_PRIORITY: &str = "kernel-priority";
/// On an answer that says to ask again: after how many milliseconds.
pub const RETRY_AFTER_MS: &str = "retry-after-ms";
/// W3C trace context, so that one trace spans a request and its answer.
pub const TRACEPARENT: &str = "traceparent";
