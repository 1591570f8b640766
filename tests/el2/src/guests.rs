//! Guests that borrow their memory: what they can reach, and why they stop.

use pfnguard_host_interface::{Exit, GuestValue, Hvc, Hypercall, IpaPfn, Mmio, Pages, VcpuId};
use pfnguard_shared::call::GUEST_UID;
use pfnguard_shared::info::InfoSelector;
use pfnguard_shared::vm::MmioAccess;
use pfnguard_shared::{GuestFunction, HostFunction, Perms, Status};

use crate::guest_code::Program;
use crate::outcome::{Failure, Outcome, denied, ensure, equal};
use crate::suite::Test;
use crate::vm::{CODE, DATA, RW, TestVm, VCPU, accessed, faulted_at, ipa_address, yielded};
use crate::{Hyp, cpu, frames, gic};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("guests:guest-works-on-borrowed-memory", borrowed_memory),
    ("guests:unmapped-load-is-completed-by-the-host", unmapped_load),
    ("guests:signed-load-is-extended", signed_load),
    ("guests:unmapped-store-carries-its-value", unmapped_store),
    ("guests:guest-cannot-reach-host-memory-by-its-address", host_addresses),
    ("guests:read-only-page-stops-stores", read_only),
    ("guests:page-without-x-stops-fetches", no_exec),
    ("guests:wfi-is-an-exit", wait),
    ("guests:unknown-call-is-not-supported", unknown_call),
    ("guests:host-calls-are-not-the-guests", host_calls),
    ("guests:uid-and-hash-are-readable", uid_and_hash),
    ("guests:psci-power-off-is-an-exit", power),
    ("guests:smc-is-not-executed", smc),
    ("guests:undefined-instructions-go-to-its-own-vectors", undefined),
    ("guests:spinning-guest-stops-for-the-hosts-interrupt", interrupt),
    ("guests:two-guests-share-a-page", two_guests),
    ("guests:registers-of-an-open-vm-are-the-hosts", registers),
    ("guests:host-registers-survive-a-guest", host_registers),
    ("guests:vcpu-that-was-never-initialised-does-not-run", uninitialised),
];

/// An address that nothing maps in any guest.
const NOWHERE: u64 = 0x3000_0128;

/// Loads a program into an open VM, lets `check` run it, and ends it.
fn with_guest(program: Program, x0: u64, check: impl FnOnce(&TestVm) -> Outcome) -> Outcome {
    let vm = TestVm::open()?;
    vm.load(program, x0)?;
    let checked = check(&vm);
    vm.destroy(&[])?;
    checked
}

fn borrowed_memory() -> Outcome {
    with_guest(Program::Increment, ipa_address(DATA), |vm| {
        let page = vm.lend(DATA, RW)?;
        for round in 1..=3 {
            equal(vm.run_to_yield()?[0], round, "value that the guest yields")?;
            equal(frames::read(frames::address(page)), round, "value that the host sees")?;
        }
        Ok(())
    })
}

fn mmio(exit: Exit, expected: Mmio) -> Outcome {
    accessed(exit, expected.ipa)?;
    ensure(exit == Exit::Mmio(expected), "size, direction or value of the access is wrong")
}

fn unmapped_load() -> Outcome {
    with_guest(Program::Load, NOWHERE, |vm| {
        let expected = Mmio { ipa: NOWHERE, access: MmioAccess::NONE, bytes: 8, value: 0 };
        mmio(vm.run()?, expected)?;
        equal(
            yielded(vm.run_with(0x1234_5678_9abc_def0)?)?[0],
            0x1234_5678_9abc_def0,
            "loaded value",
        )
    })
}

fn signed_load() -> Outcome {
    with_guest(Program::LoadSigned, NOWHERE, |vm| {
        let expected = Mmio { ipa: NOWHERE, access: MmioAccess::SIGNED, bytes: 2, value: 0 };
        mmio(vm.run()?, expected)?;
        equal(
            yielded(vm.run_with(0xffff_0000_0000_8001)?)?[0],
            0xffff_ffff_ffff_8001,
            "extended value",
        )
    })
}

fn unmapped_store() -> Outcome {
    with_guest(Program::Store, NOWHERE, |vm| {
        vm.set(1, 0xfeed)?;
        let expected = Mmio { ipa: NOWHERE, access: MmioAccess::WRITE, bytes: 8, value: 0xfeed };
        mmio(vm.run()?, expected)?;
        equal(vm.run_to_yield()?[0], 0xfeed, "value after the store")
    })
}

fn host_addresses() -> Outcome {
    for address in [0x4200_0000, 0x4020_0000, 0x0900_0000, frames::address(frames::take_one())] {
        with_guest(Program::Load, address, |vm| accessed(vm.run()?, address))?;
    }
    Ok(())
}

fn read_only() -> Outcome {
    with_guest(Program::Store, ipa_address(DATA), |vm| {
        let page = vm.lend(DATA, Perms::READ)?;
        vm.set(1, 7)?;
        faulted_at(vm.run()?, ipa_address(DATA))?;
        equal(frames::read(frames::address(page)), 0, "contents of the read-only page")
    })
}

fn no_exec() -> Outcome {
    with_guest(Program::Execute, ipa_address(DATA), |vm| {
        let page = vm.lend(DATA, RW)?;
        frames::write(frames::address(page), crate::memory::RET);
        faulted_at(vm.run()?, ipa_address(DATA))
    })
}

fn wait() -> Outcome {
    with_guest(Program::Wait, 0, |vm| {
        ensure(vm.run()? == Exit::Wait, "WFI is no exit")?;
        equal(vm.run_to_yield()?[0], 0x77, "value after the wait")
    })
}

fn unknown_call() -> Outcome {
    for function in [0xc600_01ff, 0, u64::MAX, 0x1_c600_0181] {
        with_guest(Program::Hvc, function, |vm| {
            equal(vm.run_to_yield()?[0], Status::NotSupported.to_register(), "answer")
        })?;
    }
    Ok(())
}

fn host_calls() -> Outcome {
    for function in [HostFunction::HostShareHyp, HostFunction::VmTeardown, HostFunction::VmCreate] {
        with_guest(Program::Hvc, u64::from(function.raw()), |vm| {
            equal(vm.run_to_yield()?[0], Status::NotSupported.to_register(), "answer")
        })?;
    }
    Ok(())
}

fn uid_and_hash() -> Outcome {
    with_guest(Program::Hvc, u64::from(GuestFunction::Uid.raw()), |vm| {
        let uid = GUEST_UID.map(u64::from);
        ensure(vm.run_to_yield()? == [uid[0], uid[1], uid[2]], "UID is not the one Linux wants")
    })?;
    let hash = Hyp::info(InfoSelector::ManifestHash)?;
    with_guest(Program::Hvc, u64::from(GuestFunction::Info.raw()), |vm| {
        vm.set(1, InfoSelector::ManifestHash.raw())?;
        let [status, first, second] = vm.run_to_yield()?;
        let [third, fourth, _] = vm.run_to_yield()?;
        equal(status, 0, "status")?;
        ensure([first, second, third, fourth] == hash, "guest and host read different hashes")
    })
}

fn power() -> Outcome {
    let function = u64::from(smccc::psci::PSCI_SYSTEM_OFF);
    for program in [Program::Hvc, Program::Smc] {
        with_guest(program, function, |vm| {
            ensure(vm.run()? == Exit::Power(function), "no exit with this function")
        })?;
    }
    Ok(())
}

fn smc() -> Outcome {
    with_guest(Program::Smc, 0xc300_0001, |vm| {
        let answer = vm.run_to_yield()?[0];
        equal(answer & 0xffff_ffff, 0xffff_ffff, "answer to an unknown SMC")
    })
}

fn undefined() -> Outcome {
    with_guest(Program::Undefined, 0, |vm| {
        // FP while it is off, then CPACR_EL1 and FP if the hypervisor keeps them, then HCR_EL2.
        let mut last = [0; 3];
        for _ in 0..4 {
            let [esr, elr, status] = vm.run_to_yield()?;
            if esr == 1 {
                ensure(last[1] == HCR_READ, "reading HCR_EL2 was no exception")?;
                return Ok(());
            }
            let class = esr >> 26;
            ensure(class == 0 || class == 7, "exception is not an undefined instruction")?;
            equal(status, 0x3c5, "SPSR_EL1 of the exception")?;
            last = [esr, elr, status];
        }
        equal(vm.run_to_yield()?[0], 1, "value after the vectors")?;
        equal(last[1], HCR_READ, "place of the last exception")
    })
}

/// Where the program reads HCR_EL2.
const HCR_READ: u64 = 0x1_0020;

fn interrupt() -> Outcome {
    with_guest(Program::Spin, 0, |vm| {
        gic::start_timer(200);
        let exit = Hyp::vcpu_run(vm.id, VCPU, GuestValue(0));
        let finished = gic::finish_timer();
        ensure(exit? == Exit::Interrupt, "guest stopped for another reason")?;
        finished
    })
}

fn two_guests() -> Outcome {
    let (one, two) = (TestVm::open()?, TestVm::open()?);
    let page = Pages::one(frames::take_one());
    frames::fill(page, 0x2222);
    for vm in [&one, &two] {
        vm.load(Program::Load, ipa_address(DATA))?;
        Hyp::share_guest(vm.id, page, DATA, Perms::READ)?;
        equal(vm.run_to_yield()?[0], 0x2222, "value that a guest reads")?;
    }
    Hyp::unshare_guest(one.id, page, DATA)?;
    let shared = denied(Hyp::share_hyp(page), "page that a guest still borrows was shared");
    let second = two.run_to_yield();
    let first = one.run();
    one.destroy(&[])?;
    two.destroy(&[])?;
    shared?;
    equal(second?[0], 0x2222, "value that the second guest still reads")?;
    ensure(matches!(first?, Exit::Mmio(_)), "first guest still reads the page")?;
    Hyp::share_hyp(page)?;
    Hyp::unshare_hyp(page).map_err(Failure::from)
}

fn registers() -> Outcome {
    with_guest(Program::Store, ipa_address(DATA), |vm| {
        vm.lend(DATA, RW)?;
        vm.set(1, 0x5150)?;
        vm.set(30, 0x1e1e)?;
        vm.run_to_yield()?;
        equal(Hyp::vcpu_get_reg(vm.id, VCPU, 20)?, 0x5150, "x20 of the guest")?;
        equal(Hyp::vcpu_get_reg(vm.id, VCPU, 30)?, 0x1e1e, "x30 of the guest")?;
        denied(Hyp::vcpu_get_reg(vm.id, VCPU, 31), "register 31 exists")?;
        denied(Hyp::vcpu_get_reg(vm.id, VcpuId(1), 0), "vCPU 1 exists").map(drop)
    })
}

/// Runs a guest by hand and looks at registers that SMCCC preserves.
fn host_registers() -> Outcome {
    with_guest(Program::Increment, ipa_address(DATA), |vm| {
        vm.lend(DATA, RW)?;
        let run = [u64::from(HostFunction::VcpuRun.raw()), u64::from(vm.id.0), 0, 0, 0, 0, 0, 0];
        let kept = kept_across(|| Hvc::call(run)[0]);
        equal(kept.0, 0, "status of the run")?;
        ensure(kept.1, "a system register of the host changed")
    })
}

/// Runs `work` and says whether the host's system registers are as before.
fn kept_across(work: impl FnOnce() -> u64) -> (u64, bool) {
    let before = system_registers();
    let result = work();
    (result, before == system_registers())
}

fn system_registers() -> [u64; 9] {
    [
        cpu::read_register!("sctlr_el1"),
        cpu::read_register!("ttbr0_el1"),
        cpu::read_register!("tcr_el1"),
        cpu::read_register!("mair_el1"),
        cpu::read_register!("vbar_el1"),
        cpu::read_register!("cpacr_el1"),
        cpu::read_register!("sp_el0"),
        cpu::read_register!("tpidr_el1"),
        cpu::read_register!("contextidr_el1"),
    ]
}

fn uninitialised() -> Outcome {
    let vm = TestVm::open()?;
    let run = denied(vm.run_raw(), "vCPU ran before it was initialised");
    let elsewhere = Hyp::vcpu_init(vm.id, VCPU, ipa_address(IpaPfn(CODE.0 + 0x1000)), 0);
    let exit = vm.run();
    vm.destroy(&[])?;
    run?;
    elsewhere?;
    ensure(matches!(exit?, Exit::Fault { .. }), "fetch from nowhere is no fault")
}
