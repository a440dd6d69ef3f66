//! The page: one file with its own style and script, nothing fetched from anywhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

/// The page as it is sent.
pub(super) const PAGE: &str = include_str!("page.html");

/// A policy that lets exactly this style and this script run, and talks to nobody but this server.
pub(super) fn content_security_policy() -> String {
    let (style, script) =
        (hash(between("<style>", "</style>")), hash(between("<script>", "</script>")));
    format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

fn between(open: &str, close: &str) -> &'static str {
    let begin = PAGE.find(open).map_or(0, |at| at + open.len());
    let rest = &PAGE[begin..];
    &rest[..rest.find(close).unwrap_or(0)]
}

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}
