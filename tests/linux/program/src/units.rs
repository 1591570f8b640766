//! Units of the CPU that a hypervisor could take away or leave in another state: each is used on each
//! CPU. What this prints is to be the same before and after a launch.

use std::arch::{asm, is_aarch64_feature_detected};
use std::fmt;
use std::hint::black_box;

use nix::libc::{c_int, c_ulong, prctl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::ProtFlags;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use perf_event::Builder;
use perf_event::events::{Breakpoint, Hardware};

use crate::attacks::child;
use crate::memory::{Memory, PAGE};
use crate::outcome::{Outcome, ensure};

/// How often a watched place is written, and how many instructions are stepped over.
const TIMES: u64 = 8;

/// `PROT_MTE` of `asm/mman.h`.
const PROT_MTE: c_int = 0x20;
/// `PR_SET_TAGGED_ADDR_CTRL` of `linux/prctl.h`.
const SET_TAGGED_ADDR_CTRL: c_int = 55;

/// What is found on a CPU.
#[derive(Debug)]
struct Units {
    /// `CTR_EL0` and `DCZID_EL0`.
    lines: [u64; 2],
    /// Bytes of an SVE vector.
    sve: Option<u64>,
    /// Whether a signed pointer is another one and authenticates.
    pauth: Option<bool>,
    /// Whether tags are stored, and a wrong one is noticed.
    mte: Option<bool>,
    /// Whether the PMU counts cycles.
    cycles: bool,
    /// How often a watchpoint was hit.
    watched: u64,
    /// How many instructions were stepped over one by one.
    stepped: u64,
}

impl Units {
    fn find() -> Outcome<Self> {
        Ok(Self {
            lines: lines(),
            sve: is_aarch64_feature_detected!("sve").then(sve).transpose()?,
            pauth: is_aarch64_feature_detected!("paca").then(pauth),
            mte: is_aarch64_feature_detected!("mte").then(mte).transpose()?,
            cycles: cycles()?,
            watched: watched()?,
            stepped: stepped()?,
        })
    }
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines: [ctr, dczid], sve, pauth, mte, cycles, watched, stepped } = self;
        write!(f, "ctr={ctr:#x} dczid={dczid:#x} sve={sve:?} pauth={pauth:?} mte={mte:?} ")?;
        write!(f, "cycles={cycles} watched={watched} stepped={stepped}")
    }
}

/// Says of each CPU what its units do.
pub fn run() -> Outcome {
    let mut cpus = 0;
    for cpu in 0..CpuSet::count() {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        if sched_setaffinity(Pid::from_raw(0), &set).is_err() {
            break;
        }
        println!("unit cpu={cpu} {}", Units::find()?);
        cpus += 1;
    }
    ensure(cpus > 0, "no CPU at all")
}

fn lines() -> [u64; 2] {
    let (ctr, dczid): (u64, u64);
    // SAFETY: reads registers, in the kernel's place where it hides them.
    unsafe {
        asm!("mrs {ctr}, ctr_el0", "mrs {dczid}, dczid_el0",
             ctr = out(reg) ctr, dczid = out(reg) dczid,
             options(nomem, nostack, preserves_flags));
    }
    [ctr, dczid]
}

/// Adds 0 to n - 1 in a vector.
fn sve() -> Outcome<u64> {
    let (bytes, sum): (u64, u64);
    // SAFETY: this CPU has SVE; what is changed is named.
    unsafe {
        asm!(".arch_extension sve", "rdvl {bytes}, #1", "ptrue p0.d", "index z0.d, #0, #1",
             "uaddv d0, p0, z0.d", "fmov {sum}, d0",
             bytes = out(reg) bytes, sum = out(reg) sum, out("v0") _, out("p0") _,
             options(nomem, nostack, preserves_flags));
    }
    let lanes = bytes / 8;
    ensure(sum == lanes * (lanes - 1) / 2, &format!("{lanes} lanes add up to {sum}"))?;
    Ok(bytes)
}

/// Signs an address with more than one context: one signature in many is no change.
fn pauth() -> bool {
    let plain = 0x1234_5678_u64;
    let signed = |context: u64| {
        let mut pointer = plain;
        // SAFETY: this CPU has FEAT_PAuth; the pointer is used for nothing.
        unsafe {
            asm!(".arch_extension pauth", "pacda {}, {}", inout(reg) pointer, in(reg) context,
                 options(nomem, nostack, preserves_flags));
        }
        pointer
    };
    let authenticated = |mut pointer: u64, context: u64| {
        // SAFETY: as above.
        unsafe {
            asm!(".arch_extension pauth", "autda {}, {}", inout(reg) pointer, in(reg) context,
                 options(nomem, nostack, preserves_flags));
        }
        pointer
    };
    (0..TIMES).all(|context| authenticated(signed(context), context) == plain)
        && (0..TIMES).any(|context| signed(context) != plain)
}

/// Whether a tag that is stored is read back, and a load with another one dies (`memory-tagging-extension`
/// in the kernel's documentation).
fn mte() -> Outcome<bool> {
    const SYNCHRONOUS_ALL_TAGS: c_ulong = 1 | 1 << 1 | 0xfffe << 3;
    let touched = child(|| {
        // SAFETY: changes how this child's tagged accesses are judged.
        let told =
            unsafe { prctl(SET_TAGGED_ADDR_CTRL, SYNCHRONOUS_ALL_TAGS, 0_u64, 0_u64, 0_u64) };
        let stored = store_tag();
        std::process::exit(if told == 0 && stored.is_ok() { 1 } else { 2 });
    })?;
    Ok(matches!(touched, WaitStatus::Signaled(_, Signal::SIGSEGV, _)))
}

/// Loads with the tag that it stores, then with another; returns if that is let through or if the first
/// is not.
fn store_tag() -> Outcome {
    const TAG: u64 = 0b0101 << 56;
    const ANOTHER: u64 = 0b1010 << 56;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let memory = Memory::with(PAGE, protection | ProtFlags::from_bits_retain(PROT_MTE))?;
    let tagged = memory.address() | TAG;
    let found: u64;
    // SAFETY: this CPU has MTE; the memory is this function's own, and nobody has a reference into it.
    unsafe {
        asm!(".arch_extension memtag", "stg {tagged}, [{tagged}]", "mov {found}, {plain}",
             "ldg {found}, [{plain}]", "ldr {scratch}, [{tagged}]",
             tagged = in(reg) tagged, plain = in(reg) memory.address(), found = out(reg) found,
             scratch = out(reg) _, options(nostack, preserves_flags));
    }
    ensure(found == tagged, "a tag is not stored")?;
    // SAFETY: as above; the fault is what is looked for.
    unsafe {
        asm!("ldr {scratch}, [{other}]", other = in(reg) memory.address() | ANOTHER,
             scratch = out(reg) _, options(nostack, preserves_flags));
    }
    Ok(())
}

/// Whether the PMU sees this program at work.
fn cycles() -> Outcome<bool> {
    let mut counter = Builder::new(Hardware::CPU_CYCLES).build()?;
    counter.enable()?;
    work();
    counter.disable()?;
    Ok(counter.read()? > 0)
}

fn work() -> u64 {
    (0..100_000).fold(0, |sum, n| black_box(sum ^ n))
}

/// Has stores to a variable counted, by a watchpoint of the CPU.
fn watched() -> Outcome<u64> {
    let mut place = 0_u64;
    let address = u64::try_from((&raw const place).addr())?;
    let mut counter = Builder::new(Breakpoint::write(address, 8)).build()?;
    counter.enable()?;
    for value in 0..TIMES {
        // SAFETY: this function's own variable.
        unsafe { (&raw mut place).write_volatile(value) };
    }
    counter.disable()?;
    Ok(counter.read()?)
}

/// Steps a child over some instructions.
fn stepped() -> Outcome<u64> {
    // SAFETY: this program has one thread here, so the child may do what it likes.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            let stopped = ptrace::traceme().and_then(|()| raise(Signal::SIGSTOP));
            black_box(work());
            std::process::exit(i32::from(stopped.is_err()));
        }
        ForkResult::Parent { child } => child,
    };
    let trapped = |status| matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP));
    let mut steps = 0;
    waitpid(child, None)?;
    while steps < TIMES {
        ptrace::step(child, None)?;
        if !trapped(waitpid(child, None)?) {
            break;
        }
        steps += 1;
    }
    ptrace::kill(child)?;
    waitpid(child, None)?;
    Ok(steps)
}
