//! Linux as the host: late launch under a stock Debian kernel, and what refuses it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pfnguard_tools::linux::{Linux, Scenario};
use pfnguard_tools::machine::{Clock, Cpu, Machine};
use pfnguard_tools::progress::Progress;
use pfnguard_tools::qemu::Echo;

/// No machine takes as long; one that hangs ends.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Each machine has as many CPUs as others run threads: one at a time.
static ONE: Mutex<()> = Mutex::new(());

fn shows(cpu: Cpu, cpus: u8, scenario: Scenario) {
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = Machine { cpu, cpus, clock: Clock::Free };
    let (echo, progress, timeout) = (Echo::Silent, Progress::Plain, TIMEOUT);
    match (Linux { machine, scenario, timeout, echo, progress }).run() {
        Ok(tally) => println!("{machine}, {}: {tally}", scenario.name()),
        Err(report) => panic!("{machine}, {}: {report}", scenario.name()),
    }
}

#[test]
fn cortex_a72_launches() {
    shows(Cpu::CortexA72, 4, Scenario::Launch);
}

#[test]
fn cortex_a76_launches() {
    shows(Cpu::CortexA76, 4, Scenario::Launch);
}

#[test]
fn neoverse_n2_launches() {
    shows(Cpu::NeoverseN2, 4, Scenario::Launch);
}

#[test]
fn a_kernel_at_el2_is_refused() {
    shows(Cpu::NeoverseN2, 2, Scenario::Vhe);
}

#[test]
fn el2_that_is_kvms_is_refused() {
    shows(Cpu::CortexA76, 2, Scenario::Kvm);
}

#[test]
fn a_machine_without_el2_is_refused() {
    shows(Cpu::CortexA72, 2, Scenario::NoEl2);
}

#[test]
fn a_kernel_that_drives_an_its_is_refused() {
    shows(Cpu::CortexA72, 2, Scenario::Its);
}
