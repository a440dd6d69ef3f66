//! How safe an entry is before its publisher hears that it was published. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::stream::Stream;

/// What a publish waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Durability {
    /// The server has it in memory; how soon it is on disk is the server's `appendfsync`.
    #[default]
    None,
    /// So many replicas have it in memory too (`WAIT`).
    Wait {
        /// At least one.
        replicas: u32,
    },
    /// It is on the server's disk, and on that of so many replicas (`WAITAOF`, Redis 7.2).
    WaitAof {
        /// May be 0.
        replicas: u32,
    },
    /// It is on this machine's disk: the embedded log, always.
    Fsync,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Wait { replicas } => write!(f, "wait:{replicas}"),
            Self::WaitAof { replicas } => write!(f, "waitaof:{replicas}"),
            Self::Fsync => f.write_str("fsync"),
        }
    }
}

/// A text that names no durability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no durability; write none, wait, wait:REPLICAS, waitaof or waitaof:REPLICAS, and \
     STREAM=CLASS behind commas for streams that differ"
)]
pub struct DurabilityFault {
    /// What was found.
    pub text: String,
}

/// More replicas than any installation has: a number mistyped.
const REPLICAS_MAX: u32 = 64;

impl FromStr for Durability {
    type Err = DurabilityFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = || DurabilityFault { text: text.to_owned() };
        let (class, replicas) = match text.trim().split_once(':') {
            Some((class, number)) => (class, Some(number.parse::<u32>().map_err(|_| fault())?)),
            None => (text.trim(), None),
        };
        if replicas.is_some_and(|replicas| replicas > REPLICAS_MAX) {
            return Err(fault());
        }
        match (class.to_ascii_lowercase().as_str(), replicas) {
            ("none", None) => Ok(Self::None),
            ("wait", Some(0)) => Err(fault()),
            ("wait", replicas) => Ok(Self::Wait { replicas: replicas.unwrap_or(1) }),
            ("waitaof", replicas) => Ok(Self::WaitAof { replicas: replicas.unwrap_or(0) }),
            _ => Err(fault()),
        }
    }
}

/// The durability of every stream. Written as the class of all, then those that differ:
/// `none,policy=waitaof,emergency=wait:2`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Durabilities {
    /// Of every stream that is not listed.
    pub usual: Durability,
    /// Of single streams.
    pub streams: BTreeMap<Stream, Durability>,
}

impl Durabilities {
    /// Of one stream.
    pub fn of(&self, stream: Stream) -> Durability {
        self.streams.get(&stream).copied().unwrap_or(self.usual)
    }

    /// Each class that some stream has.
    pub(crate) fn classes(&self) -> impl Iterator<Item = Durability> {
        Stream::ALL.into_iter().map(|stream| self.of(stream))
    }
}

impl FromStr for Durabilities {
    type Err = DurabilityFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut found = Self::default();
        for (index, part) in text.split(',').map(str::trim).enumerate() {
            let Some((name, class)) = part.split_once('=') else {
                if index > 0 {
                    return Err(DurabilityFault { text: part.to_owned() });
                }
                found.usual = part.parse()?;
                continue;
            };
            let stream = Stream::ALL.into_iter().find(|stream| stream.label() == name.trim());
            let stream = stream.ok_or_else(|| DurabilityFault { text: part.to_owned() })?;
            found.streams.insert(stream, class.trim().parse()?);
        }
        Ok(found)
    }
}

impl fmt::Display for Durabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.usual)?;
        for (stream, class) in &self.streams {
            write!(f, ",{stream}={class}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_class_for_all_and_others_for_some() {
        let found: Durabilities = "none, policy=waitaof ,emergency=wait:2".parse().unwrap();
        assert_eq!(found.of(Stream::Normal), Durability::None);
        assert_eq!(found.of(Stream::Policy), Durability::WaitAof { replicas: 0 });
        assert_eq!(found.of(Stream::Emergency), Durability::Wait { replicas: 2 });
        assert_eq!(found.to_string(), "none,emergency=wait:2,policy=waitaof:0");
        assert_eq!(found.to_string().parse(), Ok(found));
        let all: Durabilities = "WAIT".parse().unwrap();
        assert!(all.classes().all(|class| class == Durability::Wait { replicas: 1 }));
        let some: Durabilities = "policy=waitaof:1".parse().unwrap();
        assert_eq!(some.usual, Durability::None);
    }

    #[test]
    fn what_is_no_class_is_named() {
        for text in
            ["", "fsync", "wait:0", "wait:65", "waitaof:x", "none,none", "nosuch=wait", "none:1"]
        {
            let fault = text.parse::<Durabilities>().unwrap_err();
            assert!(text.contains(&fault.text), "{fault}");
        }
    }
}
