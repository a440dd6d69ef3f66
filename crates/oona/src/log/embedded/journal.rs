//! The journal: what the store has not taken in yet, as frames in two files beside it.
//!
//! A commit is one frame: one write and one wait for the disk, whatever it holds. The store takes
//! the frames in later, many at once, and says up to which number; a file all of whose frames it has
//! is written anew from its beginning. Two files, so that one fills while the other is taken in.
//!
//! A frame is: magic, length, number, the log's salt, checksum, then the payload. Numbers have no
//! gaps, hence reading ends where the next number does not stand: behind the last frame lies what is
//! left of older ones. The salt is random and known to nobody else, so that no payload can pass for
//! a frame. A frame that is torn at the very end was never acknowledged; one that is broken before
//! others is damage, and reported as such.

use std::io;

use redb::StorageBackend;

const MAGIC: u32 = 0x314A_6F4F;
/// magic (4), length (4), number (8), salt (8), checksum (4), unused (4).
pub(super) const HEAD_BYTES: usize = 32;
/// Frames begin at multiples of this.
const ALIGNMENT: usize = 8;
/// A file beyond this is left for the other one as soon as that is free.
const TURN_BYTES: u64 = 4 << 20;
/// Room that a file is given first, and the most it is given in one step.
const ROOM_MIN: u64 = 64 << 10;
const ROOM_STEP_MAX: u64 = 4 << 20;

/// Where the frames go.
#[derive(Debug)]
pub(super) struct Journal {
    files: [JournalFile; 2],
    active: usize,
    salt: u64,
    /// Number of the last frame.
    last: u64,
    /// After a failed write its frame must be overwritten where it stands, and nowhere else.
    stuck: bool,
}

#[derive(Debug)]
pub(super) struct JournalFile {
    media: Box<dyn StorageBackend>,
    /// Behind the last frame.
    end: u64,
    /// So far the file has its blocks on the disk already.
    room: u64,
    /// Number of its last frame; 0 without any.
    last: u64,
}

/// What a journal held that the store has not.
pub(super) struct Recovered {
    pub(super) journal: Journal,
    /// Payloads in order.
    pub(super) payloads: Vec<Vec<u8>>,
}

/// Why a journal cannot be used.
#[derive(Debug)]
pub(super) enum Fault {
    Io(io::Error),
    /// Frames are missing or broken in its middle.
    Damaged,
}

impl Journal {
    /// Reads what the store has not taken in: everything after the frame `absorbed`.
    pub(super) fn recover(
        media: [Box<dyn StorageBackend>; 2],
        salt: u64,
        absorbed: u64,
    ) -> Result<Recovered, Fault> {
        let mut frames = Vec::new();
        let mut damaged = false;
        let files = media.map(|media| {
            let bytes = read_all(&*media)?;
            let scan = scan(&bytes, salt, absorbed);
            damaged |= scan.broken;
            frames.extend(scan.frames);
            Ok(JournalFile { media, end: scan.end, room: to_u64(bytes.len()), last: scan.last })
        });
        let [first, second] = files;
        let files = [first.map_err(Fault::Io)?, second.map_err(Fault::Io)?];
        frames.sort_by_key(|(number, _)| *number);
        let mut last = absorbed;
        for (number, _) in &frames {
            damaged |= *number != last + 1;
            last = *number;
        }
        if damaged {
            return Err(Fault::Damaged);
        }
        let active = usize::from(files[1].last > files[0].last);
        let payloads = frames.into_iter().map(|(_, payload)| payload).collect();
        Ok(Recovered { journal: Self { files, active, salt, last, stuck: false }, payloads })
    }

    /// Writes a frame and waits for the disk. The first [`HEAD_BYTES`] of `frame` are the journal's.
    /// On failure nothing of it stands in the journal, unless the machine stops before the next
    /// frame is written.
    pub(super) fn append(&mut self, frame: &mut Vec<u8>, absorbed: u64) -> io::Result<u64> {
        if !self.stuck {
            self.turn(absorbed);
        }
        let number = self.last + 1;
        seal(frame, number, self.salt);
        let file = &mut self.files[self.active];
        let written = file.write(frame);
        self.stuck = written.is_err();
        if let Err(error) = written {
            // Best effort: the disk that refused the frame may well refuse this.
            let _ = file.media.write(file.end, &[0; HEAD_BYTES]);
            return Err(error);
        }
        file.end += to_u64(frame.len());
        (file.last, self.last) = (number, number);
        Ok(number)
    }

    /// Chooses where the next frame goes.
    fn turn(&mut self, absorbed: u64) {
        let other = 1 - self.active;
        if self.files[self.active].last <= absorbed {
            self.files[self.active].end = 0;
        } else if self.files[self.active].end >= TURN_BYTES && self.files[other].last <= absorbed {
            self.active = other;
            self.files[other].end = 0;
        }
    }
}

impl JournalFile {
    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let end = self.end + to_u64(frame.len());
        if end > self.room {
            self.grow(end)?;
        }
        self.media.write(self.end, frame)?;
        self.media.sync_data()
    }

    /// Writes zeros ahead: blocks that are on the disk already cost no search for free ones later,
    /// and a full disk is found here.
    fn grow(&mut self, end: u64) -> io::Result<()> {
        let step = self.room.clamp(ROOM_MIN, ROOM_STEP_MAX);
        let room = end.max(self.room + step).next_multiple_of(ROOM_MIN);
        self.media.set_len(room)?;
        let zeros = vec![0; usize::try_from(ROOM_MIN).unwrap_or(0)];
        while self.room < room {
            self.media.write(self.room, &zeros)?;
            self.room += ROOM_MIN;
        }
        Ok(())
    }
}

/// Fills the head and pads the frame.
fn seal(frame: &mut Vec<u8>, number: u64, salt: u64) {
    let length = u32::try_from(frame.len() - HEAD_BYTES)
        .unwrap_or_else(|_| panic!("a frame is far below 4 GiB: the queue is bounded"));
    frame[..4].copy_from_slice(&MAGIC.to_le_bytes());
    frame[4..8].copy_from_slice(&length.to_le_bytes());
    frame[8..16].copy_from_slice(&number.to_le_bytes());
    frame[16..24].copy_from_slice(&salt.to_le_bytes());
    let checksum = checksum(&frame[..24], &frame[HEAD_BYTES..]);
    frame[24..28].copy_from_slice(&checksum.to_le_bytes());
    frame[28..32].fill(0);
    frame.resize(frame.len().next_multiple_of(ALIGNMENT), 0);
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

struct Scan {
    /// Number and payload of the frames that the store has not taken in.
    frames: Vec<(u64, Vec<u8>)>,
    end: u64,
    last: u64,
    /// A frame stands behind one that cannot be read.
    broken: bool,
}

fn scan(bytes: &[u8], salt: u64, absorbed: u64) -> Scan {
    let mut scan = Scan { frames: Vec::new(), end: 0, last: 0, broken: false };
    let mut at = 0;
    while let Some((number, payload)) = frame_at(bytes, at, salt) {
        if scan.last != 0 && number != scan.last + 1 {
            break;
        }
        scan.last = number;
        at += (HEAD_BYTES + payload.len()).next_multiple_of(ALIGNMENT);
        if number > absorbed {
            scan.frames.push((number, payload.to_vec()));
        }
    }
    scan.end = to_u64(at);
    let known = scan.last.max(absorbed);
    scan.broken = (at..bytes.len())
        .step_by(ALIGNMENT)
        .filter_map(|at| frame_at(bytes, at, salt))
        .any(|(number, _)| number > known);
    scan
}

fn frame_at(bytes: &[u8], at: usize, salt: u64) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<HEAD_BYTES>()?;
    if head[..4] != MAGIC.to_le_bytes() || head[16..24] != salt.to_le_bytes() {
        return None;
    }
    let length = usize::try_from(u32::from_le_bytes(*head[4..].first_chunk()?)).ok()?;
    let payload = rest.get(..length)?;
    let number = u64::from_le_bytes(*head[8..].first_chunk()?);
    let stored = u32::from_le_bytes(*head[24..].first_chunk()?);
    (stored == checksum(&head[..24], payload)).then_some((number, payload))
}

fn read_all(media: &dyn StorageBackend) -> io::Result<Vec<u8>> {
    let length = usize::try_from(media.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    media.read(0, &mut bytes)?;
    Ok(bytes)
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
