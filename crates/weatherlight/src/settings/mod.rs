//! Settings: one table of definitions, from which come the typed fields, the checks and the
//! documentation.
//!
//! Reading order: `table` (the settings), `definition` (what a row holds), `kind` (types and
//! bounds), `source` (where texts come from), `resolve` (merging and checking), `docs` (what is
//! generated).

mod definition;
pub mod docs;
mod fault;
mod file;
mod kind;
pub mod reload;
mod resolve;
mod rules;
mod secret;
mod source;
mod table;
pub mod watch;

pub use definition::{Definition, Reload};
pub use fault::{Fault, Faults, Origin, Party, Problem};
pub use file::FileProblem;
pub use kind::{Kind, Unit, Value};
pub use resolve::{InForce, Resolved, resolve};
pub use secret::{MASK, SecretText, UrlText, masked_url};
pub use source::{DEFAULT_FILE, DOTENV_FILE, Sources};
pub use table::{DEFINITIONS, EsperSettings};

use definition::FromValue;
