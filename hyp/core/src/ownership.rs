//! Who owns which RAM page: every transition is check, proof, commit. After a commit starts,
//! nothing can fail, and whatever a refusal says, nothing has changed (R35).
//!
//! | from | to | by |
//! |---|---|---|
//! | HostOwned | HostSharedHyp | [`host_share_hyp`] |
//! | HostSharedHyp, not pinned | HostOwned | [`host_unshare_hyp`] |
//! | HostOwned, HostSharedGuest | HostSharedGuest | [`host_share_guest`] |
//! | HostSharedGuest | HostSharedGuest, HostOwned | [`host_unshare_guest`], teardown |
//! | HostOwned | GuestOwned | [`host_donate_guest`] |
//! | GuestOwned | GuestSharedHost | [`guest_share_host`] |
//! | GuestSharedHost | GuestOwned | [`guest_unshare_host`] |
//! | GuestOwned, GuestSharedHost of a dying VM | HostOwned | [`host_reclaim_guest`] |
//! | HostOwned | HypOwned | VM_CREATE, VM_POOL_ADD |
//! | HypOwned | HostOwned | VM_FREE |
//!
//! The host's own translations are never restored here: its next access faults and gets one.

use pfnguard_shared::info::Capabilities;
use pfnguard_shared::manifest::BlockSizes;
use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::vm::{ContractFlags, PageState, VmState};
use pfnguard_shared::{MAX_RANGE_PAGES, MemType, PAGE_SHIFT, Perms};

use crate::addr::{IpaPfn, IpaRange, Pfn, PfnRange};
use crate::dispatch::Reply;
use crate::error::HcallError;
use crate::hypervisor::{Cpu, Host, Hyp, Unlocked};
use crate::machine::{
    Clock, El2Stage1, Features, Frames, GuestStage2, HostStage2, Machine, PlannedMap, PlannedUnmap,
    Stage2Attrs, Stage2Type, TagAccess,
};
use crate::region::RegionTable;
use crate::trace::Event;
use crate::vm::{Vm, VmId};
use crate::vmemmap::{FrameState, Transition};

/// Lets the hypervisor access host pages. No translation changes: the hypervisor reaches them
/// through its on-demand mapping. The record of the call says all that changed.
///
/// # Errors
/// `PageState` for the first page that is not the host's alone.
pub fn host_share_hyp<M: Machine>(
    door: &mut Unlocked<'_, M>,
    pages: PfnRange,
) -> Result<Reply, HcallError> {
    let lend = FrameState::HostSharedHyp { pins: 0 };
    door.lock_host().vmemmap.check(pages, FrameState::HostOwned)?.commit(lend);
    Ok(Reply::NONE)
}

/// Takes host pages back from the hypervisor. The record of the call says all that changed.
///
/// # Errors
/// `Pinned` for the first page that is an argument page; `PageState` for one that is not lent.
pub fn host_unshare_hyp<M: Machine>(
    door: &mut Unlocked<'_, M>,
    pages: PfnRange,
) -> Result<Reply, HcallError> {
    let unused = FrameState::HostSharedHyp { pins: 0 };
    door.lock_host().vmemmap.check(pages, unused)?.commit(FrameState::HostOwned);
    Ok(Reply::NONE)
}

/// Lends host pages to a guest; several guests may borrow the same page.
///
/// # Errors
/// `Contract` for a protected VM; `VmState`, `IpaRange`, `IpaOccupied`, `NoTables`; `PageState`
/// for the first page that is not the host's; `Pinned` for one that is lent 255 times.
pub fn host_share_guest<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    (pages, ipa): (PfnRange, IpaRange),
    perms: Perms,
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, mut guest) = host.with_guest(vm)?;
    let guest = &mut *guest;
    guest.check_state(VmState::Active)?;
    if guest.contract.contains(ContractFlags::PROTECTED) {
        return Err(HcallError::Contract);
    }
    let map = check_target(&host.regions, &mut guest.stage2, vm, (pages, ipa), &features)?;
    let lend = host.vmemmap.check_steps(pages, FrameState::HostOwned, lend_step);
    let lend = lend.map_err(lent_too_often)?;
    let old = lend.first().page_state();

    hand_over(cpu, &features, pages);
    map.commit(ram_attrs(perms));
    lend.commit();
    guest.borrowed_pages += pages.pages();
    record(cpu, vm.raw(), &pages, old, PageState::HostSharedGuest);
    Ok(Reply::NONE)
}

/// Takes lent pages back from a guest.
///
/// # Errors
/// `VmState`, `IpaRange`; `NotMapped` for the first page that the guest does not have at this
/// address; `PageState` for one that it does not borrow; `NoTables` where a block must be split.
pub fn host_unshare_guest<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    (pages, ipa): (PfnRange, IpaRange),
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, mut guest) = host.with_guest(vm)?;
    guest.check_state(VmState::Active)?;
    check_limit(&ipa, &features)?;
    end_loan(host, cpu, &features, vm, &mut guest, (pages, ipa))?;
    Ok(Reply::NONE)
}

/// Takes back pages that a VM has borrowed, in the order of R40: translations, cache lines, counts.
///
/// # Errors
/// `NotMapped`, `NoTables`; `PageState` for the first page that is not lent. Nothing has changed.
#[inline(never)]
fn end_loan<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    features: &Features,
    vm: VmId,
    guest: &mut Vm<M>,
    (pages, ipa): (PfnRange, IpaRange),
) -> Result<(), HcallError> {
    let left = host.regions.tables_left(vm, guest.stage2.tables_free());
    let unmap = guest.stage2.plan_unmap(ipa.start(), pages);
    let unmap = unmap.map_err(|page| not_mapped(&pages, &ipa, page))?;
    check_tables(unmap.tables(), left)?;
    let needed = FrameState::HostSharedGuest { count: 1 };
    let give_back = host.vmemmap.check_steps(pages, needed, return_step)?;

    unmap.commit();
    hand_over(cpu, features, pages);
    give_back.commit();
    guest.return_borrowed(pages.pages());
    record(cpu, vm.raw(), &pages, PageState::HostSharedGuest, PageState::HostOwned);
    Ok(())
}

/// Moves host pages to a guest, protected or not, with their contents.
///
/// # Errors
/// `VmState`, `IpaRange`, `IpaOccupied`, `NoTables`; `PageState` for the first page that is not
/// the host's alone.
pub fn host_donate_guest<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    (pages, ipa): (PfnRange, IpaRange),
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, mut guest) = host.with_guest(vm)?;
    let guest = &mut *guest;
    guest.check_state(VmState::Active)?;
    let map = check_target(&host.regions, &mut guest.stage2, vm, (pages, ipa), &features)?;
    let step = |state| donate_step(state, vm);
    let donation = host.vmemmap.check_steps(pages, FrameState::HostOwned, step)?;

    host.stage2.unmap(pages);
    hand_over(cpu, &features, pages);
    map.commit(ram_attrs(Perms::ALL));
    donation.commit();
    guest.owned_pages += pages.pages();
    record(cpu, vm.raw(), &pages, PageState::HostOwned, PageState::GuestOwned);
    Ok(Reply::NONE)
}

/// Gives pages of a dying VM back to the host; those of a protected VM zeroed and cleaned before
/// the host can reach them (R44), those of another VM as they are.
///
/// # Errors
/// `VmState` for a VM that was not torn down; `NotOwner` or `PageState` for the first page that
/// is not the VM's.
pub fn host_reclaim_guest<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    pages: PfnRange,
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, mut guest) = host.with_guest(vm)?;
    guest.check_state(VmState::Dying)?;
    let needed = FrameState::GuestOwned { vm };
    let reclaim = host.vmemmap.check_steps(pages, needed, |state| reclaim_step(state, vm))?;
    let old = reclaim.first().page_state();

    // Pages that the guest had lent may be mapped by the host: nobody watches them being zeroed.
    if reclaim.any_open() {
        host.stage2.unmap(pages);
    }
    if guest.contract.contains(ContractFlags::PROTECTED) {
        cpu.local.zero(pages);
    } else {
        hand_over(cpu, &features, pages);
    }
    reclaim.commit();
    guest.return_owned(pages.pages());
    record(cpu, vm.raw(), &pages, old, PageState::HostOwned);
    Ok(Reply::NONE)
}

/// Lends a guest's own page to the host.
///
/// # Errors
/// `IpaRange`; `NotMapped` where the guest has nothing there; `PageState` where the page is not
/// the guest's alone (a borrowed page, a PFNMAP region, a page that is lent already).
pub fn guest_share_host<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    ipa: IpaPfn,
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, guest) = host.with_guest(vm)?;
    let page = guest_page(&guest, ipa, &features)?;
    let share = host.vmemmap.check(page, FrameState::GuestOwned { vm })?;

    hand_over(cpu, &features, page);
    share.commit(FrameState::GuestSharedHost { vm });
    record(cpu, vm.raw(), &page, PageState::GuestOwned, PageState::GuestSharedHost);
    Ok(Reply::NONE)
}

/// Takes a guest's page back from the host.
///
/// # Errors
/// As [`guest_share_host`]; `PageState` where the page is not lent.
pub fn guest_unshare_host<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    vm: VmId,
    ipa: IpaPfn,
) -> Result<Reply, HcallError> {
    let features = *door.hypervisor().features();
    let mut host = door.lock_host();
    let (host, guest) = host.with_guest(vm)?;
    let page = guest_page(&guest, ipa, &features)?;
    let unshare = host.vmemmap.check(page, FrameState::GuestSharedHost { vm })?;

    host.stage2.unmap(page);
    hand_over(cpu, &features, page);
    unshare.commit(FrameState::GuestOwned { vm });
    record(cpu, vm.raw(), &page, PageState::GuestSharedHost, PageState::GuestOwned);
    Ok(Reply::NONE)
}

/// Commits checked host pages as table memory: the hypervisor's, mapped at EL2, zero.
pub(crate) fn donate_tables<M: Machine>(
    tables: PfnRange,
    donation: Transition<'_>,
    host_stage2: &mut M::HostStage2,
    hyp: &mut Hyp<M>,
    cpu: &mut Cpu<M>,
) {
    host_stage2.unmap(tables);
    hyp.stage1.map(tables);
    cpu.local.zero_own(tables);
    donation.commit(FrameState::HypOwned);
}

/// Gives one page of table memory back to the host, zeroed.
pub(crate) fn return_table<M: Machine>(
    table: Pfn,
    host: &mut Host<M>,
    hyp: &mut Hyp<M>,
    cpu: &mut Cpu<M>,
) {
    let page = PfnRange::single(table).expect("table past the address space: hypervisor bug");
    let owned = host.vmemmap.check(page, FrameState::HypOwned);
    let owned = owned.expect("table page of somebody else: hypervisor bug");
    cpu.local.zero_own(page);
    hyp.stage1.unmap(page);
    owned.commit(FrameState::HostOwned);
}

/// Takes back all that a dying VM borrows, run by run, each in the order of R40: translations,
/// cache lines, counts. Linear in the pages that the VM has mapped; a VM that borrows nothing costs
/// nothing.
pub(crate) fn return_all_borrowed<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    features: &Features,
    id: VmId,
    vm: &mut Vm<M>,
) {
    let limit = ipa_limit(features);
    let mut next = IpaPfn(0);
    while vm.borrowed_pages > 0 {
        let rest = limit.0.checked_sub(next.0).and_then(|pages| IpaRange::new(next, pages));
        let found = rest.and_then(|rest| vm.stage2.first_mapped(rest));
        let ipa = found.expect("fewer borrowed pages than counted: hypervisor bug");
        next = match (host.regions.binding_at(id, ipa), borrowed_run(host, vm, ipa)) {
            (Some(binding), _) => binding.ipa.end(),
            (None, None) => IpaPfn(ipa.0 + 1),
            (None, Some(pages)) => {
                let range = IpaRange::new(ipa, pages.pages()).expect("mapped: it has addresses");
                let ended = end_loan(host, cpu, features, id, vm, (pages, range));
                assert!(ended.is_ok(), "{pages} were borrowed a moment ago: hypervisor bug");
                range.end()
            }
        };
    }
}

/// Returns the adjacent frames that `vm` borrows from `ipa` on. They end where a block can: taking
/// them back splits none.
fn borrowed_run<M: Machine>(host: &Host<M>, vm: &Vm<M>, ipa: IpaPfn) -> Option<PfnRange> {
    let borrowed = |ipa: IpaPfn| {
        let pfn = vm.stage2.lookup(ipa)?.pfn;
        matches!(host.vmemmap.state(pfn), FrameState::HostSharedGuest { .. }).then_some(pfn)
    };
    let mut run = PfnRange::single(borrowed(ipa)?)?;
    loop {
        let next = IpaPfn(ipa.0 + run.pages());
        let same_block = !next.0.is_multiple_of(MAX_RANGE_PAGES);
        let longer = borrowed(next).filter(|_| same_block).and_then(|pfn| run.extended_by(pfn));
        match longer {
            Some(longer) => run = longer,
            None => return Some(run),
        }
    }
}

/// Without FEAT_S2FWB an owner can reach RAM around the caches: what changes hands is cleaned and
/// invalidated, so that no owner sees another's stale lines. Without DIC the same holds for
/// instructions that were fetched from it.
pub(crate) fn hand_over<M: Machine>(cpu: &mut Cpu<M>, features: &Features, pages: PfnRange) {
    if !features.capabilities.contains(Capabilities::FWB) {
        cpu.local.clean_invalidate(pages);
    }
    if !features.capabilities.contains(Capabilities::DIC) {
        cpu.local.forget_instructions();
    }
}

/// First intermediate page that no guest has.
pub(crate) fn ipa_limit(features: &Features) -> IpaPfn {
    IpaPfn(1 << features.guest_ipa_bits.saturating_sub(PAGE_SHIFT))
}

/// Writes the record of pages that changed state.
pub(crate) fn record<M: Machine>(
    cpu: &mut Cpu<M>,
    vm: u16,
    pages: &PfnRange,
    old: PageState,
    new: PageState,
) {
    let states = u64::from(old.raw()) << 8 | u64::from(new.raw());
    let c = u64::from(vm) << 16 | states;
    let event = Event { kind: TraceKind::Ownership, vm, a: pages.start().0, b: pages.pages(), c };
    cpu.trace.record(cpu.local.now(), event);
}

/// RAM comes in pages and 2 MiB blocks: no call moves more than one such block.
const RAM_BLOCKS: BlockSizes = BlockSizes::PAGE.with(BlockSizes::BLOCK_2M);

/// Guest RAM is always write-back (R15).
fn ram_attrs(perms: Perms) -> Stage2Attrs {
    let mem = Stage2Type::Forced(MemType::Cacheable);
    Stage2Attrs { mem, perms, tags: TagAccess::Allowed }
}

fn lend_step(state: FrameState) -> Option<FrameState> {
    match state {
        FrameState::HostOwned => Some(FrameState::HostSharedGuest { count: 1 }),
        FrameState::HostSharedGuest { count } => {
            count.checked_add(1).map(|count| FrameState::HostSharedGuest { count })
        }
        FrameState::NoPage
        | FrameState::HostSharedHyp { .. }
        | FrameState::HypOwned
        | FrameState::HypReadable
        | FrameState::GuestOwned { .. }
        | FrameState::GuestSharedHost { .. } => None,
    }
}

/// A lent page can be lent once more, but for one that is lent as often as a record can say.
#[cold]
#[allow(clippy::wildcard_enum_match_arm, reason = "one refusal among all means something else")]
fn lent_too_often(refusal: HcallError) -> HcallError {
    match refusal {
        HcallError::PageState { pfn, found: PageState::HostSharedGuest, .. } => {
            HcallError::Pinned { pfn }
        }
        other => other,
    }
}

fn return_step(state: FrameState) -> Option<FrameState> {
    match state {
        FrameState::HostSharedGuest { count: 0 | 1 } => Some(FrameState::HostOwned),
        FrameState::HostSharedGuest { count } => {
            Some(FrameState::HostSharedGuest { count: count - 1 })
        }
        FrameState::NoPage
        | FrameState::HostOwned
        | FrameState::HostSharedHyp { .. }
        | FrameState::HypOwned
        | FrameState::HypReadable
        | FrameState::GuestOwned { .. }
        | FrameState::GuestSharedHost { .. } => None,
    }
}

fn donate_step(state: FrameState, vm: VmId) -> Option<FrameState> {
    (state == FrameState::HostOwned).then_some(FrameState::GuestOwned { vm })
}

fn reclaim_step(state: FrameState, vm: VmId) -> Option<FrameState> {
    match state {
        FrameState::GuestOwned { vm: owner } | FrameState::GuestSharedHost { vm: owner } => {
            (owner == vm).then_some(FrameState::HostOwned)
        }
        FrameState::NoPage
        | FrameState::HostOwned
        | FrameState::HostSharedHyp { .. }
        | FrameState::HostSharedGuest { .. }
        | FrameState::HypOwned
        | FrameState::HypReadable => None,
    }
}

/// Checks that `ipa` can take new RAM: in range, occupied by nothing, table memory for the worst
/// case.
#[inline(always)]
fn check_target<'a, G: GuestStage2>(
    regions: &RegionTable,
    stage2: &'a mut G,
    vm: VmId,
    (pages, ipa): (PfnRange, IpaRange),
    features: &Features,
) -> Result<G::Map<'a>, HcallError> {
    check_limit(&ipa, features)?;
    let left = regions.tables_left(vm, stage2.tables_free());
    let map = stage2.plan_map(ipa.start(), pages, RAM_BLOCKS);
    let map = match (map, regions.first_bound(vm, &ipa)) {
        (Ok(map), None) => map,
        (Ok(_), Some(ipa)) => return Err(HcallError::IpaOccupied { ipa }),
        (Err(mapped), bound) => {
            let ipa = bound.map_or(mapped, |bound| bound.min(mapped));
            return Err(HcallError::IpaOccupied { ipa });
        }
    };
    check_tables(map.tables(), left)?;
    Ok(map)
}

fn check_limit(ipa: &IpaRange, features: &Features) -> Result<(), HcallError> {
    let limit = ipa_limit(features);
    if ipa.end() > limit {
        return Err(HcallError::IpaRange { ipa: ipa.start(), limit: limit.0 });
    }
    Ok(())
}

fn check_tables(needed: u64, left: u64) -> Result<(), HcallError> {
    if needed > left {
        return Err(HcallError::NoTables { needed, left });
    }
    Ok(())
}

/// The refusal for `page` of `ipa`, which does not lead to its frame of `pages`.
#[cold]
fn not_mapped(pages: &PfnRange, ipa: &IpaRange, page: IpaPfn) -> HcallError {
    HcallError::NotMapped { pfn: Pfn(pages.start().0 + (page.0 - ipa.start().0)), ipa: page }
}

/// Returns the frame behind a page that a running guest names.
fn guest_page<M: Machine>(
    guest: &Vm<M>,
    ipa: IpaPfn,
    features: &Features,
) -> Result<PfnRange, HcallError> {
    guest.check_state(VmState::Active)?;
    let limit = ipa_limit(features);
    if ipa >= limit {
        return Err(HcallError::IpaRange { ipa, limit: limit.0 });
    }
    let leaf = guest.stage2.lookup(ipa);
    leaf.and_then(|leaf| PfnRange::single(leaf.pfn))
        .ok_or(HcallError::NotMapped { pfn: Pfn(pfnguard_shared::NO_PFN), ipa })
}

#[cfg(test)]
mod tests;
