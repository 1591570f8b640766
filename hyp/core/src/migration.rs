//! Migration descriptors (R33): written where a VM is, checked on its next host before anything
//! moves. A descriptor says nothing that the checking host believes: it is judged like a request.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::migration::{MAGIC, MAX_ITEMS, MigrationHeader, MigrationItem, VERSION};
use pfnguard_shared::request::{HostAlias, Request};
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{MemType, Rule, Status, Subject};

use crate::addr::IpaPfn;
use crate::decide::{Applicant, BindRequest, COHERENT, FORBIDS_TAGS, decide, needed_flags};
use crate::dispatch::Reply;
use crate::error::{HcallError, Refusal, RuleRefusal};
use crate::hypervisor::{Cpu, Unlocked};
use crate::machine::{Machine, TagAccess};
use crate::manifest::{Entry, Label};
use crate::pfnmap::{ArgPage, check_ipa};
use crate::region::{Binding, RegionTable};
use crate::vm::VmId;

/// Offset of the first item in the argument page.
const ITEMS_OFFSET: usize = size_of::<MigrationHeader>();
/// `Argument` index of a field of the argument page: no register is at fault.
const IN_PAGE: u64 = 0;

/// MIGRATE_EXPORT: writes what `vm` needs of its next host to the argument page. Returns x1 its
/// length in bytes.
///
/// # Errors
/// `NoArgPage`; `NoObject` where there is no such VM; `VmState` where it is dying.
pub fn export<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
) -> Result<Reply, HcallError> {
    let page = ArgPage::of(cpu)?;
    let mut guard = door.lock_host();
    let (host, vm) = guard.with_guest(id)?;
    vm.check_state(VmState::Active)?;
    let (table, contract) = (&host.regions, vm.contract);
    let mut header = empty_header(contract);
    let mut bytes = ITEMS_OFFSET;
    for (index, binding) in table.vm_bindings(id).enumerate() {
        let entry = &table.get(binding.region)?.entry;
        let item = describe(binding, entry, contract, table.capabilities());
        page.write(cpu, ITEMS_OFFSET, index, &item);
        header.capabilities |= capabilities_of(binding, contract, table.capabilities()).raw();
        header.items = header.items.saturating_add(1);
        bytes = bytes.saturating_add(size_of::<MigrationItem>());
    }
    page.write(cpu, 0, 0, &header);
    Ok(Reply([u64::try_from(bytes).unwrap_or(u64::MAX), 0, 0, 0]))
}

fn empty_header(contract: ContractFlags) -> MigrationHeader {
    MigrationHeader {
        magic: MAGIC,
        version: VERSION,
        contract: contract.raw(),
        capabilities: required_by(contract).raw(),
        ..MigrationHeader::zeroed()
    }
}

/// Returns what a contract needs of every host, regions aside (R20).
fn required_by(contract: ContractFlags) -> Capabilities {
    if contract.contains(ContractFlags::MTE) { Capabilities::MTE } else { Capabilities::NONE }
}

/// Returns what a binding rests on; the next host must not do with less.
fn capabilities_of(
    binding: &Binding,
    contract: ContractFlags,
    present: Capabilities,
) -> Capabilities {
    let atomics = needed_flags(contract, binding.flags).contains(RegionFlags::ATOMICS);
    [
        (binding.mem_type == MemType::AnyUncached, Capabilities::NORMAL_NC),
        // Without both, the hypervisor does the maintenance: that rests on the region alone (R08).
        (binding.mem_type == MemType::Cacheable && present.contains(COHERENT), COHERENT),
        (binding.tags == TagAccess::Forbidden, FORBIDS_TAGS),
        (atomics && present.contains(Capabilities::LSE), Capabilities::LSE),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .fold(Capabilities::NONE, |all, (_, needed)| all.with(needed))
}

fn describe(
    binding: &Binding,
    entry: &Entry,
    contract: ContractFlags,
    present: Capabilities,
) -> MigrationItem {
    let start = binding.pfns.start().0.saturating_sub(entry.range.start().0);
    MigrationItem {
        name: *entry.name.bytes(),
        offset_pages: start,
        pages: binding.pfns.pages(),
        ipa_pfn: binding.ipa.start().0,
        flags: flags_of(binding, contract, present).raw(),
        mode: binding.mode.raw(),
        mem_type: binding.mem_type.raw(),
        perms: binding.perms.raw(),
        request_flags: binding.flags.raw(),
        ..MigrationItem::zeroed()
    }
}

fn flags_of(binding: &Binding, contract: ContractFlags, present: Capabilities) -> RegionFlags {
    let general = needed_flags(contract, binding.flags);
    match binding.mem_type {
        MemType::Device => general,
        MemType::AnyUncached => general.with(RegionFlags::NC_SAFE),
        MemType::Cacheable => {
            let tagged =
                contract.contains(ContractFlags::MTE) && binding.tags == TagAccess::Allowed;
            let tags = if tagged { RegionFlags::TAGS } else { RegionFlags::NONE };
            let coherent = present.contains(COHERENT);
            let cmo = if coherent { RegionFlags::NONE } else { RegionFlags::CMO_BY_ADDRESS };
            general.with(tags).with(cmo)
        }
    }
}

/// MIGRATE_CHECK: judges the descriptor in the argument page as requests of a VM that holds nothing
/// here yet, and writes each item's verdict in place. Returns x1 items that fail, x2 missing
/// `Capabilities`.
///
/// # Errors
/// `NoArgPage`; `Argument` with index 0 where the page holds no descriptor of this version.
pub fn check<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
) -> Result<Reply, HcallError> {
    let page = ArgPage::of(cpu)?;
    let ipa_limit = door.hypervisor().features().guest_ipa_limit();
    let mut header: MigrationHeader = page.read(cpu, 0, 0);
    let claim = Claim::decode(&header)?;
    let guard = door.lock_host();
    let table = &guard.regions;
    let missing = claim.capabilities.without(table.capabilities());
    write_header_verdict(&mut header, missing);
    page.write(cpu, 0, 0, &header);
    let mut failed = 0;
    for index in 0..claim.items {
        let mut item: MigrationItem = page.read(cpu, ITEMS_OFFSET, index);
        let verdict = judge(table, claim.contract, ipa_limit, &item);
        failed += u64::from(verdict.is_err());
        write_item_verdict(&mut item, verdict.err().map(|error| error.refusal()));
        page.write(cpu, ITEMS_OFFSET, index, &item);
    }
    Ok(Reply([failed, missing.raw(), 0, 0]))
}

/// A header, decoded.
struct Claim {
    items: usize,
    contract: ContractFlags,
    capabilities: Capabilities,
}

impl Claim {
    fn decode(header: &MigrationHeader) -> Result<Self, HcallError> {
        let bad = |limit| HcallError::Argument { index: IN_PAGE, limit };
        if header.magic != MAGIC || header.version != VERSION {
            return Err(bad(u64::from(VERSION)));
        }
        if header.reserved != 0 {
            return Err(bad(0));
        }
        let items = usize::try_from(header.items).ok().filter(|&items| items <= MAX_ITEMS);
        let items = items.ok_or(bad(u64::try_from(MAX_ITEMS).unwrap_or(u64::MAX)))?;
        let contract = ContractFlags::from_raw(header.contract);
        let contract = contract.ok_or(bad(u64::from(ContractFlags::ALL.raw())))?;
        let capabilities = Capabilities::from_raw(header.capabilities);
        let capabilities = capabilities.ok_or(bad(Capabilities::ALL.raw()))?;
        // The contract counts, whatever the descriptor claims to rest on.
        let capabilities = capabilities.with(required_by(contract));
        Ok(Self { items, contract, capabilities })
    }
}

fn write_header_verdict(header: &mut MigrationHeader, missing: Capabilities) {
    let (status, rule, subject) = if missing.is_empty() {
        (Status::Success, 0, Subject::None)
    } else {
        (Status::Unsupported, missing_rule(missing).raw(), Subject::Capabilities)
    };
    header.status = status.raw();
    header.rule = rule;
    header.subject = subject.raw();
    header.missing = missing.raw();
}

/// Returns the rule that needs the first of the missing abilities.
fn missing_rule(missing: Capabilities) -> Rule {
    let tags = Capabilities::MTE.with(Capabilities::MTE_PERM);
    if missing.intersects(COHERENT) {
        Rule::R07
    } else if missing.intersects(tags) {
        Rule::R20
    } else if missing.intersects(Capabilities::NORMAL_NC) {
        Rule::R04
    } else if missing.intersects(Capabilities::LSE) {
        Rule::R22
    } else {
        Rule::R33
    }
}

fn judge(
    table: &RegionTable,
    contract: ContractFlags,
    ipa_limit: IpaPfn,
    item: &MigrationItem,
) -> Result<(), HcallError> {
    let region = Label::decode(&item.name).and_then(|name| table.find(&name));
    let entry = &region.ok_or(refuse(Status::NotFound, Subject::None, 0, 0))?.entry;
    let known = RegionFlags::from_raw(item.flags).filter(|_| item.reserved == 0);
    let limit = u64::from(RegionFlags::ALL.raw());
    let needed = known.ok_or(HcallError::Argument { index: IN_PAGE, limit })?;
    let request = BindRequest::decode(&request_of(item, entry))?;
    check_ipa(&request.ipa, ipa_limit)?;
    decide(table, Applicant { vm: None, contract }, &request)?;
    if !entry.flags.contains(needed) {
        let (needed, present) = (needed.raw(), entry.flags.raw());
        return Err(refuse(Status::Denied, Subject::RegionFlags, needed, present));
    }
    Ok(())
}

fn request_of(item: &MigrationItem, entry: &Entry) -> Request {
    Request {
        mode: item.mode,
        mem_type: item.mem_type,
        perms: item.perms,
        flags: item.request_flags,
        alias: HostAlias::None.raw(),
        // Past the end of the address space, `decode` refuses.
        pfn: entry.range.start().0.saturating_add(item.offset_pages),
        ipa_pfn: item.ipa_pfn,
        pages: item.pages,
        ..Request::zeroed()
    }
}

fn refuse(status: Status, subject: Subject, needed: u32, present: u32) -> HcallError {
    let (requested, granted) = (u64::from(needed), u64::from(present));
    RuleRefusal { status, rule: Rule::R33, subject, pfn: None, requested, granted }.into()
}

fn write_item_verdict(item: &mut MigrationItem, refusal: Option<Refusal>) {
    item.status = refusal.map_or(Status::Success, |refusal| refusal.status).raw();
    item.rule = refusal.and_then(|refusal| refusal.rule).map_or(0, Rule::raw);
    item.subject = refusal.map_or(Subject::None, |refusal| refusal.subject).raw();
}

#[cfg(test)]
mod tests;
