//! Panics: each is logged once, with the worker it belongs to, its place and a backtrace.

use std::any::Any;
use std::backtrace::Backtrace;
use std::panic;

tokio::task_local! {
    /// The worker whose task is running on this thread.
    pub(super) static WORKER: &'static str;
}

/// Replaces the process's panic hook. Called once, when logging is up; before that the standard
/// hook prints to the terminal.
pub fn install_hook() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !tracing::dispatcher::has_been_set() {
            return before(info);
        }
        let thread = std::thread::current();
        let worker = WORKER.try_with(|name| *name).ok();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = message(info.payload());
        let backtrace = Backtrace::force_capture();
        tracing::error!(
            worker = worker.or(thread.name()).unwrap_or("unnamed thread"),
            place,
            %backtrace,
            "panic: {message}"
        );
    }));
}

/// The text of a panic.
pub(super) fn message(payload: &(dyn Any + Send)) -> String {
    oona::panic_text(payload).to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use indicatif::MultiProgress;

    use super::*;
    use crate::logging::{self, LogFormat};

    /// Set in the process that panics.
    const CHILD: &str = "WEATHERLIGHT_TEST_PANICS";
    const NAME: &str =
        "supervisor::panics::tests::a_panic_is_logged_once_with_worker_and_backtrace";

    /// Hook and log belong to a whole process, so the test runs itself in another one.
    #[test]
    fn a_panic_is_logged_once_with_worker_and_backtrace() {
        if std::env::var_os(CHILD).is_some() {
            return panic_and_go_on();
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let log = String::from_utf8(child.stderr).unwrap();
        assert!(child.status.success(), "the panic stays in its task:\n{log}");
        let lines: Vec<serde_json::Value> =
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let [line] = lines.as_slice() else { panic!("one line, not {lines:#?} of:\n{log}") };
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["message"], "panic: the tape is torn");
        assert_eq!(line["worker"], "tape.reader");
        assert!(line["place"].as_str().unwrap().contains("panics.rs:"), "{line}");
        let backtrace = line["backtrace"].as_str().unwrap();
        assert!(backtrace.contains("read_the_tape"), "{backtrace}");
        assert_eq!(log.matches("the tape is torn").count(), 1, "{log}");
    }

    fn panic_and_go_on() {
        logging::start("info", LogFormat::Json, &MultiProgress::new()).unwrap();
        install_hook();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(WORKER.scope("tape.reader", read_the_tape()));
            tasks.join_next().await.unwrap()
        });
        let payload = ended.unwrap_err().into_panic();
        assert_eq!(message(payload.as_ref()), "the tape is torn");
        logging::flush();
    }

    async fn read_the_tape() {
        panic!("the tape is torn");
    }
}
