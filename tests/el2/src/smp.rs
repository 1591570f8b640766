//! The second CPU: it waits for jobs and runs them, one at a time.

use core::sync::atomic::{AtomicU32, Ordering};

use aarch64_rt::{Stack, start_core};
use spin::Mutex;

use crate::outcome::{Dashed, Failure, Outcome, ensure};
use crate::{cpu, gic};

/// Seconds after which a job counts as hung.
const PATIENCE: u64 = 20;

/// Nobody there.
const OFF: u32 = 0;
/// Waits for a job.
const IDLE: u32 = 1;
/// A job is in the mailbox.
const POSTED: u32 = 2;
/// The job runs.
const RUNNING: u32 = 3;

static STATE: AtomicU32 = AtomicU32::new(OFF);
static JOB: Mutex<Option<fn()>> = Mutex::new(None);
static mut STACK: Stack<16> = Stack::new();

/// Starts the CPU with this MPIDR through PSCI.
pub fn start(mpidr: u64) -> Outcome {
    let stack = &raw mut STACK;
    // SAFETY: The stack is used for this CPU only, which is started once, and is mapped the same
    // way on both.
    let started = unsafe { start_core::<smccc::Smc, _, 16>(mpidr, stack, serve) };
    ensure(started.is_ok(), "CPU_ON was refused")?;
    ensure(wait_for(IDLE), "second CPU does not come up")
}

/// Returns whether a second CPU takes jobs.
pub fn is_up() -> bool {
    STATE.load(Ordering::Acquire) == IDLE
}

/// Fails, as skipped, where there is no second CPU.
pub fn required() -> Outcome {
    if is_up() { Ok(()) } else { Err(Failure::Skip("needs a second CPU")) }
}

/// Starts `job` on the second CPU and returns at once.
pub fn begin(job: fn()) -> Outcome {
    required()?;
    *JOB.lock() = Some(job);
    STATE.store(POSTED, Ordering::Release);
    cpu::send_event();
    Ok(())
}

/// Waits until the job of [`begin`] has ended.
pub fn join() -> Outcome {
    ensure(wait_for(IDLE), "second CPU hangs")
}

fn wait_for(state: u32) -> bool {
    cpu::wait_until(PATIENCE, || STATE.load(Ordering::Acquire) == state)
}

/// Waits until `done`, as long as patience lasts.
pub fn until(done: impl FnMut() -> bool, why: &'static str) -> Outcome {
    ensure(cpu::wait_until(PATIENCE, done), why)
}

fn serve() {
    cpu::enable_event_stream();
    if let Err(failure) = gic::enable_timer_interrupt() {
        say!("@test fail name=set-up:second-timer why={}", Dashed(failure));
    }
    loop {
        STATE.store(IDLE, Ordering::Release);
        cpu::send_event();
        while STATE.load(Ordering::Acquire) != POSTED {
            cpu::wait_for_event();
        }
        STATE.store(RUNNING, Ordering::Release);
        let job = JOB.lock().take();
        if let Some(job) = job {
            job();
        }
    }
}
