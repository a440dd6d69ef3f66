//! Identifiers, each a type of its own so that one cannot stand where another belongs.
//! On the wire they are strings; an unknown identifier is representable, and judged by its owner.

use std::borrow::Borrow;
use std::fmt;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Wraps the text as it stood on the wire.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text, owned.
            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

identifier! {
    /// A blueprint of the catalogue, `BP001` to `BP050`.
    BlueprintId
}
identifier! {
    /// A slot of a host network.
    SeedId
}
identifier! {
    /// One training run.
    RunId
}
identifier! {
    /// One prefetch request; its answers carry the same id.
    RequestId
}
identifier! {
    /// One adaptation command; its nonce.
    CommandId
}

impl RequestId {
    /// A fresh request id: unique and ordered by time (UUIDv7).
    pub fn fresh() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }
}

impl CommandId {
    /// A fresh command id (UUIDv4, as the contract's older programs make them).
    pub fn fresh() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }
}
