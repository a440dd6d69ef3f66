//! Reading small text files that people write: settings, `.env`, secrets. What is no text of a
//! reasonable size is refused before it is read.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A settings or `.env` file may have this size.
pub(super) const SETTINGS_BYTES_MAX: u64 = 1 << 20;
/// A file with one secret in it may have this size.
pub(super) const SECRET_BYTES_MAX: u64 = 4096;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// It is not there.
    #[error("there is no such file")]
    Missing,
    /// The system does not let it be read.
    #[error("{0}")]
    System(String),
    /// A directory has this name.
    #[error("it is a directory; name the file in it")]
    Directory,
    /// A pipe, socket or device.
    #[error("it is no regular file")]
    Special,
    /// More than anybody would write by hand.
    #[error("it has more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// Bytes that are no text.
    #[error("it is not UTF-8 text")]
    NotText,
    /// A secret file with nothing in it.
    #[error("it is empty")]
    Empty,
    /// A secret file with something else in it.
    #[error("it holds {lines} lines, and a secret is one line")]
    ManyLines {
        /// How many are not empty.
        lines: usize,
    },
}

impl From<io::Error> for FileProblem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::System(error.to_string()),
        }
    }
}

/// A file's text without a byte order mark, and who may read it.
pub(super) struct Text {
    pub(super) text: String,
    /// Every user of the machine may read it.
    pub(super) is_open_to_all: bool,
}

/// Reads a regular file of at most so many bytes.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Text, FileProblem> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let about = std::fs::metadata(path)?;
    if about.is_dir() {
        return Err(FileProblem::Directory);
    }
    if !about.is_file() {
        return Err(FileProblem::Special);
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileProblem::TooLarge { bytes_max });
    }
    let text = String::from_utf8(bytes).map_err(|_| FileProblem::NotText)?;
    if text.contains('\0') {
        return Err(FileProblem::NotText);
    }
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    Ok(Text { text, is_open_to_all: about.mode() & 0o004 != 0 })
}

/// Reads a file with one secret in it: a line, with or without its end.
pub(super) fn read_secret(path: &Path) -> Result<Text, FileProblem> {
    let mut file = read(path, SECRET_BYTES_MAX)?;
    let lines = file.text.lines().filter(|line| !line.trim().is_empty()).count();
    match lines {
        0 => Err(FileProblem::Empty),
        1 => {
            file.text = file.text.trim().to_owned();
            Ok(file)
        }
        lines => Err(FileProblem::ManyLines { lines }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn secret(content: &[u8]) -> Result<String, FileProblem> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, content).unwrap();
        read_secret(&path).map(|file| file.text)
    }

    #[test]
    fn a_secret_is_one_line_however_it_ends() {
        for content in
            [&b"a secret"[..], b"a secret\n", b"a secret\r\n", b"\xef\xbb\xbfa secret\n\n"]
        {
            assert_eq!(secret(content).as_deref(), Ok("a secret"), "{content:?}");
        }
        assert_eq!(secret(b"one\ntwo\n"), Err(FileProblem::ManyLines { lines: 2 }));
        assert_eq!(secret(b" \r\n"), Err(FileProblem::Empty));
    }

    #[test]
    fn what_is_no_small_text_file_is_refused() {
        assert_eq!(secret(b"\xff\xfe\x00"), Err(FileProblem::NotText));
        assert_eq!(secret(b"nul\0byte"), Err(FileProblem::NotText));
        let large = vec![b'x'; SECRET_BYTES_MAX as usize + 1];
        assert_eq!(secret(&large), Err(FileProblem::TooLarge { bytes_max: SECRET_BYTES_MAX }));
        let directory = tempfile::tempdir().unwrap();
        let read = |path: &Path| read(path, SETTINGS_BYTES_MAX).map(|file| file.text);
        assert_eq!(read(directory.path()), Err(FileProblem::Directory));
        assert_eq!(read(&directory.path().join("none")), Err(FileProblem::Missing));
        assert_eq!(read(Path::new("/dev/null")), Err(FileProblem::Special));
    }

    #[test]
    fn a_file_that_all_may_read_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "text").unwrap();
        for (mode, expected) in [(0o600, false), (0o640, false), (0o644, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_secret(&path).unwrap().is_open_to_all, expected, "{mode:o}");
        }
    }
}
