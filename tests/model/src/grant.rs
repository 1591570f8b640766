//! What does the entry grant? R02 to R04, R06, R11 to R13, R43.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::request::{MemTypes, Modes, RequestFlags};
use pfnguard_shared::{MemType, Perms, Rule, Status, Subject};

use crate::{Case, Refused};

impl Case<'_> {
    /// R12, R13: no copy-on-write, no dirty logging.
    pub(crate) fn without_copies(&self) -> Result<(), Refused> {
        let accepted = RequestFlags::GENERAL_PURPOSE.with(RequestFlags::MAP_NOW);
        for (flag, rule) in [(RequestFlags::COW, Rule::R12), (RequestFlags::DIRTY_LOG, Rule::R13)] {
            if self.asks(flag) {
                let (asked, subject) = (self.wish.flags.raw(), Subject::RequestFlags);
                return Err(self.refuse(Status::Unsupported, rule, subject, asked, accepted.raw()));
            }
        }
        Ok(())
    }

    /// R43: a quirked entry is blocked from assignment.
    pub(crate) fn not_quirked(&self) -> Result<(), Refused> {
        if !self.has(RegionFlags::QUIRKED) {
            return Ok(());
        }
        let needed = self.entry.flags & !RegionFlags::QUIRKED.raw();
        Err(self.refuse(Status::Denied, Rule::R43, Subject::RegionFlags, needed, self.entry.flags))
    }

    /// What no grant can allow: R11, R06, and R04 for the whole platform.
    pub(crate) fn type_is_possible(&self) -> Result<(), Refused> {
        if self.wish.perms.contains(Perms::EXEC) && !self.wants(MemType::Cacheable) {
            let granted = self.entry.perms & !Perms::EXEC.raw();
            let (asked, subject) = (self.wish.perms.raw(), Subject::Permissions);
            return Err(self.refuse(Status::NoExec, Rule::R11, subject, asked, granted));
        }
        if self.wants(MemType::Cacheable) && !self.is_memory() {
            return Err(self.refuse_type(Status::Unsupported, Rule::R06));
        }
        let normal_nc = Capabilities::NORMAL_NC;
        if self.wants(MemType::AnyUncached) && !self.capabilities.contains(normal_nc) {
            let (needed, present) = (normal_nc.raw(), self.capabilities.raw());
            let subject = Subject::Capabilities;
            return Err(self.refuse(Status::Denied, Rule::R04, subject, needed, present));
        }
        Ok(())
    }

    /// R02, R03, R04, R11: modes, types and permissions of the entry.
    pub(crate) fn within_the_grants(&self) -> Result<(), Refused> {
        let mode = Modes::from(self.wish.mode).raw();
        if self.entry.modes & mode == 0 {
            let granted = self.entry.modes;
            return Err(self.refuse(Status::Denied, Rule::R02, Subject::Modes, mode, granted));
        }
        if let Some(rule) = self.rule_against_type() {
            return Err(self.refuse_type(Status::Denied, rule));
        }
        let beyond = self.wish.perms.raw() & !self.entry.perms;
        if beyond != 0 {
            let rule = if beyond & Perms::EXEC.raw() != 0 { Rule::R11 } else { Rule::R02 };
            let (asked, granted) = (self.wish.perms.raw(), self.entry.perms);
            return Err(self.refuse(Status::Denied, rule, Subject::Permissions, asked, granted));
        }
        Ok(())
    }

    fn rule_against_type(&self) -> Option<Rule> {
        let unsafe_nc = self.wants(MemType::AnyUncached) && !self.has(RegionFlags::NC_SAFE);
        let granted = self.entry.types & self.type_bit() != 0;
        let only_device = self.entry.types & !MemTypes::DEVICE.raw() == 0;
        match (granted, unsafe_nc) {
            (true, false) => None,
            (false, _) if only_device => Some(Rule::R03),
            (_, true) => Some(Rule::R04),
            (false, false) => Some(Rule::R02),
        }
    }

    fn refuse_type(&self, status: Status, rule: Rule) -> Refused {
        self.refuse(status, rule, Subject::Types, self.type_bit(), self.entry.types)
    }

    fn type_bit(&self) -> u8 {
        MemTypes::from(self.wish.mem_type).raw()
    }
}
