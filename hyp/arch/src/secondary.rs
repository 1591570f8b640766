//! CPUs coming up: the common last steps of the boot CPU and of every CPU that PSCI starts.

use log::{error, info};
use pfnguard_core::psci::HostEntry;

use crate::el2;
use crate::features::IdRegisters;
use crate::machine::{Platform, Secondary, secondary, set_secondary};
use crate::percpu::{Door, PerCpu};
use crate::tlb::Stage2Regs;
use crate::vectors;
use crate::world::Switch;

/// First Rust code of a CPU that PSCI started: MMU on, own stack. Called by the entry.
pub(crate) extern "C" fn secondary_cpu(percpu: &'static PerCpu) -> ! {
    percpu.select();
    vectors::install();
    let id = IdRegisters::read();
    if let Some(difference) = Platform::get().id.difference(&id) {
        error!("CPU {} refused: {difference}", percpu.index().0);
        crate::firmware::cpu_off();
    }
    // SAFETY: only this CPU uses its door, and this is the only borrow before the host runs.
    let door = unsafe { &mut *percpu.door() };
    let door = door.as_mut().expect("opened by the boot CPU: hypervisor bug");
    let entry = door.hypervisor.cpu_online(percpu.index());
    // SAFETY: the stack is this CPU's own, and nothing on it is needed again.
    unsafe { go(percpu, door, &id, entry, secondary().host_stage2) }
}

/// Remembers what every CPU needs to serve the host.
pub(crate) fn prepare(host_stage2: Stage2Regs) {
    set_secondary(Secondary { host_stage2 });
}

/// Enters the host on the boot CPU.
///
/// # Safety
///
/// [`prepare`] was called, the doors of all CPUs are open, and nothing on the stack is needed again.
pub(crate) unsafe fn start_host(entry: HostEntry) -> ! {
    let percpu = PerCpu::current();
    // SAFETY: the only borrow on this CPU before the host runs.
    let door = unsafe { &mut *percpu.door() };
    let door = door.as_mut().expect("opened at launch: hypervisor bug");
    let id = Platform::get().id;
    // SAFETY: the caller's promises.
    unsafe { go(percpu, door, &id, entry, secondary().host_stage2) }
}

/// Sets this CPU up for the kernel that was interrupted on it. Returns `SCTLR_EL2`, to be loaded
/// once no function of Rust is to return any more: they would find their return addresses unsigned.
///
/// # Safety
///
/// [`prepare`] was called and the doors of all CPUs are open; once for each CPU.
pub(crate) unsafe fn resume_host(percpu: &'static PerCpu) -> u64 {
    // SAFETY: the only borrow on this CPU before the host runs.
    let door = unsafe { &mut *percpu.door() };
    let door = door.as_mut().expect("opened at launch: hypervisor bug");
    let id = IdRegisters::read();
    // SAFETY: the caller's promises.
    let pauth = unsafe { set_up(door, &id, secondary().host_stage2) };
    crate::console::host_runs();
    vectors::install_host(pauth);
    let sctlr = el2::sctlr(&id).bits();
    match pauth {
        vectors::Pauth::Absent => sctlr,
        vectors::Pauth::Present => {
            // SAFETY: the vectors take the key when the host calls, not before. The kernel's own
            // stays in the register.
            unsafe { percpu.set_key(vectors::make_key(&id)) };
            vectors::signing(sctlr)
        }
    }
}

/// Sets EL2 up for the host.
///
/// # Safety
///
/// `host_stage2` is the host's and stays valid for good.
unsafe fn set_up(door: &mut Door, id: &IdRegisters, host_stage2: Stage2Regs) -> vectors::Pauth {
    let switch = Switch::new(id, el2::counters(id), host_stage2);
    // SAFETY: the host's stage 2, valid for good: the caller's promise.
    unsafe { el2::init_cpu(id, switch.host_controls(), host_stage2) };
    door.cpu.local.switch = Some(switch);
    Platform::get().pauth
}

/// Sets this CPU up and enters the host.
///
/// # Safety
///
/// As [`start_host`].
unsafe fn go(
    percpu: &'static PerCpu,
    door: &mut Door,
    id: &IdRegisters,
    entry: HostEntry,
    host_stage2: Stage2Regs,
) -> ! {
    el2::scrub_el1(id);
    // SAFETY: the caller's promises.
    let pauth = unsafe { set_up(door, id, host_stage2) };
    info!("CPU {}: host enters at {:#x}", percpu.index().0, entry.entry);
    crate::console::host_runs();
    // Functions that return after this point were entered after it: their signatures match.
    match pauth {
        vectors::Pauth::Present => vectors::load_key(percpu, vectors::make_key(id)),
        vectors::Pauth::Absent => {}
    }
    vectors::install_host(pauth);
    // SAFETY: EL2 is set up, the door is open, the stack is done with.
    unsafe { vectors::enter_host(percpu, pauth, entry.entry, entry.context) }
}
