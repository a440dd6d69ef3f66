//! Points of a request's path at which a trial may kill the process (`cargo xtask chaos`).
//!
//! Only a build with the feature `chaos` has them. In any other, [`point`] is an empty function and neither the
//! variable nor the names exist; a test of `weatherlight` looks for them in the built program.
//!
//! `WEATHERLIGHT_CHAOS_KILL=nonce_claimed:17` has the process end itself by `SIGKILL` when it passes that point for the
//! 17th time: no clean-up, no flush, as by `kill -9` from outside, but always at the same place.

/// A place in the path of a request, in the order in which a request passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Read from the log; nothing is verified.
    RequestRead,
    /// Verified; its nonce is not claimed.
    RequestVerified,
    /// Its nonce is claimed; no handler has it.
    NonceClaimed,
    /// The library was asked; nothing is answered and nothing ordered.
    LibraryAsked,
    /// In the middle of compiling a kernel.
    KernelCompiling,
    /// The artifact is written and synced under a temporary name.
    ArtifactWritten,
    /// The artifact is stored and catalogued; nobody was told.
    ArtifactStored,
    /// Everybody is told of a stored artifact; its job still stands in the forge's queue.
    UpdatePublished,
    /// The answer is made; it is not published.
    AnswerMade,
    /// The answer is published; the request is not acknowledged.
    AnswerPublished,
    /// The request is acknowledged.
    RequestAcknowledged,
    /// A stop was asked for; answers are in progress.
    Draining,
}

/// Passes a point.
#[cfg(not(feature = "chaos"))]
#[inline(always)]
pub const fn point(_: Point) {}

/// Passes a point once for each of `count` requests.
#[cfg(not(feature = "chaos"))]
#[inline(always)]
pub const fn points(_: Point, _: usize) {}

#[cfg(feature = "chaos")]
pub use armed::{point, points};

#[cfg(feature = "chaos")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Point;

    /// Where to die, and at which passing.
    const VARIABLE: &str = "WEATHERLIGHT_CHAOS_KILL";

    static FUSE: LazyLock<Option<Fuse>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let fuse = read(&text);
        assert!(
            fuse.is_some(),
            "{VARIABLE}={text} names no point; write for instance nonce_claimed:17"
        );
        fuse
    });

    #[derive(Debug)]
    struct Fuse {
        point: Point,
        left: AtomicUsize,
    }

    /// Passes a point.
    pub fn point(point: Point) {
        points(point, 1);
    }

    /// Passes a point once for each of `count` requests.
    pub fn points(point: Point, count: usize) {
        let Some(fuse) = FUSE.as_ref().filter(|fuse| fuse.point == point) else { return };
        for _ in 0..count {
            if fuse.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                die();
            }
        }
    }

    fn die() -> ! {
        let killed =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        panic!("SIGKILL to the own process did not end it: {killed:?}");
    }

    fn read(text: &str) -> Option<Fuse> {
        let (name, count) = text.split_once(':')?;
        let point = ALL.into_iter().find(|(one, _)| *one == name)?.1;
        let count: usize = count.parse().ok().filter(|count| *count > 0)?;
        Some(Fuse { point, left: AtomicUsize::new(count) })
    }

    const ALL: [(&str, Point); 12] = [
        ("request_read", Point::RequestRead),
        ("request_verified", Point::RequestVerified),
        ("nonce_claimed", Point::NonceClaimed),
        ("library_asked", Point::LibraryAsked),
        ("kernel_compiling", Point::KernelCompiling),
        ("artifact_written", Point::ArtifactWritten),
        ("artifact_stored", Point::ArtifactStored),
        ("update_published", Point::UpdatePublished),
        ("answer_made", Point::AnswerMade),
        ("answer_published", Point::AnswerPublished),
        ("request_acknowledged", Point::RequestAcknowledged),
        ("draining", Point::Draining),
    ];

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fuse_is_read_as_it_is_written() {
            let fuse = read("nonce_claimed:17").unwrap();
            assert_eq!((fuse.point, fuse.left.into_inner()), (Point::NonceClaimed, 17));
            for text in ["", "nonce_claimed", "nonce_claimed:0", "nonce_claimed:x", "nowhere:1"] {
                assert!(read(text).is_none(), "{text}");
            }
        }
    }
}
