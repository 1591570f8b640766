//! The host's own stage 1: an identity map made at link time, and a window for tables that a test
//! builds.
//!
//! | addresses | what | type |
//! |---|---|---|
//! | 0..1 GiB | registers, 32-bit BARs | device |
//! | 1..3 GiB | RAM, and what lies behind it | write-back, executable |
//! | 256..257 GiB | ECAM | device |
//! | 512..516 GiB | 64-bit BARs | device |
//! | 1 TiB.. | window, empty | as the test says |

use core::arch::{asm, global_asm};
use core::ptr::with_exposed_provenance_mut;

use aarch64_rt::{DEFAULT_MAIR, DEFAULT_SCTLR, DEFAULT_TCR};

/// 48-bit addresses: walks start at level 0 (Arm ARM, `TCR_EL1.T0SZ`).
const TCR: u64 = DEFAULT_TCR & !0x3f | 16;
/// Level-1 block: valid, accessed, inner shareable, attribute 1 (write-back).
pub const NORMAL: u64 = 1 | 1 << 2 | 3 << 8 | 1 << 10;
/// Level-1 block: valid, accessed, attribute 0 (Device-nGnRE), never executable.
const DEVICE: u64 = 1 | 1 << 10 | 1 << 53 | 1 << 54;
/// Level-3 page descriptor for write-back memory: [`NORMAL`] and the page bit.
pub const PAGE: u64 = NORMAL | 1 << 1;
/// Valid table descriptor.
const TABLE: u64 = 3;
/// First address of the window; its first 2 MiB are what [`set_window`] points to a table.
pub const WINDOW: u64 = 2 << 39;

global_asm!(
    ".section .init.mmu, \"ax\"",
    ".global enable_mmu",
    "enable_mmu:",
    "ldr x8, ={mair}",
    "ldr x9, ={sctlr}",
    "ldr x10, ={tcr}",
    "adrp x11, stage1_root",
    "b {enable}",
    ".ltorg",
    ".section .data.stage1, \"aw\"",
    ".balign 4096",
    "stage1_root:",
    ".quad stage1_low + 3, stage1_high + 3, stage1_window + 3",
    ".fill 509, 8, 0",
    "stage1_low:",
    ".quad {device}, {normal} + 0x40000000, {normal} + 0x80000000",
    ".fill 253, 8, 0",
    ".quad {device} + 0x4000000000",
    ".fill 255, 8, 0",
    "stage1_high:",
    ".quad {device} + 0x8000000000, {device} + 0x8040000000",
    ".quad {device} + 0x8080000000, {device} + 0x80c0000000",
    ".fill 508, 8, 0",
    "stage1_window:",
    ".quad stage1_window2 + 3",
    ".fill 511, 8, 0",
    ".global stage1_window2",
    "stage1_window2:",
    ".fill 512, 8, 0",
    mair = const DEFAULT_MAIR,
    sctlr = const DEFAULT_SCTLR,
    tcr = const TCR,
    device = const DEVICE,
    normal = const NORMAL,
    enable = sym aarch64_rt::__private::__enable_mmu_el1,
);

unsafe extern "C" {
    static stage1_window2: u8;
}

/// Makes the level-3 table at physical address `table` translate the window, or nothing.
pub fn set_window(table: Option<u64>) {
    point_window(table);
    forget_translations();
}

/// As [`set_window`], without the invalidation: cached translations stay.
pub fn point_window(table: Option<u64>) {
    let entry = (&raw const stage1_window2).expose_provenance();
    let value = table.map_or(0, |table| table | TABLE);
    // SAFETY: The entry belongs to this module; walks by the other CPU tolerate either value.
    unsafe { with_exposed_provenance_mut::<u64>(entry).write_volatile(value) };
}

/// Invalidates this machine's stage-1 translations, so that the next access walks the tables.
pub fn forget_translations() {
    // SAFETY: Only caches of translations are dropped.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

/// As [`forget_translations`], of this CPU only.
pub fn forget_own_translations() {
    // SAFETY: As there.
    unsafe { asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack)) };
}
