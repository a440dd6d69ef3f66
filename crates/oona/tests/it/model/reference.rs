//! The bus as it should be, in memory: what was published, who has got what, and what may come next.
//! It knows no log and no time. A fault is a text that says which promise was broken.

use std::collections::{BTreeMap, BTreeSet};

use oona::{EntryId, Refusal, Stream};

/// Deliveries of one entry before it becomes a dead letter.
pub const ATTEMPTS_MAX: u32 = 3;

pub const LANES: [Stream; 3] = [Stream::Normal, Stream::Emergency, Stream::KernelRequests];

/// A group on a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub lane: usize,
    pub group: &'static str,
    /// An observer's refusals are not counted.
    pub counts: bool,
    /// Whether it keeps order per key; else it hands out as things arrive.
    pub per_key: bool,
}

pub const VIEWS: [View; 4] = [
    View { lane: 0, group: "weatherlight", counts: true, per_key: true },
    View { lane: 0, group: "watch", counts: false, per_key: false },
    View { lane: 1, group: "weatherlight", counts: true, per_key: false },
    View { lane: 2, group: "weatherlight", counts: true, per_key: true },
];

#[derive(Debug, Clone)]
pub struct Message {
    pub lane: usize,
    pub key: String,
    /// The entries that carry it: the original and its copies.
    pub entries: Vec<EntryId>,
    /// Whether its publisher was told that it stands in the log.
    pub certain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    Waiting,
    InHand,
    /// Failed or dropped: it comes again.
    Returned,
    Handled,
    /// Its last attempt failed.
    Dead,
}

/// One message as one group has seen it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Standing {
    pub phase: Phase,
    pub attempts: u32,
    /// A crash, a lost answer or a new group allows that it comes again.
    pub may_repeat: bool,
}

/// A dead letter that has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub view: usize,
    pub entry: EntryId,
    pub reason: String,
    pub attempts: u32,
}

#[derive(Debug, Default)]
pub struct Reference {
    pub messages: Vec<Message>,
    standings: [Vec<Standing>; VIEWS.len()],
    /// What a handler has to refuse, by lane.
    pub refused: BTreeMap<(usize, &'static str), u64>,
    pub letters: Vec<Letter>,
    /// Since something happened that makes counts and attempts inexact.
    disturbed: [u64; VIEWS.len()],
    /// Readers that a group has ever had; order holds for one.
    pub readers: [u32; VIEWS.len()],
    /// Keys of which a delivery was dropped unsettled.
    overtaken: BTreeSet<(usize, String)>,
    /// The last message that was handed out for the first time.
    newest: [Option<usize>; VIEWS.len()],
}

impl Reference {
    /// Takes a message up; gives its number.
    pub fn add(&mut self, lane: usize, key: String, entry: Option<EntryId>) -> usize {
        let certain = entry.is_some();
        self.messages.push(Message { lane, key, entries: entry.into_iter().collect(), certain });
        for standings in &mut self.standings {
            standings.push(Standing::default());
        }
        self.messages.len() - 1
    }

    pub fn refuse(&mut self, lane: usize, reason: Refusal) {
        *self.refused.entry((lane, reason.label())).or_default() += 1;
    }

    pub fn standing(&mut self, view: usize, number: usize) -> &mut Standing {
        &mut self.standings[view][number]
    }

    /// Whether nothing has happened to this view that makes counts inexact.
    pub fn is_exact(&self, view: usize) -> bool {
        self.disturbed[view] == 0
    }

    pub fn disturbances(&self, view: usize) -> u64 {
        self.disturbed[view]
    }

    /// A consumer of this view is gone: what it had comes again, what it had read counts.
    pub fn crashed(&mut self, view: usize, held: &[usize]) {
        self.disturbed[view] += 1;
        for number in held {
            self.returned(view, *number);
        }
    }

    /// The group starts anew, or the log has forgotten its last moments: all may come again.
    pub fn forgotten(&mut self, view: usize) {
        self.disturbed[view] += 1;
        for standing in &mut self.standings[view] {
            standing.may_repeat = true;
        }
    }

    /// The log was away. What was acknowledged is acknowledged; of the rest nobody can be sure.
    pub fn interrupted(&mut self, view: usize) {
        self.disturbed[view] += 1;
        for standing in &mut self.standings[view] {
            standing.may_repeat |= standing.phase != Phase::Handled;
        }
    }

    /// A delivery was dropped unsettled.
    pub fn returned(&mut self, view: usize, number: usize) {
        let standing = &mut self.standings[view][number];
        if standing.phase == Phase::InHand {
            standing.phase = Phase::Returned;
        }
        self.overtaken.insert((view, self.messages[number].key.clone()));
    }

    /// A consumer hands out a message: is it allowed to?
    pub fn handed_out(
        &mut self,
        view: usize,
        number: usize,
        entry: EntryId,
        attempt: u32,
    ) -> Result<(), String> {
        let exact = self.is_exact(view);
        let Some(message) = self.messages.get(number) else {
            return Err(format!("message {number} was never published"));
        };
        if message.lane != VIEWS[view].lane {
            return Err(format!("message {number} came on the wrong stream"));
        }
        if message.certain && !message.entries.contains(&entry) {
            return Err(format!("message {number} came as entry {entry}, which never carried it"));
        }
        let standing = self.standings[view][number];
        if matches!(standing.phase, Phase::InHand | Phase::Handled | Phase::Dead)
            && !standing.may_repeat
        {
            return Err(format!("message {number} came again, though it was {:?}", standing.phase));
        }
        let attempts_right = attempt == standing.attempts + 1 && attempt <= ATTEMPTS_MAX;
        if exact && !attempts_right || attempt == 0 {
            let after = standing.attempts;
            return Err(format!("message {number} came as attempt {attempt} after {after}"));
        }
        self.is_in_order(view, number)?;
        let standing = &mut self.standings[view][number];
        standing.phase = Phase::InHand;
        standing.attempts = attempt;
        Ok(())
    }

    /// Order holds while one reader reads and nothing crashes.
    fn is_in_order(&mut self, view: usize, number: usize) -> Result<(), String> {
        if !self.is_exact(view) || self.readers[view] != 1 {
            return Ok(());
        }
        if self.standings[view][number].attempts == 0 {
            if let Some(newest) = self.newest[view].filter(|newest| *newest > number)
                && !VIEWS[view].per_key
            {
                return Err(format!("message {number} came after {newest}"));
            }
            self.newest[view] = Some(number);
        }
        let message = &self.messages[number];
        if !VIEWS[view].per_key || self.overtaken.contains(&(view, message.key.clone())) {
            return Ok(());
        }
        let earlier = self.messages[..number].iter().zip(&self.standings[view]).position(
            |(earlier, standing)| {
                let settled = matches!(standing.phase, Phase::Handled | Phase::Dead);
                earlier.certain
                    && (earlier.lane, &earlier.key) == (message.lane, &message.key)
                    && !settled
            },
        );
        match earlier {
            Some(earlier) => Err(format!("message {number} overtook {earlier} of its key")),
            None => Ok(()),
        }
    }

    /// What must have come of each message at the end; `letters` are the entries that died.
    pub fn all_settled(&self, died: &[(usize, EntryId)]) -> Result<(), String> {
        for (view_number, view) in VIEWS.iter().enumerate() {
            for (number, message) in self.messages.iter().enumerate() {
                let standing = self.standings[view_number][number];
                let dead = message.entries.iter().any(|id| died.contains(&(view_number, *id)));
                let concerned = message.lane == view.lane && message.certain;
                if concerned && standing.phase != Phase::Handled && !dead {
                    return Err(format!(
                        "message {number} is lost for {}: {standing:?}, {message:?}",
                        view.group
                    ));
                }
            }
        }
        Ok(())
    }
}
