//! One call, counted: interrupts off, `isb` and the counter read right before and after it.
//!
//! With a clock that executed instructions drive, the difference is what the call executed, and
//! [`empty`]'s difference is what reading the clock costs.

use core::arch::{asm, global_asm};

use pfnguard_host_interface::Refused;

use crate::outcome::Failure;

/// Registers of a call, in and out.
pub type Registers = [u64; 8];

/// Which of two copies of the same code makes the call: a trace knows it by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Any call.
    Plain,
    /// A call of the row that is to be profiled.
    Marked,
}

// SMCCC 1.2: a call preserves x18 to x30 and SP.
global_asm!(
    r#"
.macro counted_call name, instruction
.global \name
.balign 64
\name:
    stp     x19, x20, [sp, #-32]!
    stp     x21, x30, [sp, #16]
    mov     x19, x0
    ldp     x0, x1, [x19]
    ldp     x2, x3, [x19, #16]
    ldp     x4, x5, [x19, #32]
    ldp     x6, x7, [x19, #48]
    isb
    mrs     x20, cntvct_el0
.global \name\()_instruction
\name\()_instruction:
    \instruction
    isb
    mrs     x21, cntvct_el0
    stp     x0, x1, [x19]
    stp     x2, x3, [x19, #16]
    stp     x4, x5, [x19, #32]
    stp     x6, x7, [x19, #48]
    sub     x0, x21, x20
    ldp     x21, x30, [sp, #16]
    ldp     x19, x20, [sp], #32
    ret
.endm

    counted_call bench_plain, "hvc #0"
    counted_call bench_marked, "hvc #0"
    counted_call bench_empty, ""
"#
);

unsafe extern "C" {
    fn bench_plain(regs: *mut Registers) -> u64;
    fn bench_marked(regs: *mut Registers) -> u64;
    fn bench_empty(regs: *mut Registers) -> u64;
}

/// Switches interrupts off for good: the benchmark is all that runs.
pub fn mask_interrupts() {
    // SAFETY: Nothing waits for an interrupt from here on.
    unsafe { asm!("msr daifset, #0xf", options(nostack)) };
}

/// Makes a call, whatever comes of it, and returns its cost in ticks of the counter.
pub fn raw(site: Site, regs: &mut Registers) -> u64 {
    match site {
        // SAFETY: The pointer is to eight registers; what the call does to memory is the caller's
        // wish, as with any hypercall.
        Site::Plain => unsafe { bench_plain(regs) },
        // SAFETY: As above.
        Site::Marked => unsafe { bench_marked(regs) },
    }
}

/// Makes a call that must be granted, and returns its cost in ticks of the counter.
///
/// # Errors
/// The refusal: the cost of a refused call is not what a row is about.
pub fn granted(site: Site, mut regs: Registers) -> Result<u64, Failure> {
    let ticks = raw(site, &mut regs);
    Refused::from_registers(regs)?;
    Ok(ticks)
}

/// Returns what measuring nothing costs in ticks of the counter.
pub fn empty() -> u64 {
    let mut regs = [0; 8];
    // SAFETY: The pointer is to eight registers, which are loaded and stored.
    unsafe { bench_empty(&mut regs) }
}
