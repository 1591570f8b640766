//! Launch under a running kernel: the entries that [`pfnguard_shared::launch`] describes.
//!
//! A kernel module enters here through the kernel's hyp-stub, which jumps to where it is told with
//! the MMU off and `ELR_EL2`, `SPSR_EL2` as its `HVC` left them. Until the commit each entry puts
//! back what the stub and the kernel rely on at EL2, the vectors and the MMU's being off, and returns
//! there. EL1 is never touched: its registers, `x18` to `x30` and its key for pointer authentication
//! included, are the running kernel's.

use core::arch::global_asm;
use core::fmt::Display;
use core::sync::atomic::{AtomicUsize, Ordering};

use pfnguard_core::addr::PhysAddr;
pub use pfnguard_shared::launch::LaunchInfo;
use pfnguard_shared::launch::{LaunchAnswer, LaunchStep};

use crate::el2::SCTLR_MMU_OFF;
use crate::features::IdRegisters;
use crate::launch::Boot;
use crate::machine::Platform;
use crate::percpu::PerCpu;
use crate::plan::LaunchError;

/// What an entry answers, as the assembly hands it out.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Answer {
    answer: u64,
    first: u64,
    second: u64,
    /// `SCTLR_EL2` from the commit on; 0 where EL2 stays the stub's.
    sctlr: u64,
}

/// CPUs that have come to the commit.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

impl Answer {
    /// The step is done, and EL2 still the stub's.
    pub const DONE: Self = Self::new(LaunchAnswer::Done, 0, 0);

    const fn new(answer: LaunchAnswer, first: u64, second: u64) -> Self {
        // The numbers of the answer are small.
        #[allow(clippy::as_conversions, reason = "widening, in a constant")]
        Self { answer: answer.raw() as u64, first, second, sctlr: 0 }
    }

    /// There is no launch.
    pub fn refused(why: &dyn Display) -> Self {
        let (address, bytes) = crate::console::last_words(why);
        let [address, bytes] = [address, bytes].map(crate::plan::to_u64);
        Self::new(LaunchAnswer::Refused, address, bytes)
    }

    /// There is no launch for this reason, which may be one that more memory mends.
    pub fn failed(why: &LaunchError) -> Self {
        match why {
            LaunchError::NoRoom { needed, .. } => {
                Self::new(LaunchAnswer::MoreMemory, needed.pages(), 0)
            }
            LaunchError::NoDeviceTree(_)
            | LaunchError::UnknownBootCpu(_)
            | LaunchError::RamTooHigh { .. }
            | LaunchError::UartTooHigh(_)
            | LaunchError::ManifestSize(_) => Self::refused(why),
        }
    }
}

/// First Rust code of the entry that prepares a launch, MMU off.
extern "C" fn prepare(info: u64, answer: &mut Answer) {
    unsafe extern "Rust" {
        fn pfnguard_late_main(boot: Boot, info: &LaunchInfo) -> Answer;
    }
    crate::percpu::init_boot_cpu();
    crate::vectors::install();
    // SAFETY: the only call since the image was set up.
    let boot = unsafe { Boot::new(PhysAddr(0)) };
    let info = core::ptr::with_exposed_provenance::<LaunchInfo>(
        usize::try_from(info).expect("addresses have 64 bits"),
    );
    // SAFETY: the module's, aligned and cleaned, and unchanged until this entry returns.
    let info = unsafe { &*info };
    // SAFETY: defined by `late_entry!` with this signature, or the link fails.
    *answer = unsafe { pfnguard_late_main(boot, info) };
}

/// First Rust code of a CPU's entry, MMU on, own stack.
extern "C" fn enter(percpu: &'static PerCpu, step: u32, answer: &mut Answer) {
    percpu.select();
    crate::vectors::install();
    *answer = match LaunchStep::from_raw(step) {
        Some(LaunchStep::Check) => check(),
        Some(LaunchStep::Commit) => commit(percpu),
        None => Answer::refused(&"no such step"),
    };
}

fn check() -> Answer {
    match Platform::get().id.difference(&IdRegisters::read()) {
        None => Answer::DONE,
        Some(difference) => {
            Answer::refused(&format_args!("CPU {:#x}: {difference}", crate::percpu::own_mpidr()))
        }
    }
}

/// Takes EL2 on this CPU, and returns once all CPUs have: the kernel runs on under protection only.
fn commit(percpu: &'static PerCpu) -> Answer {
    // SAFETY: prepared: doors are open, the host's stage 2 is made; each CPU commits once.
    let sctlr = unsafe { crate::secondary::resume_host(percpu) };
    let all = crate::launch::cpu_count();
    ARRIVED.fetch_add(1, Ordering::AcqRel);
    while ARRIVED.load(Ordering::Acquire) < all {
        core::hint::spin_loop();
    }
    Answer { sctlr, ..Answer::DONE }
}

/// Names the function that prepares a launch under a running kernel:
/// `fn(Boot, &LaunchInfo) -> Answer`, MMU off.
#[macro_export]
macro_rules! late_entry {
    ($main:path) => {
        const _: () = {
            #[unsafe(no_mangle)]
            fn pfnguard_late_main(
                boot: $crate::launch::Boot,
                info: &$crate::late::LaunchInfo,
            ) -> $crate::late::Answer {
                $main(boot, info)
            }
        };
    };
}

global_asm!(
    r#"
// Registers of the kernel and of its stub, below them room for the answer. x14 to x17: VBAR_EL2,
// SCTLR_EL2, the argument, x30.
.macro save_kernel
    stp     x18, x19, [sp, #-144]!
    stp     x20, x21, [sp, #16]
    stp     x22, x23, [sp, #32]
    stp     x24, x25, [sp, #48]
    stp     x26, x27, [sp, #64]
    stp     x28, x29, [sp, #80]
    stp     x17, x14, [sp, #96]
    str     x15, [sp, #112]
    sub     sp, sp, #{answer_size}
    mov     x29, xzr
    mov     x30, xzr
.endm

.macro enter_el2
    mrs     x14, vbar_el2
    mrs     x15, sctlr_el2
    mov     x16, x0
    mov     x17, x30
    msr     spsel, #1
    ldr     x1, ={sctlr_off}
    msr     sctlr_el2, x1
    isb
.endm

.pushsection .text.late, "ax"
.global pfnguard_late_prepare
pfnguard_late_prepare:
    enter_el2
    bl      pfnguard_set_up_image
    adrp    x1, cpu0_stack_top
    mov     sp, x1
    save_kernel
    mov     x0, x16
    mov     x1, sp
    bl      {prepare}
    b       return_to_kernel

.global pfnguard_late_enter
pfnguard_late_enter:
    enter_el2
    bl      pfnguard_find_record
    cbz     x0, unknown_cpu
    mov     sp, x5
    save_kernel
    mov     w1, w16
    mov     x2, sp
    bl      {enter}

// With the MMU as Rust left it, what Rust wrote is read as it was written.
return_to_kernel:
    ldp     x0, x1, [sp], #16
    ldp     x2, x3, [sp], #16
    ldp     x17, x14, [sp, #96]
    ldr     x15, [sp, #112]
    ldp     x28, x29, [sp, #80]
    ldp     x26, x27, [sp, #64]
    ldp     x24, x25, [sp, #48]
    ldp     x22, x23, [sp, #32]
    ldp     x20, x21, [sp, #16]
    ldp     x18, x19, [sp], #144
    mov     x30, x17
    cbz     x3, leave_to_stub
    msr     sctlr_el2, x3
    isb
    b       clear_and_leave
unknown_cpu:
    mov     x0, #{refused}
    mov     x1, xzr
    mov     x2, xzr
    mov     x30, x17
leave_to_stub:
    msr     sctlr_el2, x15
    msr     vbar_el2, x14
    isb
    tlbi    alle2
    dsb     nsh
    isb
clear_and_leave:
    .irp r, 3,4,5,6,7,8,9,10,11,12,13,14,15,16,17
    mov     x\r, xzr
    .endr
    eret
    dsb     nsh
    isb
.ltorg
.popsection
"#,
    sctlr_off = const SCTLR_MMU_OFF.bits(),
    answer_size = const size_of::<Answer>(),
    refused = const LaunchAnswer::Refused.raw(),
    prepare = sym prepare,
    enter = sym enter,
);

static_assertions::const_assert_eq!(size_of::<Answer>(), 32);
