//! Stopping long work from outside: the interpreter asks before every operator whether it is to go on.
//!
//! A thread cannot be ended, so whoever gives it something long opens a [`scope`] around it; work in the scope then ends
//! with [`RunError::Cancelled`] before its next operator. Plans do not ask: a run of one is short.

use std::cell::RefCell;

use crate::error::RunError;

/// Says whether to stop.
type Question = Box<dyn Fn() -> bool>;

thread_local! {
    /// The questions of the scopes that this thread is in, outermost first.
    static QUESTIONS: RefCell<Vec<Question>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` on this thread, which ends at its next operator once `is_over` says so. Scopes may be nested: any of them
/// ends the work in it. `is_over` is asked often, and must not open a scope itself.
pub fn scope<T>(is_over: impl Fn() -> bool + 'static, work: impl FnOnce() -> T) -> T {
    /// Leaves the scope, however it ends.
    struct Leave;

    impl Drop for Leave {
        fn drop(&mut self) {
            QUESTIONS.with_borrow_mut(|questions| drop(questions.pop()));
        }
    }

    QUESTIONS.with_borrow_mut(|questions| questions.push(Box::new(is_over)));
    let _leave = Leave;
    work()
}

/// Refuses to go on where a scope of this thread is over.
pub(crate) fn check() -> Result<(), RunError> {
    let is_over = QUESTIONS.with_borrow(|questions| questions.iter().any(|is_over| is_over()));
    if is_over { Err(RunError::Cancelled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn any_scope_around_ends_the_work_and_none_outlives_it() {
        assert!(check().is_ok());
        let over = Rc::new(Cell::new(false));
        let seen = over.clone();
        scope(
            move || seen.get(),
            || {
                scope(|| false, || assert!(check().is_ok()));
                over.set(true);
                scope(|| false, || assert!(matches!(check(), Err(RunError::Cancelled))));
            },
        );
        assert!(check().is_ok(), "outside nothing is over");
        let panicked = std::panic::catch_unwind(|| scope(|| true, || panic!("in the scope")));
        assert!(panicked.is_err() && check().is_ok());
    }
}
