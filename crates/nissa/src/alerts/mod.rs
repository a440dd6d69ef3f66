//! Alerts: a table of rules and one small state machine for each (rule, source).
//!
//! Three things a reader may rely on. A sample of one source never touches another's state. A
//! packet without the metric changes nothing: silence is not recovery. And nothing here reads a
//! clock: the caller says what time it is.

mod engine;
mod rules;
mod track;

#[cfg(test)]
mod tests;

pub use engine::{ActiveAlert, Alerts, Notification};
pub(crate) use rules::{BUDGET_METRIC, EMERGENCY_EVENT};
pub use rules::{Condition, Hold, Rule, RuleName, table};

use crate::labels::labels;

labels! {
    /// Where a notification goes. In this version all routes end in the log, the page and a counter.
    Route {
        PagerDuty = "pagerduty", Slack = "slack", Email = "email",
    }
    /// What happened to an alert.
    Change {
        Fired = "fired", Resolved = "resolved",
    }
}
