//! Ways round stage 2 that a review found: each worked once.

use core::arch::asm;

use pfnguard_host_interface::{Exit, GuestValue, IpaPfn, Pages, Pfn, VcpuId};
use pfnguard_shared::Status;
use pfnguard_shared::info::RegionState;
use pfnguard_shared::manifest::RegionClass;
use pfnguard_shared::request::{MemType, Mode};
use pfnguard_shared::vm::ContractFlags;

use crate::guest_code::Program;
use crate::outcome::{Failure, Outcome, aborted, ensure, equal, refused};
use crate::suite::Test;
use crate::vm::{CODE, DATA, RWX, TestVm, VCPU, ipa_address, yielded};
use crate::{Hyp, abort, bars, frames, suite};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("escapes:host-starts-no-second-cpu-of-a-protected-guest", second_vcpu),
    ("escapes:donation-to-a-protected-guest-lasts-until-teardown", unbind_of_live_guest),
    ("escapes:protected-guest-shows-no-store-to-a-hole", hole),
    ("escapes:its-is-out-of-reach", its),
    ("escapes:cycles-of-the-hypervisor-are-not-counted", cycles),
    ("escapes:guest-does-not-reach-the-virtual-gic", virtual_gic),
];

/// A CPU that starts at the guest's own `hvc` with the host's registers would share what it wants.
fn second_vcpu() -> Outcome {
    let vm = TestVm { id: Hyp::vm_create(ContractFlags::PROTECTED, 2, frames::take(16))? };
    let other = VcpuId(1);
    let before = Hyp::vcpu_init(vm.id, other, ipa_address(CODE), 0);
    let code = Pages::one(vm.load_owned(Program::Store, ipa_address(DATA))?);
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    let ran = vm.run_to_yield();
    let after = Hyp::vcpu_init(vm.id, other, ipa_address(CODE), 0);
    let register = Hyp::vcpu_set_reg(vm.id, other, 1, ipa_address(DATA));
    let run = Hyp::vcpu_run(vm.id, other, GuestValue(0));
    vm.destroy(&[code, page])?;
    ran?;
    refused(before, Status::Denied, "second vCPU was placed before the first ran")?;
    refused(after, Status::Denied, "second vCPU was placed after the first ran")?;
    refused(register, Status::Denied, "second vCPU got a register")?;
    refused(run, Status::Busy, "second vCPU ran").map(drop)
}

/// What a protected guest stores to a region of its own never comes back to the host unasked.
fn unbind_of_live_guest() -> Outcome {
    let granted = bars::find(&suite::context()?.functions, |_, info| {
        bars::allows(info, Mode::Donate, MemType::Device) && info.class == RegionClass::Memory.raw()
    })?;
    let vm = TestVm::protected()?;
    let place = IpaPfn(0x4_0000);
    let request = bars::request(vm.id.0, &granted.bar, place.0, Mode::Donate, MemType::Device);
    Hyp::pfnmap_bind(&request)?;
    let code = Pages::one(vm.load_owned(Program::Store, ipa_address(place))?);
    vm.set(1, 0x5ec)?;
    let ran = vm.run_to_yield();
    let withdrawn = Hyp::pfnmap_unbind(vm.id, place);
    let hidden = aborted(abort::load(bars::address(&granted.bar)), "host reads a donated region");
    vm.destroy(&[code])?;
    bars::settle(granted.region, Some(RegionState::Quarantined));
    let left = abort::load(bars::address(&granted.bar))?;
    ran?;
    hidden?;
    equal(left, 0, "contents of the region after teardown")?;
    refused(withdrawn, Status::Denied, "region of a live protected guest was withdrawn").map(drop)
}

fn hole() -> Outcome {
    let vm = TestVm::protected()?;
    let code = Pages::one(vm.load_owned(Program::Store, ipa_address(DATA))?);
    vm.set(1, 0x5ec)?;
    let exit = vm.run();
    vm.destroy(&[code])?;
    ensure(matches!(exit?, Exit::Fault { .. }), "a store to a hole shows its value to the host")
}

/// The ITS writes its tables where its registers say, past every stage 2 and every SMMU.
fn its() -> Outcome {
    const GITS_CTLR: u64 = 0x0808_0000;
    aborted(abort::load32(GITS_CTLR), "host reads the ITS")?;
    aborted(abort::store(GITS_CTLR + 0x80, 1 << 63), "host writes the ITS").map(drop)
}

macro_rules! set {
    ($register:literal, $value:expr) => {
        // SAFETY: a counter of the host's own.
        unsafe { asm!(concat!("msr ", $register, ", {0}"), "isb", in(reg) $value) }
    };
}

fn cycle_count() -> u64 {
    let count: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {0}, pmccntr_el0", out(reg) count) };
    count
}

/// Returns whether EL2 can stop the cycle counter (`MDCR_EL2.HCCD`): FEAT_PMUv3p5,
/// `ID_AA64DFR0_EL1.PMUVer` of 6 or more; 15 is no PMUv3.
fn has_stoppable_cycles() -> bool {
    let dfr0: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {0}, id_aa64dfr0_el1", out(reg) dfr0) };
    (6..15).contains(&(dfr0 >> 8 & 0xf))
}

/// `PMCCFILTR_EL0`: not at EL1 (P), not at EL0 (U), at EL2 (NSH).
fn cycles() -> Outcome {
    if !has_stoppable_cycles() {
        return Err(Failure::Skip("no-FEAT_PMUv3p5"));
    }
    const EL2_ONLY: u64 = 1 << 31 | 1 << 30 | 1 << 27;
    const CYCLES: u64 = 1 << 31;
    set!("pmccfiltr_el0", EL2_ONLY);
    set!("pmcr_el0", 1u64 << 6 | 1);
    set!("pmcntenset_el0", CYCLES);
    let before = cycle_count();
    for _ in 0..100 {
        let _ = Hyp::revision();
    }
    let counted = cycle_count().wrapping_sub(before);
    set!("pmcntenclr_el0", CYCLES);
    equal(counted, 0, "cycles of EL2 that the host counted")
}

/// `msr icc_pmr_el1, x1`; then `Yield`.
const WRITE_PMR: [u64; 3] = [0xd518_4601_d280_1401, 0x72b8_c000_5280_3020, 0x1400_0000_d400_0002];

/// The write is undefined to the guest; it has no vectors, so it never comes to `Yield`.
fn virtual_gic() -> Outcome {
    let vm = TestVm::open()?;
    let page = frames::take_one();
    for (offset, words) in (0..).step_by(8).zip(WRITE_PMR) {
        frames::write(frames::address(page) + offset, words);
    }
    Hyp::share_guest(vm.id, Pages::one(Pfn(page.0)), CODE, RWX)?;
    Hyp::vcpu_init(vm.id, VCPU, ipa_address(CODE), 0)?;
    let exit: Result<Exit, Failure> = vm.run();
    vm.destroy(&[])?;
    ensure(yielded(exit?).is_err(), "guest wrote a register of the virtual GIC")
}
