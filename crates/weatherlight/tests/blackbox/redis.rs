//! A Redis server of the test's own and a client of a few lines: RESP2 over a blocking socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// One reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Text(Vec<u8>),
    Number(i64),
    List(Vec<Reply>),
    Nil,
}

impl Reply {
    pub fn list(&self) -> &[Reply] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(bytes) => bytes,
            other => panic!("expected text, found {other:?}"),
        }
    }

    pub fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("expected a number, found {other:?}"),
        }
    }
}

pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    pub fn call(&mut self, arguments: &[&[u8]]) -> Reply {
        let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            request.extend_from_slice(argument);
            request.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&request).unwrap();
        self.reply()
    }

    pub fn command(&mut self, line: &str) -> Reply {
        let arguments: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.call(&arguments)
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("Redis answers within its time");
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Reply::Text(rest.as_bytes().to_vec()),
            "-" => panic!("Redis refused: {rest}"),
            ":" => Reply::Number(rest.parse().unwrap()),
            "$" => match rest.parse::<i64>().unwrap() {
                -1 => Reply::Nil,
                length => {
                    let mut body = vec![0; length as usize + 2];
                    self.reader.read_exact(&mut body).unwrap();
                    body.truncate(length as usize);
                    Reply::Text(body)
                }
            },
            "*" => match rest.parse::<i64>().unwrap() {
                -1 => Reply::Nil,
                length => Reply::List((0..length).map(|_| self.reply()).collect()),
            },
            other => panic!("not RESP: {other}"),
        }
    }

    pub fn add(&mut self, stream: &str, payload: &[u8], signature: &str) -> String {
        let id = self.call(&[
            b"XADD",
            stream.as_bytes(),
            b"*",
            b"payload",
            payload,
            b"signature",
            signature.as_bytes(),
        ]);
        String::from_utf8(id.bytes().to_vec()).unwrap()
    }
}

pub struct Server {
    child: Child,
    pub port: u16,
    _directory: TempDir,
}

impl Server {
    pub fn start() -> Self {
        let program = std::env::var("WEATHERLIGHT_TEST_REDIS_SERVER")
            .unwrap_or_else(|_| "redis-server".to_owned());
        let directory = TempDir::new().unwrap();
        let port = free_port();
        let child = Command::new(&program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("cannot start {program}: {error}; run the tests with `cargo xtask test`")
            });
        let server = Self { child, port, _directory: directory };
        server.await_port();
        server
    }

    /// A listening socket has no event that another process could await.
    fn await_port(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Client::connect(self.port).is_err() {
            assert!(Instant::now() < deadline, "Redis does not listen");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port).unwrap()
    }

    /// Stops the server without closing a connection: whoever asks it waits. It is killed in the
    /// end all the same.
    pub fn freeze(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &id]).status().unwrap().success());
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// Below the range from which the system takes ports for outgoing connections, and never twice in
// one process: a port found by binding to 0 may be taken again before the program binds it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const RANGE: u16 = 12_000;
    let begin = (std::process::id() % u32::from(RANGE)) as u16;
    loop {
        let port = 20_000 + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE) % RANGE;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// One HTTP GET: status and body.
pub fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text[9..12].parse().unwrap();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// The value of a sample in an exposition text, 0 when there is none.
pub fn metric(port: u16, name: &str, labels: &[&str]) -> f64 {
    get(port, "/metrics")
        .1
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

pub fn exists(path: &str) -> bool {
    Path::new(path).is_absolute() && Path::new(path).is_file()
}
