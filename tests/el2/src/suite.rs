//! Every attack, in one table.

use spin::Once;

use crate::dtb::Machine;
use crate::outcome::{Dashed, Failure, Outcome};
use crate::pci::Functions;
use crate::{
    calls, escapes, gic, guests, guests_own, guests_protected, handover, malformed, memory,
    ownership, pfnmap, races, races_args, races_guest, registers, smc, smp, tables, vm, walks,
};

/// A test: its name is what a run selects and reports.
pub type Test = (&'static str, fn() -> Outcome);

/// Every test, quiet ones first: what follows a failure may be its consequence.
const TESTS: &[&[Test]] = &[
    calls::TESTS,
    smc::TESTS,
    registers::TESTS,
    memory::TESTS,
    walks::TESTS,
    ownership::TESTS,
    tables::TESTS,
    guests::TESTS,
    guests_own::TESTS,
    guests_protected::TESTS,
    pfnmap::TESTS,
    handover::TESTS,
    escapes::TESTS,
    malformed::TESTS,
    races::TESTS,
    races_args::TESTS,
    races_guest::TESTS,
];

/// What tests need to know of the machine.
pub struct Context {
    /// Functions on the bus.
    pub functions: Functions,
    /// Where a second CPU would be started.
    pub second_cpu: Option<u64>,
}

static CONTEXT: Once<Context> = Once::new();

/// Returns what is known of the machine.
///
/// # Errors
/// Before [`run`].
pub fn context() -> Result<&'static Context, Failure> {
    CONTEXT.get().ok_or(Failure::Wrong("no context"))
}

/// Runs every test whose name starts with `prefix` and prints the `@end` line.
pub fn run(machine: &Machine, functions: Functions, prefix: &str) {
    let second_cpu = machine.second_cpu();
    CONTEXT.call_once(|| Context { functions, second_cpu });
    let (mut passed, mut failed) = (0, 0);
    let set_up = vm::set_up_arguments();
    let started = second_cpu.map_or(Ok(()), smp::start);
    let timer = gic::enable_timer_interrupt();
    for (what, outcome) in [("arguments", set_up), ("second-cpu", started), ("timer", timer)] {
        if let Err(failure) = outcome {
            failed += 1;
            say!("@test fail name=set-up:{what} why={}", Dashed(failure));
        }
    }
    let all = TESTS.iter().flat_map(|group| group.iter());
    for (name, test) in all.filter(|(name, _)| name.starts_with(prefix)) {
        say!("@test begin name={name}");
        match test() {
            Ok(()) => {
                passed += 1;
                say!("@test ok name={name}");
            }
            Err(skip @ Failure::Skip(_)) => say!("@test skip name={name} why={}", Dashed(skip)),
            Err(failure) => {
                failed += 1;
                say!("@test fail name={name} why={}", Dashed(failure));
            }
        }
    }
    say!("@end passed={passed} failed={failed}");
}
