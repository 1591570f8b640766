use std::boxed::Box;
use std::vec::Vec;

use pfnguard_shared::call::GUEST_UID;
use pfnguard_shared::{HostFunction, PAGE_SIZE, Status};

use super::*;
use crate::fake::{self, FakeMachine, RAM, call};
use crate::hypervisor::Hypervisor;

type Hv = Hypervisor<FakeMachine>;
type FakeCpu = Cpu<FakeMachine>;

const IPA: u64 = 0x8_0000;
const PROTECTED: u64 = 1;
const DATA: u64 = 0x24 << 26 | 0b000110;
const HVC: u64 = 0x16 << 26;
const SMC: u64 = 0x17 << 26;

fn sync(esr: u64) -> GuestExit {
    GuestExit::Sync { esr, far: 0, hpfar: 0 }
}

fn fault(esr: u64, address: u64) -> GuestExit {
    GuestExit::Sync { esr, far: address & 0xfff, hpfar: address >> 12 << 4 }
}

fn reason(reason: ExitReason) -> [u64; 2] {
    [0, reason.raw()]
}

/// VM 0 with one initialised vCPU at entry 0x1000, on a hypervisor that outlives every scene.
fn world(contract: u64) -> (&'static Hv, Vec<FakeCpu>) {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    call(&hv, c, HostFunction::VmCreate, &[contract, 2, RAM.0, 8]);
    call(&hv, c, HostFunction::VcpuInit, &[0, 0, 0x1000, 42]);
    (Box::leak(Box::new(hv)), cpus)
}

fn run(hv: &Hv, cpu: &mut FakeCpu, load: u64) -> [u64; 8] {
    call(hv, cpu, HostFunction::VcpuRun, &[0, 0, load])
}

#[test]
fn a_guest_starts_at_its_entry_and_goes_on_where_it_stopped() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    c.local.scene(|context| {
        assert_eq!((context.pc, context.regs[0]), (0x1000, 42));
        context.pc = 0x2000;
        GuestExit::Interrupt
    });
    c.local.scene(|context| {
        assert_eq!(context.pc, 0x2000);
        sync(0x01 << 26)
    });
    c.local.scene(|context| {
        assert_eq!(context.pc, 0x2004, "stepped over WFI");
        GuestExit::SError
    });
    assert_eq!(run(hv, c, 0)[..2], reason(ExitReason::Interrupt));
    assert_eq!(run(hv, c, 0)[..2], reason(ExitReason::Wait));
    assert_eq!(run(hv, c, 0)[..3], [0, ExitReason::Unsupported.raw(), 0x2f]);
}

#[test]
fn a_load_from_nowhere_is_completed_by_the_host() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    // A halfword, sign-extended to 64 bits, into x5.
    let load = DATA | 1 << 24 | 0b01 << 22 | 1 << 21 | 5 << 16 | 1 << 15;
    c.local.scene(move |_| fault(load, 0x900_0018));
    c.local.scene(|context| {
        assert_eq!((context.regs[5], context.pc), (0xffff_ffff_ffff_8001, 0x1004));
        GuestExit::Interrupt
    });
    let access = MmioAccess::SIGNED.raw() | 2 << 8;
    assert_eq!(run(hv, c, 0)[..5], [0, ExitReason::Mmio.raw(), 0x900_0018, access, 0]);
    assert_eq!(run(hv, c, 0x8001)[..2], reason(ExitReason::Interrupt));
}

#[test]
fn a_store_to_nowhere_shows_the_host_one_value_of_its_size() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    c.local.scene(|context| {
        context.regs[7] = 0x1122_3344_5566_7788;
        context.regs[8] = 0x5ec2e7;
        fault(DATA | 1 << 24 | 0b10 << 22 | 7 << 16 | 1 << 6, 0x900_0000)
    });
    let access = MmioAccess::WRITE.raw() | 4 << 8;
    let regs = run(hv, c, 0);
    assert_eq!(regs, [0, ExitReason::Mmio.raw(), 0x900_0000, access, 0x5566_7788, 0, 0, 0]);
}

#[test]
fn a_protected_guest_shows_no_value_of_an_access_to_nowhere() {
    let (hv, mut cpus) = world(PROTECTED);
    let c = &mut cpus[0];
    c.local.scene(|context| {
        context.regs[7] = 0x5ec2e7;
        fault(DATA | 1 << 24 | 0b10 << 22 | 7 << 16 | 1 << 6, 0x900_0000)
    });
    assert_eq!(run(hv, c, 0), [0, ExitReason::Fault.raw(), 0x900_0000, 0, 0, 0, 0, 0]);
}

#[test]
fn the_host_places_only_the_first_vcpu_of_a_protected_vm_and_only_before_anything_ran() {
    use HostFunction as F;
    let (hv, mut cpus) = world(PROTECTED);
    let c = &mut cpus[0];
    let denied = Status::Denied.to_register();
    assert_eq!(call(hv, c, F::VcpuInit, &[0, 1, 0x1000, 0])[0], denied);
    assert_eq!(call(hv, c, F::VcpuSetReg, &[0, 1, 3, 7])[0], denied);
    assert_eq!(call(hv, c, F::VcpuSetReg, &[0, 0, 3, 7])[0], 0);
    c.local.scene(|_| GuestExit::Interrupt);
    run(hv, c, 0);
    assert_eq!(call(hv, c, F::VcpuInit, &[0, 1, 0x1000, 0])[0], denied);
    assert_eq!(call(hv, c, F::VcpuSetReg, &[0, 0, 3, 7])[0], denied);
}

#[test]
fn an_access_without_syndrome_a_fetch_and_a_forbidden_access_are_faults() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    let fetch = 0x20 << 26 | 0b000110;
    let permission = DATA & !0x3f | 0b001111 | 1 << 24;
    for esr in [DATA, fetch, permission] {
        c.local.scene(move |_| fault(esr, 0x900_0123));
        assert_eq!(run(hv, c, 0)[..3], [0, ExitReason::Fault.raw(), 0x900_0123]);
    }
}

#[test]
fn a_fault_on_ram_that_was_mapped_meanwhile_is_repeated() {
    let (hv, mut cpus) = world(0);
    let mut other = cpus.pop().unwrap();
    let c = &mut cpus[0];
    c.local.scene(move |_| {
        // No lock is held while a guest runs: another CPU can work on the same VM.
        let donate = [0, RAM.0 + 64, IPA, 1];
        assert_eq!(call(hv, &mut other, HostFunction::HostDonateGuest, &donate)[0], 0);
        fault(DATA | 1 << 24, IPA << 12)
    });
    assert_eq!(run(hv, c, 0)[..2], reason(ExitReason::Interrupt));
}

#[test]
fn a_running_vcpu_is_busy_and_keeps_its_vm_alive() {
    use HostFunction as F;
    let (hv, mut cpus) = world(0);
    let mut other = cpus.pop().unwrap();
    cpus[0].local.scene(move |_| {
        for (function, args) in [
            (F::VmTeardown, [0, 0, 0, 0]),
            (F::VcpuRun, [0, 0, 0, 0]),
            (F::VcpuInit, [0, 0, 0, 0]),
            (F::VcpuGetReg, [0, 0, 0, 0]),
            (F::VcpuSetReg, [0, 0, 0, 0]),
        ] {
            let regs = call(hv, &mut other, function, &args);
            assert_eq!(Status::from_register(regs[0]), Some(Status::Busy), "{function:?}");
        }
        GuestExit::Interrupt
    });
    assert_eq!(run(hv, &mut cpus[0], 0)[0], 0);
    assert_eq!(call(hv, &mut cpus[0], F::VmTeardown, &[0])[0], 0);
    let dead = run(hv, &mut cpus[0], 0);
    assert_eq!(Status::from_register(dead[0]), Some(Status::WrongState));
}

#[test]
fn a_vcpu_exists_is_initialised_and_is_not_reset_after_it_ran() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    let status = |regs: [u64; 8]| Status::from_register(regs[0]).unwrap();
    assert_eq!(status(call(hv, c, HostFunction::VcpuRun, &[0, 1, 0])), Status::Busy);
    assert_eq!(status(call(hv, c, HostFunction::VcpuRun, &[0, 2, 0])), Status::NotFound);
    assert_eq!(status(call(hv, c, HostFunction::VcpuRun, &[1, 0, 0])), Status::NotFound);
    run(hv, c, 0);
    assert_eq!(status(call(hv, c, HostFunction::VcpuInit, &[0, 0, 0, 0])), Status::Busy);
}

#[test]
fn registers_of_a_protected_vm_are_hidden_once_it_ran() {
    use HostFunction as F;
    let status = |regs: [u64; 8]| Status::from_register(regs[0]).unwrap();
    let (hv, mut cpus) = world(PROTECTED);
    let c = &mut cpus[0];
    assert_eq!(status(call(hv, c, F::VcpuSetReg, &[0, 0, 1, 9])), Status::Success);
    assert_eq!(status(call(hv, c, F::VcpuGetReg, &[0, 0, 1])), Status::Denied);
    c.local.scene(|context| {
        assert_eq!(context.regs[1], 9);
        GuestExit::Interrupt
    });
    run(hv, c, 0);
    assert_eq!(status(call(hv, c, F::VcpuSetReg, &[0, 0, 1, 8])), Status::Denied);

    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    run(hv, c, 0);
    call(hv, c, F::VcpuSetReg, &[0, 0, 30, 8]);
    assert_eq!(call(hv, c, F::VcpuGetReg, &[0, 0, 30])[..2], [0, 8]);
}

#[test]
fn what_is_trapped_is_undefined_for_the_guest() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    c.local.scene(|context| {
        context.sysregs.vbar_el1 = 0x4_0000;
        sync(0x18 << 26)
    });
    c.local.scene(|context| {
        assert_eq!((context.pc, context.sysregs.elr_el1), (0x4_0200, 0x1000));
        sync(0x30 << 26)
    });
    assert_eq!(run(hv, c, 0)[..3], [0, ExitReason::Unsupported.raw(), 0x30]);
}

/// Makes the guest call and returns its `x0..=x4`.
fn guest_regs(hv: &Hv, cpu: &mut FakeCpu, regs: [u64; 4]) -> [u64; 5] {
    let answer = std::sync::Arc::new(std::sync::Mutex::new([0; 5]));
    let copy = std::sync::Arc::clone(&answer);
    cpu.local.scene(move |context| {
        context.regs[..4].copy_from_slice(&regs);
        sync(HVC)
    });
    cpu.local.scene(move |context| {
        copy.lock().unwrap().copy_from_slice(&context.regs[..5]);
        GuestExit::Interrupt
    });
    run(hv, cpu, 0);
    *answer.lock().unwrap()
}

#[test]
fn a_stock_guest_finds_its_service() {
    let (hv, mut cpus) = world(PROTECTED);
    let c = &mut cpus[0];
    assert_eq!(guest_regs(hv, c, [0x8600_ff01, 0, 0, 0])[..4], GUEST_UID.map(u64::from));
    assert_eq!(guest_regs(hv, c, [0x8600_0000, 0, 0, 0])[..2], [0b11101, 0]);
    let granule = u64::try_from(PAGE_SIZE).unwrap();
    assert_eq!(guest_regs(hv, c, [0xc600_0002, 0, 0, 0])[0], granule);
    assert_eq!(guest_regs(hv, c, [0x8000_0000, 0, 0, 0])[0], 0x1_0002);
    let written = c.trace.written();
    assert_eq!(guest_regs(hv, c, [0xc600_0007, 0, 0, 0])[0], u64::MAX);
    let record = c.trace.record_at(written).unwrap();
    assert_eq!((record.kind, record.vm, record.a), (2, 0, 0xc600_0007));
}

#[test]
fn a_refused_guest_learns_no_physical_address() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    call(hv, c, HostFunction::HostShareGuest, &[0, RAM.0 + 64, IPA, 1, 7]);
    let refused = guest_regs(hv, c, [0xc600_0003, IPA << 12, 0, 0]);
    assert_eq!(refused[0], Status::WrongState.to_register());
    assert_eq!(refused[2..], [u64::MAX, 0, 0]);
}

#[test]
fn a_guest_yields_and_powers_off_by_either_conduit() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    c.local.scene(|context| {
        context.regs[..4].copy_from_slice(&[0xc600_0181, 1, 2, 3]);
        sync(HVC)
    });
    assert_eq!(run(hv, c, 0)[..5], [0, ExitReason::Yield.raw(), 1, 2, 3]);
    for (conduit, pc) in [(HVC, 0x1000), (SMC, 0x1004)] {
        c.local.scene(move |context| {
            assert_eq!(context.regs[0] & 0xffff_ffff, context.regs[0]);
            context.regs[0] = 0x8400_0008;
            sync(conduit)
        });
        assert_eq!(run(hv, c, 0)[..3], [0, ExitReason::Power.raw(), 0x8400_0008]);
        c.local.scene(move |context| {
            assert_eq!(context.pc, pc, "only a trapped SMC is stepped over here");
            GuestExit::Interrupt
        });
        run(hv, c, 0);
    }
}

#[test]
fn r23_a_guest_is_told_what_it_was_promised() {
    let (hv, mut cpus) = world(0);
    let c = &mut cpus[0];
    call(hv, c, HostFunction::HostDonateGuest, &[0, RAM.0 + 64, IPA, 3]);
    call(hv, c, HostFunction::HostShareGuest, &[0, RAM.0 + 80, IPA + 3, 2, 1]);
    let query = |c: &mut _, ipa, pages| {
        let regs = guest_regs(hv, c, [0xc600_0180, ipa, pages, 0]);
        [regs[0], regs[1], regs[2]]
    };
    let cacheable = 3 << 8;
    let own = 0b11_0001 << 16 | cacheable | 7;
    let lent = 0b11_0101 << 16 | cacheable | 1;
    assert_eq!(query(c, IPA, 100), [0, own, 3]);
    assert_eq!(query(c, IPA + 2, 100), [0, own, 1]);
    assert_eq!(query(c, IPA + 3, 100), [0, lent, 2]);
    assert_eq!(query(c, IPA + 5, 100), [0, 0, 100]);
    assert_eq!(query(c, IPA - 7, 100), [0, 0, 7]);
    let far = query(c, 1 << 28, 1);
    assert_eq!(far[0], Status::InvalidParameter.to_register());
}
