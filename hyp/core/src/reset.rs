//! A reset that the host asks for. RAM keeps its contents on many boards, and whoever boots next
//! reads them.

use pfnguard_shared::vm::{ContractFlags, VmState};

use crate::addr::{IpaPfn, IpaRange};
use crate::hypervisor::{Cpu, Host, Unlocked};
use crate::machine::{Firmware, Frames, GuestStage2, Machine};
use crate::ownership;
use crate::psci::function;
use crate::vm::{Vm, VmId};

/// SYSTEM_RESET: forgets what protected VMs own, then asks the firmware. Returns only where the
/// firmware refuses, with `x0`; the protected VMs have lost their memory then.
pub(crate) fn reset<M: Machine>(door: &mut Unlocked<'_, M>, cpu: &mut Cpu<M>) -> u64 {
    let limit = ownership::ipa_limit(door.hypervisor().features());
    // Held to the end: no VM gets memory any more.
    let mut host = door.lock_host();
    for id in VmId::all() {
        if let Ok((host, mut guest)) = host.with_guest(id) {
            forget(host, cpu, id, &mut guest, limit);
        }
    }
    let [result, ..] = cpu.local.smc([u64::from(function::SYSTEM_RESET), 0, 0, 0]);
    result
}

/// Zeroes what a protected VM owns, lent to the host or not. Its translations go first: one that
/// still runs neither meets zeroes where its memory was nor writes there again.
fn forget<M: Machine>(host: &Host<M>, cpu: &mut Cpu<M>, id: VmId, vm: &mut Vm<M>, limit: IpaPfn) {
    if !vm.contract.contains(ContractFlags::PROTECTED) {
        return;
    }
    match (vm.state, IpaRange::new(IpaPfn(0), limit.0)) {
        // The whole address space: no block is split, so no table is needed.
        (VmState::Active, Some(all)) => vm.stage2.unmap(all),
        (VmState::Active | VmState::Dying, _) => {}
    }
    host.vmemmap.for_each_run(|pages, state| {
        if state.owner() == Some(id) {
            cpu.local.zero(pages);
        }
    });
}

#[cfg(test)]
mod tests;
