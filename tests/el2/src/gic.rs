//! As much of the GICv3 and the timer as it takes to have one interrupt pending for the host: the
//! way to stop a guest that does not stop by itself.

use crate::abort::load32;
use crate::cpu::{read_register, write_register};
use crate::outcome::{Failure, Outcome, ensure};

/// Distributor (QEMU virt).
const GICD: u64 = 0x0800_0000;
/// Redistributor of the first CPU.
const GICR: u64 = 0x080a_0000;
/// Bytes from one redistributor to the next.
const GICR_STRIDE: u64 = 0x2_0000;
/// Offset of a redistributor's page of private interrupts.
const SGI: u64 = 0x1_0000;
/// The host's timer interrupt: PPI 14, non-secure physical timer.
const TIMER: u32 = 30;

fn read(address: u64) -> Result<u32, Failure> {
    load32(address).map_err(Failure::from)
}

fn write(address: u64, value: u32) -> Outcome {
    let value = u64::from(value);
    match probed!(["str {v:w}, [{a}]"] a = in(reg) address, v = in(reg) value) {
        None => Ok(()),
        Some(fault) => Err(Failure::Faulted(fault)),
    }
}

/// Lets the host's timer interrupt reach this CPU. It stays masked here: that it is pending is
/// what stops a guest.
pub fn enable_timer_interrupt() -> Outcome {
    let redistributor = GICR + (read_register!("mpidr_el1") & 0xff) * GICR_STRIDE;
    // CTLR: affinity routing, group 1 non-secure (Arm IHI 0069, 12.9.4).
    write(GICD, 1 << 4 | 1 << 1)?;
    // WAKER: clear ProcessorSleep, wait for ChildrenAsleep to clear.
    let waker = redistributor + 0x14;
    write(waker, read(waker)? & !(1 << 1))?;
    while read(waker)? & (1 << 2) != 0 {}
    write(redistributor + SGI + 0x80, u32::MAX)?;
    // The timer's priority: one byte each, IPRIORITYR7 holds 28..=31.
    write(redistributor + SGI + 0x400 + 28, 0xa0a0_a0a0)?;
    write(redistributor + SGI + 0x100, 1 << TIMER)?;
    write_register!("S3_0_C12_C12_5", 7); // ICC_SRE_EL1
    write_register!("S3_0_C4_C6_0", 0xff); // ICC_PMR_EL1
    write_register!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
    Ok(())
}

/// Makes the timer fire in a fraction of a second: 1 / `fraction`.
pub fn start_timer(fraction: u64) {
    write_register!("cntp_cval_el0", read_register!("cntpct_el0") + ticks(1, fraction));
    write_register!("cntp_ctl_el0", 1);
}

/// Returns `count` times 1 / `fraction` of a second.
fn ticks(count: u64, fraction: u64) -> u64 {
    read_register!("cntfrq_el0").saturating_mul(count) / fraction
}

/// Stops the timer; its interrupt is a level and goes with it.
fn stop_timer() {
    write_register!("cntp_ctl_el0", 0);
}

/// Takes the timer's interrupt: acknowledges, stops the timer, completes.
pub fn finish_timer() -> Outcome {
    let pending = read_register!("S3_0_C12_C12_0"); // ICC_IAR1_EL1
    stop_timer();
    if pending == u64::from(TIMER) {
        write_register!("S3_0_C12_C12_1", pending); // ICC_EOIR1_EL1
    }
    ensure(pending == u64::from(TIMER), "the pending interrupt is not the timer's")
}

/// Does `work` with an interrupt pending all the time: a guest in it leaves before its first
/// instruction.
pub fn interrupted<T>(work: impl FnOnce() -> T) -> T {
    start_timer(1 << 40);
    // ICC_HPPIR1_EL1: what would be taken.
    while read_register!("S3_0_C12_C12_2") != u64::from(TIMER) {}
    let done = work();
    stop_timer();
    done
}

/// Does `work`, in which a guest may run, with an interrupt pending after `milliseconds`: a guest
/// that does not stop is a failed test instead of a machine that hangs.
pub fn bounded<T>(milliseconds: u64, work: impl FnOnce() -> T) -> T {
    write_register!("cntp_cval_el0", read_register!("cntpct_el0") + ticks(milliseconds, 1_000));
    write_register!("cntp_ctl_el0", 1);
    let done = work();
    stop_timer();
    done
}
