//! Letting go, in the order of R40: the guest's entry and every TLB; the host's entry, whose type
//! was forced; cache lines; contents; the reset contract. Only then may another owner's entry
//! become valid, and until then nobody else can hold the host lock.

use pfnguard_shared::info::RegionState;
use pfnguard_shared::manifest::{RegionClass, RegionFlags};
use pfnguard_shared::vm::{ContractFlags, VmState};
use pfnguard_shared::{MemType, Mode, Rule, Status, Subject};

use super::{check_tables, no_binding, region_event, set_hold};
use crate::addr::{IpaPfn, Pfn, PfnRange};
use crate::dispatch::Reply;
use crate::error::{HcallError, RuleRefusal};
use crate::hypervisor::{Cpu, Host, Unlocked};
use crate::machine::{Clock, Frames, GuestStage2, HostStage2, Machine};
use crate::manifest::Reset;
use crate::region::{Binding, BindingState, Hold, RegionId};
use crate::trace::NO_VM;
use crate::vm::{Vm, VmId};

/// PFNMAP_UNBIND: lets go of the binding that holds `ipa`. Returns x1 the region's state.
///
/// A `Poll` reset reads its register here, with the host lock held: at most the bound of the
/// manifest, which is at most `MAX_POLL_READS`.
///
/// # Errors
/// `NoObject` where no binding of the VM holds the page; `VmState`; `Contract` for what was donated
/// to a protected VM, which only its teardown ends; `NoTables` where removing the translations may
/// split a block and the pool is too small.
pub fn unbind<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: VmId,
    ipa: IpaPfn,
) -> Result<Reply, HcallError> {
    let mut guard = door.lock_host();
    let (host, mut vm) = guard.with_guest(id)?;
    vm.check_state(VmState::Active)?;
    let binding = *host.regions.binding_at(id, ipa).ok_or(no_binding(ipa))?;
    if vm.contract.contains(ContractFlags::PROTECTED) && binding.mode == Mode::Donate {
        return Err(HcallError::Contract);
    }
    if binding.state == BindingState::Mapped {
        check_tables(&host.regions, id, &vm, vm.stage2.tables_to_unmap(binding.ipa))?;
        vm.stage2.unmap(binding.ipa);
    }
    host.regions.remove(id, ipa);
    vm.bindings = vm.bindings.checked_sub(1).expect("binding count underflow: hypervisor bug");
    let state = let_go(host, cpu, &binding, vm.contract);
    Ok(Reply([u64::from(state.raw()), 0, 0, 0]))
}

/// Lets go of every binding of a VM in teardown. The caller has destroyed the VM's stage 2, so no
/// translation and no TLB entry is left (R40).
pub fn release_all<M: Machine>(host: &mut Host<M>, cpu: &mut Cpu<M>, id: VmId, vm: &mut Vm<M>) {
    while let Some(binding) = host.regions.remove_any(id) {
        let_go(host, cpu, &binding, vm.contract);
    }
    vm.bindings = 0;
}

/// Finishes the release of a binding that is out of the table and of the guest's translations.
fn let_go<M: Machine>(
    host: &mut Host<M>,
    cpu: &mut Cpu<M>,
    binding: &Binding,
    contract: ContractFlags,
) -> RegionState {
    let id = binding.region;
    let last = host.regions.region_bindings(id).next().is_none();
    let region = host.regions.get(id).expect("binding of no region: hypervisor bug");
    let (range, flags, reset) = (region.entry.range, region.entry.flags, region.entry.reset);
    let class = region.entry.class;
    if last && binding.mode == Mode::Share {
        host.stage2.unmap(range);
    }
    let cacheable = binding.mem_type == MemType::Cacheable;
    // Without maintenance by address, the manifest demands an external reset for this (M43).
    if cacheable && flags.contains(RegionFlags::CMO_BY_ADDRESS) {
        cpu.local.clean_invalidate(binding.pfns);
    }
    // What a protected VM wrote to memory of its own is not for the host (R44).
    let secret = contract.contains(ContractFlags::PROTECTED) && binding.mode == Mode::Donate;
    if flags.contains(RegionFlags::ZERO_ON_RETURN) || secret && class == RegionClass::Memory {
        zero_unheld(host, cpu, binding);
    }
    if last {
        let hold = after_reset(cpu, &reset);
        settle(host, cpu, id, hold, binding.vm);
    }
    host.regions.get(id).map_or(RegionState::Lost, |region| region.hold.state())
}

/// Zeroes the pages of a released binding that no other binding of the region holds.
fn zero_unheld<M: Machine>(host: &Host<M>, cpu: &mut Cpu<M>, binding: &Binding) {
    let mut page = binding.pfns.start();
    let end = binding.pfns.end();
    while page < end {
        let mut others = host.regions.region_bindings(binding.region).map(|other| other.pfns);
        if let Some(held) = others.find(|other| other.contains(page)) {
            page = held.end();
            continue;
        }
        let others = host.regions.region_bindings(binding.region).map(|other| other.pfns.start());
        let next = others.filter(|start| *start > page).fold(end, Pfn::min);
        if let Some(part) = PfnRange::new(page, next.0.saturating_sub(page.0)) {
            cpu.local.zero_device(part);
        }
        page = next;
    }
}

/// Tries to satisfy a reset contract (R41). A device that does not answer has not been reset (R42).
fn after_reset<M: Machine>(cpu: &mut Cpu<M>, reset: &Reset) -> Hold {
    match *reset {
        Reset::None => Hold::Free,
        Reset::Readback(register) => {
            let answer = cpu.local.read_register(register.addr, register.width);
            answer.map_or(Hold::Lost, |_| Hold::Free)
        }
        Reset::Poll { register, mask, value, bound } => {
            let read = |_| cpu.local.read_register(register.addr, register.width);
            let mut reads = (0..bound).map_while(read);
            if reads.any(|read| read & mask == value) { Hold::Free } else { Hold::Lost }
        }
        Reset::External => Hold::Quarantined,
    }
}

/// Notes what a region is after its reset. One that failed leaves a record of R42.
fn settle<M: Machine>(host: &mut Host<M>, cpu: &mut Cpu<M>, id: RegionId, hold: Hold, vm: VmId) {
    match hold {
        Hold::Free | Hold::Quarantined | Hold::Shared(_) | Hold::Donated(..) => {
            set_hold(host, cpu, id, hold, vm);
        }
        Hold::Lost => {
            let before = host.regions.set_hold(id, hold);
            let event = region_event(id, before.state(), RegionState::Lost, vm.raw());
            let error = HcallError::Rule(refuse_state(
                Rule::R42,
                Status::Busy,
                RegionState::Free,
                RegionState::Lost,
            ));
            cpu.trace.refuse(cpu.local.now(), event, &error.refusal());
        }
    }
}

/// PFNMAP_RESET: the host's driver reports that it reset the device of a region in quarantine; the
/// region is free then. Returns x1 its state.
///
/// # Errors
/// `NoObject` where there is no such region; `Rule` with R41 where it is not in quarantine, with
/// R42 where it is lost.
pub fn reset<M: Machine>(
    door: &mut Unlocked<'_, M>,
    cpu: &mut Cpu<M>,
    id: RegionId,
) -> Result<Reply, HcallError> {
    let mut guard = door.lock_host();
    let found = guard.regions.get(id)?.hold;
    match found {
        Hold::Quarantined => {}
        Hold::Lost => return Err(not_quarantined(Rule::R42, Status::Busy, found)),
        Hold::Free | Hold::Shared(_) | Hold::Donated(..) => {
            return Err(not_quarantined(Rule::R41, Status::WrongState, found));
        }
    }
    guard.regions.set_hold(id, Hold::Free);
    let event = region_event(id, found.state(), RegionState::Free, NO_VM);
    cpu.trace.record(cpu.local.now(), event);
    Ok(Reply([u64::from(RegionState::Free.raw()), 0, 0, 0]))
}

fn not_quarantined(rule: Rule, status: Status, found: Hold) -> HcallError {
    refuse_state(rule, status, RegionState::Quarantined, found.state()).into()
}

fn refuse_state(
    rule: Rule,
    status: Status,
    needed: RegionState,
    found: RegionState,
) -> RuleRefusal {
    let (requested, granted) = (u64::from(needed.raw()), u64::from(found.raw()));
    RuleRefusal { status, rule, subject: Subject::RegionState, pfn: None, requested, granted }
}
