//! What no call changes: the machine and its manifest.

use std::ops::Range;

use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{Entry, RegionFlags};
use pfnguard_shared::{MAX_RANGE_PAGES, PAGE_SHIFT, migration};
use rangemap::RangeMap;

use crate::Platform;
use crate::state::{Frame, Region, State};

/// Most VMs at once.
pub const MAX_VMS: u16 = 16;
/// Most vCPUs of one VM.
pub const MAX_VCPUS: u64 = 8;
/// Most physical CPUs.
pub const MAX_CPUS: u64 = 16;
/// Most bindings of one VM: as many as a migration descriptor holds (R33).
pub const MAX_VM_BINDINGS: usize = migration::MAX_ITEMS;
/// Most bindings of all VMs together.
pub const MAX_BINDINGS: usize = 128;

/// The machine, its manifest, and where the hypervisor put what the host may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// CPUs and RAM, as far as decisions depend on them.
    pub platform: Platform,
    /// The manifest's entries: the regions, in the order of their index.
    pub entries: Vec<Entry>,
    /// The manifest's SHA-256 (R51).
    pub sha256: [u8; 32],
    /// Implemented physical address bits.
    pub pa_bits: u32,
    /// Bits of a guest's intermediate physical address.
    pub guest_ipa_bits: u32,
    /// Bits of a VMID.
    pub vmid_bits: u32,
    /// Bytes that the records of RAM take.
    pub vmemmap_bytes: u64,
    /// Pages of each CPU's trace ring; there are as many CPUs.
    pub trace_pages: Vec<Range<u64>>,
}

impl Machine {
    /// The state that the host finds at launch; `hypervisor` are pages that were taken from RAM.
    pub fn launch(&self, hypervisor: &[Range<u64>]) -> State {
        let mut frames = RangeMap::new();
        for ram in &self.platform.ram {
            frames.insert(ram.start >> PAGE_SHIFT..ram.end >> PAGE_SHIFT, Frame::Host);
        }
        for pages in hypervisor {
            frames.insert(pages.clone(), Frame::Hyp);
        }
        for pages in &self.trace_pages {
            frames.insert(pages.clone(), Frame::HypReadable);
        }
        let free = Region { state: RegionState::Free, mem_type: None, owner: None };
        State {
            frames,
            vms: Default::default(),
            regions: vec![free; self.entries.len()],
            arg_pages: vec![None; self.trace_pages.len()],
        }
    }

    /// What CPUs and platform can do (R31); whether Normal-NC is safe, the manifest says (R04).
    pub fn capabilities(&self) -> Capabilities {
        self.platform.effective_capabilities()
    }

    /// First intermediate page that no guest has.
    pub fn ipa_limit(&self) -> u64 {
        1 << self.guest_ipa_bits.saturating_sub(PAGE_SHIFT)
    }

    /// Pages of a region.
    pub fn region_pages(&self, region: usize) -> Range<u64> {
        let entry = &self.entries[region];
        entry.base >> PAGE_SHIFT..(entry.base + entry.size) >> PAGE_SHIFT
    }

    /// The region that holds a page.
    pub fn region_at(&self, page: u64) -> Option<usize> {
        let after = self.entries.partition_point(|entry| entry.base >> PAGE_SHIFT <= page);
        let region = after.checked_sub(1)?;
        self.region_pages(region).contains(&page).then_some(region)
    }

    pub(crate) fn region_has(&self, region: usize, flag: RegionFlags) -> bool {
        self.entries[region].flags & flag.raw() == flag.raw()
    }

    /// x1..x4 of INFO Limits.
    pub(crate) fn limits(&self) -> [u64; 4] {
        [u64::from(MAX_VMS), MAX_VCPUS, count(self.entries.len()), MAX_RANGE_PAGES]
    }
}

/// A length as it crosses the ABI.
pub(crate) fn count(length: usize) -> u64 {
    u64::try_from(length).expect("lengths have 64 bits")
}
