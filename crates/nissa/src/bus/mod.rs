//! The bus as an operator sees it: messages decoded, streams and groups in numbers, dead letters with
//! their history. One set of views for the command line and for HTTP, whichever of them holds the
//! log; they are JSON on the way and read back by the other end.
//!
//! `body` says what a message looks like, `entry` what stands around it, `letter` what is known of a
//! dead one, `standing` how streams and groups are. Nothing here consumes, and no secret or signature
//! is shown; the raw fields of a dead letter are, to whoever asks for them by name.

mod body;
mod entry;
mod letter;
mod standing;

use oona::Bus;
use tokio::sync::watch;

pub use body::{kind_name, kind_named};
pub use entry::{BadPlaces, ENTRIES_MAX, EntriesView, EntryView, Places, WAIT_MAX, watch};
pub use letter::{
    BadQuery, DeadLetterView, DeadLettersView, FieldView, LETTERS_MAX, LetterQuery, PurgedView,
    ReplayedView, letter, letters, purge, replay,
};
pub use standing::{ConsumerView, GroupView, StandingView, StreamView, keys, standing};

/// Where nissa finds the bus: nothing before it is open.
pub type BusSource = watch::Receiver<Option<Bus>>;
