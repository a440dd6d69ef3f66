use super::*;
use crate::evidence::{Observation, OutputScale};

fn limits() -> Limits {
    Limits {
        training_steps_min: 2,
        shadow_steps_min: 2,
        probation_epochs_min: 2,
        ..Limits::default()
    }
}

fn sound(steps: u32) -> Evidence {
    let mut evidence = Evidence {
        blueprint: Some("BP001".into()),
        kernel: KernelPresence::Attached,
        host_registered: true,
        baseline: Some(Validation { loss: 0.7, accuracy: 0.5 }),
        ..Evidence::default()
    };
    let seen = Observation {
        loss: Some(0.5),
        gradient_norm: Some(0.1),
        host_gradient_norm: Some(0.0),
        latency_ms: Some(1.0),
        output: Some(OutputScale { host_rms: 1.0, seed_rms: 2.0 }),
        interface: Some(Interface::Matches),
        validation: Some(Validation { loss: 0.4, accuracy: 0.9 }),
        ..Observation::default()
    };
    for _ in 0..steps {
        evidence.observe(&seen).unwrap();
    }
    evidence
}

fn check_after(gate: Gate, change: impl FnOnce(&mut Evidence), expected: Result<(), &str>) {
    let mut evidence = sound(4);
    change(&mut evidence);
    let verdict = match check(gate, &evidence, &limits()) {
        Verdict::Passed => Ok(()),
        Verdict::NotYet(what) => Err(format!("not yet: {what}")),
        Verdict::Failed(failure) => Err(failure.to_string()),
    };
    assert_eq!(
        verdict.as_ref().map_err(|reason| reason.as_str()),
        expected.as_ref().map_err(|r| *r),
        "{gate:?}"
    );
}

#[test]
fn sound_evidence_passes_gates_zero_to_four() {
    for gate in
        [Gate::Sanity, Gate::GradientHealth, Gate::Stability, Gate::Interface, Gate::SystemImpact]
    {
        check_after(gate, |_| {}, Ok(()));
    }
}

#[test]
fn g0() {
    check_after(Gate::Sanity, |e| e.blueprint = None, Err("missing blueprint id"));
    check_after(Gate::Sanity, |e| e.blueprint = Some("  ".into()), Err("missing blueprint id"));
    let parameter =
        |value: f32| move |e: &mut Evidence| e.parameters = [("p".to_owned(), value)].into();
    check_after(Gate::Sanity, parameter(f32::NAN), Err("parameter p invalid"));
    check_after(Gate::Sanity, parameter(f32::INFINITY), Ok(()));
}

#[test]
fn g1() {
    let gate = Gate::GradientHealth;
    check_after(gate, |e| e.kernel = KernelPresence::Absent, Err("kernel not attached"));
    check_after(gate, |e| e.violations = 1, Err("gradient isolation violations present"));
    check_after(gate, |e| e.steps = 1, Err("not yet: the seed trains"));
    check_after(gate, |e| e.loss = None, Err("not yet: no loss was reported"));
    check_after(gate, |e| e.gradient_norm = None, Err("not yet: no gradient norm was reported"));
    let nan = Observation { loss: Some(f64::NAN), ..Observation::default() };
    check_after(gate, |e| e.observe(&nan).unwrap(), Err("1 measures were no finite number"));
    let norm = |value: f64| {
        move |e: &mut Evidence| {
            let range = e.gradient_norm.as_mut().unwrap();
            (range.low, range.high) = (value, value);
        }
    };
    check_after(gate, norm(0.0), Err("gradient norm 0e0 vanished"));
    check_after(gate, norm(1e9), Err("gradient norm 1e9 exploded"));
}

#[test]
fn g2() {
    let gate = Gate::Stability;
    check_after(gate, |e| e.ramp_left = 3, Err("not yet: alpha rises"));
    let latency = |ms: f64| move |e: &mut Evidence| e.latency_ms.as_mut().unwrap().last = ms;
    check_after(gate, latency(10.0), Ok(()));
    check_after(gate, latency(10.5), Err("latency budget exceeded"));
    check_after(gate, |e| e.latency_ms = None, Ok(()));
    let ratio = |e: &mut Evidence| e.output_ratio.as_mut().unwrap().high = 5e3;
    check_after(gate, ratio, Err("seed output is 5000.0 times the host's"));
}

#[test]
fn g3() {
    let gate = Gate::Interface;
    check_after(gate, |e| e.host_registered = false, Err("host model not registered"));
    check_after(
        gate,
        |e| e.interface = Some(Interface::Differs),
        Err("interface checks incomplete"),
    );
    check_after(gate, |e| e.interface = None, Err("not yet: no interface check was reported"));
    check_after(gate, |e| e.steps = 1, Err("not yet: the seed is probed"));
}

#[test]
fn g4() {
    let gate = Gate::SystemImpact;
    check_after(gate, |e| e.violations = 2, Err("violations recorded"));
    check_after(gate, |e| e.baseline = None, Err("not yet: no baseline was reported"));
    check_after(gate, |e| e.validations.truncate(1), Err("not yet: its effect is watched"));
    let baseline =
        |loss: f64| move |e: &mut Evidence| e.baseline = Some(Validation { loss, accuracy: 0.5 });
    check_after(gate, baseline(0.4), Err("validation loss 0.4000 is no improvement on 0.4000"));
    check_after(gate, baseline(0.402), Ok(()));
    check_after(gate, |e| e.validations[3].loss = 0.1, Ok(()));
    let lucky = |e: &mut Evidence| {
        e.validations.iter_mut().for_each(|v| v.loss = 0.9);
        e.validations[0].loss = 0.1;
    };
    check_after(gate, lucky, Err("validation loss 0.9000 is no improvement on 0.7000"));
}

#[test]
fn g5() {
    check_after(Gate::Reset, |_| {}, Err("reset state not clean"));
    check_after(Gate::Reset, |e| *e = Evidence::default(), Ok(()));
    check_after(
        Gate::Reset,
        |e| *e = Evidence { violations: 1, ..Evidence::default() },
        Err("reset state not clean"),
    );
}

#[test]
fn evidence_that_never_comes_fails_in_the_end() {
    let late = Limits::default().stage_steps_max;
    check_after(
        Gate::Interface,
        |e| (e.interface, e.steps) = (None, late),
        Err("evidence incomplete after 100000 steps"),
    );
}
