//! What becomes of settings that were read again. Pure.

use super::definition::Reload;
use super::fault::Faults;
use super::kind::Value;
use super::resolve::{InForce, Resolved};
use super::rules;
use super::table::EsperSettings;

/// One setting that differs from what is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What is in force until now.
    pub was: InForce,
    /// What was read.
    pub now: InForce,
}

/// What to put into force, and what differs.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The settings in force from now on: what can be changed as it was read, the rest as it was.
    pub settings: EsperSettings,
    /// The same, one by one.
    pub in_force: Vec<InForce>,
    /// Every setting whose value as read is not the one in force before.
    pub changes: Vec<Change>,
}

/// Takes from `read` what can be changed without a restart. A setting that needs one is reported
/// each time, until the restart.
///
/// # Errors
/// [`Faults`] when what was read contradicts a setting that stays as it is until a restart.
pub fn decide(in_force: &[InForce], read: &Resolved) -> Result<Decision, Faults> {
    let mut changes = Vec::new();
    let mut next: Vec<InForce> = Vec::with_capacity(in_force.len());
    for (was, now) in in_force.iter().zip(&read.in_force) {
        let differs = was.value != now.value;
        let is_live = now.definition.reload == Reload::Live;
        next.push(if is_live { now } else { was }.clone());
        if differs {
            changes.push(Change { was: was.clone(), now: now.clone() });
        }
    }
    let values: Vec<Value> = next.iter().map(|row| row.value.clone()).collect();
    let settings = EsperSettings::from_values(&values)
        .unwrap_or_else(|| panic!("every kind in the table fits its field's type"));
    let faults = rules::contradictions(&settings, &next);
    if faults.is_empty() {
        Ok(Decision { settings, in_force: next, changes })
    } else {
        Err(Faults(faults))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, resolve};
    use super::*;

    fn with(overrides: &[&str]) -> Resolved {
        let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
        resolve(&Sources { overrides, ..Sources::default() }).unwrap()
    }

    fn names(decision: &Decision) -> Vec<&str> {
        decision.changes.iter().map(|change| change.now.definition.env).collect()
    }

    #[test]
    fn what_can_change_changes_and_the_rest_stays_until_a_restart() {
        let before = with(&[]);
        let read = with(&["OONA_EMERGENCY_MAX_PER_MIN=60", "OONA_MAX_ATTEMPTS=3"]);
        let decision = decide(&before.in_force, &read).unwrap();
        assert_eq!(names(&decision), ["OONA_MAX_ATTEMPTS", "OONA_EMERGENCY_MAX_PER_MIN"]);
        assert_eq!(decision.settings.oona_emergency_per_min, 60);
        assert_eq!(decision.settings.oona_attempts_max, before.settings.oona_attempts_max);
        // Read again, the one is in force and the other still waits.
        let again = decide(&decision.in_force, &read).unwrap();
        assert_eq!(names(&again), ["OONA_MAX_ATTEMPTS"]);
    }

    #[test]
    fn a_secret_that_changed_is_a_change_though_both_show_the_same() {
        let before = with(&["ESPER_LEYLINE_SECRET=the first secret of all"]);
        let read = with(&["ESPER_LEYLINE_SECRET=the other secret of all"]);
        let decision = decide(&before.in_force, &read).unwrap();
        assert_eq!(names(&decision), ["ESPER_LEYLINE_SECRET"]);
        assert_eq!(decision.changes[0].was.shown, decision.changes[0].now.shown);
        assert_eq!(names(&decide(&before.in_force, &before).unwrap()), [""; 0]);
    }

    #[test]
    fn what_contradicts_a_setting_that_stays_is_refused() {
        let before = with(&[]);
        let mut read = with(&[]);
        assert!(decide(&before.in_force, &read).is_ok());
        // Above the backlog that counts as full, and that one stays.
        read.replace("OONA_BACKPRESSURE_THRESHOLD", Value::Integer(20_000));
        let faults = decide(&before.in_force, &read).unwrap_err();
        assert!(faults.to_string().contains("OONA_BACKPRESSURE_THRESHOLD"), "{faults}");
    }
}
