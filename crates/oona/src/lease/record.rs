//! What the log does with one step, in Rust: the reference that the script of the server is compared
//! with, and the simulated log of the properties.

use super::term::{Answer, Step};

/// The record of one lease, if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record(Option<Standing>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    version: u64,
    fencing: u64,
    /// `-` once it was given back.
    token: String,
    holder: String,
}

impl Record {
    pub(crate) fn apply(&mut self, step: Step, token: &str, holder: &str, now_ms: u64) -> Answer {
        let free =
            Standing { version: 0, fencing: 0, token: "-".to_owned(), holder: String::new() };
        let mut standing = self.0.clone().unwrap_or(free);
        let is_ours = standing.token == token;
        match step {
            Step::Release if is_ours => {
                standing.token = "-".to_owned();
                standing.holder.clear();
                self.0 = Some(standing.clone());
            }
            Step::Release => {}
            Step::Hold { .. } if is_ours => {
                standing.version += 1;
                self.0 = Some(standing.clone());
            }
            Step::Hold { lapsed } => {
                if standing.token == "-" || lapsed == Some(standing.version) {
                    let version = now_ms.max(standing.version + 1);
                    standing = Standing {
                        version,
                        fencing: version,
                        token: token.to_owned(),
                        holder: holder.to_owned(),
                    };
                    self.0 = Some(standing.clone());
                }
            }
        }
        Answer {
            version: standing.version,
            fencing: standing.fencing,
            is_ours: standing.token == token,
            holder: standing.holder,
        }
    }
}
