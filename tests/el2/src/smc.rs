//! Firmware calls: what is relayed, what is answered, what is filtered; and registers of EL2.

use core::arch::asm;

use pfnguard_host_interface::Pages;
use smccc::{Call, Smc, psci};

use crate::abort::Fault;
use crate::outcome::{Failure, Outcome, ensure, equal};
use crate::suite::Test;
use crate::vm::{DATA, TestVm};
use crate::{Hyp, frames, smp, suite};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("smc:smccc-version-is-answered", version),
    ("smc:psci-version-is-relayed", psci_version),
    ("smc:unknown-calls-are-refused", unknown),
    ("smc:cpu-on-into-memory-that-is-not-the-hosts-is-refused", cpu_on_foreign),
    ("smc:cpu-on-of-a-running-or-absent-cpu-is-refused", cpu_on_wrong),
    ("smc:el2-registers-are-undefined", el2_registers),
    ("smc:set-way-maintenance-does-no-harm", set_way),
    ("smc:pmu-and-debug-registers-do-no-harm", pmu_and_debug),
];

/// `NOT_SUPPORTED` in 64 bits.
const NOT_SUPPORTED: u64 = u64::MAX;

fn smc(function: u32) -> u64 {
    Smc::call64(function, [0; 17])[0]
}

/// Returns whether an answer is negative in 32 or 64 bits: firmware differs in the width.
fn is_error(answer: u64) -> bool {
    answer & (1 << 31) != 0
}

fn version() -> Outcome {
    let answer = smc(smccc::arch::SMCCC_VERSION);
    ensure(!is_error(answer) && answer >= 0x1_0001, "SMCCC_VERSION is below 1.1")
}

fn psci_version() -> Outcome {
    match psci::version::<Smc>() {
        Ok(version) => ensure(version.major >= 1, "PSCI is older than 1.0"),
        Err(_) => Err(Failure::Wrong("PSCI_VERSION was refused")),
    }
}

fn unknown() -> Outcome {
    for function in [0xc200_ffff, 0x8700_0000, 0xbf00_0000, 0xc300_0001, 0xb200_0000, 0x8400_ffff] {
        let answer = smc(function);
        let narrow = answer & 0xffff_ffff == NOT_SUPPORTED & 0xffff_ffff;
        ensure(narrow, "unknown SMC was not refused")?;
    }
    Ok(())
}

fn cpu_on_foreign() -> Outcome {
    let vm = TestVm::protected()?;
    let page = Pages::one(frames::take_one());
    Hyp::donate_guest(vm.id, page, DATA)?;
    let donated = frames::address(page.start);
    let mut refused = Ok(());
    // The CPU does not exist either: whichever reason is found first, nothing may start.
    let target = suite::context()?.second_cpu.unwrap_or(1);
    for entry in [donated, 0x4020_0000, frames::RAM_END << 12, u64::MAX] {
        let answer = psci::cpu_on::<Smc>(target, entry, 0);
        refused = refused.and(ensure(answer.is_err(), "CPU_ON into foreign memory was granted"));
    }
    vm.destroy(&[page])?;
    refused
}

fn cpu_on_wrong() -> Outcome {
    let entry = 0x4200_0000;
    let absent = psci::cpu_on::<Smc>(0xff_0000, entry, 0);
    ensure(absent.is_err(), "CPU_ON of an absent CPU was granted")?;
    let own = psci::cpu_on::<Smc>(0, entry, 0);
    ensure(own.is_err(), "CPU_ON of this CPU was granted")?;
    smp::required()?;
    let second = suite::context()?.second_cpu.ok_or(Failure::Wrong("no second CPU"))?;
    let running = psci::cpu_on::<Smc>(second, entry, 0);
    ensure(running.is_err(), "CPU_ON of a running CPU was granted")
}

/// Tries one instruction and wants it undefined.
macro_rules! undefined {
    ($line:literal) => {{
        let fault = probed!([$line] out("x9") _);
        match fault {
            Some(fault) => ensure(fault.is_undefined(), concat!($line, ": not undefined"))?,
            None => return Err(Failure::Wrong(concat!($line, ": went through"))),
        }
    }};
}

fn el2_registers() -> Outcome {
    undefined!("mrs x9, S3_4_C1_C1_0"); // HCR_EL2
    undefined!("msr S3_4_C1_C1_0, xzr");
    undefined!("mrs x9, S3_4_C2_C1_0"); // VTTBR_EL2
    undefined!("msr S3_4_C2_C1_0, xzr");
    undefined!("msr S3_4_C2_C1_2, xzr"); // VTCR_EL2
    undefined!("mrs x9, S3_4_C12_C0_0"); // VBAR_EL2
    undefined!("msr S3_4_C12_C0_0, xzr");
    undefined!("msr S3_4_C1_C0_0, xzr"); // SCTLR_EL2
    undefined!("tlbi alle1");
    undefined!("tlbi ipas2e1is, xzr");
    undefined!("at s12e1r, xzr");
    Ok(())
}

/// Passes whatever the hypervisor makes of it, as long as the host goes on.
fn harmless(fault: Option<Fault>) -> Outcome {
    match fault {
        None => Ok(()),
        Some(fault) => ensure(fault.is_undefined(), "register access met an abort"),
    }
}

fn set_way() -> Outcome {
    let page = Pages::one(frames::take_one());
    frames::fill(page, 0x5e7);
    harmless(probed!(["dc csw, xzr"] out("x9") _))?;
    harmless(probed!(["dc cisw, xzr"] out("x9") _))?;
    harmless(probed!(["dc isw, xzr"] out("x9") _))?;
    ensure(frames::is_filled(page, 0x5e7), "set/way maintenance lost data")
}

fn pmu_and_debug() -> Outcome {
    harmless(probed!(["mrs x9, pmcr_el0", "msr pmcr_el0, x9"] out("x9") _))?;
    harmless(probed!(["mrs x9, pmccntr_el0"] out("x9") _))?;
    harmless(probed!(["msr pmcntenset_el0, xzr"] out("x9") _))?;
    harmless(probed!(["mrs x9, mdscr_el1", "msr mdscr_el1, x9"] out("x9") _))?;
    harmless(probed!(["mrs x9, dbgbcr0_el1"] out("x9") _))?;
    harmless(probed!(["msr oslar_el1, xzr"] out("x9") _))?;
    harmless(probed!(["mrs x9, mdrar_el1"] out("x9") _))?;
    harmless(probed!(["mrs x9, actlr_el1", "msr actlr_el1, x9"] out("x9") _))?;
    harmless(probed!(["mrs x9, S3_0_C5_C3_0"] out("x9") _))?; // ERRIDR_EL1
    harmless(probed!(["mrs x9, S3_0_C9_C9_0"] out("x9") _))?; // PMSCR_EL1
    harmless(probed!(["mrs x9, S3_0_C9_C11_0"] out("x9") _))?; // TRBLIMITR_EL1
    // What the host has in its own registers is what it put there.
    let value: u64;
    // SAFETY: TPIDR_EL1 is this program's and unused.
    unsafe {
        asm!("msr tpidr_el1, {v}", "hvc #0", "mrs {o}, tpidr_el1", v = in(reg) 0x77u64,
            o = out(reg) value, inout("x0") 0u64 => _, out("x1") _, out("x2") _, out("x3") _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _)
    };
    equal(value, 0x77, "TPIDR_EL1 after a call")
}
