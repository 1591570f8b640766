//! The platform-safety manifest: checked whole before the host loses EL2 (R50), sealed after (R51).
//!
//! This is the hypervisor's own check. The compiler in `tools` enforces the same constraints,
//! under the same numbers, independently.

mod constraint;
mod entry;
mod error;
mod whole;

use core::fmt;
use core::str;

use arrayvec::ArrayVec;
use pfnguard_shared::manifest::{
    self as wire, BlockSizes, Header, MAX_ENTRIES, MAX_STREAMS, PlatformFlags, RegionClass,
    RegionFlags, ResetKind, SHA256_OFFSET,
};
use pfnguard_shared::request::{MemTypes, Modes};
use pfnguard_shared::{PAGE_SHIFT, Perms};
use sha2::{Digest, Sha256};
use zerocopy::FromBytes;

use crate::addr::{PfnRange, PhysAddr};
use crate::machine::RegisterWidth;

pub use constraint::Constraint;
pub use error::{Fact, ManifestError, Place};

/// A manifest that meets every constraint.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Regions, sorted, without overlap.
    pub entries: ArrayVec<Entry, MAX_ENTRIES>,
    /// Facts about the whole platform.
    pub platform: PlatformFlags,
    /// SHA-256 of the manifest (R51).
    pub sha256: [u8; 32],
}

/// One region of the manifest, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name; unique.
    pub name: Label,
    /// Pages.
    pub range: PfnRange,
    /// What lies behind them.
    pub class: RegionClass,
    /// Modes that are granted.
    pub modes: Modes,
    /// Memory types that are granted.
    pub types: MemTypes,
    /// Permissions that are granted.
    pub perms: Perms,
    /// VMs that may hold it at once.
    pub max_vms: u8,
    /// Stage-2 block sizes that are allowed.
    pub blocks: BlockSizes,
    /// Properties.
    pub flags: RegionFlags,
    /// What must happen before another owner gets it.
    pub reset: Reset,
    /// SMMU stream IDs of the device.
    pub streams: ArrayVec<u32, MAX_STREAMS>,
    /// Why it is blocked; empty where it is not.
    pub quirk: Label,
}

/// Up to 32 bytes of UTF-8, zero padded, without control characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Label([u8; 32]);

/// A reset contract (R41).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Nothing.
    None,
    /// A read that orders earlier writes.
    Readback(Register),
    /// Reads until the masked value matches.
    Poll {
        /// The register.
        register: Register,
        /// Bits that are compared.
        mask: u64,
        /// What they must be.
        value: u64,
        /// Most reads; bounds the time that the host lock is held.
        bound: u32,
    },
    /// The host's driver reports it.
    External,
}

/// A device register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Its address, aligned to its width.
    pub addr: PhysAddr,
    /// Its width.
    pub width: RegisterWidth,
}

impl Manifest {
    /// Checks `bytes` whole, against all RAM and all memory of the hypervisor known at launch.
    ///
    /// # Errors
    /// The first constraint that does not hold, with the entry and the values.
    pub fn parse(
        bytes: &[u8],
        ram: &[PfnRange],
        hypervisor: &[PfnRange],
    ) -> Result<Self, ManifestError> {
        let (header, rest) = read_header(bytes)?;
        let sha256 = check_sum(bytes, &header)?;
        let platform = PlatformFlags::from_raw(header.flags).filter(|_| header.reserved == 0);
        let platform = platform.ok_or(ManifestError::of_file(
            Constraint::HeaderReserved,
            Fact::Value(u64::from(header.flags)),
        ))?;
        let mut entries = ArrayVec::new();
        for (index, bytes) in rest.chunks_exact(size_of::<wire::Entry>()).enumerate() {
            let wire = read_entry(bytes);
            entries.push(entry::decode(index, &wire, platform)?);
        }
        whole::check(&entries, ram, hypervisor)?;
        Ok(Self { entries, platform, sha256 })
    }
}

impl Manifest {
    /// Checks that a machine of `pa_bits` physical address bits can reach every region: a page past
    /// them would lose bits in a descriptor, and lead to another one.
    ///
    /// # Errors
    /// `AddressSpace` with the first such entry, where it ends, and the first page past the bits.
    pub fn check_reachable(&self, pa_bits: u32) -> Result<(), ManifestError> {
        let limit = 1 << pa_bits.saturating_sub(PAGE_SHIFT);
        let beyond = |(_, entry): &(usize, &Entry)| entry.range.end().0 > limit;
        let Some((index, entry)) = self.entries.iter().enumerate().find(beyond) else {
            return Ok(());
        };
        Err(ManifestError {
            constraint: Constraint::AddressSpace,
            place: Some(Place { index, name: entry.name }),
            fact: Fact::Beside(entry.range.end().0, limit),
        })
    }
}

/// Reads the header and returns it with the bytes of the entries, of which there are at most
/// `MAX_ENTRIES`, all whole.
fn read_header(bytes: &[u8]) -> Result<(Header, &[u8]), ManifestError> {
    let given = count(bytes.len());
    if let Some(magic) = bytes.first_chunk().filter(|magic| **magic != wire::MAGIC) {
        let found = u64::from_le_bytes(*magic);
        return Err(ManifestError::of_file(Constraint::Magic, Fact::Value(found)));
    }
    let cut = ManifestError::of_file(Constraint::Length, Fact::Value(given));
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| cut)?;
    if header.version != wire::VERSION {
        let found = u64::from(header.version);
        return Err(ManifestError::of_file(Constraint::Version, Fact::Value(found)));
    }
    if u64::from(header.entries) > count(MAX_ENTRIES) {
        let found = u64::from(header.entries);
        return Err(ManifestError::of_file(Constraint::EntryCount, Fact::Value(found)));
    }
    let needed = u64::from(header.entries) * count(size_of::<wire::Entry>());
    let needed = needed + count(size_of::<Header>());
    let length = u64::from(header.length);
    if length != needed || length != given {
        return Err(ManifestError::of_file(Constraint::Length, Fact::Beside(length, needed)));
    }
    Ok((header, bytes.get(size_of::<Header>()..).unwrap_or(&[])))
}

/// Returns the SHA-256 if it is the one in the header.
fn check_sum(bytes: &[u8], header: &Header) -> Result<[u8; 32], ManifestError> {
    let (before, rest) = bytes.split_at(SHA256_OFFSET.min(bytes.len()));
    let after = rest.get(header.sha256.len()..).unwrap_or(&[]);
    let sum: [u8; 32] = Sha256::new().chain_update(before).chain_update(after).finalize().into();
    if sum != header.sha256 {
        return Err(ManifestError::of_file(Constraint::Checksum, Fact::None));
    }
    Ok(sum)
}

fn read_entry(bytes: &[u8]) -> wire::Entry {
    wire::Entry::read_from_bytes(bytes).expect("a chunk has an entry's size: hypervisor bug")
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Reset {
    /// Returns the kind as it crosses the ABI.
    pub fn kind(&self) -> ResetKind {
        match self {
            Self::None => ResetKind::None,
            Self::Readback(_) => ResetKind::Readback,
            Self::Poll { .. } => ResetKind::Poll,
            Self::External => ResetKind::External,
        }
    }
}

impl Label {
    /// No text.
    pub const EMPTY: Self = Self([0; 32]);

    /// Decodes a padded text, or returns `None` where it is garbled.
    pub fn decode(bytes: &[u8; 32]) -> Option<Self> {
        let label = Self(*bytes);
        let (text, padding) = label.split();
        let text = str::from_utf8(text).ok()?;
        let clean = !text.contains(char::is_control) && padding.iter().all(|&byte| byte == 0);
        clean.then_some(label)
    }

    /// Returns the text.
    pub fn text(&self) -> &str {
        str::from_utf8(self.split().0).unwrap_or("?")
    }

    /// Returns the bytes as they cross the ABI.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.split().0.is_empty()
    }

    fn split(&self) -> (&[u8], &[u8]) {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        self.0.split_at(length)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.text(), f)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests;
