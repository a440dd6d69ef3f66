//! A collector for tests: takes requests on a free port, answers as it is told, and hands them on.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// With this status and nothing else.
    Status(u16),
    /// Not at all, for as long as the collector lives.
    Never,
}

/// A request that came.
#[derive(Debug)]
pub struct Received {
    pub path: String,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

pub struct Collector {
    pub address: SocketAddr,
    pub received: mpsc::Receiver<Received>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Answers the request with this number, counted from 0, as `reply` says.
    pub fn start(reply: impl Fn(usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, received) = mpsc::channel();
        let ends = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut unanswered = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                if has_ended.load(Ordering::Relaxed) {
                    return;
                }
                // A client may break off; that is what some tests are about.
                let Some((request, mut stream)) = stream.ok().and_then(read) else { continue };
                match reply(number) {
                    Reply::Never => unanswered.push(stream),
                    Reply::Status(status) => {
                        let head = format!("HTTP/1.1 {status} told\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(head.as_bytes());
                    }
                }
                let _ = sender.send(request);
            }
        });
        Self { address, received, ends, thread: Some(thread) }
    }

    /// Waits for the next request.
    pub fn next(&self) -> Received {
        self.received.recv_timeout(Duration::from_secs(30)).expect("a request within 30 s")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: TcpStream) -> Option<(Received, TcpStream)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let length = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    Some((Received { path, headers: lines.split_off(1), body }, reader.into_inner()))
}
