//! What the system lets this process have.

use rustix::process::{Resource, getrlimit};

use super::{Finding, Verdict};

const CHECK: &str = "open files";
/// What a service with many connections, kernels and log files may need.
const OPEN_FILES_WARN: u64 = 1024;

/// How many files and connections may be open.
pub(super) fn open_files() -> Finding {
    judge(getrlimit(Resource::Nofile).current)
}

fn judge(limit: Option<u64>) -> Finding {
    match limit {
        Some(limit) if limit < OPEN_FILES_WARN => Finding::new(
            CHECK,
            Verdict::Warning,
            format!("only {limit} files and connections may be open"),
            "raise it: `ulimit -n 65536` before the start, or LimitNOFILE=65536 in the unit",
        ),
        Some(limit) => Finding::good(CHECK, format!("{limit} may be open")),
        None => Finding::good(CHECK, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_a_warning() {
        assert_eq!(judge(Some(256)).verdict, Verdict::Warning);
        assert_eq!(judge(Some(1024)).verdict, Verdict::Good);
        assert_eq!(judge(None).verdict, Verdict::Good);
    }
}
