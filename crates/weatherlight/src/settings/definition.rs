//! One row per setting, and the macro that makes rows and typed fields from one list.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::kind::{Kind, Value};
use super::secret::{SecretText, UrlText};

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// When the settings are reloaded.
    Live,
    /// At the next start.
    Restart,
    /// Never: it is accepted so that settings of older programs can be used as they are.
    Never,
}

impl Reload {
    /// The word in the documentation.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Live => "reload",
            Self::Restart => "restart",
            Self::Never => "no effect",
        }
    }
}

/// Everything known about one setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Definition {
    /// Heading under which it is documented.
    pub section: &'static str,
    /// Environment variable; also its name for `--set`.
    pub env: &'static str,
    /// Dotted key in `weatherlight.toml`.
    pub key: &'static str,
    /// Type, unit and bounds.
    pub kind: Kind,
    /// Default as it would be written; `None` when unset.
    pub default: Option<&'static str>,
    /// When a change takes effect.
    pub reload: Reload,
    /// Meaning, and what a wrong value does.
    pub sentence: &'static str,
}

/// A field's type that can be had from a checked value.
pub(super) trait FromValue: Sized {
    /// `None` when the value is of another kind: the table is wrong, and a test finds it.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($field:ty: $pattern:pat => $result:expr;)+) => {
        $(impl FromValue for $field {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    $pattern => $result,
                    _ => None,
                }
            }
        })+
    };
}

from_value! {
    String: Value::Text(text) => Some(text.clone());
    UrlText: Value::Url(url) => Some(url.clone());
    PathBuf: Value::Path(path) => Some(path.clone());
    SocketAddr: Value::Address(address) => Some(*address);
    bool: Value::Switch(switch) => Some(*switch);
    u64: Value::Integer(number) => Some(*number);
    u32: Value::Integer(number) => u32::try_from(*number).ok();
    usize: Value::Integer(number) => usize::try_from(*number).ok();
    f64: Value::Number(number) => Some(*number);
    Duration: Value::Duration(span) => Some(*span);
    oona::Durabilities: Value::Text(text) => text.parse().ok();
    SecretText: Value::Secret(secret) => Some(secret.clone());
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Absent => Some(None),
            other => T::from_value(other).map(Some),
        }
    }
}

/// Makes [`Definition`] rows and the struct of typed fields from one list.
macro_rules! settings {
    ($($section:literal { $(
        $field:ident: $type:ty = $env:literal $key:literal $kind:expr, $default:expr, $reload:ident, $sentence:literal;
    )+ })+) => {
        /// Every setting, in the order of the documentation.
        pub static DEFINITIONS: &[$crate::settings::Definition] = &[$($(
            $crate::settings::Definition {
                section: $section,
                env: $env,
                key: $key,
                kind: $kind,
                default: $default,
                reload: $crate::settings::Reload::$reload,
                sentence: $sentence,
            },
        )+)+];

        /// The settings of the service and of every subsystem in it, checked and typed.
        #[derive(Debug, Clone, PartialEq)]
        pub struct EsperSettings {
            $($(
                #[doc = $sentence]
                #[doc = concat!(" (`", $env, "`)")]
                pub $field: $type,
            )+)+
        }

        impl EsperSettings {
            /// Builds the fields from one value per definition, in their order. `None` when the
            /// table gives a field a kind that does not fit its type.
            pub(super) fn from_values(values: &[$crate::settings::Value]) -> Option<Self> {
                let mut values = values.iter();
                Some(Self {
                    $($($field: $crate::settings::FromValue::from_value(values.next()?)?,)+)+
                })
            }
        }
    };
}
pub(super) use settings;
