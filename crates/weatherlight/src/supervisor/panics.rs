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
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}
