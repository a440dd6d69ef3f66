//! The books of one trial, and what they say at its end. Decides without clock and without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A blueprint that is built: in the end there must be a kernel.
    Kernel(String),
    /// A blueprint that does not exist: the answer must say so.
    Nothing(String),
}

impl Wanted {
    /// The blueprint asked for.
    pub fn blueprint(&self) -> &str {
        match self {
            Self::Kernel(blueprint) | Self::Nothing(blueprint) => blueprint,
        }
    }
}

/// One answer as the client read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// When it was read.
    pub at: Instant,
    /// What it says, without what may differ between two answers to the same request.
    pub says: Says,
    /// A reader that judges freshness would have refused it.
    pub untimely: bool,
}

/// The contents of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// A kernel: where its file stands and its SHA-256.
    Ready {
        /// Absolute path.
        path: String,
        /// Hexadecimal digest.
        checksum: String,
    },
    /// None, with the reason.
    Failed(String),
}

/// One request, from the client's side.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it asks for.
    pub wanted: Wanted,
    /// When its first append was tried.
    pub sent: Instant,
    /// When Redis first acknowledged an append of it.
    pub accepted: Option<Instant>,
    /// Where its entries stand.
    pub entries: Vec<String>,
    /// What came back.
    pub answers: Vec<Answered>,
    /// The request that asked again for the same.
    pub again: Option<String>,
}

impl Request {
    /// A request that is about to be sent.
    pub fn new(wanted: Wanted, sent: Instant) -> Self {
        Self { wanted, sent, accepted: None, entries: Vec::new(), answers: Vec::new(), again: None }
    }

    /// Redis has it, and nobody answered.
    pub fn is_open(&self) -> bool {
        self.accepted.is_some() && self.answers.is_empty()
    }
}

/// Everything a client sent and read in one trial.
#[derive(Debug, Default)]
pub struct Book {
    /// Requests by id.
    pub requests: BTreeMap<String, Request>,
    /// Copies of earlier requests that Redis took: to be refused.
    pub copies: u64,
    /// Forged entries that Redis took: to be refused.
    pub forged: u64,
    /// Requests whose entries Redis itself no longer has, nor an answer.
    pub forgotten: BTreeSet<String>,
    /// Answers to requests that nobody sent.
    pub strange: u64,
}

/// What the books say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were tried to send.
    pub sent: u64,
    /// Requests whose append Redis acknowledged.
    pub accepted: u64,
    /// Accepted requests with an answer.
    pub answered: u64,
    /// Answered requests with more than one answer.
    pub twice: u64,
    /// Requests whose answers differ, or whose answer cannot be right.
    pub wrong: u64,
    /// Answers that a reader would have refused for their time.
    pub untimely: u64,
    /// Requests that asked again, as the contract says, after an answer that says to.
    pub again: u64,
    /// Accepted requests that Redis itself lost.
    pub forgotten: u64,
    /// Accepted requests without an answer that Redis did not lose.
    pub lost: u64,
    /// Kernels that were asked for, again and again, and never came.
    pub unserved: u64,
    /// From a fault's end to the first answer to a request sent after it; the longest, where there were several faults.
    pub first: Option<Duration>,
    /// From the last fault's end to the last answer to a request accepted before it.
    pub all: Option<Duration>,
}

impl Tally {
    /// Whether everything that was promised was kept.
    pub fn is_good(&self) -> bool {
        self.lost == 0
            && self.wrong == 0
            && self.untimely == 0
            && self.unserved == 0
            && self.accepted > 0
    }
}

impl Book {
    /// Accepted requests without an answer that were not found to be forgotten.
    pub fn open(&self) -> impl Iterator<Item = (&String, &Request)> {
        self.requests
            .iter()
            .filter(|(id, request)| request.is_open() && !self.forgotten.contains(*id))
    }

    /// Adds up, for faults that ended at these times.
    pub fn judge(&self, ends: &[Instant]) -> Tally {
        let mut tally = Tally {
            sent: count(self.requests.len()),
            forgotten: count(self.forgotten.len()),
            lost: count(self.open().count()),
            wrong: self.strange,
            ..Tally::default()
        };
        for (id, request) in &self.requests {
            tally.accepted += u64::from(request.accepted.is_some());
            tally.answered += u64::from(!request.answers.is_empty());
            tally.twice += u64::from(request.answers.len() > 1);
            tally.wrong += u64::from(is_wrong(request));
            tally.untimely +=
                count(request.answers.iter().filter(|answer| answer.untimely).count());
            tally.again += u64::from(request.again.is_some() && !self.forgotten.contains(id));
            tally.unserved += u64::from(self.is_unserved(id, request));
        }
        let longest = ends.iter().map(|end| self.first_after(*end)).collect::<Option<Vec<_>>>();
        tally.first = longest.and_then(|all| all.into_iter().max());
        tally.all = ends.last().and_then(|end| self.outstanding_after(*end));
        tally
    }

    /// The end of a chain of requests that never brought the kernel.
    fn is_unserved(&self, id: &str, request: &Request) -> bool {
        let failed = |answer: &Answered| matches!(answer.says, Says::Failed(_));
        let without = request.answers.first().is_some_and(failed) || self.forgotten.contains(id);
        matches!(request.wanted, Wanted::Kernel(_)) && without && request.again.is_none()
    }

    fn first_after(&self, end: Instant) -> Option<Duration> {
        let later = self.requests.values().filter(|request| request.sent >= end);
        later.filter_map(|request| Some(request.answers.first()?.at - end)).min()
    }

    fn outstanding_after(&self, end: Instant) -> Option<Duration> {
        let earlier = self.requests.values().filter(|one| one.accepted.is_some_and(|at| at <= end));
        let answers = earlier.filter_map(|request| Some(request.answers.first()?.at));
        answers.filter_map(|at| at.checked_duration_since(end)).max()
    }
}

/// Whether an answer cannot be right. A kernel that was gone when its request was first answered may be there when a crash
/// has it answered again: an answer that says to ask again and a kernel agree. Two different kernels never do.
fn is_wrong(request: &Request) -> bool {
    let mut kernel = None;
    request.answers.iter().any(|answer| match (&request.wanted, &answer.says) {
        (Wanted::Nothing(_), says) => *says != Says::Failed("missing_artifact".to_owned()),
        (Wanted::Kernel(_), Says::Failed(reason)) => !may_ask_again(reason),
        (Wanted::Kernel(_), says @ Says::Ready { .. }) => *kernel.get_or_insert(says) != says,
    })
}

/// Reasons after which the contract says to ask again.
pub fn may_ask_again(reason: &str) -> bool {
    let again =
        ["unavailable", "artifact_not_found", "checksum_mismatch", "missing_artifact", "compiling"];
    again.contains(&reason)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(at: Instant) -> Answered {
        let says = Says::Ready { path: "/a".to_owned(), checksum: "c".to_owned() };
        Answered { at, says, untimely: false }
    }

    fn failed(at: Instant, reason: &str) -> Answered {
        Answered { at, says: Says::Failed(reason.to_owned()), untimely: false }
    }

    fn asked(book: &mut Book, id: &str, sent: Instant, answers: Vec<Answered>) {
        let mut request = Request::new(Wanted::Kernel("BP001".to_owned()), sent);
        request.accepted = Some(sent);
        request.answers = answers;
        book.requests.insert(id.to_owned(), request);
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn what_was_accepted_and_not_answered_is_lost_unless_redis_lost_it() {
        let (mut book, now) = (Book::default(), Instant::now());
        asked(&mut book, "answered", now, vec![ready(now)]);
        asked(&mut book, "open", now, Vec::new());
        asked(&mut book, "gone", now, Vec::new());
        book.forgotten.insert("gone".to_owned());
        let never_taken = Request::new(Wanted::Kernel("BP002".to_owned()), now);
        book.requests.insert("never taken".to_owned(), never_taken);
        let tally = book.judge(&[now]);
        assert_eq!((tally.sent, tally.accepted, tally.answered), (4, 3, 1));
        assert_eq!((tally.lost, tally.forgotten), (1, 1));
        assert!(!tally.is_good());
        book.requests.remove("open");
        assert_eq!(book.judge(&[now]).unserved, 1, "what Redis lost is asked for again");
        book.requests.get_mut("gone").unwrap().again = Some("answered".to_owned());
        assert!(book.judge(&[now]).is_good());
    }

    #[test]
    fn the_same_answer_twice_is_counted_and_another_kernel_is_wrong() {
        let (mut book, now) = (Book::default(), Instant::now());
        asked(&mut book, "same", now, vec![ready(now), ready(after(now, 5))]);
        assert_eq!((book.judge(&[]).twice, book.judge(&[]).wrong), (1, 0));
        asked(&mut book, "late", now, vec![failed(now, "artifact_not_found"), ready(now)]);
        book.requests.get_mut("late").unwrap().again = Some("same".to_owned());
        assert!(book.judge(&[]).is_good(), "it was gone before the crash and is there after it");
        let says = Says::Ready { path: "/a".to_owned(), checksum: "d".to_owned() };
        let other = Answered { at: now, says, untimely: false };
        asked(&mut book, "other", now, vec![ready(now), other]);
        assert_eq!((book.judge(&[]).twice, book.judge(&[]).wrong), (3, 1));
        book.requests.remove("other");
        book.strange = 1;
        assert!(!book.judge(&[]).is_good(), "an answer to a request that nobody sent");
    }

    #[test]
    fn answers_must_fit_what_was_asked() {
        let (mut book, now) = (Book::default(), Instant::now());
        let mut nothing = Request::new(Wanted::Nothing("BP999".to_owned()), now);
        nothing.accepted = Some(now);
        nothing.answers = vec![failed(now, "missing_artifact")];
        book.requests.insert("nothing".to_owned(), nothing.clone());
        assert!(book.judge(&[]).is_good());
        nothing.answers = vec![ready(now)];
        book.requests.insert("nothing".to_owned(), nothing);
        assert_eq!(book.judge(&[]).wrong, 1);
        let mut book = Book::default();
        asked(&mut book, "odd", now, vec![failed(now, "not_graftable")]);
        assert_eq!(book.judge(&[]).wrong, 1);
    }

    #[test]
    fn whoever_is_told_to_ask_again_must_be_served_in_the_end() {
        let (mut book, now) = (Book::default(), Instant::now());
        asked(&mut book, "first", now, vec![failed(now, "unavailable")]);
        assert_eq!(book.judge(&[]).unserved, 1);
        book.requests.get_mut("first").unwrap().again = Some("second".to_owned());
        asked(&mut book, "second", now, vec![failed(now, "checksum_mismatch")]);
        assert_eq!(book.judge(&[]).unserved, 1, "the end of the chain counts");
        book.requests.get_mut("second").unwrap().again = Some("third".to_owned());
        asked(&mut book, "third", now, vec![ready(now)]);
        let tally = book.judge(&[]);
        assert_eq!((tally.unserved, tally.again), (0, 2));
        assert!(tally.is_good());
    }

    #[test]
    fn recovery_is_measured_from_the_end_of_the_fault() {
        let (mut book, now) = (Book::default(), Instant::now());
        asked(&mut book, "before", now, vec![ready(after(now, 900))]);
        asked(&mut book, "during", after(now, 90), vec![ready(after(now, 1500))]);
        asked(&mut book, "after", after(now, 150), vec![ready(after(now, 400))]);
        let tally = book.judge(&[after(now, 100)]);
        assert_eq!(tally.first, Some(Duration::from_millis(300)));
        assert_eq!(tally.all, Some(Duration::from_millis(1400)));
        let tally = book.judge(&[after(now, 100), after(now, 140)]);
        assert_eq!(tally.first, Some(Duration::from_millis(300)), "the longest of several");
        assert_eq!(book.judge(&[after(now, 200)]).first, None, "nothing was sent after it");
    }

    #[test]
    fn an_answer_that_readers_refuse_for_its_time_fails_the_row() {
        let (mut book, now) = (Book::default(), Instant::now());
        asked(&mut book, "one", now, vec![Answered { untimely: true, ..ready(now) }]);
        assert!(!book.judge(&[]).is_good());
    }
}
