//! Our own faults: an exception at EL2 is a bug, so it is told in full and the machine stops.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use log::error;
use pfnguard_core::hypervisor::MAX_CPUS;

use crate::layout;
use crate::percpu::PerCpu;
use crate::syndrome::{State, Syndrome, class, exception_class, fault_ipa_pfn};
use crate::sysreg::read;

/// General registers at the time of the fault; the vectors know the layout.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct FaultRegs {
    regs: [u64; 31],
    sp: u64,
}

/// Frames that a back-trace shows at most.
const TRACE_FRAMES: usize = 32;
/// Number of vector kinds; see [`Vector`].
const KINDS: u64 = 16;

/// Whether each CPU has reported a fault: a second one ends the machine without words.
static FAULTS: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Which vector was taken, as a number from 0 to 15.
struct Vector(u64);

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(self.0 < KINDS, "vector number: hypervisor bug");
        let what = ["synchronous", "IRQ", "FIQ", "SError"];
        let from = ["EL2 on SP_EL0", "EL2", "a lower level", "a lower AArch32 level"];
        let (kind, origin) = (self.0 % 4, self.0 / 4);
        let pick = |names: [&'static str; 4], index: u64| {
            usize::try_from(index).ok().and_then(|index| names.get(index).copied()).unwrap_or("?")
        };
        write!(f, "{} exception from {}", pick(what, kind), pick(from, origin))
    }
}

/// Reports the fault on the emergency stack and powers the machine off. Called by the vectors.
pub(crate) extern "C" fn report(regs: &FaultRegs, vector: u64) -> ! {
    let percpu = PerCpu::current();
    if seen_before(percpu) {
        // The report itself faults: nothing that it could say would be better.
        crate::firmware::power_off();
    }
    crate::console::begin_panic();
    let [esr, elr, far] = [read!("esr_el2"), read!("elr_el2"), read!("far_el2")];
    let [hpfar, spsr] = [read!("hpfar_el2"), read!("spsr_el2")];
    error!("PANIC: CPU {}: {}", percpu.index().0, Vector(vector));
    error!("ESR_EL2   {esr:#018x} {}", Syndrome(esr));
    error!("ELR_EL2   {elr:#018x} {}", Place(elr));
    error!("FAR_EL2   {far:#018x} {}", Target { percpu, far, esr });
    error!("HPFAR_EL2 {hpfar:#018x} IPA page {:#x}", fault_ipa_pfn(hpfar));
    error!("SPSR_EL2  {spsr:#018x} {}", State(spsr));
    for (index, pair) in regs.regs.chunks(2).enumerate() {
        match pair {
            [first, second] => {
                error!("x{:<2} {first:#018x}  x{:<2} {second:#018x}", index * 2, index * 2 + 1);
            }
            [last] => error!("x30 {last:#018x}  sp  {:#018x}", regs.sp),
            _ => {}
        }
    }
    error!("#0 {}", Place(elr));
    // A function that calls none has no frame: its caller is only here.
    error!("lr {}", Place(strip(regs.regs[30])));
    back_trace(percpu, regs.regs[29]);
    crate::firmware::power_off()
}

/// Returns whether this CPU has reported a fault before. No exclusives: the MMU may be off.
fn seen_before(percpu: &PerCpu) -> bool {
    let Some(seen) = FAULTS.get(percpu.index().0) else { return true };
    let before = seen.load(Ordering::Relaxed);
    seen.store(true, Ordering::Relaxed);
    before
}

/// Reports the callers of the function that calls this: for the panic handler. Inlined, so that the
/// frame it starts from is one that stays.
#[inline(always)]
pub fn back_trace_here() {
    let frame: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {0}, x29", out(reg) frame, options(nomem, nostack, preserves_flags));
    };
    back_trace(PerCpu::current(), frame);
}

/// Follows frame records (AAPCS64, 6.4.6) as far as they lie on this CPU's stacks.
fn back_trace(percpu: &PerCpu, mut frame: u64) {
    for number in 1..=TRACE_FRAMES {
        let Some([next, link]) = frame_record(percpu, frame) else { return };
        error!("#{number} {}", Place(strip(link)));
        if next <= frame {
            return;
        }
        frame = next;
    }
}

fn frame_record(percpu: &PerCpu, frame: u64) -> Option<[u64; 2]> {
    let address = usize::try_from(frame).ok().filter(|address| address % 16 == 0)?;
    let end = address.checked_add(16)?;
    let stacks = percpu.stacks();
    let inside = [&stacks.main, &stacks.emergency]
        .into_iter()
        .any(|stack| stack.start <= address && end <= stack.end);
    if !inside {
        return None;
    }
    let record = core::ptr::with_exposed_provenance::<[u64; 2]>(address);
    // SAFETY: aligned, and within this CPU's own mapped stack.
    Some(unsafe { record.read_volatile() })
}

/// Removes a pointer authentication code: EL2 addresses have at most 48 bits.
fn strip(address: u64) -> u64 {
    address & ((1 << 48) - 1)
}

/// An address of code, relative to the image where it lies in it.
struct Place(u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = layout::image_base().0;
        match self.0.checked_sub(base) {
            Some(offset)
                if layout::text().contains(pfnguard_core::addr::PhysAddr(self.0).pfn()) =>
            {
                write!(f, "image+{offset:#x}")
            }
            Some(_) | None => write!(f, "{:#x}, not code of the image", self.0),
        }
    }
}

/// What a faulting data address is.
struct Target<'a> {
    percpu: &'a PerCpu,
    far: u64,
    esr: u64,
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if exception_class(self.esr) != class::DATA_ABORT_SAME {
            return Ok(());
        }
        let guard =
            usize::try_from(self.far).ok().and_then(|far| self.percpu.stacks().guard_at(far));
        match guard {
            Some(name) => write!(f, "{name} of CPU {}: stack overflow", self.percpu.index().0),
            None => {
                let image = layout::image();
                let pfn = pfnguard_core::addr::PhysAddr(self.far).pfn();
                match self.far.checked_sub(layout::image_base().0) {
                    Some(offset) if image.contains(pfn) => write!(f, "image+{offset:#x}"),
                    Some(_) | None => f.write_str("outside the image"),
                }
            }
        }
    }
}
