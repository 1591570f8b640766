//! Calls that change nothing: CHECK, PROBE, REGION_INFO, and what a guest was promised.

use pfnguard_shared::Mode;
use pfnguard_shared::info::{Capabilities, RegionInfo};
use pfnguard_shared::manifest::RegionFlags;
use pfnguard_shared::request::{CHECK_DECISIONS_OFFSET, Decision, Request};
use pfnguard_shared::vm::{ContractFlags, Promise, VmState};

use super::{ArgPage, check_ipa, plan, record_decision};
use crate::addr::{IpaPfn, IpaRange, PFN_LIMIT};
use crate::decide::BindRequest;
use crate::dispatch::Reply;
use crate::error::HcallError;
use crate::hypervisor::{Cpu, HostGuard, Unlocked};
use crate::machine::{GuestStage2, Machine, World};
use crate::manifest::Entry;
use crate::region::{Binding, RegionId, RegionTable};
use crate::vm::VmId;

/// What a guest was promised about a PFNMAP page (R23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promised {
    /// x1 of QUERY: `Perms` in 7:0, `MemType` in 15:8, `Promise` bits in 31:16.
    pub word: u64,
    /// Pages from the first one on that it holds for.
    pub pages: u64,
}

/// PFNMAP_CHECK: judges `items` requests (at most `MAX_CHECK_ITEMS`) of the argument page as
/// [`super::bind`] would now, each for itself, and writes the decisions behind them (R32).
///
/// # Errors
/// `NoArgPage`. Refusals of items are decisions, not errors.
pub fn check<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    items: usize,
) -> Result<Reply, HcallError> {
    let page = ArgPage::of(cpu)?;
    let ipa_bits = door.hypervisor().features().guest_ipa_bits;
    let mut guard = door.lock_host();
    for index in 0..items {
        // One copy, judged after the host can no longer change it.
        let wire: Request = page.read(cpu, 0, index);
        let outcome = judge(&mut guard, ipa_bits, &wire);
        record_decision(cpu, &wire, &outcome);
        page.write(cpu, CHECK_DECISIONS_OFFSET, index, &decision(&outcome));
    }
    Ok(Reply::NONE)
}

fn judge<M: Machine>(
    guard: &mut HostGuard<'_, M>,
    ipa_bits: u32,
    wire: &Request,
) -> Result<(), HcallError> {
    let request = BindRequest::decode(wire)?;
    let (host, vm) = guard.with_guest(request.vm)?;
    plan(host, &vm, ipa_bits, &request).map(|_| ())
}

fn decision(outcome: &Result<(), HcallError>) -> Decision {
    let Err(error) = outcome else {
        return Decision { pfn: pfnguard_shared::NO_PFN, ..Decision::zeroed() };
    };
    let refusal = error.refusal();
    Decision {
        status: refusal.status.raw(),
        rule: refusal.rule.map_or(0, pfnguard_shared::Rule::raw),
        subject: refusal.subject.raw(),
        pfn: refusal.pfn,
        requested: refusal.requested,
        granted: refusal.granted,
    }
}

/// PFNMAP_PROBE: asks the CPU what it makes of a guest's page. Returns x1 `PAR_EL1`.
///
/// # Errors
/// `NoObject` and `VmState` for the VM, `Argument` and `IpaRange` for the page; `Contract` where
/// the VM is protected and the page no PFNMAP.
pub fn probe<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
    ipa: IpaPfn,
) -> Result<Reply, HcallError> {
    let ipa_bits = door.hypervisor().features().guest_ipa_bits;
    let limit = PFN_LIMIT.saturating_sub(1);
    let page = IpaRange::single(ipa).ok_or(HcallError::Argument { index: 2, limit })?;
    check_ipa(&page, ipa_bits)?;
    let mut guard = door.lock_host();
    let (host, vm) = guard.with_guest(id)?;
    vm.check_state(VmState::Active)?;
    let protected = vm.contract.contains(ContractFlags::PROTECTED);
    if protected && !host.regions.binding_overlaps(id, &page) {
        return Err(HcallError::Contract);
    }
    Ok(Reply([cpu.local.probe(ipa, vm.stage2.vttbr()), 0, 0, 0]))
}

/// REGION_INFO: writes a region's grants and state to the argument page (R31). Returns x1 its
/// first page, x2 its pages.
///
/// # Errors
/// `NoArgPage`; `NoObject` where the manifest has no such entry.
pub fn region_info<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: RegionId,
) -> Result<Reply, HcallError> {
    let page = ArgPage::of(cpu)?;
    let guard = door.lock_host();
    let info = describe(&guard.regions, id)?;
    page.write(cpu, 0, 0, &info);
    Ok(Reply([info.pfn, info.pages, 0, 0]))
}

fn describe(regions: &RegionTable, id: RegionId) -> Result<RegionInfo, HcallError> {
    let region = regions.get(id)?;
    let entry = &region.entry;
    Ok(RegionInfo {
        name: *entry.name.bytes(),
        pfn: entry.range.start().0,
        pages: entry.range.pages(),
        flags: entry.flags.raw(),
        class: entry.class.raw(),
        modes: entry.modes.raw(),
        types: entry.types.raw(),
        perms: entry.perms.raw(),
        max_vms: entry.max_vms,
        blocks: entry.blocks.raw(),
        reset: entry.reset.kind().raw(),
        state: region.hold.state().raw(),
        holders: u8::try_from(regions.holders(id)).unwrap_or(u8::MAX),
        streams: u8::try_from(entry.streams.len()).unwrap_or(u8::MAX),
        reserved: [0; 2],
        quirk: *entry.quirk.bytes(),
    })
}

/// Returns what the guest was promised from the first page of `ipa` on, as far as one binding
/// reaches (R23), or `None` where no binding holds that page.
pub fn promise(regions: &RegionTable, id: VmId, ipa: IpaRange) -> Option<Promised> {
    let binding = regions.binding_at(id, ipa.start())?;
    let entry = &regions.get(binding.region).ok()?.entry;
    let bits = promise_bits(binding, entry, regions.capabilities());
    let word = u64::from(binding.perms.raw())
        | u64::from(binding.mem_type.raw()) << 8
        | u64::from(bits.raw()) << 16;
    let pages = binding.ipa.intersection(&ipa)?.pages();
    Some(Promised { word, pages })
}

/// Never `TAGS`: the world switch keeps no tag state apart, so guests run without (HCR_EL2.ATA).
fn promise_bits(binding: &Binding, entry: &Entry, capabilities: Capabilities) -> Promise {
    let atomics =
        entry.flags.contains(RegionFlags::ATOMICS) && capabilities.contains(Capabilities::LSE);
    [
        (binding.mode == Mode::Share, Promise::SHARED),
        (entry.flags.contains(RegionFlags::EXCLUSIVES), Promise::EXCLUSIVES),
        (atomics, Promise::ATOMICS),
    ]
    .into_iter()
    .filter(|(holds, _)| *holds)
    .fold(Promise::PRESENT.with(Promise::PFNMAP), |bits, (_, bit)| bits.with(bit))
}
