//! What can the memory do, and what does the VM need? R07, R08, R10, R20, R22, R45.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::request::{HostAlias, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{MemType, Rule, Status, Subject};

use crate::{Case, Refused};

impl Case<'_> {
    /// R10: no mismatched aliases.
    pub(crate) fn same_as_the_host(&self) -> Result<(), Refused> {
        let cacheable = self.wants(MemType::Cacheable);
        let fitting = if cacheable { HostAlias::Cacheable } else { HostAlias::Uncached };
        if self.host_maps(HostAlias::None) || self.host_maps(fitting) {
            return Ok(());
        }
        let (found, subject) = (self.wish.alias.raw(), Subject::HostAlias);
        Err(self.refuse(Status::Unsupported, Rule::R10, subject, found, fitting.raw()))
    }

    /// R07: cacheable needs FWB and DIC; R08: or a donated region that maintenance reaches.
    pub(crate) fn cacheable_is_coherent(&self) -> Result<(), Refused> {
        let needed = Capabilities::FWB.with(Capabilities::DIC);
        if !self.wants(MemType::Cacheable) || self.capabilities.contains(needed) {
            return Ok(());
        }
        if !self.donates() {
            let (needed, present) = (needed.raw(), self.capabilities.raw());
            let subject = Subject::Capabilities;
            return Err(self.refuse(Status::Unsupported, Rule::R07, subject, needed, present));
        }
        self.needs(RegionFlags::CMO_BY_ADDRESS, Status::Unsupported, Rule::R08)
    }

    /// R20: tags in cacheable memory exist, or stage 2 forbids them. Returns the latter.
    pub(crate) fn tags(&self) -> Result<bool, Refused> {
        let tagged = self.contract.contains(ContractFlags::MTE) && self.wants(MemType::Cacheable);
        if !tagged || self.has(RegionFlags::TAGS) {
            return Ok(false);
        }
        if self.capabilities.contains(Capabilities::MTE_PERM.with(Capabilities::FWB)) {
            return Ok(true);
        }
        self.needs(RegionFlags::TAGS, Status::Unsupported, Rule::R20).map(|()| false)
    }

    /// R22: general-purpose use needs exclusives, atomics and, with MTE, tags.
    pub(crate) fn general_purpose(&self) -> Result<(), Refused> {
        let declared = self.contract.contains(ContractFlags::GENERAL_PURPOSE);
        if !declared && !self.asks(RequestFlags::GENERAL_PURPOSE) {
            return Ok(());
        }
        let mut needed = RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS);
        if self.contract.contains(ContractFlags::MTE) {
            needed = needed.with(RegionFlags::TAGS);
        }
        self.needs(needed, Status::Denied, Rule::R22)
    }

    /// R45: nothing translates or blocks the streams of a donated region yet.
    pub(crate) fn streams(&self) -> Result<(), Refused> {
        let streams = self.entry.stream_count;
        if !self.donates() || streams == 0 {
            return Ok(());
        }
        Err(self.refuse(Status::Denied, Rule::R45, Subject::Streams, streams, 0u8))
    }

    fn needs(&self, flags: RegionFlags, status: Status, rule: Rule) -> Result<(), Refused> {
        if self.has(flags) {
            return Ok(());
        }
        let (needed, present) = (flags.raw(), self.entry.flags);
        Err(self.refuse(status, rule, Subject::RegionFlags, needed, present))
    }
}
