//! Why TLS with a server did not come about, found in the error of whatever client had it. Pure.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// What is wrong, when it is the certificates of either side or TLS itself; `None` when the error has another cause.
/// Trying again does not help. The text holds what certificates say and nothing that was sent inside the connection.
pub(crate) fn problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(fault) = error.downcast_ref::<rustls::Error>() {
            return Some(told(fault));
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // Its own `source` passes over what it wraps.
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn told(fault: &rustls::Error) -> String {
    match fault {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer => {
                "its certificate was signed by an authority that is not trusted here".to_owned()
            }
            CertificateError::BadSignature => {
                "its certificate was not signed by the authority of that name that is trusted here"
                    .to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("its certificate has expired ({fault})")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("its certificate is not valid yet; check the clocks ({fault})")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is made out to another name ({fault})")
            }
            CertificateError::Other(_) => {
                format!(
                    "its certificate cannot be used ({fault}); one that is its own authority cannot"
                )
            }
            fault => format!("its certificate cannot be used ({fault})"),
        },
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a client certificate".to_owned()
        }
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown),
        ) => format!("it does not trust the client certificate ({alert:?})"),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS there".to_owned()
        }
        fault => format!("TLS failed ({fault})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_however_deep_and_nothing_else_is() {
        let fault = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let deep = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, fault()));
        for error in [&fault() as &(dyn Error + 'static), &deep] {
            assert!(problem(error).unwrap().contains("not trusted here"), "{error}");
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(problem(&refused), None);
        assert_eq!(problem(&io::Error::other("something")), None);
    }
}
