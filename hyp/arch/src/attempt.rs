//! Loads from devices that may not answer, and translations by tables that may not.
//!
//! The host can switch a device off behind the hypervisor's back, so that a load ends in a
//! synchronous external abort. Host or guest can point a stage-1 table to where nothing answers:
//! `AT` takes an external abort of its walk as an exception, `PAR_EL1` does not tell it (Arm ARM,
//! `AArch64.AT`). That is input, not a bug: the vectors recognise the three instructions here and
//! the abort becomes a failure. Anything else that goes wrong at EL2 is a bug.

use core::ptr::NonNull;

use pfnguard_core::machine::RegisterWidth;

#[cfg(target_arch = "aarch64")]
use crate::pool::to_usize;

/// Loads a register; `None` where nothing answers.
///
/// # Safety
///
/// `register` must be mapped as Device, and aligned to `width`.
pub(crate) unsafe fn load(register: NonNull<u8>, width: RegisterWidth) -> Option<u64> {
    #[cfg(target_arch = "aarch64")]
    {
        let wide = match width {
            RegisterWidth::Word => 0,
            RegisterWidth::Doubleword => 1,
        };
        // SAFETY: the caller's promise.
        let loaded = unsafe { pfnguard_attempt(register.as_ptr(), wide) };
        (loaded.failed == 0).then_some(loaded.value)
    }
    #[cfg(not(target_arch = "aarch64"))]
    Some(match width {
        // SAFETY: the caller's promise.
        RegisterWidth::Word => u64::from(unsafe { register.cast::<u32>().read_volatile() }),
        // SAFETY: the caller's promise.
        RegisterWidth::Doubleword => unsafe { register.cast::<u64>().read_volatile() },
    })
}

/// Asks stage 1 of the current EL1 where `address` may be read; returns and overwrites `PAR_EL1`,
/// and may overwrite `ESR_EL2`, `FAR_EL2` and `HPFAR_EL2`.
#[cfg(target_arch = "aarch64")]
pub(crate) fn translate(address: u64) -> u64 {
    const TRANSLATE: u64 = 2;
    let address = core::ptr::without_provenance_mut(to_usize(address));
    // SAFETY: translates; changes `PAR_EL1` only.
    unsafe { pfnguard_attempt(address, TRANSLATE) }.value
}

/// What is returned in `x0` and `x1`; `value` is 1 where it failed: `PAR_EL1.F` (Arm ARM).
#[cfg(target_arch = "aarch64")]
#[repr(C)]
struct Attempted {
    value: u64,
    failed: u64,
}

#[cfg(target_arch = "aarch64")]
unsafe extern "C" {
    /// Loads a word (0) or a doubleword (1), or translates (2; `failed` is not set then).
    fn pfnguard_attempt(address: *mut u8, what: u64) -> Attempted;
}

// The exception that an attempt may take overwrites what an exception to EL2 leaves (`ELR_EL2`,
// `SPSR_EL2`), and the vectors use `SP_EL0` and `TPIDR_EL1` of the host or guest as scratch: all
// four are kept in registers meanwhile. The vectors know where the three lie: the loads 8 bytes
// apart, `AT` 24 bytes behind the first.
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    r#"
.pushsection .text.pfnguard_attempt, "ax"
.global pfnguard_attempt
.balign 16
pfnguard_attempt:
    bti     c
    mrs     x9, sp_el0
    mrs     x10, tpidr_el1
    mrs     x11, elr_el2
    mrs     x12, spsr_el2
    tbnz    x1, #1, 3f
    cbnz    x1, 1f
.global pfnguard_attempt_at
pfnguard_attempt_at:
    ldr     w0, [x0]
    b       2f
1:  ldr     x0, [x0]
2:  // The abort, should it come, comes here.
    dsb     sy
    mov     x1, xzr
    ret
.org pfnguard_attempt_at + 24
3:  at      s1e1r, x0
    isb
    mrs     x0, par_el1
    ret
.global pfnguard_attempt_failed
pfnguard_attempt_failed:
    msr     sp_el0, x9
    msr     tpidr_el1, x10
    msr     elr_el2, x11
    msr     spsr_el2, x12
    mov     x0, #1
    mov     x1, #1
    ret
.popsection
"#
);
