//! Guests of a few instructions. Each is a page of its own, position independent, entered at its
//! first byte with the MMU off; `x0` (and whatever registers the host sets) are its arguments.

use core::arch::global_asm;

use pfnguard_host_interface::Pfn;
use pfnguard_shared::PAGE_SIZE;

use crate::frames;

/// A guest program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Increments the doubleword at x0, yields its value, repeats.
    Increment,
    /// Loads the doubleword at x0, yields it, repeats.
    Load,
    /// Loads the signed halfword at x0 into a 64-bit register, yields it, repeats.
    LoadSigned,
    /// Loads the word at x0, yields it, repeats.
    Load32,
    /// Stores x1 to x0, yields it, repeats.
    Store,
    /// Calls the code at x0, then yields 1.
    Execute,
    /// Makes the HVC that x0..x7 say, yields x0..x2 of the answer, then x3..x5.
    Hvc,
    /// As `Hvc`, by SMC.
    Smc,
    /// Spins for good.
    Spin,
    /// Waits for an interrupt, then yields 0x77, repeats.
    Wait,
    /// Touches FP and EL2 registers with vectors of its own: yields ESR_EL1 each time.
    Undefined,
    /// Fills x1 bytes from x0 with a pattern, then yields 1.
    Fill,
    /// Reads x0 for good, counting at x1 and leaving the last value read behind the count.
    Hammer,
    /// Shares the page at x0 with the host, yields, takes it back, yields, repeats.
    Lend,
    /// Loads from the page of x7 and stores to the page of x9, unless they are page 0, makes the HVC
    /// that x0..x3 say, yields x1..x3 of the answer, repeats. `tools::fuzz_machine` knows every instruction.
    Anything,
}

/// What [`Program::Fill`] writes.
pub const PATTERN: u64 = 0x5ec2_e75e_c2e7_5ec2;

global_asm!(
    ".macro yield_call",
    "movz w0, #0x0181",
    "movk w0, #0xc600, lsl #16",
    "hvc #0",
    ".endm",
    ".section .rodata.guest, \"a\"",
    ".balign 4096",
    ".global guest_programs",
    "guest_programs:",
    // Increment
    "mov x19, x0",
    "2: ldr x1, [x19]",
    "add x1, x1, #1",
    "str x1, [x19]",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // Load
    "mov x19, x0",
    "2: ldr x20, [x19]",
    "mov x1, x20",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // LoadSigned
    "mov x19, x0",
    "2: ldrsh x20, [x19]",
    "mov x1, x20",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // Load32
    "mov x19, x0",
    "2: ldr w20, [x19]",
    "mov x1, x20",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // Store
    "mov x19, x0",
    "mov x20, x1",
    "2: str x20, [x19]",
    "mov x1, x20",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // Execute
    "mov x19, x0",
    "blr x19",
    "mov x1, #1",
    "yield_call",
    "b .",
    ".balign 4096",
    // Hvc
    "hvc #0",
    "3: mov x19, x3",
    "mov x20, x4",
    "mov x21, x5",
    "mov x3, x2",
    "mov x2, x1",
    "mov x1, x0",
    "yield_call",
    "mov x1, x19",
    "mov x2, x20",
    "mov x3, x21",
    "yield_call",
    "b .",
    ".balign 4096",
    // Smc
    "smc #0",
    "mov x1, x0",
    "yield_call",
    "b .",
    ".balign 4096",
    // Spin
    "b .",
    ".balign 4096",
    // Wait
    "2: wfi",
    "mov x1, #0x77",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // Undefined: the vectors are at 0x800 of this page.
    "adr x1, 4f",
    "msr vbar_el1, x1",
    "isb",
    ".inst 0x9e6703e0", // fmov d0, xzr
    "mov x1, #3 << 20",
    "msr cpacr_el1, x1",
    "isb",
    ".inst 0x9e6703e0",
    "mrs x2, S3_4_C1_C1_0", // HCR_EL2
    "mov x1, #1",
    "yield_call",
    "b .",
    ".balign 2048",
    "4: .skip 0x200",
    "mrs x1, esr_el1",
    "mrs x19, elr_el1",
    "mov x2, x19",
    "mrs x3, spsr_el1",
    "yield_call",
    "add x19, x19, #4",
    "msr elr_el1, x19",
    "eret",
    ".balign 4096",
    // Fill
    "movz x2, #0x5ec2, lsl #48",
    "movk x2, #0xe75e, lsl #32",
    "movk x2, #0xc2e7, lsl #16",
    "movk x2, #0x5ec2",
    "add x1, x0, x1",
    "2: str x2, [x0], #8",
    "cmp x0, x1",
    "b.lo 2b",
    "mov x1, #1",
    "yield_call",
    "b .",
    ".balign 4096",
    // Hammer
    "2: ldr x2, [x0]",
    "ldr x3, [x1]",
    "add x3, x3, #1",
    "str x3, [x1]",
    "str x2, [x1, #8]",
    "b 2b",
    ".balign 4096",
    // Lend: MEM_SHARE is 0xc6000003, MEM_UNSHARE 0xc6000004.
    "mov x19, x0",
    "2: movz w0, #0x0003",
    "movk w0, #0xc600, lsl #16",
    "mov x1, x19",
    "mov x2, xzr",
    "mov x3, xzr",
    "hvc #0",
    "mov x1, x0",
    "yield_call",
    "movz w0, #0x0004",
    "movk w0, #0xc600, lsl #16",
    "mov x1, x19",
    "mov x2, xzr",
    "mov x3, xzr",
    "hvc #0",
    "mov x1, x0",
    "yield_call",
    "b 2b",
    ".balign 4096",
    // Anything. Page numbers have 27 bits. What is at 0x80 is overwritten.
    "2: ubfx x10, x7, #12, #27",
    "cbz x10, 3f",
    "lsl x10, x10, #12",
    "ldr xzr, [x10]",
    "3: ubfx x10, x9, #12, #27",
    "cbz x10, 4f",
    "lsl x10, x10, #12",
    "str xzr, [x10, #0x80]",
    "4: hvc #0",
    "mov x6, x0",
    "yield_call",
    "b 2b",
    ".balign 4096",
);

unsafe extern "C" {
    static guest_programs: u8;
}

impl Program {
    /// Returns the position among the programs, in pages.
    fn index(self) -> u64 {
        match self {
            Self::Increment => 0,
            Self::Load => 1,
            Self::LoadSigned => 2,
            Self::Load32 => 3,
            Self::Store => 4,
            Self::Execute => 5,
            Self::Hvc => 6,
            Self::Smc => 7,
            Self::Spin => 8,
            Self::Wait => 9,
            Self::Undefined => 10,
            Self::Fill => 11,
            Self::Hammer => 12,
            Self::Lend => 13,
            Self::Anything => 14,
        }
    }

    /// Returns the address of the program.
    pub fn address(self) -> u64 {
        let programs = u64::try_from((&raw const guest_programs).expose_provenance()).unwrap_or(0);
        programs + self.index() * u64::try_from(PAGE_SIZE).unwrap_or(0)
    }

    /// Writes the program to a page of the host's.
    pub fn copy_to(self, page: Pfn) {
        let bytes = u64::try_from(PAGE_SIZE).unwrap_or(0);
        let source = self.address();
        for offset in (0..bytes).step_by(8) {
            frames::write(frames::address(page) + offset, frames::read(source + offset));
        }
    }
}
