//! Linux as the host: late launch under a stock Debian kernel, and what refuses it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pfnguard_tools::linux::{Linux, Scenario};
use pfnguard_tools::machine::{Clock, Cpu, Machine};
use pfnguard_tools::progress::Progress;
use pfnguard_tools::qemu::Echo;
use pfnguard_tools::viewer::map::Map;
use pfnguard_tools::viewer::owner::Owners;
use pfnguard_tools::viewer::ring::Ring;
use pfnguard_tools::viewer::snapshot::Snapshot;
use tar::Archive;

/// No machine takes as long; one that hangs ends.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Each machine has as many CPUs as others run threads: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Units of CPUs that have none of the optional ones.
const OLD: &str = "sve=None pauth=None mte=None";

/// A launch, and then what the viewers make of debugfs.
fn launches(cpu: Cpu, units: &str) {
    let launched = shows(cpu, 4, Scenario::Launch);
    units_are_used(units, &std::fs::read_to_string(launched.log()).unwrap());
    let mut archive = Archive::new(File::open(launched.disk()).unwrap());
    let (mut cpus, mut maps) = (BTreeSet::new(), 0);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        match name.as_str() {
            "map" => {
                maps += 1;
                owners_are_shown(&String::from_utf8(bytes).unwrap());
            }
            _ if name.starts_with("trace/cpu") => {
                let rings = Ring::read_all(&name, &bytes).unwrap();
                cpus.extend(rings.iter().flat_map(|ring| ring.events(0)).map(|e| e.cpu));
            }
            _ => {}
        }
    }
    assert_eq!((cpus, maps), (BTreeSet::from([0, 1, 2, 3]), 1), "CPUs with records, maps");
}

/// What the units of each CPU did, before the launch and after it, is what such a CPU's units do.
fn units_are_used(units: &str, log: &str) {
    for number in 0..4 {
        let of_cpu = format!("unit cpu={number} ");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&of_cpu)).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        let expected = format!("{units} cycles=true watched=8 stepped=8");
        assert!(lines.iter().all(|line| line.trim_end().ends_with(&expected)), "{lines:?}");
    }
}

/// `program hold` has one page of RAM and edu's BAR for its VM alone.
fn owners_are_shown(text: &str) {
    let snapshot = Snapshot::read("map", text).unwrap();
    let owners = Owners::of(&snapshot);
    assert!(owners.problems.is_empty(), "{:?}\n{text}", owners.problems);
    let table = Map::new(&snapshot).table();
    let of_vm: Vec<&str> = table.lines().filter(|line| line.contains("VM 0 (program/")).collect();
    assert_eq!(of_vm.len(), 2, "{table}");
    assert!(of_vm[0].contains("Device") && of_vm[0].ends_with("edu-bar0"), "{table}");
    assert!(of_vm[1].contains("Cacheable") && of_vm[1].ends_with("RAM"), "{table}");
}

fn linux(cpu: Cpu, cpus: u8, scenario: Scenario) -> Linux {
    let machine = Machine { cpu, cpus, clock: Clock::Free };
    let (echo, progress, timeout) = (Echo::Silent, Progress::Plain, TIMEOUT);
    Linux { machine, scenario, timeout, echo, progress }
}

/// Runs a scenario.
fn shows(cpu: Cpu, cpus: u8, scenario: Scenario) -> Linux {
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let linux = linux(cpu, cpus, scenario);
    let machine = linux.machine;
    match linux.run() {
        Ok(tally) => println!("{machine}, {}: {tally}", scenario.name()),
        Err(report) => panic!("{machine}, {}: {report}", scenario.name()),
    }
    linux
}

#[test]
fn cortex_a72_launches() {
    launches(Cpu::CortexA72, OLD);
}

#[test]
fn cortex_a76_launches() {
    launches(Cpu::CortexA76, OLD);
}

#[test]
fn neoverse_n2_launches() {
    launches(Cpu::NeoverseN2, "sve=Some(16) pauth=Some(true) mte=Some(true)");
}

#[test]
fn the_main_job_is_as_specified() {
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for cpu in [Cpu::CortexA72, Cpu::CortexA76, Cpu::NeoverseN2] {
        let linux = linux(cpu, 4, Scenario::Demo);
        if let Err(report) = linux.demo().and_then(|outcome| outcome.check()) {
            panic!("{}: {report}", linux.machine);
        }
    }
}

#[test]
fn kexec_becomes_a_restart() {
    let log = std::fs::read_to_string(shows(Cpu::CortexA72, 2, Scenario::Kexec).log()).unwrap();
    assert!(log.contains("pfnguard: no kexec: "), "{log}");
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
