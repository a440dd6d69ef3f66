//! Records in an append-only file: length (u32, little-endian), CRC-32 of the content (u32,
//! little-endian), content. What a crash tore off is recognised and cut away before anything is
//! appended behind it, so one torn record never hides the next.

/// Largest content of a record.
pub(crate) const RECORD_BYTES_MAX: usize = 64 * 1024;
const HEADER_BYTES: usize = 8;

/// Appends one record to a buffer.
pub(crate) fn push(buffer: &mut Vec<u8>, content: &[u8]) {
    let length = u32::try_from(content.len()).expect("contents are at most RECORD_BYTES_MAX");
    buffer.extend(length.to_le_bytes());
    buffer.extend(crc32fast::hash(content).to_le_bytes());
    buffer.extend(content);
}

/// The whole records at the start of a file.
pub(crate) struct Scan<'a> {
    /// Their contents.
    pub(crate) records: Vec<&'a [u8]>,
    /// Bytes they take; what follows is torn.
    pub(crate) bytes: usize,
}

/// Reads records up to the first that is not whole.
pub(crate) fn scan(file: &[u8]) -> Scan<'_> {
    let mut scan = Scan { records: Vec::new(), bytes: 0 };
    while let Some(content) = first(&file[scan.bytes..]) {
        scan.records.push(content);
        scan.bytes += HEADER_BYTES + content.len();
    }
    scan
}

fn first(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    // A file that was extended but never written reads as zeros; an empty record is none of ours.
    if length == 0 || length > RECORD_BYTES_MAX {
        return None;
    }
    let content = rest.get(..length)?;
    (crc32fast::hash(content) == u32::from_le_bytes(*crc)).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(records: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for record in records {
            push(&mut file, record);
        }
        file
    }

    fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..6)
    }

    proptest! {
        #[test]
        fn a_file_cut_anywhere_keeps_its_whole_records(records in records(), cut in any::<prop::sample::Index>()) {
            let file = file(&records);
            let cut = cut.index(file.len() + 1);
            let scan = scan(&file[..cut]);
            prop_assert!(scan.bytes <= cut);
            let mut end = 0;
            let whole = records.iter().take_while(|record| { end += 8 + record.len(); end <= cut }).count();
            prop_assert_eq!(scan.records, &records[..whole]);
        }

        #[test]
        fn a_flipped_bit_ends_the_scan_at_its_record(records in records(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let mut file = file(&records);
            let at = at.index(file.len());
            file[at] ^= 1_u8 << bit;
            let scan = scan(&file);
            prop_assert!(scan.bytes <= at);
            prop_assert_eq!(&scan.records[..], &records[..scan.records.len()]);
        }
    }

    #[test]
    fn zeros_are_no_records() {
        assert_eq!(scan(&[0; 64]).bytes, 0);
    }
}
