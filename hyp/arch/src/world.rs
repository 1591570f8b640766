//! The world switch: a guest's registers in, the host's back.
//!
//! Switched by assembly: general registers, `APIAKey`. Switched here: EL1 and EL0 system registers
//! and the other keys. Not switched because guests cannot reach it: FP, SVE, SME (`CPTR_EL2`),
//! debug, PMU, SPE, trace (`MDCR_EL2`), MTE state (`HCR_EL2.ATA`), the physical timer.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use arm_sysregs::el1::registers::{SctlrEl1, TcrEl1};
use arm_sysregs::el2::accessors as el2;
use arm_sysregs::el2::registers::HcrEl2;
use pfnguard_core::addr::IpaPfn;
use pfnguard_core::machine::GuestExit;
use pfnguard_core::vcpu::{Sysregs, VcpuContext};
use pfnguard_shared::PAGE_SHIFT;

use crate::barrier::isb;
use crate::el2::Controls;
use crate::features::IdRegisters;
use crate::host::fault_address;
use crate::machine::Platform;
use crate::percpu::HYP_KEY;
use crate::syndrome::{abort, class, exception_class};
use crate::sysreg::{read, tlbi_this_vmid, tlbi_this_vmid_stage1, write};
use crate::tlb::Stage2Regs;
use crate::vectors::{Pauth, guest_table, host_table, select};

/// What one CPU needs to switch worlds.
#[derive(Debug)]
pub struct Switch {
    host: Controls,
    guest: Controls,
    host_stage2: Stage2Regs,
    guest_vtcr: u64,
    pauth: Pauth,
    profiling: Profiling,
    /// The host's registers while a guest runs: too big for the stack to hold twice.
    saved: Sysregs,
}

/// Units of the host that write to memory on their own while EL1 runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Profiling {
    /// FEAT_SPE.
    spe: Unit,
    /// FEAT_TRF, which is what stops a trace.
    trace: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Absent,
    Present,
}

impl Unit {
    fn new(present: bool) -> Self {
        if present { Self::Present } else { Self::Absent }
    }
}

macro_rules! el1_registers {
    ($macro:ident) => {
        $macro! {
            sp_el0, sp_el1, elr_el1, spsr_el1, actlr_el1, cpacr_el1, ttbr0_el1, ttbr1_el1, mair_el1,
            amair_el1, esr_el1, afsr0_el1, afsr1_el1, far_el1, par_el1, vbar_el1, contextidr_el1,
            tpidr_el0, tpidrro_el0, tpidr_el1, csselr_el1, cntkctl_el1, mdscr_el1
        }
    };
}

/// Keys IB, DA, DB, GA, low half first; IA is the vectors' business.
macro_rules! keys {
    ($macro:ident) => {
        $macro! {
            2 => "s3_0_c2_c1_2", 3 => "s3_0_c2_c1_3", 4 => "s3_0_c2_c2_0", 5 => "s3_0_c2_c2_1",
            6 => "s3_0_c2_c2_2", 7 => "s3_0_c2_c2_3", 8 => "s3_0_c2_c3_0", 9 => "s3_0_c2_c3_1"
        }
    };
}

/// Saves all but `SCTLR_EL1` and `TCR_EL1`.
fn save(sysregs: &mut Sysregs, pauth: Pauth) {
    macro_rules! save {
        ($($name:ident),*) => { $( sysregs.$name = read_named!($name); )* };
    }
    macro_rules! save_keys {
        ($($index:literal => $name:literal),*) => {{ $( sysregs.pauth_keys[$index] = read!($name); )* }};
    }
    macro_rules! read_named {
        ($name:ident) => {{
            let value: u64;
            // SAFETY: reading a system register has no side effect on memory.
            unsafe {
                asm!(concat!("mrs {0}, ", stringify!($name)), out(reg) value,
                    options(nomem, nostack, preserves_flags))
            };
            value
        }};
    }
    el1_registers!(save);
    match pauth {
        Pauth::Present => {
            keys!(save_keys);
        }
        Pauth::Absent => {}
    }
}

/// Loads all but `SCTLR_EL1` and `TCR_EL1`.
fn load(sysregs: &Sysregs, pauth: Pauth) {
    macro_rules! load {
        ($($name:ident),*) => { $( write_named!($name, sysregs.$name); )* };
    }
    macro_rules! load_keys {
        ($($index:literal => $name:literal),*) => {{ $( write!($name, sysregs.pauth_keys[$index]); )* }};
    }
    macro_rules! write_named {
        ($name:ident, $value:expr) => {
            // SAFETY: acts on EL1 and EL0 only.
            unsafe {
                asm!(concat!("msr ", stringify!($name), ", {0}"), in(reg) $value,
                    options(nostack, preserves_flags))
            }
        };
    }
    el1_registers!(load);
    match pauth {
        Pauth::Present => {
            keys!(load_keys);
        }
        Pauth::Absent => {}
    }
}

/// Puts EL1 into the state of a CPU out of reset.
pub(crate) fn scrub_el1(pauth: bool) {
    let reset = VcpuContext::reset(0, 0).sysregs;
    load(&reset, if pauth { Pauth::Present } else { Pauth::Absent });
    write!("sctlr_el1", reset.sctlr_el1);
    write!("tcr_el1", 0);
}

/// Stops all stage-1 walks of EL1. While stage 1 and stage 2 are exchanged, a speculative walk could
/// otherwise combine one world's tables with the other's VMID (Arm errata 1165522, 1319367, 1319537,
/// 1530923).
fn stop_walks() {
    let stopped = (TcrEl1::EPD0 | TcrEl1::EPD1).bits();
    write!("tcr_el1", read!("tcr_el1") | stopped);
    isb();
    write!("sctlr_el1", read!("sctlr_el1") | SctlrEl1::M.bits());
    isb();
}

/// Lets EL1 walk again, with these registers.
fn start_walks(tcr: u64, sctlr: u64) {
    isb();
    write!("tcr_el1", tcr);
    isb();
    write!("sctlr_el1", sctlr);
    isb();
}

fn select_stage2(regs: Stage2Regs) {
    write!("vtcr_el2", regs.vtcr);
    write!("vttbr_el2", regs.vttbr);
}

/// The host's virtual timer while a guest runs.
struct Timer {
    control: u64,
    compare: u64,
}

impl Timer {
    /// Puts the host's aside; the guest finds it off.
    fn take() -> Self {
        let host = Self { control: read!("cntv_ctl_el0"), compare: read!("cntv_cval_el0") };
        write!("cntv_ctl_el0", 0);
        write!("cntv_cval_el0", 0);
        host
    }

    fn give_back(self) {
        write!("cntv_ctl_el0", 0);
        isb();
        write!("cntv_cval_el0", self.compare);
        write!("cntv_ctl_el0", self.control);
    }
}

impl Profiling {
    /// Stops what would write the host's buffers through the guest's stage 2, and drains it.
    fn stop(self) -> [u64; 2] {
        let mut saved = [0; 2];
        if self.spe == Unit::Present {
            // `PMSCR_EL1`; `PSB CSYNC` is hint 17.
            saved[0] = read!("s3_0_c9_c9_0");
            write!("s3_0_c9_c9_0", 0);
            isb();
            // SAFETY: waits for the buffer writes; changes nothing else.
            unsafe { asm!("hint #17", "dsb nsh", options(nostack, preserves_flags)) };
        }
        if self.trace == Unit::Present {
            // `TRFCR_EL1`; `TSB CSYNC` is hint 18.
            saved[1] = read!("s3_0_c1_c2_1");
            write!("s3_0_c1_c2_1", 0);
            isb();
            // SAFETY: waits for the trace; changes nothing else.
            unsafe { asm!("hint #18", "dsb nsh", options(nostack, preserves_flags)) };
        }
        saved
    }

    fn resume(self, [spe, trace]: [u64; 2]) {
        if self.spe == Unit::Present {
            write!("s3_0_c9_c9_0", spe);
        }
        if self.trace == Unit::Present {
            write!("s3_0_c1_c2_1", trace);
        }
    }
}

impl Switch {
    /// Returns the switch of this CPU. `counters` is `PMCR_EL0.N`.
    pub(crate) fn new(id: &IdRegisters, counters: u8, host_stage2: Stage2Regs) -> Self {
        let platform = Platform::get();
        Self {
            host: Controls::host(id, counters),
            guest: Controls::guest(id, counters),
            host_stage2,
            guest_vtcr: platform.guest_vtcr(),
            pauth: platform.pauth,
            profiling: Profiling {
                spe: Unit::new(id.has_spe()),
                trace: Unit::new(id.has_trace_filter()),
            },
            saved: Sysregs::default(),
        }
    }

    /// Returns the host's controls.
    pub(crate) fn host_controls(&self) -> &Controls {
        &self.host
    }

    /// Runs a guest until it stops.
    pub(crate) fn run(&mut self, context: &mut VcpuContext, vttbr: u64) -> GuestExit {
        let returns = [read!("elr_el2"), read!("spsr_el2")];
        let profiling = self.profiling.stop();
        let timer = Timer::take();
        let walks = [read!("tcr_el1"), read!("sctlr_el1")];
        save(&mut self.saved, self.pauth);
        self.load_guest(&context.sysregs, vttbr);
        let exit = loop {
            if let Some(exit) = enter(context, self.pauth) {
                break exit;
            }
        };
        self.load_host(&mut context.sysregs, walks);
        timer.give_back();
        self.profiling.resume(profiling);
        write!("elr_el2", returns[0]);
        write!("spsr_el2", returns[1]);
        exit
    }

    fn load_guest(&self, sysregs: &Sysregs, vttbr: u64) {
        stop_walks();
        load(sysregs, self.pauth);
        select_stage2(Stage2Regs { vttbr, vtcr: self.guest_vtcr });
        // SAFETY: the guest's controls with the guest's stage 2.
        unsafe { self.guest.load() };
        select(guest_table());
        // Another vCPU of this VM may have run here last, with the same ASIDs for other tables.
        tlbi_this_vmid_stage1();
        start_walks(sysregs.tcr_el1, sysregs.sctlr_el1);
    }

    fn load_host(&self, sysregs: &mut Sysregs, [tcr, sctlr]: [u64; 2]) {
        sysregs.tcr_el1 = read!("tcr_el1");
        sysregs.sctlr_el1 = read!("sctlr_el1");
        save(sysregs, self.pauth);
        stop_walks();
        load(&self.saved, self.pauth);
        select_stage2(self.host_stage2);
        // SAFETY: the host's controls with the host's stage 2.
        unsafe { self.host.load() };
        select(host_table(self.pauth));
        start_walks(tcr, sctlr);
    }

    /// Asks the CPU how it combines the types of both stages at `ipa`.
    ///
    /// With `HCR_EL2.DC` stage 1 is off and everything is Normal write-back, untagged (Arm ARM).
    pub(crate) fn probe(&mut self, ipa: IpaPfn, vttbr: u64) -> u64 {
        let saved = [read!("par_el1"), read!("tcr_el1"), read!("sctlr_el1")];
        crate::barrier::drain_profiling();
        stop_walks();
        select_stage2(Stage2Regs { vttbr, vtcr: self.guest_vtcr });
        // SAFETY: acts on EL1 only, which does not run before the host's value is back.
        unsafe { el2::write_hcr_el2(self.guest.hcr | HcrEl2::DC) };
        isb();
        // SAFETY: translates; changes `PAR_EL1` only.
        unsafe {
            asm!("at s12e1r, {0}", "isb", in(reg) ipa.0 << PAGE_SHIFT,
                options(nostack, preserves_flags));
        };
        let par = read!("par_el1");
        // Translations without stage 1 are not the guest's.
        tlbi_this_vmid();
        // SAFETY: the host's value, with the host's stage 2 before EL1 runs.
        unsafe { el2::write_hcr_el2(self.host.hcr) };
        select_stage2(self.host_stage2);
        write!("par_el1", saved[0]);
        start_walks(saved[1], saved[2]);
        par
    }
}

/// Enters the guest once. `None` where it has to go on because the fault could not be located: its
/// stage 1 changed in between.
fn enter(context: &mut VcpuContext, pauth: Pauth) -> Option<GuestExit> {
    unsafe extern "C" {
        /// Returns 0 for a synchronous exception, 1 for an interrupt, 2 for an SError.
        fn pfnguard_guest_enter(context: *mut VcpuContext, key: *mut u64) -> u64;
    }
    let key = match pauth {
        Pauth::Present => context.sysregs.pauth_keys.as_mut_ptr(),
        Pauth::Absent => core::ptr::null_mut(),
    };
    // SAFETY: everything else is the guest's already; all registers of ours come back.
    let kind = unsafe { pfnguard_guest_enter(context, key) };
    match kind {
        0 => stopped(),
        1 => Some(GuestExit::Interrupt),
        _ => Some(GuestExit::SError),
    }
}

fn stopped() -> Option<GuestExit> {
    let (esr, far) = (read!("esr_el2"), read!("far_el2"));
    let aborts = [class::INSTRUCTION_ABORT_LOWER, class::DATA_ABORT_LOWER];
    let permission = esr & abort::FSC_TYPE == abort::FSC_PERMISSION;
    let hpfar = if aborts.contains(&exception_class(esr)) && permission {
        // The format of `HPFAR_EL2`: page number in bits 43:4.
        fault_address(esr, far)?.pfn().0 << 4
    } else {
        read!("hpfar_el2")
    };
    Some(GuestExit::Sync { esr, far, hpfar })
}

const REGS: usize = offset_of!(VcpuContext, regs);
const PC: usize = offset_of!(VcpuContext, pc);
static_assertions::const_assert_eq!(REGS, 0);
static_assertions::const_assert_eq!(offset_of!(VcpuContext, pstate), PC + 8);

global_asm!(
    r#"
.pushsection .text.world, "ax"
.global pfnguard_guest_enter
pfnguard_guest_enter:
    hint    #34
    stp     x29, x30, [sp, #-112]!
    mov     x29, sp
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     x0, x1, [sp, #96]
    ldp     x2, x3, [x0, #{pc}]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    cbz     x1, 1f
    ldp     x2, x3, [x1]
    msr     s3_0_c2_c1_0, x2
    msr     s3_0_c2_c1_1, x3
1:  ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh
    isb

// From the guest's vectors: the guest's x0 and x1 are on the stack, x1 tells the vector.
.global pfnguard_guest_exit
pfnguard_guest_exit:
    ldr     x0, [sp, #112]
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
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #{pc}]
    ldr     x4, [sp, #104]
    cbz     x4, 1f
    mrs     x2, s3_0_c2_c1_0
    mrs     x3, s3_0_c2_c1_1
    stp     x2, x3, [x4]
    mrs     x4, tpidr_el2
    ldp     x2, x3, [x4, #{hyp_key}]
    msr     s3_0_c2_c1_0, x2
    msr     s3_0_c2_c1_1, x3
    isb
1:  mov     x0, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret
.popsection
"#,
    pc = const PC,
    hyp_key = const HYP_KEY,
);
