//! Loads from devices that may not answer.
//!
//! The host can switch a device off behind the hypervisor's back, so that a load ends in a
//! synchronous external abort. That is input, not a bug: the vectors recognise the two loads here
//! and the abort becomes `None`. Anything else that goes wrong at EL2 is a bug.

use core::ptr::NonNull;

use pfnguard_core::machine::RegisterWidth;

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
        let loaded = unsafe { pfnguard_device_load(register, wide) };
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

/// What the load returns in `x0` and `x1`.
#[cfg(target_arch = "aarch64")]
#[repr(C)]
struct Loaded {
    value: u64,
    failed: u64,
}

#[cfg(target_arch = "aarch64")]
unsafe extern "C" {
    fn pfnguard_device_load(register: NonNull<u8>, wide: u64) -> Loaded;
}

// The exception that a load may take overwrites what an exception to EL2 leaves (`ELR_EL2`,
// `SPSR_EL2`), and the vectors use `SP_EL0` and `TPIDR_EL1` of the host as scratch: all four are
// kept in registers meanwhile. The two loads lie 8 bytes apart: the vectors compare with the first
// and ignore bit 3.
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    r#"
.pushsection .text.pfnguard_device_load, "ax"
.global pfnguard_device_load
.balign 16
pfnguard_device_load:
    bti     c
    mov     x8, x0
    mrs     x9, sp_el0
    mrs     x10, tpidr_el1
    mrs     x11, elr_el2
    mrs     x12, spsr_el2
    mov     x0, xzr
    cbnz    x1, 1f
    mov     x1, xzr
    nop
    nop
.balign 16
.global pfnguard_device_load_at
pfnguard_device_load_at:
    ldr     w0, [x8]
    b       2f
1:  ldr     x0, [x8]
    mov     x1, xzr
2:  // The abort, should it come, comes here.
    dsb     sy
    ret
.global pfnguard_device_load_failed
pfnguard_device_load_failed:
    msr     sp_el0, x9
    msr     tpidr_el1, x10
    msr     elr_el2, x11
    msr     spsr_el2, x12
    mov     x0, xzr
    mov     x1, #1
    ret
.popsection
"#
);
