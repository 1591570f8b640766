//! What the host and the hypervisor may reach. The host's translations are no state: they are
//! dropped at will and fault back. But none may allow more than this. R10, R20, R40, R45.

use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{RegionClass, RegionFlags};
use pfnguard_shared::request::MemTypes;
use pfnguard_shared::{MemType, PAGE_SHIFT, Perms};

use crate::machine::Machine;
use crate::state::{Frame, State};

/// The most that the host's stage 2 allows for a page, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMay {
    /// Permissions.
    pub perms: Perms,
    /// Type that stage 2 forces; `None`: as stage 1 says.
    pub mem_type: Option<MemType>,
    /// Whether stage 2 forbids tag access (R20). Uncached accesses carry no tags.
    pub no_tags: bool,
}

/// Data, never instructions: what the host has of regions.
const DATA: Perms = Perms::READ.with(Perms::WRITE);

impl HostMay {
    const fn as_stage_1(perms: Perms) -> Self {
        Self { perms, mem_type: None, no_tags: false }
    }
}

impl State {
    /// What the host's stage 2 may at most allow for a page; `None`: it has no entry.
    pub fn host_access(&self, machine: &Machine, page: u64) -> Option<HostMay> {
        if let Some(frame) = self.frames.get(&page) {
            return frame.host_may();
        }
        if page >= 1 << machine.pa_bits.saturating_sub(PAGE_SHIFT) {
            return None;
        }
        match machine.region_at(page) {
            Some(region) => self.region_may(machine, region),
            // Neither RAM nor a region: devices that no VM gets.
            None => Some(HostMay::as_stage_1(Perms::ALL)),
        }
    }

    /// R10: as the VMs that share it have it. R40: what is donated, in quarantine or lost is not the
    /// host's.
    fn region_may(&self, machine: &Machine, region: usize) -> Option<HostMay> {
        if machine.region_has(region, RegionFlags::HOST_CLOSED) {
            return None;
        }
        let mem_type = match self.regions[region].state {
            RegionState::Free => machine.free_type(region),
            RegionState::Shared => self.regions[region].mem_type,
            RegionState::Donated | RegionState::Quarantined | RegionState::Lost => return None,
        };
        let tagged = matches!(mem_type, None | Some(MemType::Cacheable));
        Some(HostMay { perms: DATA, mem_type, no_tags: tagged && machine.forbids_tags(region) })
    }

    /// Whether the hypervisor may have a page mapped between calls: its own, and argument pages.
    /// Everything else it maps for as long as one operation lasts.
    pub fn el2_may_map(&self, page: u64) -> bool {
        let own = matches!(self.frames.get(&page), Some(Frame::Hyp | Frame::HypReadable));
        own || self.arg_pages.contains(&Some(page))
    }
}

impl Frame {
    fn host_may(self) -> Option<HostMay> {
        match self {
            Self::Host
            | Self::HostLentHyp(_)
            | Self::HostLentGuests(_)
            | Self::GuestLentHost(_) => Some(HostMay::as_stage_1(Perms::ALL)),
            Self::HypReadable => Some(HostMay::as_stage_1(Perms::READ)),
            Self::Hyp | Self::Guest(_) => None,
        }
    }
}

impl Machine {
    /// R40: the host's alone as stage 1 says only where its cache lines can be cleaned before
    /// another owner comes; uncached otherwise, as far as granted.
    fn free_type(&self, region: usize) -> Option<MemType> {
        let entry = &self.entries[region];
        let grants = |mem_type: MemTypes| entry.types & mem_type.raw() != 0;
        let memory = entry.class == RegionClass::Memory.raw();
        let cleanable = self.region_has(region, RegionFlags::CMO_BY_ADDRESS);
        if memory && cleanable && grants(MemTypes::CACHEABLE) {
            return None;
        }
        let normal_nc = self.capabilities().contains(Capabilities::NORMAL_NC);
        if normal_nc && grants(MemTypes::ANY_UNCACHED) {
            return Some(MemType::AnyUncached);
        }
        Some(MemType::Device)
    }

    /// R20: where there is no tag storage, stage 2 forbids tags if it can.
    fn forbids_tags(&self, region: usize) -> bool {
        let can = Capabilities::MTE_PERM.with(Capabilities::FWB);
        self.capabilities().contains(can) && !self.region_has(region, RegionFlags::TAGS)
    }
}
