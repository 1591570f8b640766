//! Registers and hints of this CPU.

use core::arch::asm;

/// Reads a system register that EL1 may read.
macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: Reading this register has no effect.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register that EL1 may write; takes effect at once.
macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: The callers write timer, interrupt controller and event registers, and such as
        // this program has no use for: how its memory is seen does not change.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack))
        };
    }};
}

pub(crate) use {read_register, write_register};

/// Event stream bit and divider: an event every 2^10 ticks of the virtual counter (Arm ARM,
/// `CNTKCTL_EL1.EVNTEN`, `EVNTI`), so that a wait for an event that never comes ends.
const EVENT_STREAM: u64 = 1 << 2 | 9 << 4;

/// Makes the timer an event source of [`wait_for_event`].
pub fn enable_event_stream() {
    let value = read_register!("cntkctl_el1") | EVENT_STREAM;
    write_register!("cntkctl_el1", value);
}

/// Waits for the other CPU's event or the event stream's next.
pub fn wait_for_event() {
    // SAFETY: A hint.
    unsafe { asm!("wfe", options(nomem, nostack)) };
}

/// Wakes the other CPU.
pub fn send_event() {
    // SAFETY: A barrier and a hint: what was stored before is seen by whom it wakes.
    unsafe { asm!("dsb ish", "sev", options(nostack)) };
}

/// Returns the virtual counter in ticks.
pub fn now() -> u64 {
    read_register!("cntvct_el0")
}

/// Waits until `done` or until `seconds` have passed; returns what `done` says last.
pub fn wait_until(seconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let ticks = read_register!("cntfrq_el0").saturating_mul(seconds);
    let start = now();
    while !done() {
        if now().wrapping_sub(start) > ticks {
            return done();
        }
        wait_for_event();
    }
    true
}

/// Returns whether LSE atomics exist (Arm ARM, `ID_AA64ISAR0_EL1.Atomic`).
pub fn has_atomics() -> bool {
    (read_register!("id_aa64isar0_el1") >> 20) & 0xf != 0
}
