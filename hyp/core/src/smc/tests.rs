use std::vec::Vec;

use super::*;
use crate::fake::{self, FakeMachine, IMAGE, Op, RAM, take_log};
use crate::psci::CpuState;
use crate::vcpu::CpuIndex;

const CPU_ON_64: u64 = 0xc400_0003;
const ENTRY: u64 = (RAM.0 + 1024) << 12;

fn smc(hv: &Hypervisor<FakeMachine>, cpu: &mut Cpu<FakeMachine>, regs: [u64; 4]) -> u64 {
    let mut all = [0; 8];
    all[..4].copy_from_slice(&regs);
    hv.smc(cpu, &mut all);
    all[0]
}

fn error(error: PsciError) -> SmcAction {
    SmcAction::Answer(error.to_register())
}

#[test]
fn every_function_is_forwarded_answered_or_unknown_as_listed() {
    let entry = |entry, context| HostEntry { entry, context };
    let wide = 1 << 40 | 5;
    let table = [
        ([0x8000_0000, 0, 0, 0], SmcAction::Answer(0x1_0002)),
        ([0x8000_0001, 0x8000_0000, 0, 0], SmcAction::Answer(0)),
        ([0x8000_0001, 0x8000_8000, 0, 0], SmcAction::Forward),
        ([0x8000_0001, 0x8000_0002, 0, 0], NOT_SUPPORTED),
        ([0x8000_8000, 0, 0, 0], SmcAction::ForwardQuietly),
        ([0x8000_7fff, 0, 0, 0], SmcAction::ForwardQuietly),
        ([0x8000_3fff, 0, 0, 0], SmcAction::ForwardQuietly),
        ([0x8400_0050, 0, 0, 0], SmcAction::Forward),
        ([0x8400_0053, 0, 0, 0], SmcAction::Forward),
        ([0xc400_0053, 0, 0, 0], SmcAction::Forward),
        ([0xc400_0050, 0, 0, 0], NOT_SUPPORTED),
        ([0x8400_0000, 0, 0, 0], SmcAction::Forward),
        ([0x8400_0001, 0, 0, 0], SmcAction::ForwardQuietly),
        ([0xc400_0001, 1 << 30, 0, 0], error(PsciError::Denied)),
        ([0x8400_0001, 1 << 16, 0, 0], error(PsciError::Denied)),
        ([0x8400_0002, 0, 0, 0], SmcAction::CpuOff),
        (
            [CPU_ON_64, wide, wide, wide],
            SmcAction::CpuOn { target: wide, entry: entry(wide, wide) },
        ),
        ([0x8400_0003, wide, wide, wide], SmcAction::CpuOn { target: 5, entry: entry(5, 5) }),
        ([0xc400_0004, wide, 0, 0], SmcAction::AffinityInfo { target: wide }),
        ([0xc400_0004, 1, 1, 0], error(PsciError::InvalidParameters)),
        ([0x8400_0005, 0, 0, 0], NOT_SUPPORTED),
        ([0x8400_0006, 0, 0, 0], SmcAction::Forward),
        ([0x8400_0008, 0, 0, 0], SmcAction::Forward),
        ([0x8400_0009, 0, 0, 0], SmcAction::Reset),
        ([0x8400_000a, CPU_ON_64, 0, 0], SmcAction::Forward),
        ([0x8400_000a, 0x8000_0000, 0, 0], SmcAction::Answer(0)),
        ([0x8400_000a, 0x8400_0002, 0, 0], SmcAction::Forward),
        ([0x8400_000a, 0x8400_000a, 0, 0], SmcAction::Forward),
        ([0x8400_000a, 0x8400_000e, 0, 0], NOT_SUPPORTED),
        ([0xc400_000e, ENTRY, 0, 0], NOT_SUPPORTED),
        ([0x8400_0012, 0, 0, 0], SmcAction::Reset),
        ([0xc400_0012, 0, 0, 0], SmcAction::Reset),
        ([0xc400_0012, 1 << 31 | 5, wide, 0], SmcAction::Reset),
        ([0xc400_0014, 0, 0, 0], NOT_SUPPORTED),
        ([0xc300_0000, 0, 0, 0], NOT_SUPPORTED),
        ([0xb200_0000, 0, 0, 0], NOT_SUPPORTED),
        ([0, 0, 0, 0], NOT_SUPPORTED),
    ];
    for (regs, action) in table {
        let all = [regs[0], regs[1], regs[2], regs[3], 0, 0, 0, 0];
        assert_eq!(decide(&all), action, "{regs:x?}");
    }
}

#[test]
fn a_cpu_that_the_host_starts_enters_the_hypervisor_first() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    assert_eq!(smc(&hv, c, [CPU_ON_64, 1, ENTRY, 99]), 0);
    assert_eq!(take_log(), [Op::Smc { regs: [CPU_ON_64, 1, c.local.cpu_entry().0, 1] }]);
    assert_eq!(smc(&hv, c, [0xc400_0004, 1, 0, 0]), 2, "pending");
    assert_eq!(smc(&hv, c, [CPU_ON_64, 1, ENTRY, 0]), PsciError::OnPending.to_register());
    assert_eq!(hv.cpu_online(CpuIndex(1)), HostEntry { entry: ENTRY, context: 99 });
    assert_eq!(smc(&hv, c, [0xc400_0004, 1, 0, 0]), 0, "on");
    assert_eq!(smc(&hv, c, [CPU_ON_64, 1, ENTRY, 0]), PsciError::AlreadyOn.to_register());
    assert_eq!(take_log(), [], "the firmware heard of none of these");
}

#[test]
fn a_32_bit_cpu_on_is_relayed_with_the_whole_entry() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    assert_eq!(smc(&hv, c, [0x8400_0003, 1, ENTRY, 99]), 0);
    assert_eq!(take_log(), [Op::Smc { regs: [CPU_ON_64, 1, c.local.cpu_entry().0, 1] }]);
}

#[test]
fn a_cpu_starts_only_in_memory_that_is_the_hosts() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let ring = hv.trace_pages[0].unwrap().start().0;
    for entry in [IMAGE.start().0 << 12, ring << 12, 0x900_0000, ENTRY + 2, u64::MAX] {
        let result = smc(&hv, &mut cpus[0], [CPU_ON_64, 1, entry, 0]);
        assert_eq!(result, PsciError::InvalidAddress.to_register(), "{entry:#x}");
    }
    let unknown = smc(&hv, &mut cpus[0], [CPU_ON_64, 7, ENTRY, 0]);
    assert_eq!(unknown, PsciError::InvalidParameters.to_register());
    assert_eq!(take_log(), []);
}

#[test]
fn a_refusal_of_the_firmware_is_relayed_and_the_cpu_stays_off() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let failure = PsciError::AlreadyOn.to_register();
    cpus[0].local.answers.push_back([failure, 0, 0, 0]);
    assert_eq!(smc(&hv, &mut cpus[0], [CPU_ON_64, 1, ENTRY, 0]), failure);
    assert_eq!(smc(&hv, &mut cpus[0], [CPU_ON_64, 1, ENTRY, 0]), 0);
}

#[test]
fn a_cpu_that_could_not_go_off_is_on() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let denied = PsciError::Denied.to_register();
    cpus[0].local.answers.push_back([denied, 0, 0, 0]);
    assert_eq!(smc(&hv, &mut cpus[0], [0x8400_0002, 0, 0, 0]), denied);
    assert_eq!(hv.enter().lock_cpus().state(CpuIndex(0)), CpuState::On);
}

#[test]
fn an_unknown_call_is_answered_and_recorded_and_never_forwarded() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    let c = &mut cpus[0];
    assert_eq!(smc(&hv, c, [0xc200_0001, 1, 2, 3]), u64::MAX);
    assert_eq!(take_log(), []);
    let record = c.trace.newest().unwrap();
    assert_eq!((record.kind, record.a, record.b), (TraceKind::Smc.raw(), 0xc200_0001, u64::MAX));
}

#[test]
fn the_firmware_sees_no_upper_half_of_a_function_id() {
    let (hv, mut cpus) = fake::machine(Vec::new());
    smc(&hv, &mut cpus[0], [0xffff_ffff_8400_0000, 1, 2, 3]);
    assert_eq!(take_log(), [Op::Smc { regs: [0x8400_0000, 1, 2, 3] }]);
}

#[test]
fn a_guest_has_no_firmware_but_can_power_off() {
    assert_eq!(guest_call(0x8000_0000, 0), GuestAnswer::Value(SMCCC_1_2));
    assert_eq!(guest_call(0x8400_0008, 0), GuestAnswer::Power(0x8400_0008));
    assert_eq!(guest_call(0xc400_0012, 0), GuestAnswer::Power(0xc400_0012));
    for (id, immediate) in [(CPU_ON_64, 0), (0x8000_8000, 0), (0x8400_0008, 1)] {
        assert_eq!(guest_call(id, immediate), GuestAnswer::Value(u64::MAX));
    }
    assert!(is_firmware_call(CPU_ON_64) && is_firmware_call(0x8000_0000));
    assert!(!is_firmware_call(0x8600_ff01) && !is_firmware_call(0));
}

/// SMCCC 1.3, 2.5: bit 16 of a fast call says that there is no SVE state to keep.
#[test]
fn a_hint_on_sve_state_changes_no_call() {
    const HINT: u64 = 1 << 16;
    for id in [psci::VERSION, psci::CPU_OFF, psci::SYSTEM_OFF, function::SMCCC_VERSION] {
        let plain = decide(&[u64::from(id), 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decide(&[u64::from(id) | HINT, 0, 0, 0, 0, 0, 0, 0]), plain, "{id:#x}");
    }
    // In a yielding call the bit is part of the number.
    assert_eq!(decide(&[HINT, 0, 0, 0, 0, 0, 0, 0]), NOT_SUPPORTED);
}
