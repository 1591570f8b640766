//! The decision on a PFNMAP request: pure, and the same for CHECK, BIND and MAP (R30, R32).
//!
//! The steps run in this order and the first that refuses is the answer. "First page" is that of
//! the request; all refusals but those of step 0 name a page.
//!
//! | step | rule | refused where | status | values: requested, granted |
//! |---|---|---|---|---|
//! | 0 | — | a number is unknown, a reserved byte is set, READ is missing, a range is empty or ends past 52 bits | InvalidParameter | register, greatest accepted value |
//! | 1 | R14 | the range touches an entry but lies not in one; page: where it leaves or enters an entry first | Unsupported | entry of first and last page, all ones for none |
//! | 1 | R15 | it touches RAM; page: the first of RAM | Denied | none |
//! | 1 | R01 | no page lies in an entry | Denied | pages, 0 |
//! | 2 | R12 | copy-on-write | Unsupported | request flags, those accepted |
//! | 3 | R13 | dirty logging | Unsupported | request flags, those accepted |
//! | 4 | R43 | the entry is quirked | Denied | region flags without it, region flags |
//! | 5 | R42, R41 | the region is lost, or in quarantine | Busy | region state free, region state |
//! | 6 | R11 | execution of an uncached type | NoExec | permissions, those of the entry but execution |
//! | 7 | R06 | cacheable on MMIO | Unsupported | type, types of the entry |
//! | 8 | R04 | any-uncached where the platform forbids it | Denied | capability, capabilities |
//! | 9 | R02 | the mode is not granted | Denied | mode, modes of the entry |
//! | 10 | R03, R04, R02 | the type is not granted: the entry grants device only; lacks NC_SAFE; else | Denied | type, types of the entry |
//! | 11 | R11, R02 | a permission is not granted: execution; else | Denied | permissions, those of the entry |
//! | 12 | R10 | the host's own mapping has the other cacheability | Unsupported | alias, the fitting one |
//! | 13 | R07 | cacheable, shared, without FWB and DIC | Unsupported | capabilities needed, present |
//! | 13 | R08 | cacheable, donated, without FWB and DIC and without CMO_BY_ADDRESS | Unsupported | region flags needed, present |
//! | 14 | R20 | contract with MTE, cacheable: neither tags nor MTE_PERM with FWB | Unsupported | region flags needed, present |
//! | 15 | R22 | general-purpose use without exclusives, atomics and, with MTE, tags | Denied | region flags needed, present |
//! | 16 | R45 | a region with streams is donated: nothing translates or blocks them | Denied | streams, 0 |
//! | 17 | R02 | another VM owns the region | Busy | region state free, region state |
//! | 17 | R02 | it is held in the other mode | Busy | mode, mode held |
//! | 17 | R10 | it is held with another type | Unsupported | type, type held |
//! | 17 | R02 | one VM more than the entry allows would hold it | Busy | holders then, most |
//!
//! Each rule is written once, in `Case`. At launch all of them are asked about every use of every
//! region (`Answers`), so that a request is granted by looking its use up; the rules are asked
//! again, in their order, only to say why there is no grant.
//!
//! What is granted has exactly the type and the permissions that were asked for (R05, R09).

mod answers;
mod judge;
mod request;

use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{BlockSizes, RegionClass, RegionFlags};
use pfnguard_shared::request::{HostAlias, MemTypes, Modes, RequestFlags};
use pfnguard_shared::vm::ContractFlags;
use pfnguard_shared::{MemType, Mode, Perms, Rule, Status, Subject};

use crate::error::RuleRefusal;
use crate::machine::{Stage2Attrs, Stage2Type, TagAccess};
use crate::region::{Hold, Region, RegionId, RegionTable};
use crate::vm::VmId;

pub(crate) use answers::Answers;
pub(crate) use judge::Judge;
pub use request::BindRequest;
pub(crate) use request::place;

/// What a cacheable mapping rests on unless the hypervisor does the maintenance (R07).
pub(crate) const COHERENT: Capabilities = Capabilities::FWB.with(Capabilities::DIC);
/// What it takes to forbid tag access (R20).
pub(crate) const FORBIDS_TAGS: Capabilities = Capabilities::MTE_PERM.with(Capabilities::FWB);

/// On whose behalf a request is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applicant {
    /// The VM, or `None` for one that holds nothing yet (migration).
    pub vm: Option<VmId>,
    /// What it declared.
    pub contract: ContractFlags,
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The region.
    pub region: RegionId,
    /// How the guest's stage 2 maps it.
    pub attrs: Stage2Attrs,
    /// Block sizes that the entry allows.
    pub blocks: BlockSizes,
}

/// Decides on a well-formed request (steps 1 to 17).
///
/// # Errors
/// The first rule that refuses, with its facts; the table has not changed.
pub fn decide(
    table: &RegionTable,
    applicant: Applicant,
    request: &BindRequest,
) -> Result<Grant, RuleRefusal> {
    Judge::new(table).decide(applicant, request)
}

/// A request beside the one region that it lies in.
struct Case<'a> {
    region: &'a Region,
    capabilities: Capabilities,
    applicant: Applicant,
    request: &'a BindRequest,
}

impl Case<'_> {
    /// Returns whether no rule refuses. The answers are those of a free region to a request without
    /// peculiarities; only what they leave open is judged here.
    #[inline(always)]
    fn is_granted(&self) -> bool {
        self.region.answers.grant(self.applicant.contract, self.request)
            && self.check_flags().is_ok()
            && self.check_alias().is_ok()
            && self.is_available()
    }

    #[inline]
    fn is_available(&self) -> bool {
        self.region.hold == Hold::Free || self.check_usable().is_ok() && self.has_place()
    }

    #[inline(never)]
    fn has_place(&self) -> bool {
        self.check_holders().is_ok()
    }

    /// Puts the request to every rule: steps 2 to 17.
    fn judge(&self) -> Result<(), RuleRefusal> {
        self.check_flags()?;
        self.check_usable()?;
        self.check_possible()?;
        self.check_mode()?;
        self.check_type()?;
        self.check_perms()?;
        self.check_alias()?;
        self.check_coherent()?;
        self.check_tags()?;
        self.check_general_purpose()?;
        self.check_streams()?;
        self.check_holders()
    }

    #[inline]
    fn grant(&self, region: RegionId) -> Grant {
        let mem = Stage2Type::Forced(self.request.mem_type);
        let attrs = Stage2Attrs { mem, perms: self.request.perms, tags: self.tag_access() };
        Grant { region, attrs, blocks: self.region.entry.blocks }
    }
}

/// What no entry can grant, or not now: steps 2 to 8.
impl Case<'_> {
    fn check_flags(&self) -> Result<(), RuleRefusal> {
        let flags = self.request.flags;
        let refused = RequestFlags::COW.with(RequestFlags::DIRTY_LOG);
        if !flags.intersects(refused) {
            return Ok(());
        }
        let rule = if flags.contains(RequestFlags::COW) { Rule::R12 } else { Rule::R13 };
        let accepted = RequestFlags::ALL.without(refused).raw();
        Err(self.refuse(Status::Unsupported, rule, Subject::RequestFlags, flags.raw(), accepted))
    }

    fn check_usable(&self) -> Result<(), RuleRefusal> {
        let flags = self.region.entry.flags;
        if flags.contains(RegionFlags::QUIRKED) {
            let needed = flags.without(RegionFlags::QUIRKED).raw();
            let subject = Subject::RegionFlags;
            return Err(self.refuse(Status::Denied, Rule::R43, subject, needed, flags.raw()));
        }
        match self.region.hold {
            Hold::Free | Hold::Shared(_) | Hold::Donated(..) => Ok(()),
            Hold::Quarantined => Err(self.refuse_state(Rule::R41)),
            Hold::Lost => Err(self.refuse_state(Rule::R42)),
        }
    }

    fn check_possible(&self) -> Result<(), RuleRefusal> {
        let capabilities = self.capabilities;
        match self.request.mem_type {
            MemType::Device => self.check_no_exec(),
            MemType::AnyUncached => {
                self.check_no_exec()?;
                self.need_capabilities(Capabilities::NORMAL_NC, capabilities)
            }
            MemType::Cacheable => match self.region.entry.class {
                RegionClass::Memory => Ok(()),
                RegionClass::Mmio => Err(self.refuse_type(Status::Unsupported, Rule::R06)),
            },
        }
    }

    fn check_no_exec(&self) -> Result<(), RuleRefusal> {
        if !self.request.perms.contains(Perms::EXEC) {
            return Ok(());
        }
        let granted = self.region.entry.perms.without(Perms::EXEC);
        Err(self.refuse_perms(Status::NoExec, Rule::R11, granted))
    }

    fn need_capabilities(
        &self,
        needed: Capabilities,
        present: Capabilities,
    ) -> Result<(), RuleRefusal> {
        if present.contains(needed) {
            return Ok(());
        }
        let (needed, present) = (needed.raw(), present.raw());
        Err(self.refuse(Status::Denied, Rule::R04, Subject::Capabilities, needed, present))
    }
}

/// What the entry grants: steps 9 to 11.
impl Case<'_> {
    fn check_mode(&self) -> Result<(), RuleRefusal> {
        let (mode, granted) = (Modes::from(self.request.mode), self.region.entry.modes);
        if granted.contains(mode) {
            return Ok(());
        }
        Err(self.refuse(Status::Denied, Rule::R02, Subject::Modes, mode.raw(), granted.raw()))
    }

    fn check_type(&self) -> Result<(), RuleRefusal> {
        let granted = self.region.entry.types.contains(self.request.mem_type.into());
        let beyond_device = self.region.entry.types.without(MemTypes::DEVICE);
        let unsafe_nc = match self.request.mem_type {
            MemType::AnyUncached => !self.region.entry.flags.contains(RegionFlags::NC_SAFE),
            MemType::Device | MemType::Cacheable => false,
        };
        let rule = match (granted, beyond_device.is_empty(), unsafe_nc) {
            (true, _, false) => return Ok(()),
            (false, true, _) => Rule::R03,
            (_, _, true) => Rule::R04,
            (false, false, false) => Rule::R02,
        };
        Err(self.refuse_type(Status::Denied, rule))
    }

    fn check_perms(&self) -> Result<(), RuleRefusal> {
        let beyond = self.request.perms.without(self.region.entry.perms);
        if beyond.is_empty() {
            return Ok(());
        }
        let rule = if beyond.contains(Perms::EXEC) { Rule::R11 } else { Rule::R02 };
        Err(self.refuse_perms(Status::Denied, rule, self.region.entry.perms))
    }
}

/// What the memory can do and the VM needs: steps 12 to 16.
impl Case<'_> {
    fn check_alias(&self) -> Result<(), RuleRefusal> {
        let fitting = match self.request.mem_type {
            MemType::Device | MemType::AnyUncached => HostAlias::Uncached,
            MemType::Cacheable => HostAlias::Cacheable,
        };
        let alias = self.request.alias;
        if alias == HostAlias::None || alias == fitting {
            return Ok(());
        }
        let (alias, fitting) = (alias.raw(), fitting.raw());
        Err(self.refuse(Status::Unsupported, Rule::R10, Subject::HostAlias, alias, fitting))
    }

    fn check_coherent(&self) -> Result<(), RuleRefusal> {
        let present = self.capabilities;
        if self.request.mem_type != MemType::Cacheable || present.contains(COHERENT) {
            return Ok(());
        }
        match self.request.mode {
            Mode::Share => {
                let (needed, present) = (COHERENT.raw(), present.raw());
                let subject = Subject::Capabilities;
                Err(self.refuse(Status::Unsupported, Rule::R07, subject, needed, present))
            }
            // The hypervisor does the maintenance itself (`pfnmap`).
            Mode::Donate => {
                self.need_flags(RegionFlags::CMO_BY_ADDRESS, Status::Unsupported, Rule::R08)
            }
        }
    }

    fn check_tags(&self) -> Result<(), RuleRefusal> {
        if !self.may_touch_tags() || self.capabilities.contains(FORBIDS_TAGS) {
            return Ok(());
        }
        self.need_flags(RegionFlags::TAGS, Status::Unsupported, Rule::R20)
    }

    /// Returns whether the guest could reach for tags.
    fn may_touch_tags(&self) -> bool {
        let cacheable = self.request.mem_type == MemType::Cacheable;
        cacheable && self.applicant.contract.contains(ContractFlags::MTE)
    }

    /// Returns what keeps it from tags where there are none.
    fn tag_access(&self) -> TagAccess {
        let tagged = self.region.entry.flags.contains(RegionFlags::TAGS);
        if self.may_touch_tags() && !tagged { TagAccess::Forbidden } else { TagAccess::Allowed }
    }

    fn check_general_purpose(&self) -> Result<(), RuleRefusal> {
        let contract = self.applicant.contract;
        let needed = needed_flags(contract, self.request.flags);
        self.need_flags(needed, Status::Denied, Rule::R22)
    }

    fn check_streams(&self) -> Result<(), RuleRefusal> {
        let streams = u64::try_from(self.region.entry.streams.len()).unwrap_or(u64::MAX);
        match self.request.mode {
            Mode::Donate if streams != 0 => {
                Err(self.refuse(Status::Denied, Rule::R45, Subject::Streams, streams, 0u64))
            }
            Mode::Donate | Mode::Share => Ok(()),
        }
    }

    fn need_flags(
        &self,
        needed: RegionFlags,
        status: Status,
        rule: Rule,
    ) -> Result<(), RuleRefusal> {
        let present = self.region.entry.flags;
        if present.contains(needed) {
            return Ok(());
        }
        Err(self.refuse(status, rule, Subject::RegionFlags, needed.raw(), present.raw()))
    }
}

/// Returns the flags that general-purpose use needs of an entry; none where it is not declared (R22).
pub(crate) fn needed_flags(contract: ContractFlags, request: RequestFlags) -> RegionFlags {
    if !is_general_purpose(contract, request) {
        return RegionFlags::NONE;
    }
    let atomics = RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS);
    if contract.contains(ContractFlags::MTE) { atomics.with(RegionFlags::TAGS) } else { atomics }
}

fn is_general_purpose(contract: ContractFlags, request: RequestFlags) -> bool {
    contract.contains(ContractFlags::GENERAL_PURPOSE)
        || request.contains(RequestFlags::GENERAL_PURPOSE)
}

/// Who holds it: step 17.
impl Case<'_> {
    #[inline]
    fn check_holders(&self) -> Result<(), RuleRefusal> {
        match self.region.hold {
            Hold::Free => self.check_count(),
            Hold::Shared(held) => {
                self.check_held(Mode::Share, held)?;
                self.check_count()
            }
            Hold::Donated(owner, held) if self.applicant.vm == Some(owner) => {
                self.check_held(Mode::Donate, held)
            }
            Hold::Donated(..) => Err(self.refuse_state(Rule::R02)),
            Hold::Quarantined | Hold::Lost => unreachable!("refused at step 5: hypervisor bug"),
        }
    }

    #[inline]
    fn check_held(&self, mode: Mode, mem_type: MemType) -> Result<(), RuleRefusal> {
        if self.request.mode != mode {
            let (asked, held) = (Modes::from(self.request.mode).raw(), Modes::from(mode).raw());
            return Err(self.refuse(Status::Busy, Rule::R02, Subject::Modes, asked, held));
        }
        if self.request.mem_type != mem_type {
            let asked = MemTypes::from(self.request.mem_type).raw();
            let held = MemTypes::from(mem_type).raw();
            return Err(self.refuse(Status::Unsupported, Rule::R10, Subject::Types, asked, held));
        }
        Ok(())
    }

    #[inline]
    fn check_count(&self) -> Result<(), RuleRefusal> {
        let holders = self.region.holders;
        if self.applicant.vm.is_some_and(|vm| holders.contains(vm)) {
            return Ok(());
        }
        let then = holders.count().saturating_add(1);
        if then <= u64::from(self.region.entry.max_vms) {
            return Ok(());
        }
        Err(self.refuse(Status::Busy, Rule::R02, Subject::Holders, then, self.region.entry.max_vms))
    }
}

/// Refusals of the whole request: they name its first page.
impl Case<'_> {
    fn refuse(
        &self,
        status: Status,
        rule: Rule,
        subject: Subject,
        requested: impl Into<u64>,
        granted: impl Into<u64>,
    ) -> RuleRefusal {
        let (requested, granted) = (requested.into(), granted.into());
        let pfn = Some(self.request.pfns.start());
        RuleRefusal { status, rule, subject, pfn, requested, granted }
    }

    fn refuse_type(&self, status: Status, rule: Rule) -> RuleRefusal {
        let asked = MemTypes::from(self.request.mem_type).raw();
        self.refuse(status, rule, Subject::Types, asked, self.region.entry.types.raw())
    }

    fn refuse_perms(&self, status: Status, rule: Rule, granted: Perms) -> RuleRefusal {
        let asked = self.request.perms.raw();
        self.refuse(status, rule, Subject::Permissions, asked, granted.raw())
    }

    fn refuse_state(&self, rule: Rule) -> RuleRefusal {
        let (needed, found) = (RegionState::Free.raw(), self.region.hold.state().raw());
        self.refuse(Status::Busy, rule, Subject::RegionState, needed, found)
    }
}

#[cfg(test)]
mod tests;
