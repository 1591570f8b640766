//! The payload on the machines of the test matrix: the bare-metal host's own tests, each CPU once
//! with two CPUs in parallel and once with instructions as the clock; and every decision of the
//! main job judged on each CPU; and random calls held against the specification. The oracle judges
//! what EL2 executes in every one of these runs.

use std::fs::{self, File};
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pfnguard_shared::PAGE_SIZE;
use pfnguard_tools::artifacts;
use pfnguard_tools::demo::Demo;
use pfnguard_tools::fuzz_machine::RandomRun;
use pfnguard_tools::fuzz_machine::replay::Tally;
use pfnguard_tools::machine::{Clock, Cpu, Host, MATRIX, Machine};
use pfnguard_tools::oracle::Oracle;
use pfnguard_tools::progress::Progress;
use pfnguard_tools::qemu::{Echo, Job};
use pfnguard_tools::suite::Suite;
use pfnguard_tools::workspace;

/// When a machine that hangs is stopped.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Host threads that machines may occupy. Races between a machine's CPUs are only seen if these
/// run at the same time, so no more machines run at once than there are host CPUs for.
struct Slots {
    free: Mutex<Option<usize>>,
    changed: Condvar,
}

static SLOTS: Slots = Slots { free: Mutex::new(None), changed: Condvar::new() };

impl Slots {
    /// Runs `job` while holding a host CPU for each CPU of the machine that runs at its own pace.
    fn hold<T>(&self, machine: Machine, job: impl FnOnce() -> T) -> T {
        let total = thread::available_parallelism().map_or(1, usize::from);
        let wanted = match machine.clock {
            Clock::Free => usize::from(machine.cpus),
            Clock::Icount => 1,
        };
        let count = wanted.min(total);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while free.unwrap_or(total) < count {
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free = Some(free.unwrap_or(total) - count);
        drop(free);
        let held = Held { slots: self, count };
        let result = job();
        drop(held);
        result
    }
}

/// Host CPUs in use; given back when dropped, also by a test that panics.
struct Held<'a> {
    slots: &'a Slots,
    count: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut free = self.slots.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = free.map(|free| free + self.count);
        self.slots.changed.notify_all();
    }
}

fn passes_its_tests(machine: Machine) {
    let (echo, progress) = (Echo::Silent, Progress::Plain);
    let (prefix, oracle) = (String::new(), Oracle::On);
    let suite = Suite { machine, prefix, timeout: TIMEOUT, echo, progress, oracle };
    match SLOTS.hold(machine, || suite.run()) {
        Ok(tally) => println!("{machine}: {tally}"),
        Err(report) => panic!("{machine}: {report}"),
    }
}

fn decides_as_specified(machine: Machine) {
    let (echo, progress) = (Echo::Silent, Progress::Plain);
    let oracle = Oracle::On;
    let demo = Demo { machine, timeout: TIMEOUT, echo, progress, oracle };
    let judged = SLOTS.hold(machine, || demo.run().and_then(|outcome| outcome.check()));
    if let Err(report) = judged {
        panic!("{machine}: {report}");
    }
}

/// Random calls and accesses of each machine's seeds: other ones for each, all of them specified.
fn does_as_specified(machine: Machine, seeds: Range<u64>) {
    for seed in seeds {
        let (echo, progress, timeout) = (Echo::Silent, Progress::Plain, TIMEOUT);
        let (calls, oracle) = (400, Oracle::On);
        let fuzz = RandomRun { machine, seed, calls, timeout, echo, progress, oracle };
        match SLOTS.hold(machine, || fuzz.run()) {
            Ok(verdict) => {
                println!("{machine}, seed {seed}: {verdict}");
                let Tally { calls, granted, entries, touches } = verdict.tally;
                assert!(granted > calls / 4 && entries > 0 && touches > 0, "nothing was tried");
            }
            Err(report) => panic!("{machine}, seed {seed}: {report}"),
        }
    }
}

/// A host that asks for a vendor's reset with secrets in RAM, which stays as it is: a file.
fn forgets_secrets_before_a_reset(machine: Machine) {
    let artifacts = artifacts::build(Progress::Plain).expect("artifacts");
    let path = workspace::output_dir().join(format!("reset.{}", workspace::unique()));
    File::create_new(&path).expect("a file for the machine's RAM");
    let (echo, progress, timeout) = (Echo::Silent, Progress::Plain, TIMEOUT);
    let (host, bootargs, ram) = (Host::BareMetal, "reset", Some(path.as_path()));
    let job = Job { machine, host, bootargs, ram, timeout, echo, progress };
    let run = SLOTS.hold(machine, || job.run_under(&Oracle::On, &artifacts));
    let ram = fs::read(&path);
    fs::remove_file(&path).expect("the file was made above");
    let (run, ram) = (run.expect("a machine"), ram.expect("the machine's RAM"));
    assert_eq!(run.problems(), Vec::<String>::new(), "{}", run.tail());
    let filled = |value: u64| {
        let page = value.to_le_bytes().repeat(PAGE_SIZE / size_of::<u64>());
        ram.chunks_exact(PAGE_SIZE).filter(|found| *found == page).count()
    };
    assert_eq!(filled(0x0ddc_0ffe_e5ec_2e75), 0, "pages of protected VMs");
    assert_eq!(filled(0x0ddc_0ffe_e0be_71c5), 2, "pages of another VM and of the host");
}

#[test]
fn neoverse_n2_forgets_secrets_before_a_reset() {
    forgets_secrets_before_a_reset(Machine::parallel(Cpu::NeoverseN2));
}

#[test]
fn cortex_a72_forgets_secrets_before_a_reset() {
    forgets_secrets_before_a_reset(Machine::counted(Cpu::CortexA72));
}

#[test]
fn neoverse_n2_smp2_does_as_specified_at_random() {
    does_as_specified(Machine::parallel(Cpu::NeoverseN2), 0..4);
}

#[test]
fn neoverse_n2_icount_does_as_specified_at_random() {
    does_as_specified(Machine::counted(Cpu::NeoverseN2), 4..8);
}

#[test]
fn cortex_a72_smp2_does_as_specified_at_random() {
    does_as_specified(Machine::parallel(Cpu::CortexA72), 8..12);
}

#[test]
fn cortex_a72_icount_does_as_specified_at_random() {
    does_as_specified(Machine::counted(Cpu::CortexA72), 12..16);
}

/// Defines the tests of each CPU, in a module of its own.
macro_rules! matrix {
    ($($name:ident = $cpu:ident,)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn smp2_passes_its_tests() {
                passes_its_tests(Machine::parallel(Cpu::$cpu));
            }

            #[test]
            fn icount_passes_its_tests() {
                passes_its_tests(Machine::counted(Cpu::$cpu));
            }

            #[test]
            fn smp2_decides_as_specified() {
                decides_as_specified(Machine::parallel(Cpu::$cpu));
            }
        })*

        #[test]
        fn the_whole_matrix_is_tested() {
            assert_eq!(MATRIX, &[$(Cpu::$cpu),*]);
        }
    };
}

matrix! {
    cortex_a72 = CortexA72,
    cortex_a76 = CortexA76,
    neoverse_n2 = NeoverseN2,
    cortex_a710 = CortexA710,
    neoverse_v1 = NeoverseV1,
}
