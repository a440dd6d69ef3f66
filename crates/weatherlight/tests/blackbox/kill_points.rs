//! The points at which `cargo xtask chaos` kills a service are in no build but those made for it.

/// What only the feature `chaos` brings; see `oona::chaos`.
const TRACES: [&[u8]; 3] =
    [b"WEATHERLIGHT_CHAOS_KILL", b"request_acknowledged", b"SIGKILL to the own process"];

#[test]
fn a_build_for_use_has_no_kill_points() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_weatherlight")).unwrap();
    for trace in TRACES {
        let found = contains(&program, trace);
        let shown = String::from_utf8_lossy(trace);
        assert_eq!(found, cfg!(feature = "chaos"), "{shown:?} in the built program");
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .split_inclusive(|byte| *byte == needle[0])
        .scan(0, |end, part| {
            *end += part.len();
            Some(*end - 1)
        })
        .any(|at| haystack[at..].starts_with(needle))
}
