//! RAM for tests: handed out once, never twice, so that no test inherits another one's damage.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use pfnguard_host_interface::{Pages, Pfn};
use pfnguard_shared::PAGE_SHIFT;

/// First page that tests get: past the images, the modules and the device tree.
const FIRST: u64 = 0x5000_0000 >> PAGE_SHIFT;
/// First page past RAM.
pub const RAM_END: u64 = 0x8000_0000 >> PAGE_SHIFT;

static NEXT: AtomicU64 = AtomicU64::new(FIRST);

/// Takes `count` pages that start at a multiple of `align` pages (a power of two).
///
/// # Panics
/// Where RAM is used up: the suite takes more than the machine has.
pub fn take_aligned(count: u64, align: u64) -> Pages {
    let place = |next: u64| next.next_multiple_of(align);
    let step = |next: u64| place(next).checked_add(count).filter(|&end| end <= RAM_END);
    match NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step) {
        Ok(before) => Pages::new(Pfn(place(before)), count),
        Err(_) => panic!("test RAM is used up"),
    }
}

/// Takes `count` pages.
pub fn take(count: u64) -> Pages {
    take_aligned(count, 1)
}

/// Takes one page.
pub fn take_one() -> Pfn {
    take(1).start
}

/// Returns the address of a page's first byte.
pub fn address(page: Pfn) -> u64 {
    page.0 << PAGE_SHIFT
}

/// Returns page number `index` of a range.
pub fn nth(pages: Pages, index: u64) -> Pfn {
    Pfn(pages.start.0 + index)
}

/// Writes a doubleword of RAM that is the host's.
pub fn write(address: u64, value: u64) {
    let address = usize::try_from(address).unwrap_or(0);
    // SAFETY: Test frames belong to nobody's Rust objects; a frame that is not the host's faults,
    // which ends the run as a crash.
    unsafe { with_exposed_provenance_mut::<u64>(address).write_volatile(value) };
}

/// Reads a doubleword of RAM that is the host's.
pub fn read(address: u64) -> u64 {
    let address = usize::try_from(address).unwrap_or(0);
    // SAFETY: As for `write`.
    unsafe { with_exposed_provenance::<u64>(address).read_volatile() }
}

/// Writes `value` to every doubleword of `pages`.
pub fn fill(pages: Pages, value: u64) {
    for page in pages.start.0..pages.start.0 + pages.count {
        for offset in (0..4096).step_by(8) {
            write((page << PAGE_SHIFT) + offset, value);
        }
    }
}

/// Returns whether every doubleword of `pages` is `value`.
pub fn is_filled(pages: Pages, value: u64) -> bool {
    (pages.start.0..pages.start.0 + pages.count)
        .all(|page| (0..4096).step_by(8).all(|offset| read((page << PAGE_SHIFT) + offset) == value))
}
