//! Exceptions of the host: calls, aborts, traps.

use arm_sysregs::el2::registers::SpsrEl2;
use pfnguard_core::addr::PhysAddr;
use pfnguard_core::host::{AbortOutcome, HostAbort};
use pfnguard_core::machine::Clock;
use pfnguard_core::trace::{Event, NO_VM};
use pfnguard_core::vcpu::syndrome::Access;
use pfnguard_shared::PAGE_SHIFT;
use pfnguard_shared::trace::TraceKind;

use crate::attempt;
use crate::inject::{Exception, into_host};
use crate::machine::Platform;
use crate::percpu::{Door, PerCpu};
use crate::syndrome::{abort, class, exception_class, fault_ipa_pfn};
use crate::sysreg::{read, write};
use crate::vectors::Frame;

/// Bytes of an A64 instruction.
const INSTRUCTION: u64 = 4;

/// `HVC #0` of the host, the path that counts. Called by the vectors, with the running CPU's slot.
pub(crate) extern "C" fn call(frame: &mut Frame, percpu: &'static PerCpu) {
    // SAFETY: the vectors pass the running CPU's slot.
    let door = unsafe { follow(percpu.door()) };
    door.hypervisor.host_call(&mut door.cpu, frame.call());
}

/// Every other synchronous exception of the host. Called by the vectors.
pub(crate) extern "C" fn other(frame: &mut Frame) {
    let esr = read!("esr_el2");
    match exception_class(esr) {
        // With an immediate: the convention knows none (SMCCC 1.2, 2.7).
        class::HVC64 => refuse_immediate(frame),
        class::SMC64 => smc(frame, esr),
        class::INSTRUCTION_ABORT_LOWER | class::DATA_ABORT_LOWER => stage2_abort(frame, esr),
        // Whatever else traps is not offered to the host: it does not exist.
        _ => undefined(esr),
    }
}

fn door() -> &'static mut Door {
    // SAFETY: the running CPU's.
    unsafe { follow(PerCpu::current().door()) }
}

/// # Safety
///
/// `door` is the running CPU's, and the CPU is here because of the host.
unsafe fn follow(door: *mut Option<Door>) -> &'static mut Door {
    // SAFETY: exceptions are masked at EL2, so each handler of this CPU runs alone and borrows once.
    let door = unsafe { &mut *door };
    // SAFETY: the host runs only after `secondary::set_up`, which was lent the open door.
    unsafe { door.as_mut().unwrap_unchecked() }
}

fn refuse_immediate(frame: &mut Frame) {
    let door = door();
    door.hypervisor.refuse_immediate(&mut door.cpu, frame.call());
}

/// A trapped SMC has not been executed: `ELR_EL2` still points at it.
fn smc(frame: &mut Frame, esr: u64) {
    const IMMEDIATE: u64 = 0xffff;
    skip();
    if esr & IMMEDIATE != 0 {
        refuse_immediate(frame);
    } else {
        let door = door();
        door.hypervisor.smc(&mut door.cpu, frame.call());
    }
}

/// Steps over the host's instruction, as if it had been executed: a single step ends there, and no landing
/// pad is due.
fn skip() {
    let pstate = SpsrEl2::from_bits_retain(read!("spsr_el2")) - SpsrEl2::SS;
    write!("spsr_el2", pstate.with_btype(0).bits());
    write!("elr_el2", read!("elr_el2").wrapping_add(INSTRUCTION));
}

fn stage2_abort(frame: &mut Frame, esr: u64) {
    let far = read!("far_el2");
    let Some(ipa) = fault_address(esr, far) else {
        // The host's own tables changed meanwhile: the instruction finds out what they say now.
        return;
    };
    let door = door();
    let pstate = read!("spsr_el2");
    let abort = HostAbort { ipa, far, esr, elr: read!("elr_el2"), pstate };
    match door.hypervisor.host_abort(&mut door.cpu, abort) {
        AbortOutcome::Resume => {}
        AbortOutcome::Inject => {
            into_host(&Platform::get().rules, Exception::refused_access(esr, far, pstate));
        }
        AbortOutcome::Absent(access) => {
            if let Access::Load(load) = access {
                load.complete(&mut frame.regs, u64::MAX);
            }
            skip();
        }
    }
}

fn undefined(esr: u64) {
    let door = door();
    let now = door.cpu.local.now();
    let event = Event { kind: TraceKind::Trap, vm: NO_VM, a: esr, b: read!("elr_el2"), c: 0 };
    door.cpu.trace.record(now, event);
    into_host(&Platform::get().rules, Exception::undefined());
}

/// Returns the page of the intermediate physical address of a stage-2 fault.
///
/// `HPFAR_EL2` is not valid after a permission fault, unless that was on a stage-1 table walk
/// (Arm ARM, `HPFAR_EL2`); then stage 1 is asked, which can have changed: `None`.
pub(crate) fn fault_address(esr: u64, far: u64) -> Option<PhysAddr> {
    let permission = esr & abort::FSC_TYPE == abort::FSC_PERMISSION;
    let pfn = if permission && esr & abort::S1PTW == 0 {
        stage1_page(far)?
    } else {
        fault_ipa_pfn(read!("hpfar_el2"))
    };
    Some(PhysAddr(pfn << PAGE_SHIFT))
}

/// Asks stage 1 of the current EL1 for the page of `address`.
fn stage1_page(address: u64) -> Option<u64> {
    const FAULTED: u64 = 1;
    /// `PAR_EL1.PA`, bits 51:12.
    const PAGE: u64 = (1 << 40) - 1;
    let saved = read!("par_el1");
    let par = attempt::translate(address);
    write!("par_el1", saved);
    (par & FAULTED == 0).then_some(par >> PAGE_SHIFT & PAGE)
}
