//! Cache maintenance (Arm ARM, D7.5) and zeroing.

use crate::barrier;

/// Maintenance of memory that is mapped.
pub trait DataCache: Send {
    /// Zeroes `len` bytes from `start`, cleans them to the point of coherency, and waits.
    ///
    /// # Safety
    ///
    /// The bytes must be mapped Normal write-back and writable, page aligned, whole pages, and
    /// reached by no reference.
    unsafe fn zero(&self, start: *mut u8, len: usize);

    /// Cleans `len` bytes from `start` to the point of coherency, and waits.
    ///
    /// # Safety
    ///
    /// The bytes must be mapped Normal, page aligned, whole pages.
    unsafe fn clean(&self, start: *mut u8, len: usize);

    /// Cleans and invalidates `len` bytes from `start` to the point of coherency, and waits.
    ///
    /// # Safety
    ///
    /// As [`Self::clean`].
    unsafe fn clean_invalidate(&self, start: *mut u8, len: usize);

    /// Invalidates the instruction caches of all CPUs, after earlier stores and maintenance.
    fn forget_instructions(&self);
}

/// The data caches of this machine: granules of their instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheGeometry {
    /// Bytes of the smallest data cache line.
    line: usize,
    /// Bytes that `DC ZVA` zeroes; `None` where it is prohibited.
    zva: Option<usize>,
}

/// `CTR_EL0.DminLine`: log2 of the words in the smallest data cache line (Arm ARM, D24.2).
const DMINLINE_SHIFT: u32 = 16;
/// `DCZID_EL0.DZP`: `DC ZVA` is prohibited.
const DZP: u64 = 1 << 4;
/// Four-bit fields of both registers.
const FIELD: u64 = 0b1111;
/// Bytes in a word, the unit of both registers.
const WORD: usize = 4;

impl CacheGeometry {
    /// Decodes `CTR_EL0` and `DCZID_EL0`.
    pub fn new(ctr: u64, dczid: u64) -> Self {
        let bytes = |log2: u64| WORD << log2;
        let zva = (dczid & DZP == 0).then(|| bytes(dczid & FIELD));
        Self { line: bytes(ctr >> DMINLINE_SHIFT & FIELD), zva }
    }

    /// Returns the geometry of this CPU. The least line size of all CPUs must be used where they
    /// differ: see [`Self::common`].
    pub fn read() -> Self {
        let (ctr, dczid) = registers();
        Self::new(ctr, dczid)
    }

    /// Returns a geometry that is right on CPUs of both kinds.
    pub fn common(self, other: Self) -> Self {
        let zva = self.zva.filter(|zva| Some(*zva) == other.zva);
        Self { line: self.line.min(other.line), zva }
    }
}

impl DataCache for CacheGeometry {
    // Out of line: pages and blocks, in two windows, are zeroed by one copy.
    #[inline(never)]
    unsafe fn zero(&self, start: *mut u8, len: usize) {
        match self.zva {
            Some(LINE) if self.line == LINE => {
                // SAFETY: the caller's promises; lines and blocks have this size.
                each(start, len, GROUP, |group| unsafe { zero_group(group) });
                return barrier::dsb_sy();
            }
            // SAFETY: the caller promises Normal, writable bytes without references, and whole
            // pages are whole blocks.
            Some(block) => each(start, len, block, |block| unsafe { dc_zva(block) }),
            // SAFETY: the caller promises writable bytes without references.
            None => unsafe { start.write_bytes(0, len) },
        }
        // SAFETY: the caller's bytes, which are mapped.
        unsafe { self.clean(start, len) };
    }

    unsafe fn clean(&self, start: *mut u8, len: usize) {
        // SAFETY: the caller promises that the bytes are mapped.
        each(start, len, self.line, |line| unsafe { dc_cvac(line) });
        barrier::dsb_sy();
    }

    unsafe fn clean_invalidate(&self, start: *mut u8, len: usize) {
        // SAFETY: the caller promises that the bytes are mapped.
        each(start, len, self.line, |line| unsafe { dc_civac(line) });
        barrier::dsb_sy();
    }

    /// All of them: what guests executed may be cached under any virtual address.
    fn forget_instructions(&self) {
        barrier::dsb_ish();
        ic_ialluis();
        barrier::dsb_ish();
        barrier::isb();
    }
}

fn ic_ialluis() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: instructions are fetched again; nothing else changes.
    unsafe {
        core::arch::asm!("ic ialluis", options(nostack, preserves_flags))
    };
}

/// Size of cache lines and of what `DC ZVA` zeroes on the cores that there are.
const LINE: usize = 64;
/// Bytes that one turn of the zeroing loop takes.
const GROUP: usize = 16 * LINE;

/// Zeroes and cleans the lines of a group. Each is cleaned just after it was zeroed: within one
/// line of write-back memory, maintenance keeps the program's order (Arm ARM, D7.5.9). Written out,
/// because the compiler is told to unroll less than this.
///
/// # Safety
///
/// As [`DataCache::zero`], for [`GROUP`] bytes where lines and `DC ZVA` blocks are [`LINE`] bytes.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn zero_group(group: *mut u8) {
    // SAFETY: the caller promises Normal, writable bytes without references. The clobber of memory
    // is the default of asm.
    unsafe {
        core::arch::asm!(
            ".rept {lines}", "dc zva, {line}", "dc cvac, {line}", "add {line}, {line}, {step}",
            ".endr",
            line = inout(reg) group => _,
            lines = const GROUP / LINE,
            step = const LINE,
            options(nostack, preserves_flags),
        )
    };
}

/// Zeroes a group; off target no line is ever dirty.
#[cfg(not(target_arch = "aarch64"))]
unsafe fn zero_group(group: *mut u8) {
    // SAFETY: the caller promises writable bytes.
    unsafe { group.write_bytes(0, GROUP) };
}

/// Calls `operation` for every `step` bytes. `len` is a multiple of `step`, which divides pages.
#[inline(always)]
fn each(start: *mut u8, len: usize, step: usize, operation: impl Fn(*mut u8)) {
    let end = start.wrapping_add(len);
    let mut next = start;
    while next < end {
        operation(next);
        next = next.wrapping_add(step);
    }
}

macro_rules! maintenance {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        #[cfg(target_arch = "aarch64")]
        #[inline(always)]
        unsafe fn $name(address: *mut u8) {
            // SAFETY: the caller promises what the instruction needs. The clobber of memory is
            // the default of asm.
            unsafe {
                core::arch::asm!($instruction, in(reg) address, options(nostack, preserves_flags))
            };
        }
    };
}

maintenance!(
    /// # Safety
    ///
    /// The line must be mapped.
    dc_cvac, "dc cvac, {0}"
);
maintenance!(
    /// # Safety
    ///
    /// The line must be mapped.
    dc_civac, "dc civac, {0}"
);
maintenance!(
    /// # Safety
    ///
    /// The block must be mapped Normal and writable, and reached by no reference.
    dc_zva, "dc zva, {0}"
);

/// Off target no line is ever dirty.
#[cfg(not(target_arch = "aarch64"))]
unsafe fn dc_cvac(_: *mut u8) {}

/// Off target no line is ever dirty.
#[cfg(not(target_arch = "aarch64"))]
unsafe fn dc_civac(_: *mut u8) {}

/// Zeroes a block of 64 bytes, the only size that tests name.
#[cfg(not(target_arch = "aarch64"))]
unsafe fn dc_zva(address: *mut u8) {
    // SAFETY: the caller promises writable bytes.
    unsafe { address.write_bytes(0, 64) };
}

/// Returns `CTR_EL0` and `DCZID_EL0`.
#[cfg(target_arch = "aarch64")]
fn registers() -> (u64, u64) {
    let (ctr, dczid): (u64, u64);
    // SAFETY: reading the identification registers has no effect.
    unsafe {
        core::arch::asm!("mrs {0}, ctr_el0", "mrs {1}, dczid_el0",
            out(reg) ctr, out(reg) dczid, options(nomem, nostack, preserves_flags))
    };
    (ctr, dczid)
}

/// Returns what a CPU with lines of 64 bytes and `DC ZVA` of 64 bytes says.
#[cfg(not(target_arch = "aarch64"))]
fn registers() -> (u64, u64) {
    (4 << DMINLINE_SHIFT, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_are_decoded_in_words() {
        let geometry = CacheGeometry::new(0x8444_c004, 4);
        assert_eq!(geometry, CacheGeometry { line: 64, zva: Some(64) });
    }

    #[test]
    fn prohibited_zva_is_not_used() {
        assert_eq!(CacheGeometry::new(0x8444_c004, 0x14).zva, None);
    }

    #[test]
    fn cpus_that_differ_share_the_smaller_line_and_no_zva() {
        let (little, big) =
            (CacheGeometry::new(0x0003_0000, 4), CacheGeometry::new(0x0004_0000, 5));
        assert_eq!(big.common(little), CacheGeometry { line: 32, zva: None });
        assert_eq!(little.common(little).zva, Some(64));
    }
}
