//! The binary manifest: writing it, and reading it back with every check.

use std::fmt;

use miette::Diagnostic;
use pfnguard_shared::manifest::{Entry, Header, MAGIC, MAX_ENTRIES, SHA256_OFFSET, VERSION};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, IntoBytes};

use super::check::check;
use super::constraint::Constraint;
use super::violation::Violation;

const HASH_BYTES: usize = 32;

/// Why a binary manifest is refused: every constraint that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryRefusal {
    /// What was found, at least one.
    pub violations: Vec<Violation>,
}

impl fmt::Display for BinaryRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the binary manifest is refused")?;
        for violation in &self.violations {
            write!(f, "\n  {violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BinaryRefusal {}

impl Diagnostic for BinaryRefusal {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let first = self.violations.first()?;
        Some(Box::new(first.constraint))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let first = self.violations.first()?;
        Some(Box::new(first.constraint.hint()))
    }
}

impl BinaryRefusal {
    fn one(constraint: Constraint, fact: impl Into<String>) -> Self {
        Self { violations: vec![Violation::of_file(constraint, fact)] }
    }
}

/// Reads a binary manifest and checks every constraint.
///
/// # Errors
///
/// Returns what was found: one violation if the container is bad, else all of them.
pub fn parse_binary(bytes: &[u8]) -> Result<(Header, Vec<Entry>), BinaryRefusal> {
    let (header, body) = parse_header(bytes)?;
    let entries = body
        .chunks_exact(size_of::<Entry>())
        .filter_map(|chunk| Entry::read_from_bytes(chunk).ok())
        .collect::<Vec<_>>();
    let violations = check(&header, &entries);
    if violations.is_empty() { Ok((header, entries)) } else { Err(BinaryRefusal { violations }) }
}

fn parse_header(bytes: &[u8]) -> Result<(Header, &[u8]), BinaryRefusal> {
    if bytes.first_chunk().is_some_and(|magic| *magic != MAGIC) {
        return Err(BinaryRefusal::one(Constraint::Magic, "the first bytes are something else"));
    }
    let Ok((header, body)) = Header::read_from_prefix(bytes) else {
        let fact = format!("{} bytes hold no header", bytes.len());
        return Err(BinaryRefusal::one(Constraint::Length, fact));
    };
    if header.version != VERSION {
        let fact = format!("version {}, known is {VERSION}", header.version);
        return Err(BinaryRefusal::one(Constraint::Version, fact));
    }
    let count = usize::try_from(header.entries).ok().filter(|&count| count <= MAX_ENTRIES);
    let Some(count) = count else {
        let fact = format!("{} entries, at most {MAX_ENTRIES} fit", header.entries);
        return Err(BinaryRefusal::one(Constraint::EntryCount, fact));
    };
    // At most 128 entries of 144 bytes: no overflow.
    let expected = size_of::<Header>() + count * size_of::<Entry>();
    if usize::try_from(header.length) != Ok(expected) || bytes.len() != expected {
        let fact = format!(
            "{count} entries make {expected} bytes, the header says {}, the file has {}",
            header.length,
            bytes.len()
        );
        return Err(BinaryRefusal::one(Constraint::Length, fact));
    }
    if sha256(&header, body) != header.sha256 {
        return Err(BinaryRefusal::one(Constraint::Checksum, "the SHA-256 does not match"));
    }
    Ok((header, body))
}

/// Writes the binary of `entries`, sorted by base, with the platform `flags`.
///
/// # Errors
///
/// Returns every constraint that the result would break.
pub fn write_binary(flags: u32, entries: &[Entry]) -> Result<Vec<u8>, BinaryRefusal> {
    let mut sorted = entries.to_vec();
    sorted.sort_by_key(|entry| entry.base);
    let mut header = Header::zeroed();
    header.magic = MAGIC;
    header.version = VERSION;
    header.flags = flags;
    let violations = check(&header, &sorted);
    if !violations.is_empty() {
        return Err(BinaryRefusal { violations });
    }
    let bytes = size_of::<Header>() + sorted.as_bytes().len();
    header.length = u32::try_from(bytes).expect("at most 128 entries");
    header.entries = u32::try_from(sorted.len()).expect("at most 128 entries");
    header.sha256 = sha256(&header, sorted.as_bytes());
    Ok([header.as_bytes(), sorted.as_bytes()].concat())
}

fn sha256(header: &Header, body: &[u8]) -> [u8; HASH_BYTES] {
    let (before, rest) = header.as_bytes().split_at(SHA256_OFFSET);
    let (_, after) = rest.split_at(HASH_BYTES);
    Sha256::new().chain_update(before).chain_update(after).chain_update(body).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_manifest_is_a_manifest() {
        let bytes = write_binary(0, &[]).expect("nothing to refuse");
        let (header, entries) = parse_binary(&bytes).expect("just written");
        assert_eq!((header.length, entries.len()), (64, 0));
    }

    #[test]
    fn every_prefix_and_every_extension_is_refused() {
        let bytes = write_binary(0, &[]).expect("nothing to refuse");
        for end in 0..bytes.len() {
            assert!(parse_binary(&bytes[..end]).is_err(), "{end} bytes");
        }
        assert!(parse_binary(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
}
