//! How far the forge is with the catalogue: a snapshot in a `watch` channel, for progress bars and readiness.

use leyline::ids::BlueprintId;

/// How far the catalogue is. Orders beside the catalogue do not count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Blueprints of the boot list.
    pub total: usize,
    /// Of these, those in the library.
    pub done: usize,
    /// Of the done ones, those that were there already.
    pub found: usize,
    /// Of these, those given up.
    pub failed: usize,
    /// What is being built, catalogue or order, in the order in which it started.
    pub current: Vec<BlueprintId>,
    /// Every blueprint of the list given up so far, with the reason.
    pub failures: Vec<(BlueprintId, String)>,
    /// Whether each blueprint of the list is done or given up. A given-up one that an order builds later moves to
    /// the done ones; this stays true.
    pub finished: bool,
}

/// Keeps score of the boot list.
#[derive(Debug, Default)]
pub(crate) struct Score {
    open: Vec<BlueprintId>,
    progress: Progress,
}

impl Score {
    pub(crate) fn new(list: Vec<BlueprintId>) -> Self {
        let progress =
            Progress { total: list.len(), finished: list.is_empty(), ..Progress::default() };
        Self { open: list, progress }
    }

    pub(crate) fn started(&mut self, blueprint: &BlueprintId) {
        self.progress.current.push(blueprint.clone());
    }

    /// An attempt ended, however.
    pub(crate) fn stopped(&mut self, blueprint: &BlueprintId) {
        if let Some(at) = self.progress.current.iter().position(|one| one == blueprint) {
            self.progress.current.remove(at);
        }
    }

    /// The default artifact of a blueprint is in the library.
    pub(crate) fn done(&mut self, blueprint: &BlueprintId, how: How) {
        let progress = &mut self.progress;
        let given_up = progress.failures.iter().position(|(one, _)| one == blueprint);
        if let Some(at) = given_up {
            progress.failures.remove(at);
            progress.failed -= 1;
        } else if !take(&mut self.open, blueprint) {
            return;
        }
        progress.done += 1;
        progress.found += usize::from(how == How::Found);
        progress.finished |= self.open.is_empty();
    }

    /// The default artifact of a blueprint was given up.
    pub(crate) fn given_up(&mut self, blueprint: &BlueprintId, reason: String) {
        if take(&mut self.open, blueprint) {
            self.progress.failed += 1;
            self.progress.failures.push((blueprint.clone(), reason));
            self.progress.finished |= self.open.is_empty();
        }
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// How an artifact came to be in the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was there already.
    Found,
    /// It was compiled for this order.
    Compiled,
}

fn take(open: &mut Vec<BlueprintId>, blueprint: &BlueprintId) -> bool {
    let at = open.iter().position(|one| one == blueprint);
    at.map(|at| open.remove(at)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_blueprint_counts_once_and_a_late_success_counts() {
        let [a, b, c] = ["BP001", "BP002", "BP050"].map(BlueprintId::from);
        let mut score = Score::new(vec![a.clone(), b.clone()]);
        score.started(&a);
        score.started(&b);
        assert_eq!(score.progress().current, [a.clone(), b.clone()]);
        score.stopped(&a);
        score.done(&a, How::Found);
        score.done(&a, How::Compiled);
        score.done(&c, How::Compiled);
        assert!(!score.progress().finished);
        score.stopped(&b);
        score.given_up(&b, "broken".to_owned());
        score.given_up(&c, "foreign".to_owned());
        let progress = score.progress().clone();
        assert_eq!((progress.total, progress.done, progress.found, progress.failed), (2, 1, 1, 1));
        assert!(progress.finished && progress.current.is_empty());
        assert_eq!(progress.failures, [(b.clone(), "broken".to_owned())]);
        score.done(&b, How::Compiled);
        assert_eq!((score.progress().done, score.progress().failed), (2, 0));
    }

    #[test]
    fn an_empty_list_is_finished() {
        assert!(Score::new(Vec::new()).progress().finished);
    }
}
