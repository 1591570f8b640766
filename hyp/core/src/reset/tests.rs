use std::boxed::Box;
use std::vec::Vec;

use pfnguard_shared::{HostFunction, Status};

use crate::addr::{Pfn, PfnRange};
use crate::fake::{self, FakeMachine, IMAGE, Op, RAM, assert_consistent, call, take_log};
use crate::hypervisor::{Cpu, Hypervisor};
use crate::machine::GuestExit;
use crate::psci::PsciError;

type Hv = Hypervisor<FakeMachine>;

const SYSTEM_RESET: u64 = 0x8400_0009;
const SYSTEM_RESET2: u64 = 0x8400_0012;
const SYSTEM_RESET2_64: u64 = 0xc400_0012;
const MEM_SHARE: u64 = 0xc600_0003;
const NORMAL: u64 = 0;
const PROTECTED: u64 = 1;
/// First page that tests donate.
const PAGE: u64 = RAM.0 + 64;
/// Guest page where it appears.
const IPA: u64 = 0x8_0000;
const SECRET: &[u8; 6] = b"secret";

fn ok(regs: [u64; 8]) -> u64 {
    assert_eq!(Status::from_register(regs[0]), Some(Status::Success), "{regs:x?}");
    regs[1]
}

/// Makes a VM that owns `count` pages from `page` on.
fn vm(hv: &Hv, cpu: &mut Cpu<FakeMachine>, contract: u64, (page, count): (u64, u64)) -> u64 {
    let id = ok(call(hv, cpu, HostFunction::VmCreate, &[contract, 1, page + 32, 8]));
    ok(call(hv, cpu, HostFunction::HostDonateGuest, &[id, page, IPA, count]));
    id
}

/// Runs the VM's vCPU until the guest has lent its page at `ipa` to the host.
fn lend(hv: &Hv, cpu: &mut Cpu<FakeMachine>, vm: u64, ipa: u64) {
    cpu.local.scene(move |context| {
        context.regs[..4].copy_from_slice(&[MEM_SHARE, ipa << 12, 0, 0]);
        GuestExit::Sync { esr: 0x16 << 26, far: 0, hpfar: 0 }
    });
    ok(call(hv, cpu, HostFunction::VcpuInit, &[vm, 0, 0, 0]));
    ok(call(hv, cpu, HostFunction::VcpuRun, &[vm, 0, 0]));
}

fn smc(hv: &Hv, cpu: &mut Cpu<FakeMachine>, regs: [u64; 4]) -> u64 {
    let mut all = [0; 8];
    all[..4].copy_from_slice(&regs);
    hv.smc(cpu, &mut all);
    all[0]
}

fn pages(first: u64, count: u64) -> PfnRange {
    PfnRange::new(Pfn(first), count).unwrap()
}

fn asked(log: &[Op]) -> [u64; 4] {
    match log {
        [.., Op::Smc { regs }] => *regs,
        other => panic!("the firmware was not asked last: {other:?}"),
    }
}

#[test]
fn every_reset_is_the_plain_one_whatever_type_the_host_asks_for() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    for function in [SYSTEM_RESET, SYSTEM_RESET2, SYSTEM_RESET2_64] {
        smc(&hv, &mut cpus[0], [function, 1 << 31 | 7, 8, 9]);
        let plain = Op::Smc { regs: [SYSTEM_RESET, 0, 0, 0] };
        assert_eq!(take_log(), [plain], "{function:#x}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "every frame is looked at")]
fn r44_a_reset_zeroes_what_protected_vms_own_and_nothing_else() {
    for function in [SYSTEM_RESET, SYSTEM_RESET2, SYSTEM_RESET2_64] {
        let (hv, mut cpus) = fake::machine(Vec::new());
        let c = &mut cpus[0];
        vm(&hv, c, NORMAL, (PAGE, 2));
        let lender = vm(&hv, c, PROTECTED, (PAGE + 64, 3));
        lend(&hv, c, lender, IPA + 1);
        let dying = vm(&hv, c, PROTECTED, (PAGE + 128, 2));
        ok(call(&hv, c, HostFunction::VmTeardown, &[dying]));
        let owned = [PAGE + 64, PAGE + 65, PAGE + 66, PAGE + 128, PAGE + 129];
        let others = [PAGE, PAGE + 1, PAGE + 2, PAGE + 67, PAGE + 96, IMAGE.start().0, RAM.0];
        for page in owned.iter().chain(&others) {
            c.local.write(Pfn(*page), 0, SECRET);
        }
        take_log();
        smc(&hv, c, [function, 0, 0, 0]);
        let mut found = [1; 6];
        for page in owned {
            c.local.read(Pfn(page), 0, &mut found);
            assert_eq!(found, [0; 6], "{page:#x} after {function:#x}");
        }
        for page in others {
            c.local.read(Pfn(page), 0, &mut found);
            assert_eq!(&found, SECRET, "{page:#x} after {function:#x}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "every frame is looked at")]
fn a_protected_vm_loses_its_translations_before_its_memory() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    vm(&hv, c, PROTECTED, (PAGE, 2));
    take_log();
    smc(&hv, c, [SYSTEM_RESET, 0, 0, 0]);
    let log = take_log();
    assert!(matches!(log[0], Op::GuestUnmap { .. }), "{log:?}");
    assert_eq!(log[1], Op::Zero { range: pages(PAGE, 2) });
    assert_eq!(asked(&log[2..]), [SYSTEM_RESET, 0, 0, 0]);
}

#[test]
#[cfg_attr(miri, ignore = "every frame is looked at")]
fn a_vm_outlives_a_reset_that_the_firmware_refuses_and_can_be_torn_down() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    let id = vm(&hv, c, PROTECTED, (PAGE, 3));
    lend(&hv, c, id, IPA + 1);
    let denied = PsciError::Denied.to_register();
    for _ in 0..2 {
        c.local.answers.push_back([denied, 0, 0, 0]);
        assert_eq!(smc(&hv, c, [SYSTEM_RESET2, 0, 0, 0]), denied);
    }
    ok(call(&hv, c, HostFunction::HostDonateGuest, &[id, PAGE + 8, IPA + 8, 1]));
    ok(call(&hv, c, HostFunction::VcpuRun, &[id, 0, 0]));
    ok(call(&hv, c, HostFunction::VmTeardown, &[id]));
    for (page, count) in [(PAGE, 3), (PAGE + 8, 1)] {
        ok(call(&hv, c, HostFunction::HostReclaimGuest, &[id, page, count]));
    }
    assert_consistent(&hv);
}

#[test]
#[cfg_attr(miri, ignore = "every frame is looked at")]
fn a_reset_while_a_protected_vm_runs_elsewhere_takes_its_memory_away() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let hv: &'static Hv = Box::leak(Box::new(hv));
    let (mut other, mut own) = (cpus.pop().unwrap(), cpus.pop().unwrap());
    let id = vm(hv, &mut own, PROTECTED, (PAGE, 1));
    own.local.write(Pfn(PAGE), 0, SECRET);
    ok(call(hv, &mut own, HostFunction::VcpuInit, &[id, 0, 0, 0]));
    own.local.scene(move |_| {
        smc(hv, &mut other, [SYSTEM_RESET, 0, 0, 0]);
        // Fetches where nothing is any more.
        GuestExit::Sync { esr: 0x20 << 26 | 0b000111, far: 0, hpfar: IPA << 4 }
    });
    ok(call(hv, &mut own, HostFunction::VcpuRun, &[id, 0, 0]));
    let mut found = [1; 6];
    own.local.read(Pfn(PAGE), 0, &mut found);
    assert_eq!(found, [0; 6]);
}
