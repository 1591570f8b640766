//! EL2's exception vectors.
//!
//! Two tables for the time the host runs, without and with pointer authentication, and one for the
//! time a guest runs. A host call is the path that counts: registers that Rust may change go to the
//! stack, the call is made, they come back. Everything else also saves the rest of the registers.
//!
//! With FEAT_PAuth the host's `APIAKey` goes beside its registers at entry and comes back at exit.
//! The hypervisor's key is made once per CPU ([`make_key`]).
//!
//! Exceptions clear `PSTATE.BTYPE`, so the vectors need no landing pads.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use arm_sysregs::el2::registers::SctlrEl2;

use crate::features::IdRegisters;
use crate::percpu::{EMERGENCY_TOP, FAULT, HYP_KEY, PerCpu};
use crate::sysreg::{read, write};

/// General registers of the interrupted exception level; the vectors know the layout.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Frame {
    /// `x0..=x30`. The fast path fills `x0..=x18`, `x29`, `x30`.
    pub regs: [u64; 31],
    /// `APIAKey` of the host, with pointer authentication.
    key: [u64; 2],
    padding: u64,
}

static_assertions::const_assert_eq!(size_of::<Frame>(), FRAME_SIZE);

const FRAME_SIZE: usize = 272;
/// Offset of the host's key in a [`Frame`].
const FRAME_KEY: usize = offset_of!(Frame, key);
/// `ESR_EL2` of `HVC #0` from AArch64: class 0x16, 32-bit instruction.
const ESR_HVC0: u64 = 0x16 << 26 | 1 << 25;

impl Frame {
    /// Returns `x0..=x7`, the registers of a call.
    pub fn call(&mut self) -> &mut [u64; 8] {
        self.regs.first_chunk_mut().expect("31 registers hold 8")
    }
}

/// Which table the host runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pauth {
    /// The CPU has no pointer authentication.
    Absent,
    /// Keys are switched.
    Present,
}

impl Pauth {
    /// Returns what this CPU has.
    pub fn of(id: &IdRegisters) -> Self {
        if id.has_pauth() { Self::Present } else { Self::Absent }
    }
}

unsafe extern "C" {
    static pfnguard_vectors_plain: u8;
    static pfnguard_vectors_pauth: u8;
    static pfnguard_vectors_guest: u8;
}

/// Selects the table for early boot: nothing below EL2 runs yet, faults of our own are reported.
pub(crate) fn install() {
    select((&raw const pfnguard_vectors_plain).addr());
}

/// Selects the table for the host and, with pointer authentication, loads this CPU's key.
pub fn install_host(pauth: Pauth) {
    select(host_table(pauth));
}

/// Returns the address of the host's table.
pub(crate) fn host_table(pauth: Pauth) -> usize {
    match pauth {
        Pauth::Absent => (&raw const pfnguard_vectors_plain).addr(),
        Pauth::Present => (&raw const pfnguard_vectors_pauth).addr(),
    }
}

/// Returns the address of the table for guests.
pub(crate) fn guest_table() -> usize {
    (&raw const pfnguard_vectors_guest).addr()
}

/// Selects a table.
pub(crate) fn select(table: usize) {
    write!("vbar_el2", u64::try_from(table).expect("addresses have 64 bits"));
    crate::barrier::isb();
}

/// Makes a key for this CPU.
///
/// From `RNDR` where FEAT_RNG is there: 128 random bits. Elsewhere from the virtual counter, the
/// MPIDR and the address of the image, mixed: a host that knows when the machine booted can narrow
/// it down, so there it stops accidents and blind guesses, not a patient adversary.
pub(crate) fn make_key(id: &IdRegisters) -> [u64; 2] {
    let seed = crate::layout::image_base().0 ^ crate::percpu::own_mpidr().rotate_left(17);
    [0, 1].map(|half: u64| match random(id) {
        Some(bits) => bits,
        None => mix(read!("cntvct_el0") ^ seed.rotate_left(31) ^ half),
    })
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(seed: u64) -> u64 {
    let step = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let first = (step ^ step >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let second = (first ^ first >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    second ^ second >> 31
}

/// Tries that `RNDR` gets before the counter is used.
const RNDR_TRIES: usize = 16;

fn random(id: &IdRegisters) -> Option<u64> {
    if !id.has_rng() {
        return None;
    }
    (0..RNDR_TRIES).find_map(|_| {
        let value: u64;
        let failed: u64;
        // SAFETY: FEAT_RNG is there; `RNDR` sets the Z flag where it has no entropy (Arm ARM).
        unsafe {
            asm!("mrs {0}, s3_3_c2_c4_0", "cset {1}, eq", out(reg) value, out(reg) failed,
                options(nomem, nostack))
        };
        (failed == 0).then_some(value)
    })
}

/// Sets this CPU's key and, from here on, signs return addresses with it.
#[inline(always)]
pub(crate) fn load_key(percpu: &PerCpu, key: [u64; 2]) {
    // SAFETY: no vector runs with a key before the table with keys is selected.
    unsafe { percpu.set_key(key) };
    write!("s3_0_c2_c1_0", key[0]);
    write!("s3_0_c2_c1_1", key[1]);
    write!("sctlr_el2", signing(read!("sctlr_el2")));
    crate::barrier::isb();
}

/// Returns `SCTLR_EL2` of a CPU that signs return addresses.
#[inline(always)]
pub(crate) fn signing(sctlr: u64) -> u64 {
    sctlr | SctlrEl2::ENIA.bits()
}

/// Enters the host at `pc` with `x0` and every other general register zero. The CPU's stack is
/// empty afterwards.
///
/// # Safety
///
/// EL2 is set up for the host, the door of this CPU is open, and nothing on the stack is used again.
pub unsafe fn enter_host(percpu: &PerCpu, pauth: Pauth, pc: u64, x0: u64) -> ! {
    /// EL1h, all exceptions masked (Arm ARM, `SPSR_EL2`).
    const SPSR: u64 = 0x3c5;
    let keys = match pauth {
        Pauth::Absent => 0u64,
        Pauth::Present => 1,
    };
    write!("elr_el2", pc);
    write!("spsr_el2", SPSR);
    // SAFETY: the caller is done with the stack; the host runs behind its stage 2.
    unsafe {
        asm!(
            "mov sp, {stack}",
            "cbz {keys}, 1f",
            "msr s3_0_c2_c1_0, xzr",
            "msr s3_0_c2_c1_1, xzr",
            "1: b pfnguard_enter_host",
            stack = in(reg) percpu.stacks().main.end,
            keys = in(reg) keys,
            in("x0") x0,
            options(noreturn),
        )
    }
}

global_asm!(
    r#"
// Registers that Rust may change, and x19 for the pair.
.macro save_call
    stp     x0, x1, [sp, #-{frame_size}]!
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x29, x30, [sp, #232]
.endm

.macro restore_call
    ldp     x29, x30, [sp, #232]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #{frame_size}
.endm

.macro save_rest
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    str     x28, [sp, #224]
.endm

.macro restore_rest
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldr     x28, [sp, #224]
.endm

// Nothing is executed past an exception return, not even speculatively.
.macro leave
    eret
    dsb     nsh
    isb
.endm

// The host's key goes to its frame, the hypervisor's comes in. Leaves TPIDR_EL2 in x1.
.macro keys_in
    mrs     x1, tpidr_el2
    mrs     x3, s3_0_c2_c1_0
    mrs     x4, s3_0_c2_c1_1
    stp     x3, x4, [sp, #{frame_key}]
    ldp     x3, x4, [x1, #{hyp_key}]
    msr     s3_0_c2_c1_0, x3
    msr     s3_0_c2_c1_1, x4
    isb
.endm

.macro keys_out
    ldp     x3, x4, [sp, #{frame_key}]
    msr     s3_0_c2_c1_0, x3
    msr     s3_0_c2_c1_1, x4
.endm

// An exception that the hypervisor itself caused, or one that cannot be. The host's SP_EL0 and
// TPIDR_EL1 are lost: this machine stops.
.macro fault_entry kind
.balign 0x80
    msr     sp_el0, x0
    msr     tpidr_el1, x1
    mov     x1, #\kind
    b       fault_at_el2
.endm

.macro four_faults kind
    fault_entry \kind
    fault_entry \kind + 1
    fault_entry \kind + 2
    fault_entry \kind + 3
.endm

// EL2 on its own stack. `attempt.rs`: a load from a device that does not answer (synchronous
// external abort, DFSC 0b010000) and an AT, whatever its walk met, go on at the fixup; all else is
// a fault.
.macro own_faults
.balign 0x80
    msr     sp_el0, x0
    msr     tpidr_el1, x1
    adrp    x1, pfnguard_attempt_at
    add     x1, x1, :lo12:pfnguard_attempt_at
    mrs     x0, elr_el2
    sub     x0, x0, x1
    cmp     x0, #24
    b.eq    2f
    bic     x0, x0, #8
    cbnz    x0, 1f
    mrs     x0, esr_el2
    and     x0, x0, #0x3f
    sub     x0, x0, #0x10
    cbnz    x0, 1f
2:  adrp    x1, pfnguard_attempt_failed
    add     x1, x1, :lo12:pfnguard_attempt_failed
    msr     elr_el2, x1
    leave
1:  mov     x1, #4
    b       fault_at_el2
    fault_entry 5
    fault_entry 6
    fault_entry 7
.endm

.pushsection .vectors, "ax"
.global pfnguard_vectors_plain
.balign 0x800
pfnguard_vectors_plain:
    four_faults 0
    own_faults
.balign 0x80
    save_call
    mrs     x2, esr_el2
    mov     w1, #{hvc0}
    cmp     x2, x1
    b.ne    other_plain
    mov     x0, sp
    mrs     x1, tpidr_el2
    mov     x29, xzr
    bl      {call}
    restore_call
    leave
    fault_entry 9
    fault_entry 10
    fault_entry 11
.balign 0x80
    save_call
    b       other_plain
    fault_entry 13
    fault_entry 14
    fault_entry 15

.global pfnguard_vectors_pauth
.balign 0x800
pfnguard_vectors_pauth:
    four_faults 0
    own_faults
.balign 0x80
    save_call
    mrs     x2, esr_el2
    mov     w1, #{hvc0}
    cmp     x2, x1
    b.eq    call_pauth
    b       other_pauth
    fault_entry 9
    fault_entry 10
    fault_entry 11
.balign 0x80
    save_call
    b       other_pauth
    fault_entry 13
    fault_entry 14
    fault_entry 15

.global pfnguard_vectors_guest
.balign 0x800
pfnguard_vectors_guest:
    four_faults 0
    own_faults
.macro guest_entry kind
.balign 0x80
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       pfnguard_guest_exit
.endm
    guest_entry 0
    guest_entry 1
    guest_entry 1
    guest_entry 2
    guest_entry 0
    guest_entry 1
    guest_entry 1
    guest_entry 2
.balign 0x80

other_plain:
    save_rest
    mov     x0, sp
    mov     x29, xzr
    bl      {other}
    restore_rest
    restore_call
    leave

call_pauth:
    keys_in
    mov     x0, sp
    mov     x29, xzr
    bl      {call}
    keys_out
    restore_call
    leave

other_pauth:
    save_rest
    keys_in
    mov     x0, sp
    mov     x29, xzr
    bl      {other}
    keys_out
    restore_rest
    restore_call
    leave

fault_at_el2:
    mrs     x0, tpidr_el2
    add     x0, x0, #{fault_regs}
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    mov     x2, sp
    stp     x30, x2, [x0, #240]
    mrs     x2, sp_el0
    mrs     x3, tpidr_el1
    stp     x2, x3, [x0]
    mrs     x2, tpidr_el2
    ldr     x2, [x2, #{emergency_top}]
    mov     sp, x2
    mov     x29, xzr
    mov     x30, xzr
    bl      {fault}
    b       .

.global pfnguard_enter_host
pfnguard_enter_host:
    .irp r, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\r, xzr
    .endr
    leave
.popsection
"#,
    frame_size = const FRAME_SIZE,
    frame_key = const FRAME_KEY,
    hyp_key = const HYP_KEY,
    fault_regs = const FAULT,
    emergency_top = const EMERGENCY_TOP,
    hvc0 = const ESR_HVC0,
    call = sym crate::host::call,
    other = sym crate::host::other,
    fault = sym crate::fault::report,
);
