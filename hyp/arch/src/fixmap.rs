//! On-demand access to frames that the hypervisor does not map: windows of one CPU.
//!
//! A window is a range of virtual addresses that one CPU uses, with a table of its own that exists
//! since launch. Its descriptors are invalid but for the time of one access; only the last page's
//! is valid as long as the CPU has an argument page ([`ArgSlot`]).

use core::ptr::NonNull;

use pfnguard_core::addr::{Pfn, PfnRange};
use pfnguard_shared::{PAGE_SHIFT, PAGE_SIZE};

use crate::arg_slot::ArgSlot;
use crate::pool::to_usize;
use crate::stage1::{Access, leaf_bits};
use crate::tlb::El2Tlb;
use crate::walk::{MID_LEVEL, PAGE_LEVEL, pages_at};

/// How a frame is accessed through a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowType {
    /// Normal write-back.
    Cacheable,
    /// Normal Non-cacheable.
    Uncached,
    /// Device-nGnRE.
    Device,
}

/// A way to see frames for a moment.
pub trait Window {
    /// Maps the frame, calls `access` with its address, and unmaps it.
    fn with_page<R>(
        &mut self,
        pfn: Pfn,
        mem: WindowType,
        access: impl FnOnce(NonNull<u8>) -> R,
    ) -> R;

    /// Calls `access` with the address and the length in bytes of every part of `range`, in
    /// ascending order, in parts as large as can be mapped without mapping other frames: their
    /// neighbours may be registers, which speculation must not reach.
    fn with_range(
        &mut self,
        range: PfnRange,
        mem: WindowType,
        access: impl FnMut(NonNull<u8>, usize),
    );
}

/// First virtual address of the windows: the last level-0 descriptor of a 48-bit space, far above
/// the identity map of any machine with fewer than 48 physical address bits in use.
pub const WINDOW_BASE: u64 = 0xff80_0000_0000;
/// Pages of virtual address space per CPU: pages in one level-3 table, and a 2 MiB block.
pub const WINDOW_PAGES: u64 = 2 * BLOCK_PAGES;
/// Pages of a 2 MiB block.
const BLOCK_PAGES: u64 = pages_at(MID_LEVEL);

/// Returns the first page that is too high to be RAM, on a machine of so many address bits: EL2
/// maps RAM where it is, below the windows.
pub fn ram_limit(pa_bits: u32) -> Pfn {
    let addressable = 1u64 << pa_bits.saturating_sub(PAGE_SHIFT);
    Pfn(addressable.min(window_page(0)))
}

/// Returns the first virtual page of a CPU's window.
pub(crate) const fn window_page(cpu: u64) -> u64 {
    (WINDOW_BASE >> PAGE_SHIFT) + cpu * WINDOW_PAGES
}

/// Adjacent descriptors of one level and the addresses that they translate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    /// First descriptor.
    pub(crate) descriptors: NonNull<u64>,
    /// First virtual page.
    pub(crate) page: u64,
}

/// The windows of one CPU.
#[derive(Debug)]
pub struct Windows<T> {
    /// For the time of one access.
    pub frames: Fixmap<T>,
    /// For the argument page.
    pub arg_page: ArgSlot<T>,
}

impl<T: El2Tlb + Clone> Windows<T> {
    /// Returns the windows with the given descriptors: 512 of pages, one of a 2 MiB block.
    ///
    /// # Safety
    ///
    /// The descriptors must be invalid, of live EL2 tables, translate the pages that `pages` and
    /// `block` say, and be reached by nothing else.
    pub(crate) unsafe fn new(tlb: T, pages: Slots, block: Slots) -> Self {
        let frames = Fixmap { tlb: tlb.clone(), pages, block };
        // A range that is no whole block has at most 511 pages in one: the last slot is free.
        Self { frames, arg_page: ArgSlot::new(tlb, pages.from(BLOCK_PAGES - 1)) }
    }
}

// SAFETY: the descriptors are reached through one `Fixmap` only, which may move between threads.
unsafe impl Send for Slots {}

/// The windows of one CPU on frames.
///
/// Unmapping invalidates by broadcast: TLBs of other CPUs may hold speculative entries of these
/// addresses, and must never see one change its output address or type while valid.
#[derive(Debug)]
pub struct Fixmap<T> {
    tlb: T,
    pages: Slots,
    block: Slots,
}

impl<T: El2Tlb> Fixmap<T> {
    /// Maps `range`, at most as many leaves as there are slots, calls `access` and unmaps it.
    fn with<R>(
        &mut self,
        slots: Slots,
        level: u32,
        range: PfnRange,
        mem: WindowType,
        access: impl FnOnce(NonNull<u8>) -> R,
    ) -> R {
        let leaves = range.pages() / pages_at(level);
        let bits = leaf_bits(Access::Window(mem), level);
        for leaf in 0..leaves {
            let address = (range.start().0 + leaf * pages_at(level)) << PAGE_SHIFT;
            slots.change(leaf, 0, address | bits);
        }
        self.tlb.publish();
        let result = access(slots.pointer());
        for leaf in 0..leaves {
            let address = (range.start().0 + leaf * pages_at(level)) << PAGE_SHIFT;
            slots.change(leaf, address | bits, 0);
        }
        self.tlb.invalidate(slots.pages(leaves));
        result
    }
}

impl Slots {
    /// Returns the slots from number `index` on.
    fn from(&self, index: u64) -> Self {
        // SAFETY: callers pass the index of a slot.
        let descriptors = unsafe { self.descriptors.add(to_usize(index)) };
        Self { descriptors, page: self.page + index }
    }

    /// Stores `new` in a descriptor that holds `old`.
    pub(crate) fn change(&self, index: u64, old: u64, new: u64) {
        // SAFETY: callers pass the index of a slot.
        let descriptor = unsafe { self.descriptors.add(to_usize(index)) };
        // SAFETY: the descriptors are this CPU's and mapped (`Fixmap::new`).
        let found = unsafe { descriptor.read_volatile() };
        assert!(found == old, "window holds {found:#x}, not {old:#x}: hypervisor bug");
        // SAFETY: as above.
        unsafe { descriptor.write_volatile(new) };
    }

    /// Returns where the first slot's page is seen.
    pub(crate) fn pointer(&self) -> NonNull<u8> {
        let address = core::ptr::with_exposed_provenance_mut(to_usize(self.page << PAGE_SHIFT));
        NonNull::new(address).expect("windows are far above address 0")
    }

    /// Returns the pages to invalidate for `leaves` slots: one in each leaf would do, and a window
    /// holds either pages or one block.
    pub(crate) fn pages(&self, leaves: u64) -> PfnRange {
        PfnRange::new(Pfn(self.page), leaves).expect("windows are inside the address space")
    }
}

impl<T: El2Tlb> Window for Fixmap<T> {
    fn with_page<R>(
        &mut self,
        pfn: Pfn,
        mem: WindowType,
        access: impl FnOnce(NonNull<u8>) -> R,
    ) -> R {
        let range = PfnRange::single(pfn).expect("a frame is inside the address space");
        self.with(self.pages, PAGE_LEVEL, range, mem, access)
    }

    fn with_range(
        &mut self,
        range: PfnRange,
        mem: WindowType,
        mut access: impl FnMut(NonNull<u8>, usize),
    ) {
        let mut pfn = range.start();
        while let Some(rest) = PfnRange::new(pfn, range.end().0 - pfn.0) {
            let aligned = pfn.0.is_multiple_of(BLOCK_PAGES) && rest.pages() >= BLOCK_PAGES;
            let boundary = (pfn.0 / BLOCK_PAGES + 1) * BLOCK_PAGES;
            let pages = rest.pages().min(boundary - pfn.0);
            let part = PfnRange::new(pfn, pages).expect("part of a range");
            let bytes = to_usize(pages) * PAGE_SIZE;
            let (slots, level) = match aligned {
                true => (self.block, MID_LEVEL),
                false => (self.pages, PAGE_LEVEL),
            };
            self.with(slots, level, part, mem, |start| access(start, bytes));
            pfn = part.end();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::pool::to_u64;
    use crate::stage1::{Bti, El2Config, El2Tables, el2_tables_needed};
    use crate::testing::{Event, Memory, WorstTlb, walk_stage1};

    const CPUS: u64 = 2;
    const FRAME: Pfn = Pfn(0x12_3456);

    #[test]
    fn ram_ends_where_addresses_do_and_below_the_windows() {
        assert_eq!(ram_limit(40), Pfn(1 << 28));
        assert_eq!(ram_limit(48), Pfn(WINDOW_BASE >> PAGE_SHIFT));
    }

    /// The windows of CPU 1, and what reads the tables.
    fn window() -> (Fixmap<WorstTlb>, Memory, u64, WorstTlb) {
        let memory = Memory::new(0x4_0000, el2_tables_needed(&[], 0, CPUS));
        let tlb = WorstTlb::new(memory);
        let config = El2Config { map: memory.map(), sections: &[], cpus: CPUS, bti: Bti::Absent };
        // SAFETY: the memory is new, zero, and only these tables'.
        let tables = unsafe { El2Tables::new(config, memory.range(), tlb.clone()) };
        // SAFETY: once.
        let window = unsafe { tables.windows(1) }.frames;
        let root = tables.regs(48).ttbr0;
        // The pages stay; dropping the tables would put them on a list.
        std::mem::forget(tables);
        (window, memory, root, tlb)
    }

    fn page_of(pointer: NonNull<u8>) -> u64 {
        to_u64(pointer.addr().get()) >> PAGE_SHIFT
    }

    #[test]
    fn a_window_shows_its_frame_with_its_type_for_the_time_of_the_access() {
        let types =
            [(WindowType::Device, 0), (WindowType::Uncached, 1), (WindowType::Cacheable, 2)];
        for (mem, index) in types {
            let (mut window, memory, root, tlb) = window();
            let page = window.with_page(FRAME, mem, |pointer| {
                let found = walk_stage1(&memory, root, page_of(pointer)).unwrap();
                assert_eq!((found.pfn, found.pages), (FRAME.0, 1));
                assert_eq!(found.bits >> 2 & 0b111, index, "AttrIndx");
                assert_eq!(found.bits >> 54 & 1, 1, "never executable");
                page_of(pointer)
            });
            assert_eq!(walk_stage1(&memory, root, page), None);
            let gone = PfnRange::single(Pfn(page)).unwrap();
            assert_eq!(tlb.events(), [Event::Publish, Event::El2(gone)]);
            assert!(page >= window_page(1) && page < window_page(2), "another CPU's window");
        }
    }

    #[test]
    fn ranges_are_covered_in_order_without_mapping_a_neighbour() {
        let (mut window, memory, root, _) = window();
        let ranges = [(512, 512), (511, 2), (0x4_0001, 1500), (1024, 1024), (7, 1), (513, 511)];
        for (start, pages) in ranges {
            let range = PfnRange::new(Pfn(start), pages).unwrap();
            let mut parts = Vec::new();
            window.with_range(range, WindowType::Device, |pointer, len| {
                let first = page_of(pointer);
                let pages = to_u64(len) >> PAGE_SHIFT;
                (0..1024).for_each(|offset| {
                    let page = window_page(1) + offset;
                    let Some(found) = walk_stage1(&memory, root, page) else { return };
                    assert!(range.contains(Pfn(found.pfn)), "{found:x?} is not in {range:?}");
                });
                (0..pages).for_each(|page| {
                    let found = walk_stage1(&memory, root, first + page).unwrap();
                    parts.push(found.pfn);
                });
            });
            assert!(parts.into_iter().eq(range.iter().map(|pfn| pfn.0)), "{range:?}");
        }
    }

    #[test]
    fn an_aligned_2_mib_is_one_descriptor() {
        let (mut window, memory, root, tlb) = window();
        let range = PfnRange::new(Pfn(1024), 512).unwrap();
        window.with_range(range, WindowType::Cacheable, |pointer, _| {
            assert_eq!(walk_stage1(&memory, root, page_of(pointer)).unwrap().pages, 512);
        });
        let gone = PfnRange::single(Pfn(window_page(1) + 512)).unwrap();
        assert_eq!(tlb.events(), [Event::Publish, Event::El2(gone)]);
    }
}
