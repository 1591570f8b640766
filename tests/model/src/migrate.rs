//! Migration descriptors: what a VM rests on, and whether another host has it. R33.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::{Entry, RegionFlags};
use pfnguard_shared::migration::{MAGIC, MAX_ITEMS, MigrationHeader, MigrationItem, VERSION};
use pfnguard_shared::request::{HostAlias, Request, RequestFlags};
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{MemType, PAGE_SHIFT, Rule, Status, Subject};
use zerocopy::{FromBytes, IntoBytes};

use crate::call::{Call, Outcome};
use crate::machine::{Machine, count};
use crate::refusal::{argument, no_arg_page};
use crate::state::{Binding, State};
use crate::{Refused, Wish};

/// Cacheable without maintenance by the hypervisor (R07).
const COHERENT: Capabilities = Capabilities::FWB.with(Capabilities::DIC);
/// Forbidding tag access (R20).
const NO_TAGS: Capabilities = Capabilities::MTE_PERM.with(Capabilities::FWB);
/// In refusals: no register is at fault, the argument page is.
const IN_PAGE: usize = 0;

impl State {
    /// The descriptor of a VM: its contract, and an item for each binding, in any order.
    pub(crate) fn export(
        &self,
        machine: &Machine,
        call: &Call<'_>,
        id: u16,
    ) -> Result<Outcome, Refused> {
        call.arg_page.ok_or(no_arg_page())?;
        let vm = self.vm_in(id, VmState::Active)?;
        let mut header = MigrationHeader {
            magic: MAGIC,
            version: VERSION,
            items: u32::try_from(vm.bindings.len()).expect("at most 50"),
            contract: vm.contract.raw(),
            capabilities: capabilities_of_contract(vm.contract).raw(),
            ..MigrationHeader::zeroed()
        };
        let mut items = Vec::new();
        let mut left: Vec<u64> = vm.bindings.keys().copied().collect();
        let seen = call.seen.exported.iter().copied().chain(left.clone());
        for first in seen {
            let Some(at) = left.iter().position(|ipa| *ipa == first) else { continue };
            left.remove(at);
            let needs = Needs { machine, contract: vm.contract, binding: &vm.bindings[&first] };
            header.capabilities |= needs.capabilities().raw();
            items.extend_from_slice(needs.item(first).as_bytes());
        }
        let bytes = size_of::<MigrationHeader>() + items.len();
        let answer = Outcome::value(count(bytes)).writes(0, header.as_bytes());
        Ok(if items.is_empty() { answer } else { answer.writes(size_of_val(&header), &items) })
    }

    /// Judges a descriptor: an item is a request of a VM that holds nothing here yet. Nothing in
    /// it is believed.
    pub(crate) fn migrate_check(
        &self,
        machine: &Machine,
        call: &Call<'_>,
    ) -> Result<Outcome, Refused> {
        let page = call.arg_page.ok_or(no_arg_page())?;
        let (header, rest) = MigrationHeader::read_from_prefix(page).expect("a page holds it");
        let claim = Claim::read(&header)?;
        // R20: the contract needs MTE whatever the descriptor claims.
        let needed = claim.capabilities.with(capabilities_of_contract(claim.contract));
        let missing = needed.without(machine.capabilities());
        let answer = Outcome::done().writes(0, judged(header, missing).as_bytes());

        let (mut failed, mut items) = (0, Vec::new());
        for bytes in rest.chunks_exact(size_of::<MigrationItem>()).take(claim.items) {
            let mut item = MigrationItem::read_from_bytes(bytes).expect("the size of an item");
            let verdict = self.judge_item(machine, claim.contract, &item).err();
            failed += u64::from(verdict.is_some());
            item.status = verdict.map_or(Status::Success, |refused| refused.status).raw();
            item.rule = verdict.and_then(|refused| refused.rule).map_or(0, Rule::raw);
            item.subject = verdict.map_or(Subject::None, |refused| refused.subject).raw();
            items.extend_from_slice(item.as_bytes());
        }
        let answer = match items.as_slice() {
            [] => answer,
            items => answer.writes(size_of::<MigrationHeader>(), items),
        };
        Ok(Outcome { regs: [0, failed, missing.raw(), 0, 0, 0, 0, 0], ..answer })
    }

    fn judge_item(
        &self,
        machine: &Machine,
        contract: ContractFlags,
        item: &MigrationItem,
    ) -> Result<(), Refused> {
        let by_name = machine.entries.iter().find(|entry| entry.name == item.name);
        let entry = by_name.ok_or(refuse(Status::NotFound, Subject::None, (0, 0)))?;
        let known = RegionFlags::from_raw(item.flags).filter(|_| item.reserved == 0);
        let needed = known.ok_or(argument(IN_PAGE, RegionFlags::ALL.raw()))?;
        let wish = Wish::read(&request_of(item, entry))?;
        machine.check_ipa(&wish.ipa)?;
        self.judge(machine, None, contract, &wish)?;
        if entry.flags & needed.raw() != needed.raw() {
            let facts = (needed.raw(), entry.flags);
            return Err(refuse(Status::Denied, Subject::RegionFlags, facts));
        }
        Ok(())
    }
}

fn request_of(item: &MigrationItem, entry: &Entry) -> Request {
    Request {
        mode: item.mode,
        mem_type: item.mem_type,
        perms: item.perms,
        flags: item.request_flags,
        alias: HostAlias::None.raw(),
        pfn: (entry.base >> PAGE_SHIFT).saturating_add(item.offset_pages),
        ipa_pfn: item.ipa_pfn,
        pages: item.pages,
        ..Request::zeroed()
    }
}

fn refuse(status: Status, subject: Subject, (needed, present): (u32, u32)) -> Refused {
    Refused::plain(status, subject, needed, present).by(Rule::R33)
}

/// A header, as far as it is one.
struct Claim {
    items: usize,
    contract: ContractFlags,
    capabilities: Capabilities,
}

impl Claim {
    fn read(header: &MigrationHeader) -> Result<Self, Refused> {
        if header.magic != MAGIC || header.version != VERSION {
            return Err(argument(IN_PAGE, VERSION));
        }
        if header.reserved != 0 {
            return Err(argument(IN_PAGE, 0u8));
        }
        let items = usize::try_from(header.items).ok().filter(|items| *items <= MAX_ITEMS);
        let items = items.ok_or(argument(IN_PAGE, count(MAX_ITEMS)))?;
        let contract = ContractFlags::from_raw(header.contract);
        let contract = contract.ok_or(argument(IN_PAGE, ContractFlags::ALL.raw()))?;
        let capabilities = Capabilities::from_raw(header.capabilities);
        let capabilities = capabilities.ok_or(argument(IN_PAGE, Capabilities::ALL.raw()))?;
        Ok(Self { items, contract, capabilities })
    }
}

/// The header with its verdict: the rule is that of the first ability that is missing.
fn judged(header: MigrationHeader, missing: Capabilities) -> MigrationHeader {
    let tags = Capabilities::MTE.with(Capabilities::MTE_PERM);
    let rules = [
        (COHERENT, Rule::R07),
        (tags, Rule::R20),
        (Capabilities::NORMAL_NC, Rule::R04),
        (Capabilities::LSE, Rule::R22),
        (Capabilities::ALL, Rule::R33),
    ];
    let rule = rules.iter().find(|(needed, _)| missing.intersects(*needed));
    let (status, subject) = match rule {
        Some(_) => (Status::Unsupported, Subject::Capabilities),
        None => (Status::Success, Subject::None),
    };
    MigrationHeader {
        status: status.raw(),
        rule: rule.map_or(0, |(_, rule)| rule.raw()),
        subject: subject.raw(),
        missing: missing.raw(),
        ..header
    }
}

fn capabilities_of_contract(contract: ContractFlags) -> Capabilities {
    let mte = contract.contains(ContractFlags::MTE);
    if mte { Capabilities::MTE } else { Capabilities::NONE }
}

/// What a binding needs of its next host: what it rests on here.
struct Needs<'a> {
    machine: &'a Machine,
    contract: ContractFlags,
    binding: &'a Binding,
}

impl Needs<'_> {
    fn is(&self, mem_type: MemType) -> bool {
        self.binding.leaf.mem_type == mem_type
    }

    fn has(&self, capabilities: Capabilities) -> bool {
        self.machine.capabilities().contains(capabilities)
    }

    /// R22.
    fn general_purpose(&self) -> bool {
        self.contract.contains(ContractFlags::GENERAL_PURPOSE)
            || self.binding.flags.contains(RequestFlags::GENERAL_PURPOSE)
    }

    /// R04, R07, R20, R22. Where the hypervisor maintains the caches (R08), the region is enough.
    fn capabilities(&self) -> Capabilities {
        let lse = self.general_purpose() && self.has(Capabilities::LSE);
        [
            (self.is(MemType::AnyUncached), Capabilities::NORMAL_NC),
            (self.is(MemType::Cacheable) && self.has(COHERENT), COHERENT),
            (self.binding.leaf.no_tags, NO_TAGS),
            (lse, Capabilities::LSE),
        ]
        .into_iter()
        .filter(|(holds, _)| *holds)
        .fold(Capabilities::NONE, |all, (_, needed)| all.with(needed))
    }

    /// R04, R08, R20, R22.
    fn flags(&self) -> RegionFlags {
        let mte = self.contract.contains(ContractFlags::MTE);
        let cacheable = self.is(MemType::Cacheable);
        let tagged = mte && cacheable && !self.binding.leaf.no_tags;
        let general = self.general_purpose();
        [
            (general, RegionFlags::EXCLUSIVES.with(RegionFlags::ATOMICS)),
            (tagged || general && mte, RegionFlags::TAGS),
            (self.is(MemType::AnyUncached), RegionFlags::NC_SAFE),
            (cacheable && !self.has(COHERENT), RegionFlags::CMO_BY_ADDRESS),
        ]
        .into_iter()
        .filter(|(holds, _)| *holds)
        .fold(RegionFlags::NONE, |all, (_, needed)| all.with(needed))
    }

    fn item(&self, first: u64) -> MigrationItem {
        let Binding { region, pfn, pages, mode, leaf, flags, .. } = *self.binding;
        MigrationItem {
            name: self.machine.entries[region].name,
            offset_pages: pfn - self.machine.region_pages(region).start,
            pages,
            ipa_pfn: first,
            flags: self.flags().raw(),
            mode: mode.raw(),
            mem_type: leaf.mem_type.raw(),
            perms: leaf.perms.raw(),
            request_flags: flags.raw(),
            ..MigrationItem::zeroed()
        }
    }
}
