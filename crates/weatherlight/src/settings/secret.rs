//! A text that no formatting shows.

use std::fmt;

use zeroize::Zeroizing;

/// What secrets are printed as.
pub const MASK: &str = "********";

/// A secret read from the settings: wiped when dropped, printed as a mask, and reachable only by
/// the one method whose name says what it does.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text; white space around it is not part of it.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The text itself, for the one place that uses it. Never print or log what this returns.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The secret as a signing key.
    pub fn signing(&self) -> leyline::sign::Secret {
        leyline::sign::Secret::new(self.expose())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl PartialEq for SecretText {
    /// In constant time for texts of equal length.
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for SecretText {}

/// A URL, which may hold a password: wiped when dropped, shown only with the password masked, and
/// whole only by the one method whose name says so.
#[derive(Clone)]
pub struct UrlText(Zeroizing<String>);

impl UrlText {
    /// Takes the text; white space around it is not part of it.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The whole URL, for the one place that opens it. Never print or log what this returns.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The URL with its passwords masked.
    pub fn masked(&self) -> String {
        masked_url(&self.0)
    }
}

impl fmt::Debug for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl PartialEq for UrlText {
    /// In constant time for texts of equal length.
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq as _;
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for UrlText {}

/// Compiles only as long as `$type` has none of the traits: with one of them, two implementations of
/// `Ambiguous` would fit.
macro_rules! cannot_be_printed {
    ($($type:ty)+) => {
        $(const _: fn() = || {
            trait Ambiguous<A> {
                fn must_not_be_printable() {}
            }
            struct Displayed;
            struct Serialised;
            impl<T: ?Sized> Ambiguous<()> for T {}
            impl<T: ?Sized + fmt::Display> Ambiguous<Displayed> for T {}
            impl<T: ?Sized + serde::Serialize> Ambiguous<Serialised> for T {}
            let _ = <$type as Ambiguous<_>>::must_not_be_printable;
        };)+
    };
}

cannot_be_printed! { SecretText UrlText leyline::sign::Secret leyline::sign::Keyring nissa::Token }

/// A URL with the passwords in it, in front of the hosts or behind the question mark, replaced by
/// the mask.
pub fn masked_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (rest, query) =
        rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let authority_end = rest.find('/').unwrap_or(rest.len());
    let shown = match rest[..authority_end].rfind('@') {
        Some(at) => {
            let user = rest[..at].split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:{MASK}@{}", &rest[at + 1..])
        }
        None => format!("{scheme}://{rest}"),
    };
    match query {
        None => shown,
        Some(query) => format!("{shown}?{}", masked_query(query)),
    }
}

fn masked_query(query: &str) -> String {
    let masked = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if name.contains("pass") => format!("{name}={MASK}"),
        _ => pair.to_owned(),
    };
    query.split('&').map(masked).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = SecretText::new(" correct horse battery ");
        assert_eq!(format!("{secret:?}"), MASK);
        assert_eq!(secret.expose(), "correct horse battery");
    }

    #[test]
    fn a_url_shows_itself_without_its_password() {
        let url = UrlText::new("redis://me:hunter2@h/0");
        assert_eq!(format!("{url:?}"), format!("redis://me:{MASK}@h/0"));
        assert!(url == url.clone() && url != UrlText::new("redis://me:hunter3@h/0"));
    }

    #[test]
    fn a_password_in_a_url_is_masked() {
        assert_eq!(masked_url("redis://:pw@h:1/0"), format!("redis://:{MASK}@h:1/0"));
        assert_eq!(masked_url("redis://me:p@w@h/0"), format!("redis://me:{MASK}@h/0"));
        assert_eq!(
            masked_url("redis-sentinel://u:pw@a,b/m/0?sentinel_password=x&sentinel_user=s"),
            format!("redis-sentinel://u:{MASK}@a,b/m/0?sentinel_password={MASK}&sentinel_user=s")
        );
        assert_eq!(masked_url("unix:///s?pass=pw"), format!("unix:///s?pass={MASK}"));
        assert_eq!(masked_url("redis://h/0"), "redis://h/0");
        assert_eq!(masked_url("sqlite:///./x@y.db"), "sqlite:///./x@y.db");
    }
}
