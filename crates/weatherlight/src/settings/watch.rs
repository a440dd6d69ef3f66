//! Whether the files that settings come from have changed. The decision is pure; `look` is the one
//! place that touches the files, and it only asks about them.
//!
//! A file is known by device, inode, size and times, so that a rename over it, a write in place and
//! the turn of a symbolic link (as Kubernetes does it) are all seen. What has changed counts once it
//! has stayed the same from one look to the next: a file that is being written is not read half-way.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What is known of one file; `None` when it is not there.
type Mark = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// The files at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Print(Vec<(PathBuf, Mark)>);

/// Asks about every file. Blocking.
pub fn look(paths: &[PathBuf]) -> Print {
    let mark = |path: &PathBuf| {
        let about = std::fs::metadata(path).ok()?;
        let (changed, modified) = (about.ctime(), about.mtime());
        let (changed_ns, modified_ns) = (about.ctime_nsec(), about.mtime_nsec());
        Some((about.dev(), about.ino(), about.size(), changed, changed_ns, modified, modified_ns))
    };
    Print(paths.iter().map(|path| (path.clone(), mark(path))).collect())
}

impl Print {
    fn mark(&self, path: &Path) -> Mark {
        self.0.iter().find(|(known, _)| known == path).and_then(|(_, mark)| *mark)
    }

    /// The first file that had a content before and has none now, or is gone.
    fn emptied_since(&self, before: &Self) -> Option<PathBuf> {
        let has_content = |mark: Mark| mark.is_some_and(|(_, _, size, ..)| size > 0);
        let lost =
            |path: &&PathBuf| has_content(before.mark(path)) && !has_content(self.mark(path));
        before.0.iter().map(|(path, _)| path).find(lost).cloned()
    }
}

/// What a look says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing new.
    Quiet,
    /// Something is changing; look again soon.
    Settling,
    /// Something has changed and stands still: read it.
    Changed,
    /// A file lost its whole content, or is gone. That is how a save goes wrong, so it is not taken
    /// for settings unless somebody asks. Said once.
    Emptied(PathBuf),
}

/// What was seen last.
#[derive(Debug, Default)]
pub struct Watch {
    /// As it was when the settings were read.
    settled: Option<Print>,
    /// As the last look found it, when that was something else.
    pending: Option<Print>,
    /// What nobody acts on until it changes again.
    left_alone: Option<Print>,
}

impl Watch {
    /// The settings were read when the files looked like this.
    pub fn settle(&mut self, print: Print) {
        (self.settled, self.pending, self.left_alone) = (Some(print), None, None);
    }

    /// Takes a look.
    pub fn take(&mut self, now: Print) -> Seen {
        if self.settled.as_ref() == Some(&now) || self.left_alone.as_ref() == Some(&now) {
            self.pending = None;
            return Seen::Quiet;
        }
        if self.pending.as_ref() != Some(&now) {
            self.pending = Some(now);
            return Seen::Settling;
        }
        self.pending = None;
        let emptied = self.settled.as_ref().and_then(|before| now.emptied_since(before));
        match emptied {
            None => Seen::Changed,
            Some(path) => {
                self.left_alone = Some(now);
                Seen::Emptied(path)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Bench {
        directory: tempfile::TempDir,
        watch: Watch,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench =
                Self { directory: tempfile::tempdir().unwrap(), watch: Watch::default() };
            bench.write("weatherlight.toml", "a = 1\n");
            bench.watch.settle(bench.look());
            bench
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&mut self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn look(&self) -> Print {
            look(&[self.path("weatherlight.toml"), self.path(".env")])
        }

        fn seen(&mut self) -> Seen {
            let print = self.look();
            self.watch.take(print)
        }
    }

    #[test]
    fn a_rename_over_the_file_and_a_write_in_place_are_seen_once() {
        let mut bench = Bench::new();
        assert_eq!(bench.seen(), Seen::Quiet);
        bench.write("new", "a = 2\n");
        fs::rename(bench.path("new"), bench.path("weatherlight.toml")).unwrap();
        assert_eq!((bench.seen(), bench.seen()), (Seen::Settling, Seen::Changed));
        bench.watch.settle(bench.look());
        assert_eq!(bench.seen(), Seen::Quiet);
        bench.write("weatherlight.toml", "a = 33\n");
        assert_eq!((bench.seen(), bench.seen()), (Seen::Settling, Seen::Changed));
        bench.watch.settle(bench.look());
        bench.write(".env", "A=1\n");
        assert_eq!((bench.seen(), bench.seen()), (Seen::Settling, Seen::Changed));
    }

    /// Truncated, half there, whole: only what stands still is read.
    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let mut bench = Bench::new();
        bench.write("weatherlight.toml", "");
        assert_eq!(bench.seen(), Seen::Settling);
        bench.write("weatherlight.toml", "a = ");
        assert_eq!(bench.seen(), Seen::Settling);
        bench.write("weatherlight.toml", "a = 444\n");
        assert_eq!((bench.seen(), bench.seen()), (Seen::Settling, Seen::Changed));
    }

    #[test]
    fn a_file_that_stays_empty_or_away_is_said_once_and_left_alone() {
        for remove in [false, true] {
            let mut bench = Bench::new();
            let path = bench.path("weatherlight.toml");
            if remove {
                fs::remove_file(&path).unwrap();
            } else {
                bench.write("weatherlight.toml", "");
            }
            assert_eq!(bench.seen(), Seen::Settling);
            assert_eq!(bench.seen(), Seen::Emptied(path));
            assert_eq!((bench.seen(), bench.seen()), (Seen::Quiet, Seen::Quiet));
            bench.write("weatherlight.toml", "a = 5\n");
            assert_eq!((bench.seen(), bench.seen()), (Seen::Settling, Seen::Changed));
        }
    }
}
