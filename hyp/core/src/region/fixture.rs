//! Regions and requests for tests: one of each class, and what deviates from them.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{BlockSizes, PlatformFlags, RegionClass, RegionFlags};
use pfnguard_shared::request::{HostAlias, MemTypes, Modes, Request, RequestFlags};
use pfnguard_shared::{MemType, Mode, Perms};

use super::RegionTable;
use crate::addr::{Pfn, PfnRange};
use crate::manifest::{Entry, Label, Manifest, Reset};

/// First page of the MMIO region, and its length.
pub(crate) const MMIO: (u64, u64) = (0x1_0000, 0x100);
/// First page of the memory region, and its length. It begins where the MMIO region ends.
pub(crate) const MEMORY: (u64, u64) = (0x1_0100, 0x400);
/// First page of RAM, and its length. It begins where the memory region ends.
pub(crate) const RAM: (u64, u64) = (0x1_0500, 0x1000);
/// Every flag that memory can promise.
pub(crate) const ALL_PROMISES: RegionFlags = RegionFlags::CMO_BY_ADDRESS
    .with(RegionFlags::TAGS)
    .with(RegionFlags::EXCLUSIVES)
    .with(RegionFlags::ATOMICS)
    .with(RegionFlags::NC_SAFE);
/// A CPU with all that cacheable PFNMAP needs.
pub(crate) const COHERENT_CPU: Capabilities = Capabilities::FWB.with(Capabilities::DIC);

pub(crate) fn range((start, pages): (u64, u64)) -> PfnRange {
    PfnRange::new(Pfn(start), pages).unwrap()
}

pub(crate) fn label(text: &str) -> Label {
    let mut bytes = [0; 32];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Label::decode(&bytes).unwrap()
}

/// MMIO that grants device and, being safe, any-uncached.
pub(crate) fn mmio() -> Entry {
    Entry {
        name: label("mmio"),
        range: range(MMIO),
        class: RegionClass::Mmio,
        modes: Modes::ALL,
        types: MemTypes::DEVICE.with(MemTypes::ANY_UNCACHED),
        perms: Perms::READ.with(Perms::WRITE),
        max_vms: 2,
        blocks: BlockSizes::ALL,
        flags: RegionFlags::NC_SAFE,
        reset: Reset::None,
        streams: [].into_iter().collect(),
        quirk: Label::EMPTY,
    }
}

/// Memory that grants and promises everything.
pub(crate) fn memory() -> Entry {
    Entry {
        name: label("memory"),
        range: range(MEMORY),
        class: RegionClass::Memory,
        types: MemTypes::ALL,
        perms: Perms::ALL,
        flags: ALL_PROMISES,
        ..mmio()
    }
}

pub(crate) fn manifest(entries: &[Entry]) -> Manifest {
    Manifest {
        entries: entries.iter().cloned().collect(),
        platform: PlatformFlags::NONE,
        sha256: [7; 32],
    }
}

pub(crate) fn table(entries: &[Entry], capabilities: Capabilities) -> RegionTable {
    RegionTable::new(&manifest(entries), &[range(RAM)], capabilities)
}

/// A request of VM 0 for all of `place` at the same intermediate pages: read and write.
pub(crate) fn request((pfn, pages): (u64, u64), mode: Mode, mem_type: MemType) -> Request {
    Request {
        vm: 0,
        mode: mode.raw(),
        mem_type: mem_type.raw(),
        perms: Perms::READ.with(Perms::WRITE).raw(),
        flags: RequestFlags::MAP_NOW.raw(),
        alias: HostAlias::None.raw(),
        reserved: 0,
        pfn,
        ipa_pfn: pfn,
        pages,
    }
}
