//! PFNMAP calls: everything is decided at bind and checked again at map (R30); every call is check,
//! then commit, and a refused one has changed nothing (R35).
//!
//! An announced binding keeps the table pages that installing it can take: the host cannot spend
//! them on anything else, so a guest's first access does not fail for want of tables.

mod arg_page;
mod query;
mod release;

use pfnguard_shared::info::{Capabilities, RegionState};
use pfnguard_shared::manifest::{BlockSizes, RegionClass, RegionFlags};
use pfnguard_shared::request::{HostAlias, Request, RequestFlags};
use pfnguard_shared::trace::TraceKind;
use pfnguard_shared::vm::VmState;
use pfnguard_shared::{Mode, Perms};

use crate::addr::{IpaPfn, IpaRange, PfnRange};
use crate::decide::{Applicant, BindRequest, Grant, Judge, decide};
use crate::dispatch::Reply;
use crate::error::HcallError;
use crate::hypervisor::{Cpu, Host, Unlocked};
use crate::machine::{Clock, Frames, GuestStage2, HostStage2, Machine};
use crate::region::{Binding, BindingState, Hold, RegionId, RegionTable};
use crate::trace::Event;
use crate::vm::{BoundOnce, Vm, VmId};

pub(crate) use arg_page::ArgPage;
pub use query::{Promised, check, probe, promise, region_info};
pub use release::{release_all, reset, unbind};

/// What became of a guest's stage-2 fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFault {
    /// No binding holds the page: not a matter of PFNMAP.
    Unbound,
    /// The binding was announced and is installed now: run on.
    Mapped,
    /// The binding is installed already: another vCPU was faster, or permissions forbid the access.
    AlreadyMapped,
    /// The binding cannot be installed.
    Refused(HcallError),
}

/// A bind that cannot fail any more.
struct Plan {
    grant: Grant,
    /// Table pages that installing it can take.
    tables: u64,
}

/// PFNMAP_BIND: announces a region for a VM and, with `MAP_NOW`, installs it.
///
/// # Errors
/// `Argument` for a malformed request; `NoObject` and `VmState` for the VM; `Rule` as
/// [`crate::decide`] lists; `IpaRange`, `IpaOccupied`, `Full` and `NoTables` for what the guest's
/// side lacks. Nothing has changed.
pub fn bind<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    wire: &Request,
) -> Result<Reply, HcallError> {
    let outcome = bind_decoded(door, cpu, wire);
    let (event, now) = (decision_event(wire), cpu.local.now());
    match &outcome {
        Ok(()) => cpu.trace.record(now, event),
        Err(error) => cpu.trace.refuse(now, event, &error.refusal()),
    }
    outcome.map(|()| Reply::NONE)
}

fn bind_decoded<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    wire: &Request,
) -> Result<(), HcallError> {
    let request = BindRequest::decode(wire)?;
    let ipa_limit = door.hypervisor().features().guest_ipa_limit();
    let mut guard = door.lock_host();
    let (host, mut vm) = guard.with_guest(request.vm)?;
    let plan = plan(&mut Judge::new(&host.regions), &vm, ipa_limit, &request)?;
    commit(host, cpu, &mut vm, &request, plan);
    Ok(())
}

/// Judges a request whole: the rules, then what the guest's side needs.
fn plan<M: Machine>(
    judge: &mut Judge<'_>,
    vm: &Vm<M>,
    ipa_limit: IpaPfn,
    request: &BindRequest,
) -> Result<Plan, HcallError> {
    let applicant = applicant(request.vm, vm)?;
    let grant = judge.decide::<HcallError>(applicant, request)?;
    let place = Place::of(vm, request, &grant);
    let tables = place.room(judge.table(), ipa_limit)?;
    Ok(Plan { grant, tables })
}

/// Returns the applicant that a VM is, which can still take something.
#[inline]
fn applicant<M: Machine>(id: VmId, vm: &Vm<M>) -> Result<Applicant, HcallError> {
    vm.check_state(VmState::Active)?;
    Ok(Applicant { vm: Some(id), contract: vm.contract })
}

/// What asks for room in a guest: the VM, the pages and where, in the blocks of the grant.
#[derive(Clone, Copy)]
struct Place<'a, M: Machine> {
    id: VmId,
    vm: &'a Vm<M>,
    pfns: PfnRange,
    ipa: IpaRange,
    blocks: BlockSizes,
}

impl<'a, M: Machine> Place<'a, M> {
    fn of(vm: &'a Vm<M>, request: &BindRequest, grant: &Grant) -> Self {
        let BindRequest { vm: id, pfns, ipa, .. } = *request;
        Self { id, vm, pfns, ipa, blocks: grant.blocks }
    }

    /// Checks the guest's side of a grant, and returns the table pages that installing it can take.
    fn room(&self, regions: &RegionTable, ipa_limit: IpaPfn) -> Result<u64, HcallError> {
        match self.room_at_a_glance(regions, ipa_limit) {
            Some(tables) => Ok(tables),
            None => self.find_room(regions, ipa_limit),
        }
    }

    /// Returns the table pages that installing it can take, where one glance shows that there is
    /// room; `None` says nothing. [`Self::find_room`] finds the same.
    #[inline(always)]
    fn room_at_a_glance(&self, regions: &RegionTable, ipa_limit: IpaPfn) -> Option<u64> {
        if self.ipa.end() > ipa_limit || regions.has_bindings(self.id) {
            return None;
        }
        regions.check_room(self.id).ok()?;
        let tables = self.vm.stage2.tables_if_vacant(self.ipa.start(), self.pfns, self.blocks)?;
        let left = regions.tables_left(self.id, self.vm.stage2.tables_free());
        (tables <= left).then_some(tables)
    }

    /// As [`Self::room`], step by step.
    fn find_room(&self, regions: &RegionTable, ipa_limit: IpaPfn) -> Result<u64, HcallError> {
        let Self { id, vm, pfns, ipa, blocks } = *self;
        check_ipa(&ipa, ipa_limit)?;
        let (bound, mapped) = (regions.first_bound(id, &ipa), vm.stage2.first_mapped(ipa));
        if let Some(ipa) = bound.into_iter().chain(mapped).min() {
            return Err(HcallError::IpaOccupied { ipa });
        }
        regions.check_room(id)?;
        let tables = vm.stage2.tables_to_map(ipa.start(), pfns, blocks);
        check_tables(regions, id, vm, tables)?;
        Ok(tables)
    }
}

/// Checks that the guest's address space holds `ipa`.
pub(crate) fn check_ipa(ipa: &IpaRange, ipa_limit: IpaPfn) -> Result<(), HcallError> {
    if ipa.end() > ipa_limit {
        return Err(HcallError::IpaRange { ipa: ipa.start(), limit: ipa_limit.0 });
    }
    Ok(())
}

#[inline]
fn check_tables<M: Machine>(
    regions: &RegionTable,
    id: VmId,
    vm: &Vm<M>,
    needed: u64,
) -> Result<(), HcallError> {
    let left = regions.tables_left(id, vm.stage2.tables_free());
    if needed > left {
        return Err(HcallError::NoTables { needed, left });
    }
    Ok(())
}

fn commit<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    vm: &mut Vm<M>,
    request: &BindRequest,
    plan: Plan,
) {
    let id = plan.grant.region;
    let hold = match request.mode {
        Mode::Share => Hold::Shared(request.mem_type),
        Mode::Donate => Hold::Donated(request.vm, request.mem_type),
    };
    if set_hold(host, cpu, id, hold, request.vm) == Hold::Free {
        take_from_host(host, cpu, id);
    }
    let binding = Binding {
        region: id,
        vm: request.vm,
        ipa: request.ipa,
        pfns: request.pfns,
        mode: request.mode,
        mem_type: request.mem_type,
        perms: request.perms,
        tags: plan.grant.attrs.tags,
        flags: request.flags,
        state: BindingState::Announced { reserved: plan.tables },
    };
    host.regions.add(binding);
    vm.bindings = vm.bindings.saturating_add(1);
    vm.bound_once = BoundOnce::Yes;
    if request.flags.contains(RequestFlags::MAP_NOW) {
        install(host, cpu, vm, &binding, plan.grant);
    }
}

/// Takes the host's translations of a free region away: it faults back with the forced type, or
/// not at all. Then its cache lines go, so that none is written back over what the guest writes,
/// and none hides it (R08, R10).
fn take_from_host<M: Machine>(host: &mut Host<M>, cpu: &mut Cpu<M>, id: RegionId) {
    let Ok(region) = host.regions.get(id) else { return };
    let range = region.entry.range;
    let cleanable = region.entry.flags.contains(RegionFlags::CMO_BY_ADDRESS);
    host.stage2.unmap(range);
    match region.entry.class {
        RegionClass::Memory if cleanable => cpu.local.clean_invalidate(range),
        // The host's view of these was never cacheable.
        RegionClass::Memory | RegionClass::Mmio => {}
    }
}

fn install<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    vm: &mut Vm<M>,
    binding: &Binding,
    grant: Grant,
) {
    let coherent = host.regions.capabilities().contains(Capabilities::DIC);
    if grant.attrs.perms.contains(Perms::EXEC) && !coherent {
        cpu.local.forget_instructions();
    }
    vm.stage2.map(binding.ipa.start(), binding.pfns, grant.attrs, grant.blocks);
    host.regions.set_mapped(binding.vm, binding.ipa.start());
}

/// PFNMAP_MAP: installs an announced binding; one that is installed stays as it is.
///
/// # Errors
/// `NoObject` where no binding of the VM holds the page; `VmState`; whatever [`bind`] refuses,
/// should it have become refusable.
pub fn map<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
    ipa: IpaPfn,
) -> Result<Reply, HcallError> {
    let mut guard = door.lock_host();
    let (host, mut vm) = guard.with_guest(id)?;
    vm.check_state(VmState::Active)?;
    let binding = *host.regions.binding_at(id, ipa).ok_or(no_binding(ipa))?;
    match binding.state {
        BindingState::Mapped => {}
        BindingState::Announced { .. } => map_announced(host, cpu, &mut vm, &binding)?,
    }
    Ok(Reply::NONE)
}

/// Serves a guest's stage-2 fault at `ipa`.
pub fn guest_fault<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
    ipa: IpaPfn,
) -> GuestFault {
    let mut guard = door.lock_host();
    let (host, mut vm) = match guard.with_guest(id) {
        Ok(both) => both,
        Err(gone) => return GuestFault::Refused(gone),
    };
    let Some(&binding) = host.regions.binding_at(id, ipa) else { return GuestFault::Unbound };
    match binding.state {
        BindingState::Mapped => GuestFault::AlreadyMapped,
        BindingState::Announced { .. } => match map_announced(host, cpu, &mut vm, &binding) {
            Ok(()) => GuestFault::Mapped,
            Err(refusal) => GuestFault::Refused(refusal),
        },
    }
}

/// Decides again (R30) and installs. Manifest and contract are sealed and the tables reserved, so
/// a refusal here would be one that nobody could know at bind.
fn map_announced<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    vm: &mut Vm<M>,
    binding: &Binding,
) -> Result<(), HcallError> {
    let applicant = Applicant { vm: Some(binding.vm), contract: vm.contract };
    let grant = decide(&host.regions, applicant, &announced_request(binding))?;
    assert!(grant.attrs == binding.attrs(), "a decision changed after bind: hypervisor bug");
    let needed = vm.stage2.tables_to_map(binding.ipa.start(), binding.pfns, grant.blocks);
    let left = vm.stage2.tables_free();
    if needed > left {
        return Err(HcallError::NoTables { needed, left });
    }
    install(host, cpu, vm, binding, grant);
    Ok(())
}

fn announced_request(binding: &Binding) -> BindRequest {
    BindRequest {
        vm: binding.vm,
        mode: binding.mode,
        mem_type: binding.mem_type,
        perms: binding.perms,
        flags: binding.flags,
        alias: HostAlias::None,
        pfns: binding.pfns,
        ipa: binding.ipa,
    }
}

fn no_binding(ipa: IpaPfn) -> HcallError {
    HcallError::NoObject { number: ipa.0, limit: 0 }
}

/// Changes who holds a region, records it, and returns who held it.
fn set_hold<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    id: RegionId,
    hold: Hold,
    vm: VmId,
) -> Hold {
    let before = host.regions.set_hold(id, hold);
    if before.state() != hold.state() {
        let event = region_event(id, before.state(), hold.state(), vm.raw());
        cpu.trace.record(cpu.local.now(), event);
    }
    before
}

fn region_event(id: RegionId, old: RegionState, new: RegionState, vm: u16) -> Event {
    let change = u64::from(old.raw()) << 8 | u64::from(new.raw());
    Event { kind: TraceKind::Region, vm, a: id.raw(), b: change, c: u64::from(vm) }
}

/// Returns the record of a judged request (R34).
fn decision_event(wire: &Request) -> Event {
    let kind = TraceKind::Decision;
    Event { kind, vm: wire.vm, a: wire.word().0, b: wire.pfn, c: wire.pages }
}

#[cfg(test)]
mod tests;
