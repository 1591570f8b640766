//! Entry points: the arm64 Image header, the boot CPU's entry and that of every other CPU.
//!
//! Both start with the MMU off (Linux `Documentation/arch/arm64/booting.rst`, PSCI 1.1 section 6.4).
//! Data accesses are then Device-nGnRnE and go past the caches, so everything that is written here
//! and read later through the caches is invalidated first, and what other CPUs read with their own
//! MMU off is cleaned ([`SecondaryBoot::publish`]).

use core::arch::global_asm;
use core::mem::offset_of;

use pfnguard_core::addr::PhysAddr;
use pfnguard_core::hypervisor::MAX_CPUS;
use pfnguard_shared::launch::{IMAGE_HEADER_OFFSET, IMAGE_MAGIC};
use pfnguard_shared::{ABI_MAJOR, ABI_MINOR};

use crate::cache::{CacheGeometry, DataCache};
use crate::el2::SCTLR_MMU_OFF;
use crate::launch::Boot;
use crate::percpu::PerCpu;

/// What a CPU needs before it can run Rust code, found by its MPIDR.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct SecondaryBoot {
    /// `MPIDR_EL1` affinity with bit 31 set; 0 in an unused record.
    mpidr: u64,
    percpu: usize,
    stack_top: usize,
    mmu: Mmu,
}

/// Registers that switch the hypervisor's stage 1 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mmu {
    /// `MAIR_EL2`.
    pub mair: u64,
    /// `TCR_EL2`.
    pub tcr: u64,
    /// `TTBR0_EL2`.
    pub ttbr0: u64,
    /// `SCTLR_EL2`.
    pub sctlr: u64,
}

/// Affinity fields of `MPIDR_EL1`, as PSCI names CPUs.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
const RECORD_USED: u64 = 1 << 31;

/// The records, read by CPUs whose MMU is off.
#[repr(C, align(4096))]
struct Records([SecondaryBoot; MAX_CPUS]);

static mut RECORDS: Records = Records(
    [SecondaryBoot {
        mpidr: 0,
        percpu: 0,
        stack_top: 0,
        mmu: Mmu { mair: 0, tcr: 0, ttbr0: 0, sctlr: 0 },
    }; MAX_CPUS],
);

impl SecondaryBoot {
    /// Returns the record of the CPU `percpu`.
    pub fn new(percpu: &PerCpu, mmu: Mmu) -> Self {
        Self {
            mpidr: percpu.mpidr() | RECORD_USED,
            percpu: core::ptr::from_ref(percpu).addr(),
            stack_top: percpu.stacks().main.end,
            mmu,
        }
    }

    /// Makes the record of CPU number `index` visible to that CPU while its MMU is off.
    ///
    /// # Safety
    ///
    /// Only the boot CPU runs, and what the record points to stays there for good.
    ///
    /// # Panics
    ///
    /// Where `index` is not below [`MAX_CPUS`].
    pub unsafe fn publish(self, index: usize) {
        assert!(index < MAX_CPUS, "CPU {index} has no record");
        let records = (&raw mut RECORDS).cast::<Self>();
        let slot = records.wrapping_add(index);
        // SAFETY: in bounds, and no other CPU runs yet.
        unsafe { slot.write(self) };
        let cache = CacheGeometry::read();
        // SAFETY: maintenance changes no contents.
        unsafe { cache.clean(slot.cast(), size_of::<Self>()) };
    }
}

/// Returns the address at which a CPU that PSCI starts enters the hypervisor.
pub fn secondary_entry() -> PhysAddr {
    unsafe extern "C" {
        static pfnguard_secondary_entry: u8;
    }
    let address = (&raw const pfnguard_secondary_entry).addr();
    PhysAddr(u64::try_from(address).expect("addresses have 64 bits"))
}

/// Switches the hypervisor's stage 1 on.
///
/// # Safety
///
/// The tables must map every page of the image and of all memory in use to its own address, and be
/// visible to this CPU's table walker.
pub unsafe fn enable_mmu(mmu: Mmu) {
    // SAFETY: the next instruction is mapped to its own address: the caller's promise.
    unsafe {
        core::arch::asm!(
            "msr mair_el2, {mair}",
            "msr tcr_el2, {tcr}",
            "msr ttbr0_el2, {ttbr0}",
            "tlbi alle2",
            "ic iallu",
            "dsb sy",
            "isb",
            "msr sctlr_el2, {sctlr}",
            "isb",
            // What lies on the stack was written past the caches, and may have been fetched by
            // other CPUs before: such lines are clean, and wrong.
            "mov {line}, sp",
            "2: dc civac, {line}",
            "add {line}, {line}, #16",
            "cmp {line}, {top}",
            "b.lo 2b",
            "dsb sy",
            line = out(reg) _,
            top = in(reg) crate::layout::Stacks::boot_cpu().main.end,
            mair = in(reg) mmu.mair,
            tcr = in(reg) mmu.tcr,
            ttbr0 = in(reg) mmu.ttbr0,
            sctlr = in(reg) mmu.sctlr,
            options(nostack),
        );
    };
}

global_asm!(
    r#"
.pushsection .head, "ax"
.global image_head
image_head:
    b       boot_cpu_entry
    .long   0
    // text_offset: none. Linux's format, Documentation/arch/arm64/booting.rst.
    .quad   0
    // image_size, stacks included.
    .quad   image_end - . + 16
    // Little-endian, 4 KiB pages, anywhere in memory.
    .quad   0xa
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0
    // pfnguard_shared::launch::ImageHeader.
    .quad   {magic}
    .long   {abi_major}
    .long   {abi_minor}
    .quad   image_end - image_head
    .quad   pfnguard_late_prepare - image_head
    .quad   pfnguard_late_enter - image_head

boot_cpu_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    park
    // HCR_EL2: AArch64 below, no VHE, nothing trapped yet.
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    ldr     x1, ={sctlr_off}
    msr     sctlr_el2, x1
    isb
    mov     x19, x0
    bl      pfnguard_set_up_image
    msr     spsel, #1
    adrp    x1, cpu0_stack_top
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    bl      {boot}
park:
    wfi
    b       park

// Makes the image that was loaded one that runs, MMU off. Uses x0 to x5.
.global pfnguard_set_up_image
pfnguard_set_up_image:
    // The loader may have left lines of the image in the caches. They must not be written back
    // over, or be read instead of, what is stored from here on past the caches.
    adrp    x0, image_start
    adrp    x1, image_end
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2
1:  dc      civac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    1b
    dsb     sy

    // .bss and the stacks: what the loader left there is nobody's business.
    adrp    x0, data_end
2:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    2b

    // Position independence: every relocation is base + addend (R_AARCH64_RELATIVE).
    adrp    x0, image_start
    adrp    x1, rela_start
    add     x1, x1, :lo12:rela_start
    adrp    x2, rela_end
    add     x2, x2, :lo12:rela_end
3:  cmp     x1, x2
    b.hs    4f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027
    b.ne    park
    add     x5, x5, x0
    str     x5, [x0, x3]
    b       3b
4:  dsb     sy
    ic      iallu
    dsb     sy
    isb
    ret
.popsection

.pushsection .text.secondary, "ax"
.global pfnguard_secondary_entry
.balign 64
pfnguard_secondary_entry:
    msr     daifset, #0xf
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    ldr     x1, ={sctlr_off}
    msr     sctlr_el2, x1
    isb
    msr     spsel, #1
    bl      pfnguard_find_record
    cbz     x0, 1f
    mov     sp, x5
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary}
    b       park
    // A CPU that launch did not name: it cannot run here. PSCI CPU_OFF.
1:  ldr     w0, =0x84000002
    smc     #0
    b       park

// Switches this CPU's MMU on, with the tables of its record. Out: x0 its slot, or 0 where it has no
// record, and x5 the top of its stack. Uses x1 to x4.
.global pfnguard_find_record
pfnguard_find_record:
    mrs     x1, mpidr_el1
    ldr     x2, ={affinity}
    and     x1, x1, x2
    orr     x1, x1, #(1 << 31)
    adrp    x2, {records}
    add     x2, x2, :lo12:{records}
    mov     x3, #{max_cpus}
1:  ldr     x4, [x2, #{mpidr}]
    cmp     x4, x1
    b.eq    2f
    add     x2, x2, #{record_size}
    subs    x3, x3, #1
    b.ne    1b
    mov     x0, xzr
    ret
2:  ldp     x3, x4, [x2, #{mmu}]
    msr     mair_el2, x3
    msr     tcr_el2, x4
    ldp     x3, x4, [x2, #{mmu} + 16]
    msr     ttbr0_el2, x3
    ldr     x0, [x2, #{percpu}]
    ldr     x5, [x2, #{stack_top}]
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    msr     sctlr_el2, x4
    isb
    ret
.ltorg
.popsection
"#,
    magic = const IMAGE_MAGIC,
    abi_major = const ABI_MAJOR,
    abi_minor = const ABI_MINOR,
    sctlr_off = const SCTLR_MMU_OFF.bits(),
    affinity = const MPIDR_AFFINITY,
    records = sym RECORDS,
    max_cpus = const MAX_CPUS,
    record_size = const size_of::<SecondaryBoot>(),
    mpidr = const offset_of!(SecondaryBoot, mpidr),
    mmu = const offset_of!(SecondaryBoot, mmu),
    percpu = const offset_of!(SecondaryBoot, percpu),
    stack_top = const offset_of!(SecondaryBoot, stack_top),
    boot = sym boot_cpu,
    secondary = sym crate::secondary::secondary_cpu,
);

// Linux's header is as long as the offset of ours.
static_assertions::const_assert_eq!(IMAGE_HEADER_OFFSET, 64);

/// First Rust code of the boot CPU, MMU off.
extern "C" fn boot_cpu(dtb: u64) -> ! {
    unsafe extern "Rust" {
        fn pfnguard_payload_main(boot: Boot) -> !;
    }
    crate::percpu::init_boot_cpu();
    crate::vectors::install();
    // SAFETY: the only call.
    let boot = unsafe { Boot::new(PhysAddr(dtb)) };
    // SAFETY: defined by `entry!` with this signature, or the link fails.
    unsafe { pfnguard_payload_main(boot) }
}

/// Names the function that the boot CPU runs: `fn(Boot) -> !`, MMU off, one CPU.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        const _: () = {
            #[unsafe(no_mangle)]
            fn pfnguard_payload_main(boot: $crate::launch::Boot) -> ! {
                $main(boot)
            }
        };
    };
}
