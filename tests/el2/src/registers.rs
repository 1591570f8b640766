//! Registers that a call must not touch: `x8..=x30` and the key that signs return addresses.

use core::arch::{asm, global_asm};

use pfnguard_shared::{HostFunction, Status};

use crate::cpu::read_register;
use crate::outcome::{Outcome, ensure, equal};
use crate::suite::Test;
use crate::{frames, smp};

/// This file's tests.
pub const TESTS: &[Test] = &[
    ("registers:survive-calls-granted-and-refused", survive_calls),
    ("registers:survive-firmware-calls", survive_firmware_calls),
    ("registers:survive-calls-on-the-second-cpu", survive_there),
];

/// `x8..=x30`.
const COUNT: usize = 23;

// x0: eight registers of the call, in and out; x1: x8..=x30, in and out.
global_asm!(
    r#"
.macro surveyed_call name, instruction
.global \name
.balign 64
\name:
    sub     sp, sp, #304
    stp     x19, x20, [sp, #192]
    stp     x21, x22, [sp, #208]
    stp     x23, x24, [sp, #224]
    stp     x25, x26, [sp, #240]
    stp     x27, x28, [sp, #256]
    stp     x29, x30, [sp, #272]
    stp     x0, x1, [sp, #288]
    ldp     x8, x9, [x1]
    ldp     x10, x11, [x1, #16]
    ldp     x12, x13, [x1, #32]
    ldp     x14, x15, [x1, #48]
    ldp     x16, x17, [x1, #64]
    ldp     x18, x19, [x1, #80]
    ldp     x20, x21, [x1, #96]
    ldp     x22, x23, [x1, #112]
    ldp     x24, x25, [x1, #128]
    ldp     x26, x27, [x1, #144]
    ldp     x28, x29, [x1, #160]
    ldr     x30, [x1, #176]
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x0, x1, [x0]
    \instruction
    stp     x8, x9, [sp]
    ldr     x8, [sp, #288]
    stp     x0, x1, [x8]
    stp     x2, x3, [x8, #16]
    stp     x4, x5, [x8, #32]
    stp     x6, x7, [x8, #48]
    ldr     x0, [sp, #296]
    ldp     x8, x9, [sp]
    stp     x8, x9, [x0]
    stp     x10, x11, [x0, #16]
    stp     x12, x13, [x0, #32]
    stp     x14, x15, [x0, #48]
    stp     x16, x17, [x0, #64]
    stp     x18, x19, [x0, #80]
    stp     x20, x21, [x0, #96]
    stp     x22, x23, [x0, #112]
    stp     x24, x25, [x0, #128]
    stp     x26, x27, [x0, #144]
    stp     x28, x29, [x0, #160]
    str     x30, [x0, #176]
    ldp     x19, x20, [sp, #192]
    ldp     x21, x22, [sp, #208]
    ldp     x23, x24, [sp, #224]
    ldp     x25, x26, [sp, #240]
    ldp     x27, x28, [sp, #256]
    ldp     x29, x30, [sp, #272]
    add     sp, sp, #304
    ret
.endm

    surveyed_call surveyed_hvc, "hvc #0"
    surveyed_call surveyed_smc, "smc #0"
"#
);

unsafe extern "C" {
    fn surveyed_hvc(call: *mut [u64; 8], others: *mut [u64; COUNT]);
    fn surveyed_smc(call: *mut [u64; 8], others: *mut [u64; COUNT]);
}

/// How a call is made.
#[derive(Clone, Copy)]
enum Conduit {
    Hvc,
    Smc,
}

/// Makes a call with known values in all other registers, and compares them. Returns `x0`.
fn survey(conduit: Conduit, mut call: [u64; 8]) -> Result<u64, crate::outcome::Failure> {
    let before: [u64; COUNT] =
        core::array::from_fn(|index| 0x5afe_0000_0000_0008 + u64::try_from(index).unwrap_or(0));
    let mut others = before;
    let key = set_key();
    match conduit {
        // SAFETY: Both arrays are this function's; what the call does is what the tests are about.
        Conduit::Hvc => unsafe { surveyed_hvc(&raw mut call, &raw mut others) },
        // SAFETY: As above.
        Conduit::Smc => unsafe { surveyed_smc(&raw mut call, &raw mut others) },
    }
    let found = key.map(|_| read_key());
    ensure(found == key, "APIAKey after a call")?;
    for (found, before) in others.into_iter().zip(before) {
        equal(found, before, "a register of x8 to x30 after a call")?;
    }
    Ok(call[0])
}

/// Sets a key of this program's own, which signs nothing; `None` without pointer authentication.
fn set_key() -> Option<[u64; 2]> {
    // ID_AA64ISAR1_EL1.APA and API.
    if read_register!("id_aa64isar1_el1") & 0xff0 == 0 {
        return None;
    }
    let key = [0x5ec2_e7aa_0000_0001, 0x5ec2_e7aa_0000_0002];
    // SAFETY: Nothing in this program is signed.
    unsafe {
        asm!("msr S3_0_C2_C1_0, {lo}", "msr S3_0_C2_C1_1, {hi}", "isb",
            lo = in(reg) key[0], hi = in(reg) key[1], options(nomem, nostack))
    };
    Some(key)
}

fn read_key() -> [u64; 2] {
    [read_register!("S3_0_C2_C1_0"), read_register!("S3_0_C2_C1_1")]
}

fn registers(function: HostFunction, x1: u64, x2: u64) -> [u64; 8] {
    [u64::from(function.raw()), x1, x2, 0, 0, 0, 0, 0]
}

fn survive_calls() -> Outcome {
    let page = frames::take_one().0;
    let refused = Status::WrongState.to_register();
    let unknown = [0xc600_01f0, 1, 2, 3, 4, 5, 6, 7];
    for (call, expected) in [
        (registers(HostFunction::Info, 0, 0), 0),
        (registers(HostFunction::HostShareHyp, page, 1), 0),
        (registers(HostFunction::HostShareHyp, page, 1), refused),
        (registers(HostFunction::HostUnshareHyp, page, 1), 0),
        (registers(HostFunction::HostUnshareHyp, page, 1), refused),
        (unknown, Status::NotSupported.to_register()),
    ] {
        equal(survey(Conduit::Hvc, call)?, expected, "status of a surveyed call")?;
    }
    Ok(())
}

fn survive_firmware_calls() -> Outcome {
    // Answered, relayed, refused; and calls of this service by the wrong conduit.
    let info = u64::from(HostFunction::Info.raw());
    for function in [0x8000_0000, 0x8400_0000, 0xc200_ffff, info] {
        survey(Conduit::Smc, [function, 0, 0, 0, 0, 0, 0, 0])?;
    }
    // PSCI_VERSION by HVC takes the same way.
    survey(Conduit::Hvc, [0x8400_0000, 0, 0, 0, 0, 0, 0, 0]).map(drop)
}

static THERE: spin::Mutex<Outcome> = spin::Mutex::new(Ok(()));

fn survive_there() -> Outcome {
    smp::required()?;
    smp::begin(|| *THERE.lock() = survive_calls().and_then(|()| survive_firmware_calls()))?;
    smp::join()?;
    *THERE.lock()
}
