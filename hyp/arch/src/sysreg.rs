//! Registers and instructions that arm-sysregs has no accessor for.
//!
//! [`read!`] and [`write!`] are for registers whose every value is safe at EL2: they act on lower
//! exception levels only, or on nothing before the next exception return. Those with an effect on
//! the hypervisor itself have functions of their own.

use core::arch::asm;

/// Reads a register by the name that the assembler knows.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a system register has no side effect on memory.
        unsafe {
            ::core::arch::asm!(
                concat!("mrs {0}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)
            )
        };
        value
    }};
}

/// Writes a register by the name that the assembler knows; ordered with memory accesses.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: one of the registers that this module's documentation describes.
        unsafe {
            ::core::arch::asm!(
                concat!("msr ", $name, ", {0}"), in(reg) value, options(nostack, preserves_flags)
            )
        };
    }};
}

pub(crate) use {read, write};

/// Returns `MPAMIDR_EL1.HAS_HCR` (bit 17).
pub(crate) fn mpam_has_hcr() -> bool {
    read!("s3_0_c10_c4_4") & 1 << 17 != 0
}

/// Invalidates every EL1 and EL0 translation of this CPU, of all VMIDs.
pub(crate) fn tlbi_all_el1() {
    // SAFETY: costs time, changes nothing else.
    unsafe { asm!("tlbi alle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Invalidates both stages of the current VMID on this CPU.
pub(crate) fn tlbi_this_vmid() {
    // SAFETY: costs time, changes nothing else.
    unsafe { asm!("tlbi vmalls12e1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Invalidates stage 1 of the current VMID on this CPU.
pub(crate) fn tlbi_this_vmid_stage1() {
    // SAFETY: costs time, changes nothing else.
    unsafe { asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}
