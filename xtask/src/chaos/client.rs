//! A small Redis client that reports every failure: in these trials the server is expected to fail.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What Redis answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A simple or bulk string.
    Text(Vec<u8>),
    /// An integer.
    Number(i64),
    /// Nothing.
    Nil,
    /// An array.
    List(Vec<Reply>),
    /// A refusal, with its text.
    Error(String),
}

impl Reply {
    /// The parts of an array, none for anything else.
    pub fn list(&self) -> &[Reply] {
        match self {
            Self::List(parts) => parts,
            _ => &[],
        }
    }

    /// The bytes of a string, none for anything else.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(bytes) => bytes,
            _ => &[],
        }
    }

    /// The string as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// One connection. After an error it is of no more use.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects to a port of 127.0.0.1; every later wait ends after `patience`.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// One command and its answer.
    pub fn call(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        let mut request = Vec::new();
        encode(words, &mut request);
        self.reader.get_mut().write_all(&request)?;
        self.reply()
    }

    /// The same, written as one line.
    pub fn command(&mut self, line: &str) -> io::Result<Reply> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.call(&words)
    }

    /// Many commands, encoded beforehand, in one write; their answers in order.
    pub fn exchange(&mut self, request: &[u8], commands: u32) -> io::Result<Vec<Reply>> {
        self.reader.get_mut().write_all(request)?;
        (0..commands).map(|_| self.reply()).collect()
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
        let number =
            || rest.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        Ok(match kind {
            "+" => Reply::Text(rest.as_bytes().to_vec()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let mut body = vec![0; length + 2];
                    self.reader.read_exact(&mut body)?;
                    body.truncate(length);
                    Reply::Text(body)
                }
            },
            "*" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    Reply::List((0..length).map(|_| self.reply()).collect::<io::Result<_>>()?)
                }
            },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

/// Appends a command as it travels.
pub fn encode(words: &[&[u8]], request: &mut Vec<u8>) {
    request.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
}
