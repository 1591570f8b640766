//! Accesses that may fault: what happened is a value, not a crash.
//!
//! A probe holds [`ARMED`] in `x14` and the address to go on at in `x17`. The vector recognises it,
//! puts the syndrome into `x16` and the address into `x15`, and goes on there. That state lives in
//! registers only, so both CPUs can probe at once.

use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_rt::{ExceptionHandlers, RegisterStateRef, exception_handlers};

use crate::cpu::read_register;

/// What a probe holds in `x14`.
pub const ARMED: u64 = 0x7072_6f62_6521_a5c3;

/// A fault that a probe met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
}

/// Exception class of an undefined instruction (Arm ARM, `ESR_EL1.EC`).
const UNDEFINED: u64 = 0x00;
/// Exception class of a trapped `MSR`, `MRS` or system instruction.
const TRAPPED_REGISTER: u64 = 0x18;
/// Exception class of an instruction abort at the same level.
const FETCH: u64 = 0x21;
/// Exception class of a data abort at the same level.
const DATA: u64 = 0x25;
/// Fault status code of an abort (Arm ARM, `ESR_EL1.ISS`).
const STATUS: u64 = 0x3f;
/// Synchronous external abort: `0b010000` of the access, `0b0101LL` of its walk at level LL.
const EXTERNAL: [u64; 5] = [0x10, 0x14, 0x15, 0x16, 0x17];
/// Alignment fault, which stands for an access that stage 2 refused.
const ALIGNMENT: u64 = 0x21;

impl Fault {
    /// Returns the exception class.
    pub fn class(&self) -> u64 {
        (self.esr >> 26) & 0x3f
    }

    /// Returns whether it is a data abort.
    pub fn is_data(&self) -> bool {
        self.class() == DATA
    }

    /// Returns whether it is the data abort by which EL2 answers an access that stage 2 refused.
    pub fn is_refused_data(&self) -> bool {
        self.is_data() && self.esr & STATUS == ALIGNMENT
    }

    /// Returns whether it is a data abort because nothing answered the access or its walk.
    pub fn is_external(&self) -> bool {
        self.is_data() && EXTERNAL.contains(&(self.esr & STATUS))
    }

    /// Returns whether it is an instruction abort.
    pub fn is_fetch(&self) -> bool {
        self.class() == FETCH
    }

    /// Returns whether the instruction was refused.
    pub fn is_undefined(&self) -> bool {
        matches!(self.class(), UNDEFINED | TRAPPED_REGISTER)
    }

    /// Returns a fault, or `None` where the probe's syndrome says that there was none.
    pub fn from_probe(esr: u64, far: u64) -> Option<Self> {
        (esr != 0).then_some(Self { esr, far })
    }
}

/// Runs instructions that may fault; yields `Option<Fault>`. `x14` to `x17` and `x30` are taken.
macro_rules! probed {
    ([$($line:literal),+] $($operands:tt)*) => {{
        let (esr, far): (u64, u64);
        // SAFETY: A fault goes on at label 2 with the registers that are declared here changed;
        // what the instructions do when they do not fault is the caller's test.
        unsafe {
            core::arch::asm!(
                "adr x17, 2f", $($line,)+ "2:", "mov x14, xzr",
                inout("x14") $crate::abort::ARMED => _, inout("x15") 0u64 => far,
                inout("x16") 0u64 => esr, out("x17") _, out("x30") _, $($operands)*
            )
        };
        $crate::abort::Fault::from_probe(esr, far)
    }};
}

/// Loads a doubleword.
pub fn load(address: u64) -> Result<u64, Fault> {
    let value: u64;
    match probed!(["ldr {v}, [{a}]"] a = in(reg) address, v = inout(reg) 0u64 => value) {
        None => Ok(value),
        Some(fault) => Err(fault),
    }
}

/// Loads a word, as device registers want it.
pub fn load32(address: u64) -> Result<u32, Fault> {
    let value: u64;
    match probed!(["ldr {v:w}, [{a}]"] a = in(reg) address, v = inout(reg) 0u64 => value) {
        None => Ok(u32::try_from(value & 0xffff_ffff).unwrap_or(0)),
        Some(fault) => Err(fault),
    }
}

/// Stores a doubleword.
pub fn store(address: u64, value: u64) -> Result<(), Fault> {
    done(probed!(["str {v}, [{a}]"] a = in(reg) address, v = in(reg) value))
}

/// Calls the code at `address`, which must be a function without arguments.
pub fn call(address: u64) -> Result<(), Fault> {
    done(probed!(["blr {a}"] a = in(reg) address, clobber_abi("C")))
}

/// Increments with an exclusive pair; a lost reservation is not repeated.
pub fn exclusive(address: u64) -> Result<(), Fault> {
    done(probed!(["ldxr {v}, [{a}]", "add {v}, {v}, #1", "stxr {s:w}, {v}, [{a}]"]
        a = in(reg) address, v = out(reg) _, s = out(reg) _))
}

/// Increments with an LSE atomic; the CPU must have them.
pub fn atomic(address: u64) -> Result<(), Fault> {
    done(probed!([".arch_extension lse", "ldadd {v}, {v}, [{a}]"]
        a = in(reg) address, v = inout(reg) 1u64 => _))
}

/// Zeroes the cache line's block with `DC ZVA`.
pub fn zero_block(address: u64) -> Result<(), Fault> {
    done(probed!(["dc zva, {a}"] a = in(reg) address))
}

/// Cleans and invalidates a line to the point of coherency.
pub fn clean_invalidate(address: u64) -> Result<(), Fault> {
    done(probed!(["dc civac, {a}"] a = in(reg) address))
}

/// Asks stage 1 for a translation: returns `PAR_EL1`.
pub fn translate(address: u64) -> Result<u64, Fault> {
    let par: u64;
    match probed!(["at s1e1r, {a}", "isb", "mrs {p}, par_el1"]
        a = in(reg) address, p = inout(reg) 0u64 => par)
    {
        None => Ok(par),
        Some(fault) => Err(fault),
    }
}

fn done(fault: Option<Fault>) -> Result<(), Fault> {
    match fault {
        None => Ok(()),
        Some(fault) => Err(fault),
    }
}

struct Vectors;
exception_handlers!(Vectors);

impl ExceptionHandlers for Vectors {
    extern "C" fn sync_current(mut state: RegisterStateRef) {
        let (esr, far) = (read_register!("esr_el1"), read_register!("far_el1"));
        if state.registers[14] != ARMED {
            crash("sync", esr, far, &state);
        }
        let resume = usize::try_from(state.registers[17]).unwrap_or(0);
        // SAFETY: The marker says that a probe runs: it wants its syndrome in x16 and x15, and to
        // go on at x17.
        let registers = unsafe { state.get_mut() };
        registers.registers[16] = esr;
        registers.registers[15] = far;
        registers.elr = resume;
    }

    extern "C" fn irq_current(state: RegisterStateRef) {
        crash("irq", 0, 0, &state);
    }

    extern "C" fn fiq_current(state: RegisterStateRef) {
        crash("fiq", 0, 0, &state);
    }

    extern "C" fn serror_current(state: RegisterStateRef) {
        crash("serror", read_register!("esr_el1"), read_register!("far_el1"), &state);
    }
}

/// Whether a CPU is on its way out: a fault on that way must not start another.
static CRASHED: AtomicBool = AtomicBool::new(false);

/// Says where the host died, and ends the machine: no `@end` line is a failed run.
fn crash(what: &str, esr: u64, far: u64, state: &RegisterStateRef<'_>) -> ! {
    while CRASHED.swap(true, Ordering::AcqRel) {
        crate::cpu::wait_for_event();
    }
    let (elr, lr) = (state.elr, state.sp);
    crate::uart::say_unlocked(format_args!(
        "@crash kind={what} esr={esr:#x} far={far:#x} elr={elr:#x} lr={lr:#x}"
    ));
    crate::power_off()
}
