//! The policy: decisions, risk, signed commands, field reports.
