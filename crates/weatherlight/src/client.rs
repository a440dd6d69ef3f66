//! A client for the service's own HTTP endpoints: one request per connection, bounded in size and
//! time. It speaks HTTP/1.0, so that the answer ends where the connection does.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::settings::SecretText;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The most that is read of an answer; `/healthz` has some kilobytes.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there, or it broke off.
    #[error(
        "no service answers at {address}: {source}; is `weatherlight serve` running, and is WEATHERLIGHT_HTTP_ADDR the same here?"
    )]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("the service at {address} did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut {
        /// Where.
        address: SocketAddr,
    },
    /// What came back is not HTTP.
    #[error("what listens at {address} is no Weatherlight")]
    NotHttp {
        /// Where.
        address: SocketAddr,
    },
}

/// An answer of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Sends one request without a body and reads the answer.
///
/// # Errors
/// [`ClientError`] when there is none.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&SecretText>,
) -> Result<Answer, ClientError> {
    let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n");
    if let Some(token) = token {
        head.push_str(&format!("Authorization: Bearer {}\r\n", token.expose()));
    }
    head.push_str("\r\n");
    let bytes = timeout(REQUEST_TIMEOUT, exchange(address, head.as_bytes()))
        .await
        .map_err(|_| ClientError::TimedOut { address })?
        .map_err(|source| ClientError::Unreachable { address, source })?;
    parse(&bytes).ok_or(ClientError::NotHttp { address })
}

async fn exchange(address: SocketAddr, head: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(head).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut first_line = head.lines().next()?.split(' ');
    first_line.next()?.strip_prefix("HTTP/1.")?;
    let status = first_line.next()?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let found = parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n{\"x\":1}");
        assert_eq!(found, Some(Answer { status: 503, body: "{\"x\":1}".into() }));
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
        assert_eq!(parse(b""), None);
    }

    #[tokio::test]
    async fn nobody_listening_says_where_and_what_to_do() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = request(address, "GET", "/healthz", None).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("weatherlight serve"));
    }
}
